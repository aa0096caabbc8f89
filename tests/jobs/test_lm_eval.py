"""The harness asks our model and gets what its own model class gets from transformers."""

import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import flan_jax as library
from flan_jax.checkpoints.hugging_face import write_folder
from flan_jax.cli.main import main
from flan_jax.errors import ConfigError, EvaluationError, UnknownName
from flan_jax.jobs import lm_eval_model
from flan_jax.jobs.lm_eval_model import HarnessModel, Settings
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model
from flan_jax.vocabularies import BPEVocabulary, ByteVocabulary

PLACES = ["Lisbon", "the old mill", "a river in Norway", "Kyoto", "the north gate", "Oslo fjord"]
SENTENCES = [
  f"Question: what is {a}?\nAnswer: it is near {b}, they say." for a in PLACES for b in PLACES
]
CHAT = (
  "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + "
  "'<|end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
DECODER = DecoderConfig(400, 32, 2, 4, 2, 8, 48, context_length=64)
ENCODER_DECODER = EncoderDecoderConfig(400, 32, 4, 8, 2, 2, 48)


def byte_pairs(begins: bool) -> BPEVocabulary:
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=390,
    special_tokens=["<|start|>", "<|end|>", "<|begin|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(SENTENCES, trainer)
  begin = "<|begin|>" if begins else None
  return BPEVocabulary(tokenizer, "<|end|>", begin, "<|end|>", chat_template=CHAT)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
  """Tiny models compile far longer than they run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


KINDS = {
  "decoder": (DECODER, lambda: byte_pairs(begins=False)),
  "decoder with a begin token": (DECODER, lambda: byte_pairs(begins=True)),
  "encoder-decoder": (ENCODER_DECODER, lambda: ByteVocabulary(extra_ids=125)),
}


def published(folder, kind):
  """The folder of a random model that is far from uniform."""
  config, vocabulary = KINDS[kind]
  model = build_model(config)
  params = jax.tree.map(lambda x: 3.0 * x if x.ndim > 2 else x, model.init(jax.random.key(3)))
  write_folder(folder, model, params, vocabulary())
  return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  place = tmp_path_factory.mktemp("published")
  return {kind: published(place / kind.replace(" ", "_"), kind) for kind in KINDS}


def opened(folder, **settings) -> HarnessModel:
  return HarnessModel(
    Settings.of({"path": folder, "max_length": 64, "max_gen_toks": 12} | settings)
  )


def written(model, *contexts, **how) -> list[str]:
  texts = dict(model.write([(context, how) for context in contexts]))
  return [texts[i] for i in range(len(contexts))]


def scored(model, *pairs):
  return model.score(model.pairs(pairs))


@pytest.mark.parametrize(
  ("given", "kind", "told"),
  [
    ({"path": "x", "max_lenght": 5}, UnknownName, "--model_args 'max_lenght'. Did you mean 'max_length'"),
    ({"dtype": "float32"}, ConfigError, "say path=FOLDER"),
    ({"path": "x", "dtype": "float8"}, ConfigError, "model_args.dtype is 'float8'; it must be 'float32' or 'bfloat16'"),
    ({"path": "x", "max_gen_toks": 0}, ConfigError, "model_args.max_gen_toks is 0"),
    ({"path": "x", "batch_size": "many"}, ConfigError, "model_args.batch_size is 'many'"),
    ({"path": "x", "add_bos_token": 2}, ConfigError, "model_args.add_bos_token is 2"),
  ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(given, kind, told):
  with pytest.raises(kind) as error:
    Settings.of(given)
  assert told in str(error.value)


def test_a_batch_size_is_a_number_or_auto_with_a_bound():
  sizes = [("auto:4", None), ("auto", 3), ("5", None), (7, 3)]
  found = [Settings.of({"path": "x", "batch_size": b, "max_batch_size": m}) for b, m in sizes]
  assert [settings.at_once for settings in found] == [16, 3, 5, 7]


def test_a_harness_that_is_not_installed_is_told_with_the_command(monkeypatch, capsys):
  monkeypatch.setattr("flan_jax.cli.lm_eval.register", lm_eval_model.register.__wrapped__)
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  assert main(["lm-eval", "--tasks", "boolq"]) == 2
  assert capsys.readouterr().err.endswith("pip install 'flan-jax[lm-eval]'.\n")


def test_the_harness_gets_all_words_and_the_name_of_our_model(monkeypatch, capsys):
  got = []
  harness = types.ModuleType("lm_eval.__main__")
  harness.cli_evaluate = lambda: got.append(sys.argv[1:])
  monkeypatch.setitem(sys.modules, "lm_eval", types.ModuleType("lm_eval"))
  monkeypatch.setitem(sys.modules, "lm_eval.__main__", harness)
  monkeypatch.setattr("flan_jax.cli.lm_eval.register", lambda: None)
  words = ["--model_args", "path=runs/tuned,mesh=tensor=2", "--tasks", "a,b", "--gin.x=1"]
  before = list(sys.argv)
  for more in ([], ["--batch_size", "4"], ["-b=4"]):
    assert main(["lm-eval", *words, *more]) == 0
  assert main(["lm-eval", "ls", "tasks"]) == 0 and main(["lm-eval", "--help"]) == 0
  ours = ["--model", "flan_jax"]
  assert got == [
    ["run", *words, *ours, "--batch_size", "auto"],
    ["run", *words, "--batch_size", "4", *ours],
    ["run", *words, "-b=4", *ours],
    ["ls", "tasks"],
    ["run", "--help"],
  ]
  assert sys.argv == before
  for settled in (["--model", "hf"], ["-M", "hf"], ["--device=cpu"]):
    assert main(["lm-eval", *words, *settled]) == 2
    assert "leave out --" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_scored_as_the_logits_say_and_greedy_where_it_would_be_written(
  kind, folders
):
  model, plain = opened(folders[kind]), library.load(folders[kind])
  contexts = model.encode([f"Question: what is {place}?" for place in PLACES])
  pairs = []
  for context, ids in zip(contexts, plain.generate(contexts, 3, eos_ids=()), strict=True):
    pairs += [(context, ids), (context, [*ids[:2], (ids[2] + 1) % 390])]
  found = model.score(pairs)
  assert [greedy for _, greedy in found] == [True, False] * len(PLACES)
  for (context, ids), (total, _) in zip(pairs, found, strict=True):
    if kind == "encoder-decoder":
      logits = plain.logits([context], None, [[0, *ids[:-1]]])[0]
    else:
      logits = plain.logits([[*context, *ids[:-1]]])[0, len(context) - 1 :]
    expected = jax.nn.log_softmax(logits)[np.arange(3), np.array(ids)].sum()
    np.testing.assert_allclose(total, expected, atol=1e-4)


def test_texts_become_ids_as_the_harness_wants_them(folders):
  plain, begins, encodes = (opened(folder) for folder in folders.values())
  ids = plain.encode(["what is Kyoto?"])[0]
  assert ids == byte_pairs(False).encode("what is Kyoto?")
  # White space goes to the continuation, which is cut off behind what the context alone takes.
  for context in ("what is", "what is "):
    assert plain.pairs([(context, " Kyoto?" if context[-1] == "s" else "Kyoto?")]) == [
      (ids[:2], ids[2:])
    ]
  assert plain.pairs([("", "Kyoto")])[0] == ([plain.prefix_id], plain.encode(["Kyoto"])[0])
  assert begins.encode(["what is Kyoto?", "<|begin|>what is Kyoto?"]) == [[2, *ids]] * 2
  assert begins.pairs([("what is", " Kyoto?")]) == [([2, *ids[:2]], ids[2:])]
  assert begins.pairs([("", "<|begin|>what")]) == [([2], ids[:1])]
  assert (plain.prefix_id, begins.prefix_id, encodes.prefix_id) == (1, 2, 1)
  assert encodes.pairs([("ab ", "c"), ("", "c")]) == [([100, 101, 1], [35, 102]), ([1], [102])]


def test_begin_and_end_tokens_are_put_or_left_out_as_one_says(folders):
  for kind, added in (("decoder with a begin token", 1), ("encoder-decoder", 1)):
    without = opened(folders[kind], add_bos_token=False).encode(["ab"])[0]
    assert len(opened(folders[kind], add_bos_token=True).encode(["ab"])[0]) == len(without) + added
  with pytest.raises(ConfigError, match="no begin token"):
    opened(folders["decoder"], add_bos_token=True)
  assert opened(folders["decoder"], prefix_token_id=7).prefix_id == 7
  with pytest.raises(ConfigError, match="prefix_token_id is 400, and the model knows 0 to 399"):
    opened(folders["decoder"], prefix_token_id=400)


def test_a_begin_token_that_a_folder_names_and_does_not_put_is_the_empty_context(folders, tmp_path):
  shutil.copytree(folders["decoder"], tmp_path / "named")
  path = tmp_path / "named" / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|begin|>"}))
  model = opened(tmp_path / "named")
  assert model.prefix_id == 2 and 2 not in model.encode(["what"])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_that_is_too_long_is_cut_from_the_left(kind, folders):
  model = opened(folders[kind])
  long, rest = list(range(10, 110)), [120, 121, 122]
  room = 64 if kind == "encoder-decoder" else 62
  whole, cut, shorter = model.score([(long[-n:], rest) for n in (100, room, room - 1)])
  assert whole == cut and abs(whole[0] - shorter[0]) > 1e-4
  with pytest.raises(EvaluationError, match="the continuation has 65 tokens"):
    model.score([(long, long[:65])])
  with pytest.raises(ConfigError, match="70 new tokens leave no room" if room < 64 else "x"):
    written(model, "what is Kyoto?", max_gen_toks=70)
    raise ConfigError("x")  # an encoder has room of its own


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_before_a_stop_string_and_at_a_stop_token(kind, folders):
  model, ask = opened(folders[kind]), "Question: what is Kyoto?"
  (whole,) = written(model, ask)
  stop = whole[2:4]
  assert written(model, ask, until=["", stop]) == [whole[: whole.index(stop)]]
  assert written(model, ask, until=whole[0]) == [""]
  (short,) = written(model, ask, max_tokens=2)
  assert whole.startswith(short) and len(short) < len(whole)
  assert model._stops(["\n", "</s>", "<|start|>"])[1] == ([] if kind == "encoder-decoder" else [0])


def test_draws_differ_by_request_and_are_those_of_numpys_seed(folders):
  model, ask = opened(folders["decoder"]), ["what is Kyoto?"] * 6

  def draws(seed):
    np.random.seed(seed)
    return written(model, *ask, do_sample=True, temperature=2.0, top_k=20)

  assert draws(1) == draws(1) != draws(2) and len(set(draws(1))) > 1
  assert written(model, *ask, do_sample=False, temperature=2.0) == written(model, *ask)
  with pytest.raises(UnknownName, match="unknown argument of generation 'num_beam'"):
    written(model, *ask, num_beam=2)


def test_a_conversation_is_written_by_the_models_own_template(folders, tmp_path):
  model = opened(folders["decoder"])
  asked = [{"role": "user", "content": "what?"}]
  opening = "<|start|>user\nwhat?<|end|>\n<|start|>assistant\n"
  assert model.conversation(asked, True) == opening
  begun = [*asked, {"role": "assistant", "content": "It is"}]
  assert model.conversation(begun, False) == opening + "It is"
  assert model.chat_template(True) == CHAT
  with pytest.raises(ConfigError, match="one template"):
    model.chat_template("tools")
  with pytest.raises(ConfigError, match="came without a chat template"):
    opened(folders["encoder-decoder"]).chat_template(True)
  assert model.tokenizer_name != opened(folders["decoder with a begin token"]).tokenizer_name


def test_a_mesh_gives_the_scores_of_one_device(folders):
  asked = [("Question: what is Kyoto?", " near Oslo"), ("", "Kyoto")]
  one, spread = (opened(folders["decoder"], mesh=mesh) for mesh in ("", "data=4,tensor=2"))
  for ours, theirs in zip(scored(spread, *asked), scored(one, *asked), strict=True):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
  assert written(spread, asked[0][0]) == written(one, asked[0][0])


@pytest.mark.slow
def test_a_run_is_judged_as_the_folder_that_it_goes_out_as(flan_jax, folder):
  flan_jax(
    "train", "--module=tasks.py", "--gin_file=check.gin", "--gin.STEPS=2", "--gin.WARMUP_STEPS=0"
  )
  convert = ("--gin_file=models/tuned.gin", "--gin_file=runs/convert.gin")
  flan_jax("convert", *convert, "--gin.RUN_DIR=runs/tuned", "--gin.FOLDER=out/model")
  asked = [("Where is the ticket?", " here"), ("", "there")]
  run, out = (opened(place, max_gen_toks=4) for place in ("runs/tuned", "out/model"))
  np.testing.assert_allclose(*([s for s, _ in scored(m, *asked)] for m in (run, out)), rtol=1e-5)
  assert written(run, "Where?") == written(out, "Where?")
  half = opened("runs/tuned", dtype="bfloat16")
  assert half.about()["model_dtype"] == "bfloat16" and run.about()["model_dtype"] == "float32"
  np.testing.assert_allclose(*([s for s, _ in scored(m, *asked)] for m in (run, half)), rtol=0.05)


TASKS = {
  "choices": {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": 0,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
  },
  "choices_of_nothing": {
    "output_type": "multiple_choice",
    "doc_to_text": "",
    "doc_to_choice": "{{options}}",
    "doc_to_target": 0,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
  },
  "shown_before": {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": 1,
    "num_fewshot": 1,
    "fewshot_split": "test",
    "metric_list": [{"metric": "acc"}],
  },
  "whole_texts": {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{story}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
  },
  "answers": {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "x",
    "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 9, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
  },
}


def write_tasks(place, written_next):
  """The tasks' files; of the options of a record the first is what a model itself would write."""
  place.mkdir()
  records = [
    {
      "text": sentence[: 30 + 2 * i],
      "options": [word or " then", " near Kyoto,", " they"],
      "story": " ".join(SENTENCES[i : i + 4]),
    }
    for i, (sentence, word) in enumerate(zip(SENTENCES, written_next, strict=False))
  ]
  (place / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  for name, settings in TASKS.items():
    data = {
      "dataset_path": "json",
      "dataset_kwargs": {"data_files": {"test": str(place / "test.jsonl")}},
    }
    (place / f"{name}.yaml").write_text(
      yaml.safe_dump({"task": name, "test_split": "test", **data, **settings})
    )


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS)
def test_the_harness_finds_what_it_finds_by_its_own_model_class(
  kind, folders, tmp_path, monkeypatch
):
  pytest.importorskip("torch", reason="the oracle needs torch")
  pytest.importorskip("lm_eval", reason="the oracle is lm_eval")
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  from lm_eval import simple_evaluate
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager
  from transformers import T5ForConditionalGeneration

  lm_eval_model.register()
  asked = [sentence[: 30 + 2 * i] for i, sentence in enumerate(SENTENCES[:20])]
  next_words = written(opened(folders[kind]), *asked, max_gen_toks=2)
  write_tasks(tmp_path / "tasks", next_words)
  chat = kind == "decoder with a begin token"
  # A random T5 writes ids that are no bytes, which the peer's tokenizer cannot spell.
  tasks = [task for task in TASKS if task != "answers" or kind != "encoder-decoder"]

  def found(model, **settings):
    return simple_evaluate(
      model,
      {"max_length": 64, **settings},
      tasks=tasks,
      task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
      batch_size=4,
      device="cpu",
      apply_chat_template=chat,
      fewshot_as_multiturn=chat,
      bootstrap_iters=0,
    )

  ours = found("flan_jax", path=str(folders[kind]))
  theirs = HFLM(str(folders[kind]), dtype="float32", max_length=64, batch_size=4, device="cpu")
  if kind == "encoder-decoder":
    # It ties the head of a T5 that has one of its own to the embeddings, since transformers 5 calls every T5 tied.
    theirs._model = T5ForConditionalGeneration.from_pretrained(folders[kind]).eval()
  theirs = found(theirs)
  greedy = 0
  for task in tasks:
    pairs = list(zip(ours["samples"][task], theirs["samples"][task], strict=True))
    assert len(pairs) == 20
    for mine, other in pairs:
      assert mine["arguments"] == other["arguments"]
      for (answer,), (wanted,) in zip(mine["resps"], other["resps"], strict=True):
        if task == "answers":
          assert answer == wanted
        else:
          answer, wanted = (x if isinstance(x, tuple) else (x, False) for x in (answer, wanted))
          np.testing.assert_allclose(
            answer[0], wanted[0], atol=1e-3, err_msg=str((task, mine["arguments"]))
          )
          assert answer[1] == wanted[1]
          greedy += wanted[1]
    for metric, value in theirs["results"][task].items():
      if isinstance(value, float):
        np.testing.assert_allclose(ours["results"][task][metric], value, rtol=1e-5)
  assert greedy > 0 or chat  # what a model writes was asked for without the template


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_command_writes_the_harness_own_results_and_takes_up_its_cache(
  folders, tmp_path, monkeypatch, capsys
):
  pytest.importorskip("lm_eval", reason="the oracle is lm_eval")
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  write_tasks(tmp_path / "tasks", [" it"] * 8)
  words = ["--tasks", ",".join(TASKS), "--include_path", str(tmp_path / "tasks"), "--log_samples"]
  words += ["--output_path", str(tmp_path / "out"), "--use_cache", str(tmp_path / "answers")]
  model = f"path={folders['decoder']},max_length=64"
  for _ in range(2):
    assert main(["lm-eval", "--model_args", model, *words]) == 0
    # What was answered is not asked again.
    monkeypatch.setattr(HarnessModel, "score", None)
    monkeypatch.setattr(HarnessModel, "write", None)
  assert "|whole_texts" in capsys.readouterr().out
  first, second = (
    json.loads(path.read_text()) for path in sorted(tmp_path.glob("out/**/results_*.json"))
  )
  assert first["results"] == second["results"] and first["config"]["model_num_parameters"] > 1000
  monkeypatch.undo()
  assert main(["lm-eval", "--model_args", f"{model},dtpye=bfloat16", *words]) == 2
  assert "Did you mean 'dtype'" in capsys.readouterr().err
