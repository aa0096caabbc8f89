"""Vocabularies of each kind, small enough to be made on the spot."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from flan_jax.vocabularies import BPEVocabulary, ByteVocabulary, SentencePieceVocabulary

TEXTS = [
  "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
  "Is it so? Yes. No. Answer with yes or no, or with the letter of the option.",
  "Naïve café owners in Zürich serve crème brûlée for 12 francs.",
] * 20

CHAT_TEMPLATE = (
  "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + "
  "'<|end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}"
  "{% endif %}"
)


@pytest.fixture(scope="session")
def bpe():
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|start|>", "<|end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  return BPEVocabulary(tokenizer, "<|end|>", "<|start|>", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def seqio_model():
  """The SentencePiece model of 26 pieces that SeqIO's own tests use."""
  found = importlib.util.find_spec("seqio")
  if found is None:
    pytest.skip("seqio is not installed")
  (package,) = found.submodule_search_locations
  return Path(package) / "test_data" / "sentencepiece" / "sentencepiece.model"


@pytest.fixture(params=["bytes", "bpe", "sentencepiece"])
def vocabulary(request):
  """One of each kind."""
  if request.param == "bytes":
    return ByteVocabulary(extra_ids=3)
  if request.param == "bpe":
    return request.getfixturevalue("bpe")
  return SentencePieceVocabulary(request.getfixturevalue("seqio_model"), extra_ids=100)
