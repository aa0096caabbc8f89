"""The examples of a report, to be leafed through on its page: by task, template, and what became of them.

The page holds them as JSON, and some lines of JavaScript show one at a time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

from flan_jax.evaluation import metrics
from flan_jax.evaluation.pages.browser_parts import BODY
from flan_jax.evaluation.report import Comparison, Report
from flan_jax.evaluation.results import ScoredExample, TemplateResult

_EXAMPLES = 200
_CHARACTERS = 6_000_000
_PROMPT_CHARACTERS = 3000
_TEXT_CHARACTERS = 600
_OPTIONS = 40


def example_browser(report: Report) -> str:
  """The browser as HTML, with the examples that it shows."""
  groups = embedded(report)
  shown = sum(len(group["examples"]) for group in groups)
  whole = sum(group["of"] for group in groups)
  told = f"All {whole:,} examples are on this page."
  if shown < whole:
    told = (
      f"{shown:,} of {whole:,} examples are on this page, of every template the first ones; the "
      f"other {whole - shown:,} are left out."
    )
  return BODY.format(
    told=told, prompt_characters=f"{_PROMPT_CHARACTERS:,}", data=_in_script(groups)
  )


def embedded(
  report: Report, examples: int = _EXAMPLES, characters: int = _CHARACTERS
) -> list[dict[str, Any]]:
  """What the page holds of every task and template, of each equally many examples or one more.

  Args:
    examples: of a task under a template, at most.
    characters: of them all as JSON, at most.
  """
  groups: list[dict[str, Any]] = []
  found = []
  for comparison in sorted(report.comparisons, key=lambda comparison: comparison.after.held_out):
    for k, template in enumerate(comparison.after.templates):
      groups.append(
        {
          "task": comparison.after.name,
          "template": template.template,
          "metric": template.metric,
          "of": len(template.examples),
          "examples": [],
        }
      )
      found.append(islice(_entries(comparison, k, report.scoring), examples))
  for entries in zip_longest(*found):
    for group, entry in zip(groups, entries, strict=True):
      if entry is not None:
        characters -= len(_in_script(entry))
        if characters < 0:
          return groups
        group["examples"].append(entry)
  return groups


def _entries(comparison: Comparison, k: int, scoring: str) -> Iterator[dict[str, Any]]:
  """The examples of template k, each with what was said before of the same one."""
  template = comparison.after.templates[k]
  old = _said(comparison.before.templates[k], scoring) if comparison.before is not None else {}
  for index, (example, after) in _said(template, scoring).items():
    known, before = old.get(index, (None, None))
    entry: dict[str, Any] = {
      "index": index,
      "inputs": _cut(example.inputs, _PROMPT_CHARACTERS),
      "golds": [_cut(gold) for gold in example.golds],
      "after": after,
    }
    if before is not None:
      entry["before"] = before
    if example.scores is not None:
      entry |= _options(template, example, known, scoring)
    yield entry


def _said(
  template: TemplateResult, scoring: str
) -> dict[int, tuple[ScoredExample, dict[str, Any]]]:
  """What was chosen or written in each example, and what it earned, by index."""
  said = zip(template.predictions(scoring), template.alone(scoring).tolist(), strict=True)
  return {
    example.index: (example, {"text": _cut(text), "value": round(value, 4)})
    for example, (text, value) in zip(template.examples, said, strict=True)
  }


def _options(
  template: TemplateResult, example: ScoredExample, old: ScoredExample | None, scoring: str
) -> dict[str, Any]:
  """Options as [text, label where it says more, whether right, score after, before], which of them
  were chosen after and before, and how many are left out.
  """
  scores = {"after": _scores(example, example, scoring), "before": _scores(old, example, scoring)}
  chosen = [metrics.first_maximum(found) for found in scores.values() if found]
  right = [option in example.golds for option in example.options]
  kept = [i for i in range(len(example.options)) if i < _OPTIONS or i in chosen or right[i]]
  rows = [
    [
      _cut(example.options[i]),
      _cut(example.labels[i]) if _tells(template, example, i) else "",
      right[i],
      *(round(found[i], 3) for found in scores.values() if found),
    ]
    for i in kept
  ]
  return {
    "options": rows,
    "chosen": [kept.index(i) for i in chosen],
    "more": len(example.options) - len(kept),
  }


def _scores(of: ScoredExample | None, like: ScoredExample, scoring: str) -> Sequence[float]:
  """Those of an example; () if it has none, or other options."""
  return of.scores.by(scoring) if of and of.scores and of.options == like.options else ()


def _tells(template: TemplateResult, example: ScoredExample, i: int) -> bool:
  return template.fixed_labels and example.labels[i] != example.options[i]


def _cut(text: str, characters: int = _TEXT_CHARACTERS) -> str:
  """The text without its middle, if it is longer than so many characters."""
  left_out = len(text) - characters
  if left_out <= 0:
    return text
  begin = characters // 2
  return f"{text[:begin]} [... {left_out:,} characters ...] {text[begin + left_out :]}"


def _in_script(value: Sequence[Any] | Mapping[str, Any]) -> str:
  """JSON that no browser takes for the end of the script it stands in."""
  return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
