"""A launch on a user's SeqIO task: prepared in a process of its own, trained where TensorFlow is not."""

import json
import sys

import pytest

MODULE = """
import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary()


@seqio.map_over_dataset
def question(line):
  country, city = tf.unstack(tf.strings.split(line, "\\t"), num=2)
  return {"inputs": tf.strings.join(["What is the capital of ", country, "?"]), "targets": city}


for name in ("capitals", "tickets_only"):
  seqio.TaskRegistry.add(
    name,
    source=seqio.TextLineDataSource({"train": "capitals.tsv"}),
    preprocessors=[question, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={"inputs": seqio.Feature(VOCABULARY), "targets": seqio.Feature(VOCABULARY)},
  )
"""
LAUNCH = ("--module", "my_seqio.py", "--gin_file=check.gin", "--gin.MIXTURE=capitals")
DECODER = (
  "--gin.scratch.architecture=@decoder()",
  "--gin.decoder.vocab_size=384",
  "--gin.decoder.emb_dim=32",
  "--gin.decoder.num_layers=2",
  "--gin.decoder.num_heads=2",
  "--gin.decoder.num_kv_heads=1",
  "--gin.decoder.head_dim=16",
  "--gin.decoder.mlp_dim=64",
)


@pytest.fixture(autouse=True)
def without_tensorflow(folder, monkeypatch):
  """This process cannot import it; those that it starts can."""
  for name in ("tensorflow", "seqio", "t5"):
    monkeypatch.setitem(sys.modules, name, None)
  (folder / "my_seqio.py").write_text(MODULE)
  (folder / "capitals.tsv").write_text("France\tParis\nJapan\tTokyo\nGhana\tAccra\nPeru\tLima\n")


def log_of(folder, run="tuned"):
  return [
    json.loads(line) for line in (folder / f"runs/{run}/metrics.jsonl").read_text().splitlines()
  ]


@pytest.mark.slow
def test_an_encoder_decoder_trains_on_a_users_task_with_its_vocabulary(flan_jax, folder):
  vocabulary = (
    "--gin.scratch.vocabulary=@seqio_vocabulary()",
    "--gin.seqio_vocabulary.name=%MIXTURE",
  )
  flan_jax("train", *LAUNCH, *vocabulary)
  last = log_of(folder)[-1]
  assert last["step"] == 6
  assert last["tasks"].keys() == {"capitals"}
  about = json.loads((folder / "runs/tuned/vocabulary/vocabulary.json").read_text())
  assert (about["kind"], about["extra_ids"]) == ("bytes", 0)


@pytest.mark.slow
def test_a_prefix_lm_trains_on_it_from_a_prepared_store_and_answers(flan_jax, folder, tmp_path):
  flan_jax("prepare", *LAUNCH, *DECODER, "--gin.prepare.evaluation=None")
  [store] = (tmp_path / "home/stores").glob("capitals-*")
  (folder / "capitals.tsv").unlink()
  settings = ("--gin.data.bidirectional_inputs=True", f"--gin.data.prepared={store}")
  flan_jax("train", *LAUNCH, *DECODER, *settings)
  assert log_of(folder)[-1]["step"] == 6
  assert json.loads((folder / "runs/tuned/model.json").read_text())["bidirectional_inputs"]
  flan_jax("infer", "--gin_file=check.gin")
  assert len((folder / "runs/answers.jsonl").read_text().splitlines()) == 2


def test_our_own_names_go_before_those_of_seqio(flan_jax, folder):
  both = ("--module", "tasks.py", "--module", "my_seqio.py", "--gin_file=check.gin")
  flan_jax("train", *both, "--gin.STEPS=1", "--gin.WARMUP_STEPS=0")
  assert log_of(folder)[-1]["tasks"].keys() == {"tickets"}


def test_a_name_that_nobody_knows_is_told_with_the_nearest_task(flan_jax):
  told = flan_jax("train", *LAUNCH[:-1], "--gin.MIXTURE=capitols", status=2).stderr
  assert "unknown mixture 'capitols'. Did you mean 'capitals'" in told


def test_settings_that_contradict_each_other_are_refused(flan_jax):
  both = ("--gin.data.bidirectional_inputs=True", "--gin.data.loss_on=everything")
  told = flan_jax("train", *LAUNCH, *DECODER, *both, status=2).stderr
  assert "leave one of them out" in told
  told = flan_jax("train", *LAUNCH, "--gin.data.bidirectional_inputs=True", status=2).stderr
  assert "an encoder reads both ways anyway" in told
