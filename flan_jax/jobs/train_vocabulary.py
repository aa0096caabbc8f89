"""`flan-jax train_vocabulary`: a SentencePiece vocabulary made of what a mixture trains on."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from tqdm import tqdm

from flan_jax.data.atomic import build_once
from flan_jax.data.home import data_home
from flan_jax.data.training_text import training_text, training_text_fingerprint
from flan_jax.errors import ConfigError, differences
from flan_jax.jobs.processes import first_alone, is_first
from flan_jax.jobs.user_modules import require_own
from flan_jax.vocabularies import (
  SentencePieceVocabulary,
  Vocabulary,
  load_vocabulary,
  train_sentencepiece,
)
from flan_jax.vocabularies.sentencepiece_training import check_vocabulary_size

_SETTINGS = "training.json"


def train_vocabulary(
  directory: str,
  mixture: str,
  *,
  size: int = 32_000,
  extra_ids: int = 100,
  control_tokens: tuple[str, ...] = (),
  model_type: Literal["unigram", "bpe"] = "unigram",
  characters: int = 10_000_000,
  seed: int = 0,
) -> None:
  """Makes a folder that `saved_vocabulary` reads; one that is there from the same settings stays.

  Args:
    directory: where it is written, whole or not at all.
    mixture: its training text, in the words of its templates: see `training_text`.
    size, extra_ids, control_tokens, model_type: see `train_sentencepiece`; `size` counts the sentinels.
    characters: at most so much text is used.
    seed: of the draws.
  """
  if not directory:
    raise ConfigError("train_vocabulary.directory is empty; name the folder that is to be made.")
  finished = Path(directory).is_dir()
  vocabulary = _vocabulary(
    Path(directory),
    mixture=mixture,
    mixture_fingerprint=_text_fingerprint(mixture),
    size=size,
    extra_ids=extra_ids,
    control_tokens=list(control_tokens),
    model_type=model_type,
    characters=characters,
    seed=seed,
  )
  if is_first():
    print(
      f"{directory}: {vocabulary.size:,} tokens, fingerprint {vocabulary.fingerprint[:16]}"
      + (" (finished before)" if finished else "")
    )


def trained_vocabulary(
  mixture: str, *, size: int = 32_000, characters: int = 10_000_000, seed: int = 0
) -> Vocabulary:
  """The vocabulary that `train_vocabulary` makes of a mixture, kept in the data home."""
  settings = {
    "mixture": mixture,
    "mixture_fingerprint": _text_fingerprint(mixture),
    "size": size,
    "characters": characters,
    "seed": seed,
  }
  others = {"extra_ids": 100, "control_tokens": [], "model_type": "unigram"}
  name = hashlib.sha256(json.dumps({**settings, **others}, sort_keys=True).encode()).hexdigest()
  place = data_home() / "vocabularies" / f"{mixture}-{size}-{name[:12]}"
  return _vocabulary(place, **settings, **others)


def _text_fingerprint(mixture: str) -> str:
  require_own(
    mixture,
    "mixture to make a vocabulary of",
    "Vocabularies are made of mixtures and texts of ours; SeqIO's tasks have theirs: see @seqio_vocabulary().",
  )
  return first_alone(lambda: training_text_fingerprint(mixture, data_home()), "vocabulary's text")


def _vocabulary(place: Path, **settings: Any) -> Vocabulary:
  """The vocabulary in a folder, made if it is not there."""
  mixture, seed, characters = (settings[name] for name in ("mixture", "seed", "characters"))
  if characters < 1:
    raise ConfigError(f"the vocabulary's characters={characters} must be 1 or more.")
  check_vocabulary_size(settings["size"], settings["extra_ids"], settings["control_tokens"])

  def build(folder: Path) -> None:
    texts = _collected(mixture, seed, characters)
    found = sum(map(len, texts))
    print(f"making {settings['size']:,} tokens of {found:,} characters of text", file=sys.stderr)
    names = ("size", "extra_ids", "control_tokens", "model_type")
    size, extra_ids, control_tokens, model_type = (settings[name] for name in names)
    model = train_sentencepiece(
      texts, size, extra_ids=extra_ids, control_tokens=control_tokens, model_type=model_type
    )
    SentencePieceVocabulary(model, extra_ids, control_tokens).save(folder)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    text = {"texts": len(texts), "characters": found, "sha256": digest}
    about = {"settings": settings, "text": text, "sentencepiece": sentencepiece.__version__}
    (folder / _SETTINGS).write_text(json.dumps(about, indent=2) + "\n")

  first_alone(lambda: build_once(place, build), "vocabulary")
  _check_settings(place, settings)
  return load_vocabulary(place)


def _collected(mixture: str, seed: int, characters: int) -> list[str]:
  """The text in memory: an error on the way is then raised as it is, not through the trainer's C++."""
  texts = []
  with tqdm(total=characters, desc="text", unit="char", unit_scale=True, file=sys.stderr) as bar:
    for text in training_text(mixture, data_home(), seed, characters):
      texts.append(text)
      bar.update(min(len(text), characters - bar.n))
    bar.total = bar.n  # a small mixture is over before
  return texts


def _check_settings(directory: Path, settings: dict[str, Any]) -> None:
  try:
    before = json.loads((directory / _SETTINGS).read_text())["settings"]
  except (OSError, ValueError, LookupError, TypeError):
    raise ConfigError(
      f"{directory} holds something else than a vocabulary of this command: name another folder."
    ) from None
  if others := differences(settings, before):
    raise ConfigError(
      f"the vocabulary in {directory} was made with other settings: {'; '.join(others)}. Name "
      "another folder, or remove that one."
    )
