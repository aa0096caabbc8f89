"""The gallery as one web page: every dataset, what it is, and each template as written and on its record."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from flan_jax.prompting.dataset_spec import DatasetSpec
from flan_jax.prompting.gallery import answers, notes, shown
from flan_jax.prompting.placeholders import parse
from flan_jax.prompting.promptsource import AnyTemplate
from flan_jax.prompting.template import Rendering
from flan_jax.web_page import definitions, page


def gallery_page(specs: Sequence[DatasetSpec], seed: int = 0) -> str:
  """The page as text; it needs no other file.

  Args:
    specs: the datasets, shown cluster by cluster.
    seed: chooses the options' style and order.
  """
  specs = sorted(specs, key=lambda spec: (spec.cluster, spec.name))
  clusters = [(name, list(group)) for name, group in groupby(specs, lambda spec: spec.cluster)]
  templates = sum(len(spec.templates) for spec in specs)
  body = [
    f'<header><h1>Templates</h1><p class="lead">{_count(templates, "template")} of '
    f"{_count(len(specs), 'dataset')} in {_count(len(clusters), 'cluster')}.</p></header>",
    f"<nav>{_SEARCH}{''.join(_index(name, group) for name, group in clusters)}</nav><div>",
  ]
  for name, group in clusters:
    datasets = "".join(_dataset(spec, seed, is_open=len(specs) == 1) for spec in group)
    body.append(f'<section class="cluster"><h2>{escape(name)}</h2>{datasets}</section>')
  return page("Templates", "\n".join([*body, "</div>"]), _STYLE, _SCRIPT)


def _count(number: int, thing: str) -> str:
  return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _index(cluster: str, specs: Sequence[DatasetSpec]) -> str:
  entries = "".join(
    f'<li data-dataset="{escape(spec.name)}"><a href="#{escape(spec.name)}">{escape(spec.name)}</a> '
    f"<small>{len(spec.templates)}</small></li>"
    for spec in specs
  )
  return f'<div class="cluster"><h3>{escape(cluster)}</h3><ul>{entries}</ul></div>'


def _dataset(spec: DatasetSpec, seed: int, is_open: bool) -> str:
  name = escape(spec.name)
  record = spec.derive_record(spec.record) or {}
  articles = "\n".join(_template(spec, template, record, seed) for template in spec.templates)
  return (
    f'<details id="{name}" data-dataset="{name}"{" open" if is_open else ""}><summary><b>{name}</b> '
    f"<span>{escape(spec.description)}</span></summary>\n"
    f"{definitions(_facts(spec))}{_link(spec.url)}\n{articles}\n</details>\n"
  )


def _facts(spec: DatasetSpec) -> Iterator[tuple[str, str]]:
  yield "source", _listed(spec.source)
  yield "splits", _listed(spec.splits)
  yield "licence", spec.licence or "not stated"
  if spec.citation:
    yield "citation", spec.citation
  if spec.fields:
    yield "fields", _listed(spec.fields)
  if spec.answer is not None and spec.answer.labels is not None:
    yield "choices", _listed(spec.answer.labels)
  if spec.metrics:
    yield "metrics", ", ".join(spec.metrics)


def _listed(mapping: Mapping[str, Any]) -> str:
  return ", ".join(f"{key}: {value}" for key, value in mapping.items())


def _link(url: str) -> str:
  if not url.startswith(("https://", "http://")):
    return ""
  return f'<p><a href="{escape(url)}">{escape(url)}</a></p>'


def _template(
  spec: DatasetSpec, template: AnyTemplate, record: Mapping[str, Any], seed: int
) -> str:
  rendering = shown(spec, template, record, seed=seed)
  chips = "".join(f'<span class="chip">{escape(note)}</span>' for note in notes(template, spec))
  marked = escape if spec.keeps_raw_records else _marked
  written = "".join(_turn(marked(turn.input), marked(turn.target)) for turn in template.texts)
  return (
    f'<article id="{escape(spec.name)}.{escape(template.name)}"><h3>{escape(template.name)}'
    f'{chips}</h3><div class="sides"><div><small>as written</small>{written}</div>'
    f"<div>{_rendered(rendering)}</div></div></article>"
  )


def _rendered(rendering: Rendering | None) -> str:
  if rendering is None:
    return "<small>not for the file's record</small>"
  style = "" if rendering.style == "none" else f", options: {rendering.style}"
  turns = "".join(_turn(escape(turn.input), escape(turn.target)) for turn in rendering.turns)
  told = answers(rendering)
  return f"<small>on the file's record{style}</small>{turns}" + (
    f'<p class="legend">{escape(told)}</p>' if told else ""
  )


def _turn(asked: str, answered: str) -> str:
  return f'<pre>{asked}</pre><pre class="target">{answered}</pre>'


def _marked(text: str) -> str:
  """An author's text with its placeholders marked."""
  return "".join(
    f"<mark>{{{piece.text}}}</mark>"
    if piece.is_placeholder
    else escape(piece.text.replace("{", "{{").replace("}", "}}"))
    for piece in parse(text)
  )


_SEARCH = '<input type="search" placeholder="Search in all texts" aria-label="Search in all texts">'

_STYLE = """
main { max-width: 84rem; } h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
nav input { width: 100%; box-sizing: border-box; font: inherit; padding: .35rem .6rem;
  color: inherit; background: var(--paper); border: 1px solid var(--grid); border-radius: .4rem; }
nav ul { list-style: none; margin: 0; padding: 0; font-size: .85rem; }
nav li { display: inline-block; margin-right: .8rem; }
nav h3 { color: var(--muted); font-weight: normal; font-size: .85rem; margin: .8rem 0 .1rem; }
a { color: var(--after); overflow-wrap: anywhere; } nav a { text-decoration: none; }
summary span { color: var(--muted); } details > p, dl { font-size: .85rem; }
article { border-top: 1px solid var(--grid); margin-top: 1rem; }
article h3 { font-family: ui-monospace, monospace; }
.chip { font: .75rem system-ui, sans-serif; color: var(--muted); margin-left: .6em; }
.legend { font-size: .8rem; margin: .3rem 0; overflow-wrap: anywhere; }
pre { margin: .3rem 0; } pre.target { border-left-color: var(--good); }
mark { color: var(--after); background: color-mix(in srgb, var(--after) 12%, transparent);
  border-radius: .2rem; padding: 0 .1em; }
:target > summary, article:target h3 { background: color-mix(in srgb, var(--after) 12%, transparent); }
[hidden] { display: none; }
@media (min-width: 52rem) {
  main { display: grid; grid-template-columns: 15rem minmax(0, 1fr); column-gap: 2rem; }
  header { grid-column: 1 / -1; }
  nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: .5rem; box-sizing: border-box; }
  nav li { display: block; margin: 0; }
  .sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
  .sides > div { min-width: 0; } }
"""

_SCRIPT = """
const search = document.querySelector("input[type=search]");
const datasets = [...document.querySelectorAll("details[data-dataset]")];
const texts = new Map(datasets.map(d => [d.id,
  (d.closest(".cluster").querySelector("h2").textContent + " " + d.textContent).toLowerCase()]));
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const entry of document.querySelectorAll("[data-dataset]"))
    entry.hidden = !words.every(word => texts.get(entry.dataset.dataset).includes(word));
  for (const cluster of document.querySelectorAll(".cluster"))
    cluster.hidden = !cluster.querySelector("[data-dataset]:not([hidden])");
});
function open() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  target.closest("details").open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", open);
open();
"""
