"""A web page as one file that needs nothing else: light or dark, readable on a phone."""

from collections.abc import Iterable
from html import escape


def page(title: str, body: str, style: str = "", script: str = "") -> str:
  """The page as text.

  Args:
    title: plain text.
    body: HTML.
    style: CSS after that which all pages have.
    script: JavaScript that runs when the body stands.
  """
  end = f"<script>{script}</script>\n" if script else ""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body><main>\n{body}\n"
    f"</main>{end}</body></html>\n"
  )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
  """A list of names and what stands for each, all plain text."""
  items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
  return f"<dl>{items}</dl>"


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --muted: #5f6873;
  --grid: #e3e6ea; --before: #9aa7b5; --after: #1f6feb; --collapsed: #c2572b; --good: #1a7f4b; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed;
  --muted: #9aa4b0; --grid: #2c333b; --before: #5d6b7a; --after: #5aa0ff; --collapsed: #e08a5b;
  --good: #57c08a; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.lead, small, .legend, dt { color: var(--muted); }
.chip { border-radius: 1em; padding: .05em .6em; border: 1px solid var(--muted); }
details { border-bottom: 1px solid var(--grid); padding: .4rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--grid);
  padding-left: .8rem; font-size: .85rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .15rem 1rem;
  font-size: .85rem; margin: .5rem 0; } dt, dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: .5rem 0; max-width: 44rem; } figure svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--grid);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
thead th { color: var(--muted); font-weight: normal; }
tbody th { position: sticky; left: 0; background: var(--paper); }
.chip.improved { border-color: var(--good); color: var(--good); }
.chip.worse, .chip.collapsed { border-color: var(--collapsed); color: var(--collapsed); }
"""
