"""Fields of collections of tasks, each with its instructions."""

_EVALUATION = "_mmmlu_"


def natural_instructions(record: dict) -> dict | None:
  """One instance of a task: its definition, an input, and the output that is right.

  The tasks made of MMLU are left out, since models are judged on it.
  """
  if _EVALUATION in record["task_name"]:
    return None
  fields = {name: record[name].strip() for name in ("definition", "input", "output", "task_name")}
  return fields if fields["definition"] and fields["input"] else None
