"""Formats: plain text and chat templates, cut into pieces that say where the targets are."""

import pickle

import pytest

from flan_jax.errors import ConfigError, VocabularyError
from flan_jax.prompting import Turn
from flan_jax.vocabularies import ByteVocabulary, ChatFormat, PlainFormat, format_from_dict

SMOLLM2 = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
  "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
  "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
  "{% endif %}"
)
TRIMMED = """{{ bos_token }}
{%- for message in messages %}
  {%- if message.role not in ('user', 'assistant') %}
    {{- raise_exception('unknown role ' + message.role) }}
  {%- endif %}
  {%- if message.role == 'user' %}
    {{- '[INST] ' + message.content | trim + ' [/INST]' }}
  {%- else %}
    {%- generation %}{{- ' ' + message.content | trim + eos_token }}{% endgeneration %}
  {%- endif %}
{%- endfor %}"""
DATED = """{% set day = strftime_now('%d %b %Y') %}
{% for message in messages %}
    {% if loop.index > 9 %}{% break %}{% endif %}
<|{{ message['role'] }}|>{{ {'day': day, 'text': message['content']} | tojson }}<|end|>
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>{% endif %}"""
TEMPLATES = {"smollm2": SMOLLM2, "trimmed": TRIMMED}

TURNS = [Turn("Is <b>it</b> so?", "Yes.", loss=False), Turn("  And “now”? ", " No & never.")]


def joined(pieces):
  return "".join(text for text, _ in pieces)


def test_plain_turns_follow_each_other():
  pieces = PlainFormat(" -> ", "\n\n").pieces([Turn("a", "b", loss=False), Turn("c", "d")])
  assert pieces == [("a -> ", False), ("b", False), ("\n\nc -> ", False), ("d", True)]


def test_an_open_end_stops_where_the_model_goes_on():
  for format in (PlainFormat(), ChatFormat(SMOLLM2)):
    whole, opened = format.pieces(TURNS), format.pieces(TURNS, open_end=True)
    assert opened == whole[:-1]


def test_an_encoder_reads_no_separator_at_the_end():
  turns = [Turn("a", "b"), Turn("c", "d")]
  assert PlainFormat(": ", "\n").encoder_text(turns) == "a: b\nc"
  assert PlainFormat(": ", "\n").target_text(turns) == "d"


def test_a_chat_target_ends_with_the_end_of_the_turn():
  format = ChatFormat(SMOLLM2)
  targets = format.pieces([Turn("a", "b"), Turn("c", "d")])[1::2]
  assert targets == [("b<|im_end|>", True), ("d<|im_end|>", True)]
  assert format.end_of_turn == "<|im_end|>"
  assert format.target_text([Turn("a", "b")]) == "b<|im_end|>"
  assert format.encoder_text([Turn("a", "b")]).endswith("<|im_start|>assistant\n")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_pieces_are_the_text_that_transformers_writes(name, bpe):
  transformers = pytest.importorskip("transformers")
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe.tokenizer, bos_token="<|start|>", eos_token="<|end|>"
  )
  theirs.chat_template = TEMPLATES[name]
  messages = []
  for turn in TURNS:
    messages.append({"role": "user", "content": turn.input})
    messages.append({"role": "assistant", "content": turn.target})
  ours = ChatFormat(TEMPLATES[name], "<|start|>", "<|end|>")
  closed = theirs.apply_chat_template(messages, tokenize=False)
  assert joined(ours.pieces(TURNS)) == closed.rstrip()
  opened = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
  assert joined(ours.pieces(TURNS, open_end=True)) == opened


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_blocks_json_and_loop_controls_are_those_of_transformers(monkeypatch, bpe):
  transformers = pytest.importorskip("transformers")
  import datetime

  theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe.tokenizer)
  theirs.chat_template = DATED
  today = datetime.date.today().isoformat()
  messages = [{"role": "user", "content": "“a” <b>"}]
  text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  ours = ChatFormat(DATED, date=today)
  assert ours._render(messages, add_generation_prompt=True) == text


def test_the_date_is_a_setting_and_not_the_clock():
  day = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }};{% endfor %}"
  turns = [Turn("a", "b")]
  assert joined(ChatFormat(day, date="1999-01-01").pieces(turns)) == "1999a;b;"
  assert ChatFormat(day, date="1999-01-01").fingerprint != ChatFormat(day).fingerprint


def test_a_saved_format_comes_back():
  for format in (PlainFormat(" ", "\n", eos_on_inputs=True), ChatFormat(SMOLLM2, "<s>", "</s>")):
    for again in (format_from_dict(format.as_dict()), pickle.loads(pickle.dumps(format))):
      assert again == format
      assert again.fingerprint == format.fingerprint
  with pytest.raises(ConfigError, match="not a saved format"):
    format_from_dict({"kind": "verse"})


def test_a_template_from_outside_cannot_reach_out_of_the_sandbox():
  escape = "{{ messages.__class__.__base__.__subclasses__() }}{% for m in messages %}x{% endfor %}"
  with pytest.raises(VocabularyError, match="unsafe"):
    ChatFormat(escape)


def test_templates_that_cannot_be_learned_from_are_refused():
  with pytest.raises(VocabularyError, match="line 2"):
    ChatFormat("ok\n{% if %}")
  with pytest.raises(VocabularyError, match="when to stop"):
    ChatFormat("{% for m in messages %}{{ m.content }}\n{% endfor %}")
  with pytest.raises(VocabularyError, match="not today"):
    ChatFormat("{{ raise_exception('not today') }}")
  last_only = "{% for m in messages %}{{ m.content if loop.last else '-' }};{% endfor %}"
  with pytest.raises(VocabularyError, match="writes earlier turns differently"):
    ChatFormat(last_only)
  with pytest.raises(VocabularyError, match="without a chat template"):
    ChatFormat.of(ByteVocabulary())
