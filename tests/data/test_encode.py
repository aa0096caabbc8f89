"""Encoding: loss spans, truncation by field, options tokenised together with their prompt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flan_jax.data.encode import Dropped, Encoder
from flan_jax.errors import ConfigError, VocabularyError
from flan_jax.prompting import Draw, Rendering, Template, Turn, TurnText, few_shot
from flan_jax.vocabularies import BPEVocabulary, ByteVocabulary, ChatFormat, PlainFormat

BYTES = ByteVocabulary()
PLAIN = PlainFormat()
CHAT = ChatFormat(
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PASSAGE = Template(
  "ask",
  [TurnText("Read: {passage}\nQuestion: {question}", "{label}")],
  long="passage",
)
RECORD = {"passage": "word " * 400, "question": "is it so?", "label": "yes"}


def rendering(*turns, options=(), losses=None):
  losses = losses or [True] * len(turns)
  shown = tuple(Turn(i, t, loss) for (i, t), loss in zip(turns, losses, strict=True))
  return Rendering(shown, tuple(options), (shown[-1].target,), "none", "t")


def always(shown):
  return lambda limit: shown


def passage(limit, record=RECORD, template=PASSAGE):
  return template.render(record, Draw(0), limit)


def decoder(vocabulary=BYTES, format=PLAIN, inputs=100, targets=20, **settings):
  return Encoder(vocabulary, format, "decoder", {"inputs": inputs, "targets": targets}, **settings)


def encoder_decoder(vocabulary=BYTES, format=PLAIN, inputs=100, targets=20):
  lengths = {"inputs": inputs, "targets": targets}
  return Encoder(vocabulary, format, "encoder_decoder", lengths)


def trained_on(encoded, vocabulary=BYTES):
  return [vocabulary.decode(encoded.targets[start:end]) for start, end in encoded.spans]


def merging_vocabulary():
  """Letters, and one piece that reaches across what templates put together: ": y"."""
  alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()))
  vocab = {letter: i for i, letter in enumerate(["<end>", *alphabet])}
  merges = [(":", "Ġ"), (":Ġ", "y")]
  for merge in merges:
    vocab["".join(merge)] = len(vocab)
  tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(["<end>"])
  return BPEVocabulary(tokenizer, "<end>")


def test_an_encoder_decoder_reads_the_input_and_writes_the_target_and_eos():
  encoded = encoder_decoder().encode(always(rendering(("ask", "yes"))))
  assert encoded.inputs.tolist() == BYTES.encode("ask")
  assert encoded.targets.tolist() == [*BYTES.encode("yes"), BYTES.eos_id]
  assert encoded.spans == ((0, 4),)
  with_eos = encoder_decoder(format=PlainFormat(eos_on_inputs=True))
  inputs = with_eos.encode(always(rendering(("ask", "yes")))).inputs
  assert inputs.tolist() == [*BYTES.encode("ask"), BYTES.eos_id]


def test_a_decoder_has_one_text_and_the_loss_on_target_and_eos():
  encoded = decoder().encode(always(rendering(("ask", "yes"))))
  assert encoded.inputs.size == 0
  assert encoded.targets.tolist() == [*BYTES.encode("ask\nyes"), BYTES.eos_id]
  assert encoded.spans == ((4, 8),)


def test_every_turn_s_target_is_learned_but_not_the_exemplars():
  turns = [("a", "one"), ("b", "two"), ("c", "three")]
  learned = decoder().encode(always(rendering(*turns)))
  assert trained_on(learned) == ["one", "two", "three"]
  shown = decoder().encode(always(rendering(*turns, losses=[False, True, True])))
  assert trained_on(shown) == ["two", "three"]
  assert shown.spans[-1][1] == len(shown.targets)


def test_a_chat_target_is_learned_with_the_end_of_its_turn():
  encoded = decoder(format=CHAT).encode(always(rendering(("a", "one"), ("b", "two"))))
  assert trained_on(encoded) == ["one<end>", "two<end>"]
  assert BYTES.decode(encoded.targets).endswith("two<end>")


def test_everything_can_be_learned():
  encoded = decoder(loss_on="everything").encode(always(rendering(("ask", "yes"))))
  assert encoded.spans == ((0, len(encoded.targets)),)


def test_a_begin_token_is_where_the_format_wants_one(bpe_with_bos):
  encoded = decoder(bpe_with_bos, PlainFormat(bos=True)).encode(always(rendering(("ab", "ba"))))
  assert encoded.targets[0] == bpe_with_bos.bos_id
  assert trained_on(encoded, bpe_with_bos) == ["ba"]
  with pytest.raises(VocabularyError, match="begin token"):
    decoder(format=PlainFormat(bos=True))


@settings(max_examples=60, deadline=None)
@given(
  turns=st.lists(
    st.tuples(st.text("ay: \né", max_size=6), st.text("ay: é", min_size=1, max_size=6)),
    min_size=1,
    max_size=3,
  )
)
def test_the_spans_cover_every_target_even_where_tokens_cross_into_it(turns):
  vocabulary = merging_vocabulary()
  format = PlainFormat(separator=": ", turn_separator="\n\n")
  encoded = decoder(vocabulary, format, inputs=500).encode(always(rendering(*turns)))
  assert vocabulary.decode(encoded.targets) == "".join(
    text for text, _ in format.pieces(rendering(*turns).turns)
  )
  texts = trained_on(encoded, vocabulary)
  # What a token brings in from before its target is the separator, and nothing comes after.
  for text, (_, target) in zip(texts, turns, strict=True):
    assert text.endswith(target)
    assert text[: -len(target)] in ("", ": ")
  starts = np.array(encoded.spans)
  assert (starts[1:, 0] >= starts[:-1, 1]).all()


@pytest.mark.parametrize("make", [decoder, encoder_decoder])
def test_the_long_field_is_shortened_and_nothing_else(make):
  encoder = make(inputs=300, targets=20)
  calls = []

  def render(limit):
    calls.append(limit)
    return passage(limit)

  encoded = encoder.encode(render)
  assert encoded.shortened
  text = BYTES.decode([*encoded.inputs, *encoded.targets])
  assert text.startswith("Read: word word")
  assert "\nQuestion: is it so?" in text
  assert text.endswith("yes")
  used, room = (len(encoded.inputs), 300) if encoded.inputs.size else (len(encoded.targets), 320)
  assert 0.9 * room <= used <= room
  assert len(calls) <= 6


@settings(max_examples=40, deadline=None)
@given(
  words=st.lists(st.text("abé ", min_size=1, max_size=30), min_size=1, max_size=80),
  inputs=st.integers(1, 200),
  targets=st.integers(1, 12),
)
def test_what_is_encoded_always_fits_and_keeps_its_question(words, inputs, targets):
  record = {**RECORD, "passage": " ".join(words) + "x"}
  for make in (decoder, encoder_decoder):
    encoder = make(inputs=inputs, targets=targets)
    encoded = encoder.encode(lambda limit: passage(limit, record))
    if isinstance(encoded, Dropped):
      assert encoded.reason == "too_long"
      continue
    text = BYTES.decode([*encoded.inputs, *encoded.targets])
    assert "Question: is it so?" in text and text.endswith("yes")
    if make is decoder:
      assert len(encoded.targets) - 1 <= inputs + targets
    else:
      assert len(encoded.inputs) <= inputs and len(encoded.targets) <= targets


def test_what_is_far_too_long_is_never_tokenised_whole():
  class Counting(ByteVocabulary):
    longest = 0

    def encode_with_ends(self, text):
      self.longest = max(self.longest, len(text))
      return super().encode_with_ends(text)

  record = {**RECORD, "passage": "word " * 100_000}
  vocabulary = Counting()
  exemplars = [passage(None)] * 9
  encoder = decoder(vocabulary)
  encoded = encoder.encode(lambda limit: few_shot(passage(limit, record), exemplars))
  assert (encoded.shortened, encoded.shots_dropped) == (True, 9)
  assert vocabulary.longest < 10 * 120


def test_a_long_field_that_is_shown_twice_still_fits():
  template = Template(
    "twice",
    [TurnText("{passage} - again: {passage}. {question}", "{label}")],
    long="passage",
  )
  encoded = encoder_decoder(inputs=300).encode(lambda limit: passage(limit, RECORD, template))
  assert 0.8 * 300 <= len(encoded.inputs) <= 300


def test_a_long_field_that_is_the_target_is_shortened_too():
  template = Template(
    "around",
    [TurnText("Write about {question}", "{passage}")],
    long="passage",
  )
  encoded = encoder_decoder(targets=50).encode(lambda limit: passage(limit, RECORD, template))
  assert encoded.shortened
  assert 40 <= len(encoded.targets) <= 50
  assert encoded.targets[-1] == BYTES.eos_id


def test_exemplars_go_before_the_query_is_cut():
  record = {**RECORD, "passage": "word " * 10}
  query = passage(None, record)
  shown = few_shot(query, [query] * 3)
  one = len(decoder(inputs=1000).encode(always(query)).targets)
  encoder = decoder(inputs=2 * one, targets=10)
  encoded = encoder.encode(lambda limit: few_shot(passage(limit, record), [query] * 3))
  assert encoded.shots_dropped == 2
  assert not encoded.shortened
  assert BYTES.decode(encoded.targets).count("Question") == 2
  assert len(shown.turns) == 4


def test_what_cannot_be_cut_is_dropped_with_its_reason():
  long_question = {**RECORD, "question": "why " * 100}
  encoder = encoder_decoder(inputs=100)
  assert encoder.encode(lambda limit: passage(limit, long_question)) == Dropped("too_long")
  assert decoder().encode(always(rendering(("a" * 500, "b")))) == Dropped("too_long")
  assert decoder().encode(always(rendering(("a", "")))) == Dropped("empty")
  assert encoder_decoder().encode(always(rendering(("a", "")))) == Dropped("empty")


def test_options_follow_their_prompt_as_in_training():
  options = ["yes", "no", "maybe so"]
  for make in (decoder, encoder_decoder):
    for format in (PLAIN, CHAT):
      encoder = make(format=format, inputs=200)
      scored = encoder.encode_options(always(rendering(("ask", "?"), options=options)))
      for option, ids, end in zip(options, scored.option_ids, scored.ends, strict=True):
        trained = encoder.encode(always(rendering(("ask", option))))
        if make is decoder:
          assert [*scored.prompt_ids, *ids] == trained.targets.tolist()
        else:
          assert scored.prompt_ids == trained.inputs.tolist()
          assert ids == trained.targets.tolist()
        assert BYTES.decode(ids[: len(ids) - end]) == option
        assert end == (1 if format is PLAIN else len("<end>"))


def test_a_token_across_the_boundary_belongs_to_the_options():
  vocabulary = merging_vocabulary()
  encoder = decoder(vocabulary, PlainFormat(separator=": "))
  scored = encoder.encode_options(always(rendering(("ask", "?"), options=["yes", "no"])))
  assert vocabulary.decode(scored.prompt_ids) == "ask"
  assert [vocabulary.decode(ids) for ids in scored.option_ids] == [": yes", ": no"]
  assert [len(ids) for ids in scored.option_ids] == [4, 4]


def test_options_decide_together_how_far_the_prompt_is_cut():
  options = ["yes", "no " * 5]

  def render(limit):
    shown = passage(limit)
    return Rendering(shown.turns, tuple(options), ("yes",), "none", "t")

  scored = decoder(inputs=200, targets=20).encode_options(render)
  assert scored.shortened
  whole = [len(scored.prompt_ids) + len(ids) - 1 for ids in scored.option_ids]
  assert 0.9 * 220 <= max(whole) <= 220


def test_a_prompt_to_go_on_from_is_the_beginning_of_the_training_text():
  shown = rendering(("ask", "yes"))
  for format in (PLAIN, CHAT):
    prompt = decoder(format=format).encode_prompt(always(shown)).prompt_ids
    trained = decoder(format=format).encode(always(shown))
    assert prompt == trained.targets[: trained.spans[0][0]].tolist()
  read = encoder_decoder().encode(always(shown)).inputs.tolist()
  assert encoder_decoder().encode_prompt(always(shown)).prompt_ids == read


def test_generation_stops_where_training_ended_turns(bpe_with_bos):
  assert decoder().stop_ids == (BYTES.eos_id,)
  format = ChatFormat(
    "{% for m in messages %}{{ m.content }}<end>{% endfor %}{{ '' if not add_generation_prompt }}"
  )
  stop = decoder(bpe_with_bos, format).stop_ids
  assert bpe_with_bos.encode("<end>")[0] in stop


def test_settings_that_cannot_be_obeyed_are_refused():
  for lengths in ({"inputs": 0, "targets": 4}, {"inputs": 4, "targets": -1}, {"inputs": 4}):
    with pytest.raises(ConfigError, match="length"):
      Encoder(BYTES, PLAIN, "decoder", lengths)
  with pytest.raises(ConfigError, match="layout"):
    Encoder(BYTES, PLAIN, "prefix", {"inputs": 4, "targets": 4})
  with pytest.raises(ConfigError, match="not predicted"):
    Encoder(BYTES, PLAIN, "encoder_decoder", {"inputs": 4, "targets": 4}, "everything")


@pytest.fixture
def bpe_with_bos():
  vocab = {"<s>": 0, "<end>": 1, "a": 2, "b": 3, "Ċ": 4}
  tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(["<s>", "<end>"])
  return BPEVocabulary(tokenizer, "<end>", "<s>")
