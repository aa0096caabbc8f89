"""A small dataset of the user's own, and SeqIO's registries for a test alone."""

import json
from pathlib import Path

import pytest
import yaml

from flan_jax.data import library, seqio_stream
from flan_jax.data import mixtures as own_mixtures

TEMPLATES = [
  {"name": "ask", "input": "{question}\n{options}", "target": "{answer}"},
  {"name": "answer_with", "input": "Answer: {question}", "target": "{answer}"},
  {"name": "kept_back", "input": "Tell me, {question}", "target": "{answer}", "unseen": True},
]


@pytest.fixture
def own_registry(monkeypatch):
  """What a test registers is forgotten after it."""
  library.import_library()
  monkeypatch.setattr(own_mixtures, "_mixtures", dict(own_mixtures._mixtures))
  monkeypatch.setattr(library, "_template_folders", [])


@pytest.fixture
def make_dataset(tmp_path):
  """Writes `templates/<cluster>/<name>.yaml` and its records, and returns the file's path.

  Further keywords replace keys of the dataset file.
  """

  def make(name="facts", rows=40, cluster="trivia", **changes) -> Path:
    if isinstance(rows, int):
      rows = [{"question": f"is {name} {i} odd?", "label": "ny"[i % 2]} for i in range(rows)]
    folder = tmp_path / "templates" / cluster
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = {
      "cluster": cluster,
      "description": "Whether a number is odd.",
      "source": {"files": f"{name}.jsonl"},
      "splits": {"train": 0.75, "test": 0.25},
      "fields": {"question": "text", "label": "text"},
      "answer": {"field": "label", "choices": {"y": "yes", "n": "no"}},
      "metrics": ["accuracy"],
      "licence": "CC0-1.0",
      "record": {"question": "is 3 odd?", "label": "y"},
      "templates": TEMPLATES,
    }
    path = folder / f"{name}.yaml"
    kept = {key: value for key, value in (description | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path

  return make


@pytest.fixture
def seqio():
  """SeqIO, whose registries forget after a test what it registered."""
  seqio = pytest.importorskip("seqio")
  seqio_stream.register_t5()  # once for all tests: a module is imported once
  registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
  kept = [set(registry.names()) for registry in registries]
  yield seqio
  for registry, names in zip(registries, kept, strict=True):
    for name in set(registry.names()) - names:
      registry.remove(name)
