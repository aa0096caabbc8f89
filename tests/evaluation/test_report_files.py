"""The report as a page and as Markdown: what stands in them, and what may not."""

import html.parser
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics

from flan_jax.evaluation.calibration import report_reliability
from flan_jax.evaluation.markdown import markdown, write_markdown
from flan_jax.evaluation.option_scores import OptionScores
from flan_jax.evaluation.pages.confusion import confusion_of
from flan_jax.evaluation.pages.example_browser import embedded
from flan_jax.evaluation.pages.report_page import html_page, write_html
from flan_jax.evaluation.report import build_report
from flan_jax.evaluation.results import ScoredExample, TemplateResult
from flan_jax.evaluation.table import terminal_table

from .known_results import (
  GOLDS,
  NAMES,
  evaluation,
  example,
  judged_by,
  right_on,
  several,
  task,
  template,
  written,
)

HOSTILE = "</script><em>b</em><!-- <script> 'x' \"y\" & ünï 東京 🦜 \u2028 $x$ |a| `b`"


class Page(html.parser.HTMLParser):
  """Counts tags, keeps the embedded examples, and fails on any address outside the page."""

  def __init__(self, text):
    super().__init__()
    self.open, self.seen, self.data, self.headings = [], [], "", []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.seen.append(tag)
    if tag not in ("meta", "br", "input"):
      self.open.append((tag, dict(attrs)))
    for name, value in attrs:
      if name in ("src", "href", "xlink:href"):
        assert value.startswith("#"), value

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_startendtag(self, tag, attrs):
    self.seen.append(tag)

  def handle_data(self, data):
    tag, attributes = self.open[-1] if self.open else ("", {})
    if attributes.get("id") == "example-data":
      self.data += data
    if tag == "h2":
      self.headings.append(data)

  @property
  def groups(self):
    return json.loads(self.data)


def page_of(report) -> Page:
  page = Page(html_page(report, "x"))
  assert page.open == []
  return page


def test_the_page_stands_alone(tmp_path):
  before, after = several()
  log = tmp_path / "metrics.jsonl"
  log.write_text("".join(json.dumps({"step": s, "loss": 3 / (s + 1)}) + "\n" for s in range(40)))
  write_html(build_report(after, before, resamples=200), tmp_path / "report.html", run_dir=tmp_path)
  text = (tmp_path / "report.html").read_text()
  page = Page(text)
  assert page.open == [] and "#0a0b" not in text and "http" not in re.sub(r"xmlns\S*", "", text)
  assert page.headings == [
    "Clusters",
    "Tasks",
    "Spread over templates",
    "Before and after",
    "Calibration",
    "Confusion",
    "Training loss",
    "Examples",
    "How it was run",
  ]
  assert page.seen.count("svg") == 6


def test_one_checkpoint_alone_has_nothing_that_needs_two():
  _, after = several()
  page = page_of(build_report(after, resamples=100))
  assert "Before and after" not in page.headings and "Confusion" in page.headings
  assert page.seen.count("svg") == 4
  assert not any("before" in e for group in page.groups for e in group["examples"])


def test_written_texts_have_neither_calibration_nor_confusion():
  report = build_report(evaluation(written(["a b", ""], ["a b", "c"], "f1")), resamples=10)
  page = page_of(report)
  assert not {"Calibration", "Confusion"} & set(page.headings)
  ((one, other),) = (group["examples"] for group in page.groups)
  assert one["after"] == {"text": "a b", "value": 1} and other["after"] == {"text": "", "value": 0}
  assert "options" not in one and report_reliability(report) == {}


def test_the_same_report_gives_the_same_page():
  before, after = several()
  report = build_report(after, before, resamples=200)
  assert html_page(report, "x") == html_page(report, "x")


def one_example(**changed) -> ScoredExample:
  return replace(example(0, 1, 1.0), **changed)


def report_of(*examples: ScoredExample, fixed=False):
  result = TemplateResult("a", "accuracy", fixed, tuple(examples))
  return build_report(evaluation(task("t", [result])), resamples=10)


def test_text_of_the_data_is_never_markup():
  options = (HOSTILE, "")
  hostile = one_example(inputs=HOSTILE, options=options, golds=("", HOSTILE), labels=options)
  page = page_of(report_of(hostile, fixed=True))
  (shown,) = page.groups[0]["examples"]
  assert shown["inputs"] == HOSTILE and shown["golds"] == ["", HOSTILE]
  assert [option[0] for option in shown["options"]] == [HOSTILE, ""]
  assert "em" not in page.seen and page.seen.count("script") == 2


def test_names_are_never_markup_either():
  result = replace(template(HOSTILE, right_on(0.8), GOLDS), template=HOSTILE)
  with_name = evaluation(task("<i>t$x$</i>", [result], "<u>c</u>", held_out=True))
  page = page_of(build_report(with_name, with_name, resamples=10, notes=["<s>n</s>"]))
  assert not {"i", "u", "s", "em"} & set(page.seen)


def test_each_example_has_its_scores_before_and_after():
  before, after = several()
  page = page_of(build_report(after, before, resamples=10))
  group = page.groups[0]
  assert (group["task"], group["template"], group["of"]) == ("bbc", "a", 100)
  for k, shown in enumerate(group["examples"]):
    old, new = (e.tasks[0].templates[0].examples[k] for e in (before, after))
    assert shown["index"] == k and [o[0] for o in shown["options"]] == ["bad", "good"]
    assert [o[2] for o in shown["options"]] == [gold in new.golds for gold in new.options]
    assert [o[3] for o in shown["options"]] == list(new.scores.total)
    assert [o[4] for o in shown["options"]] == list(old.scores.total)
    said = [shown[role]["text"] for role in ("after", "before")]
    assert [shown["options"][k][0] for k in shown["chosen"]] == said


def test_examples_are_paired_by_their_index():
  after = evaluation(task("t", [template("a", right_on(1.0), GOLDS)]))
  turned = replace(after.tasks[0].templates[0], examples=after.tasks[0].templates[0].examples[::-1])
  report = build_report(
    after, evaluation(replace(after.tasks[0], templates=(turned,))), resamples=10
  )
  for shown in page_of(report).groups[0]["examples"]:
    assert shown["before"] == shown["after"]


def test_of_many_options_those_that_matter_are_kept():
  options = tuple(f"option {i}" for i in range(300))
  totals = tuple(-1.0 if i == 200 else -9.0 for i in range(300))
  many = one_example(
    options=options,
    labels=tuple(map(str, range(300))),
    golds=("option 250",),
    option_ids=((1,),) * 300,
    scores=OptionScores(totals, totals, (1,) * 300, (9,) * 300),
  )
  (shown,) = page_of(report_of(many)).groups[0]["examples"]
  kept = [option[0] for option in shown["options"]]
  assert kept == [*options[:40], "option 200", "option 250"] and shown["more"] == 258
  assert kept[shown["chosen"][0]] == "option 200"


def test_a_long_prompt_is_cut_in_its_middle():
  text = "begin " + "x" * 50_000 + " end"
  (shown,) = page_of(report_of(one_example(inputs=text))).groups[0]["examples"]
  assert shown["inputs"].startswith("begin ") and shown["inputs"].endswith(" end")
  assert "[... 47,010 characters ...]" in shown["inputs"] and len(shown["inputs"]) < 3100


def test_a_big_report_makes_no_big_page():
  long = [one_example(index=i, inputs=f"{i} " + "<word> " * 2000) for i in range(300)]
  templates = [TemplateResult(f"t{k}", "accuracy", True, tuple(long)) for k in range(10)]
  report = build_report(evaluation(*(task(f"n{k}", templates) for k in range(5))), resamples=10)
  text = html_page(report, "x")
  assert len(text) < 7_000_000
  sizes = [len(group["examples"]) for group in Page(text).groups]
  assert sizes == sorted(sizes, reverse=True) and sizes[0] - 1 <= sizes[-1] < 200 and sizes[-1] > 1
  assert "of 15,000 examples are on this page" in text and "are left out" in text
  few = embedded(report, examples=3)
  assert {len(group["examples"]) for group in few} == {3} and few[0]["of"] == 300


def test_confusion_is_scikit_learns_over_all_templates():
  margins = [right_on(0.7, seed) for seed in range(3)]
  found = confusion_of(task("t", [template("a", m, GOLDS) for m in margins]), "t0")
  expected = sum(sklearn.metrics.confusion_matrix(GOLDS, m > 0) for m in margins)
  assert found.labels == NAMES and (found.counts == expected).all()


def test_labels_that_are_numbers_stand_by_value():
  named = [replace(example(i, 1, 1.0), labels=("10", "9")) for i in range(3)]
  found = confusion_of(task("t", [TemplateResult("a", "accuracy", True, tuple(named))]), "t0")
  assert found.labels == ("9", "10") and found.counts.tolist() == [[3, 0], [0, 0]]


def test_labels_that_vary_or_are_many_have_no_confusion():
  plain = template("a", right_on(0.7), GOLDS)
  assert confusion_of(task("t", [plain, replace(plain, fixed_labels=False)]), "t0") is None
  labels = tuple(map(str, range(13)))
  scores = OptionScores((-1.0,) * 13, (-1.0,) * 13, (1,) * 13, (1,) * 13)
  many = one_example(options=labels, labels=labels, golds=("0",), scores=scores)
  assert confusion_of(task("t", [TemplateResult("a", "accuracy", True, (many,))]), "t0") is None


def test_in_the_curve_every_task_weighs_the_same():
  small = [example(i, 1, 3.0) for i in range(10)]  # sure and right
  tasks = [task("small", [TemplateResult("a", "accuracy", True, tuple(small))])]
  tasks.append(task("large", [template(n, -0.2 * right_on(1), GOLDS) for n in "ab"]))
  curve = report_reliability(build_report(evaluation(*tasks), resamples=10))["after"]
  assert curve.share == pytest.approx([0.5, 0.5]) and curve.accuracy == pytest.approx([0, 1])
  assert curve.confidence == pytest.approx(1 / (1 + np.exp([-0.2, -3.0])))


@pytest.mark.parametrize("templates", [1, 4, 12])
def test_any_number_of_templates_is_drawn(templates):
  results = [
    template(f"t{k}", right_on(0.5 + 0.04 * k), GOLDS, k % 2 == 1) for k in range(templates)
  ]
  both = evaluation(task("t", results))
  assert page_of(build_report(both, both, resamples=10)).seen.count("svg") == 5


def tables(text: str) -> dict[str, list[dict[str, str]]]:
  """The tables of a Markdown text by heading, each row by its column's head."""
  found = {}
  for part in text.split("\n## ")[1:]:
    heading, *lines = part.splitlines()
    cells = [
      [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
      for line in lines
      if line.startswith("|")
    ]
    if cells:
      assert all(set(rule) <= set(":-") for rule in cells[1])
      found[heading] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
  return found


def test_markdown_has_the_numbers_of_the_report(tmp_path):
  before, after = several()
  report = build_report(after, before, resamples=200, notes=["a | b, *c*"])
  report.write(tmp_path)
  write_markdown(report, tmp_path / "report.md")
  data = json.loads((tmp_path / "report.json").read_text())
  text = (tmp_path / "report.md").read_text()
  found = tables(text)
  assert list(found) == ["Means", "Training tasks", "Held out: commonsense", "Held out: sentiment"]
  for shown, row in zip(found["Means"], data["macro"], strict=True):
    low, high = row["delta_interval"]
    assert shown["group"] == row["name"] and shown["after"] == f"{row['after']:.3f}"
    assert shown["change [95 %]"] == f"{row['delta']:+.3f} [{low:.3f}, {high:.3f}]"
  of_tasks = {row["task"]: row for heading in list(found)[1:] for row in found[heading]}
  for row in data["tasks"]:
    shown, (low, high) = of_tasks[row["name"]], row["delta_interval"]
    assert shown["before"] == f"{row['before']:.3f}" and shown["n"] == str(row["n"])
    assert shown["change [95 %]"] == f"{row['delta']:+.3f} [{low:.3f}, {high:.3f}]"
    assert shown["ECE"] == f"{row['ece_before']:.2f} → {row['ece_after']:.2f}"
    assert shown["change [95 %]"] in terminal_table(report)
  assert r"- a \| b, \*c\*" in text


def test_markdown_of_one_checkpoint_and_of_further_metrics():
  report = build_report(
    evaluation(judged_by("macro_f1", right_on(0.7), GOLDS, "accuracy")), resamples=50
  )
  first, also = tables(markdown(report, "x"))["Training tasks"]
  low, high = report.tasks[0]["after_interval"]
  assert first["value [95 %]"] == f"{report.tasks[0]['after']:.3f} [{low:.3f}, {high:.3f}]"
  assert "before" not in first and first["verdict"] == ""
  assert also["metric"] == "accuracy" and also["value [95 %]"].startswith("0.700 [")
