"""`flan-jax prepare`: make the store of a run ahead of it, on a machine without accelerators."""

from flan_jax.jobs.data import DataPlan
from flan_jax.jobs.evaluation import EvaluationPlan
from flan_jax.jobs.models import ModelSource


def prepare(
  model: ModelSource,
  data: DataPlan,
  steps: int,
  batch_size: int,
  validation_batches: int = 0,
  evaluation: EvaluationPlan | None = None,
) -> None:
  """Renders, tokenises and packs what so many steps need, and reads what is to be judged.

  Args:
    validation_batches: also make the store of the validation split, for the held-out loss.
    evaluation: also build the records of its tasks.
  """
  judged = [task.dataset for task in evaluation.evaluation_tasks()] if evaluation else []
  store = data.store(model, steps * batch_size, judged)
  if validation_batches:
    unseen = data.validation_store(model, validation_batches * batch_size)
    print(f"{unseen.rows:,} rows of the validation split in {unseen.directory}")
  print(f"{store.rows:,} rows in {store.directory}")
  for name, counts in store.counts().items():
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.dropped.items())
    print(
      f"  {name}: {counts.examples:,} examples, {counts.tokens:,} tokens, {counts.loss_tokens:,} of "
      f"them targets; {counts.shortened:,} shortened; {counts.shots_dropped:,} exemplars left out; "
      f"dropped: {dropped or 'none'}"
    )
