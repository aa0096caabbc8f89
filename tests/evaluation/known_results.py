"""Evaluations whose numbers are known."""

from dataclasses import replace

import numpy as np

from flan_jax.evaluation.option_scores import OptionScores
from flan_jax.evaluation.results import Evaluation, ScoredExample, TaskResult, TemplateResult

NAMES = ("negative", "positive")


def example(index: int, gold: int, margin: float, options=("bad", "good")) -> ScoredExample:
  """The second option scores `margin` above the first."""
  totals = (-5.0, -5.0 + margin)
  return ScoredExample(
    index,
    f"review <{index}>",
    (7, 8, index),
    (options[gold],),
    options,
    NAMES,
    ((4, 1), (5, 1)),
    OptionScores(totals, totals, (2, 2), (3, 4)),
  )


def template(name: str, margins, golds, unseen=False) -> TemplateResult:
  examples = tuple(
    example(i, int(gold), float(margin))
    for i, (gold, margin) in enumerate(zip(golds, margins, strict=True))
  )
  return TemplateResult(name, "accuracy", True, examples, unseen)


def task(name: str, templates, cluster="topic", held_out=False) -> TaskResult:
  indices = tuple(e.index for e in templates[0].examples)
  return TaskResult(name, cluster, held_out, "test", 0, 0, indices, (), tuple(templates))


def evaluation(*tasks: TaskResult, format="plain", checkpoint="tuned") -> Evaluation:
  return Evaluation(checkpoint, format, "t0", tasks, {"checkpoint": "abc", "format": "def"}, 1.5)


GOLDS = np.arange(100) % 2
RIGHT = np.where(GOLDS == 1, 1.0, -1.0)


def right_on(share: float, seed: int = 0) -> np.ndarray:
  """Margins that are right on this share of the examples."""
  wrong = np.random.default_rng(seed).permutation(100) >= round(100 * share)
  return np.where(wrong, -RIGHT, RIGHT)


def judged_by(metric: str, margins, golds, *also: str) -> TaskResult:
  return task("t", [replace(template("a", margins, golds), metric=metric, also=also)])


def written(texts, golds, metric: str = "bleu") -> TaskResult:
  examples = tuple(
    ScoredExample(i, "x", (1,), (gold,), generated=text)
    for i, (text, gold) in enumerate(zip(texts, golds, strict=True))
  )
  return task("t", [TemplateResult("a", metric, False, examples)])


def several() -> tuple[Evaluation, Evaluation]:
  specs = [("bbc", "topic", False), ("movies", "sentiment", True), ("piqa", "commonsense", True)]
  return tuple(
    evaluation(
      *(
        task(name, [template(t, right_on(share + 0.03 * i), GOLDS) for t in "ab"], cluster, held)
        for i, (name, cluster, held) in enumerate(specs)
      ),
      checkpoint=checkpoint,
    )
    for share, checkpoint in ((0.5, "untuned"), (0.8, "tuned"))
  )
