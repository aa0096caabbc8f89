"""What is told of a text is safe to show at once, and all of it together is what was written."""

import jax
import pytest

from flan_jax.errors import ConfigError
from flan_jax.inference import Engine, Sampling, Texts
from flan_jax.models import DecoderConfig, build_model
from flan_jax.vocabularies import ByteVocabulary

VOCABULARY = ByteVocabulary()
WORDS = "Où est le café ? Là-bas, près du pont. END of it"


def forced(words):
  """Makes a model that writes these words, whatever it reads: each of 3 bytes a block."""
  ids = jax.numpy.array(VOCABULARY.encode(words))
  model = build_model(DecoderConfig(VOCABULARY.size, 8, 1, 1, 1, 8, 8))

  def hook(logits, text):
    wanted = ids[jax.numpy.minimum(text.ends - 1, len(ids) - 1)]
    return jax.nn.one_hot(wanted, logits.shape[1]) * 50.0

  params = model.init(jax.random.key(0))
  engine = Engine(model, params, stop_ids=(), slots=2, length=120, block=3, hook=hook)
  return Texts(engine, VOCABULARY), len(ids)


def told(texts, count, stop=()):
  texts.add([5], Sampling(count), stop)
  news = []
  while texts.busy:
    news += texts.step()
  return news


def test_no_half_character_is_told_and_nothing_is_lost():
  texts, count = forced(WORDS)
  news = told(texts, count)
  assert "".join(each.text for each in news) == WORDS
  assert not any("\ufffd" in each.text for each in news)
  assert len(news) > 10 and news[-1].finish == "length"
  assert len(news[-1].tokens) == count


@pytest.mark.parametrize("stop", [("END",), ("xyz", " END", "END of"), ("pont. EN",)])
def test_a_text_ends_before_the_first_stop_string_and_nothing_of_it_is_told(stop):
  texts, count = forced(WORDS)
  news = told(texts, count, stop)
  first = min(WORDS.find(each) for each in stop if each in WORDS)
  assert "".join(each.text for each in news) == WORDS[:first]
  assert news[-1].finish == "stop" and not texts.busy
  longest = VOCABULARY.decode(news[-1].tokens)
  assert any(each in longest for each in stop) and len(longest) <= first + max(map(len, stop))


def test_what_only_looks_like_a_stop_string_is_told_in_the_end():
  texts, count = forced("a STO")
  assert "".join(each.text for each in told(texts, count, ("STOP",))) == "a STO"


@pytest.mark.parametrize(
  ("stop", "found"),
  [("us\nsay", "Let us\nsay yes."), ("say yes", "Let us\n"), ("yes", "Let us\nsay ")],
)
def test_a_stop_string_that_stands_in_what_an_answer_has_to_begin_with_does_not_end_it(stop, found):
  prefix = tuple(VOCABULARY.encode("Let us\nsay"))
  texts, _ = forced("Let us\nsay yes.")
  texts.add([5], Sampling(len(VOCABULARY.encode(" yes.")), prefix=prefix), (stop,))
  said = ""
  while texts.busy:
    said += "".join(news.text for news in texts.step())
  assert said == found


def test_an_empty_stop_string_is_refused():
  texts, _ = forced("a")
  for stop in (("",), "text"):
    with pytest.raises(ConfigError, match="must be a list of texts, none of them empty"):
      texts.add([5], stop=stop)
  assert not texts.busy
