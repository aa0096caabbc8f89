"""Batches: SeqIO's features for the same examples, shares, seeking, and nothing lost on the way."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_jax.data.batches import Batches, make_features
from flan_jax.data.windows import StoredExample
from flan_jax.errors import ConfigError, StorageError

LENGTHS = {"inputs": 10, "targets": 7}
LAYOUTS = ["encoder_decoder", "decoder"]


def example(inputs, targets, task=0, number=0, weights=None):
  weights = np.ones(len(targets)) if weights is None else weights
  return StoredExample(
    np.array(inputs, np.uint16),
    np.array(targets, np.uint16),
    np.array(weights, np.float32),
    task,
    number,
  )


ROW = [example([7, 8, 5, 1], [3, 9, 1], 2, 5), example([8, 4, 9, 3, 1], [4, 1], 1, 6)]


class Rows:
  """Rows whose one example tells its row."""

  def __init__(self, rows, layout="decoder"):
    self.rows, self.layout, self.lengths = rows, layout, LENGTHS

  def row(self, index):
    return [example([], [index + 1] * 3, number=index)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", [ROW, ROW[:1], ROW[::-1]])
def test_an_encoder_decoder_row_has_the_features_of_seqio_s_converter(row):
  seqio = pytest.importorskip("seqio")
  import tensorflow as tf

  theirs = seqio.EncDecFeatureConverter(pack=True)
  examples = [{"inputs": e.inputs.astype(int), "targets": e.targets.astype(int)} for e in row]
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(examples),
    output_signature={name: tf.TensorSpec([None], tf.int32) for name in ("inputs", "targets")},
  )
  (expected,) = theirs(dataset, LENGTHS).as_numpy_iterator()
  ours = make_features([row], "encoder_decoder", LENGTHS)
  assert set(expected) == set(ours) - {"task_ids", "example_ids"}
  for name, values in expected.items():
    np.testing.assert_array_equal(ours[name][0], values, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_row_is_seqio_s_language_model_row_one_place_on():
  seqio = pytest.importorskip("seqio")
  import tensorflow as tf

  texts = [[5, 6, 7, 1], [8, 9, 1], [4, 3, 2, 1]]
  dataset = tf.data.Dataset.from_generator(
    lambda: iter([{"targets": text[1:]} for text in texts]),
    output_signature={"targets": tf.TensorSpec([None], tf.int32)},
  )
  converter = seqio.LMFeatureConverter(pack=True)
  (expected,) = converter(dataset, {"targets": 17}).as_numpy_iterator()
  ours = make_features([[example([], text) for text in texts]], "decoder", LENGTHS)
  for name in (
    "decoder_target_tokens",
    "decoder_segment_ids",
    "decoder_positions",
    "decoder_loss_weights",
  ):
    np.testing.assert_array_equal(ours[name][0], expected[name], err_msg=name)
  # SeqIO begins each text with id 0; a pretrained decoder reads the text's own first token.
  begins = ours["decoder_positions"][0] == 0
  read = np.where(begins, 0, ours["decoder_input_tokens"][0])
  np.testing.assert_array_equal(read, expected["decoder_input_tokens"])
  assert ours["decoder_input_tokens"][0][[0, 3, 5]].tolist() == [5, 8, 4]


def test_dtypes_and_provenance():
  batch = make_features([ROW, []], "encoder_decoder", LENGTHS)
  assert batch["decoder_loss_weights"].dtype == np.float32
  assert {a.dtype for name, a in batch.items() if "weights" not in name} == {np.dtype(np.int32)}
  assert batch["task_ids"][0].tolist() == [2, 2, 2, 1, 1, -1, -1]
  assert batch["example_ids"][0].tolist() == [5, 5, 5, 6, 6, -1, -1]
  assert (batch["task_ids"][1] == -1).all()
  assert batch["decoder_loss_weights"][1].sum() == 0


def test_a_padding_id_within_a_text_has_its_weight():
  row = [example([0, 5, 0], [4, 0, 1])]
  batch = make_features([row], "encoder_decoder", LENGTHS)
  assert batch["decoder_loss_weights"][0].tolist() == [1, 1, 1, 0, 0, 0, 0]
  assert batch["encoder_segment_ids"][0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_weights_of_several_spans_and_of_single_tokens_stay_with_their_tokens():
  row = [example([], [1, 2, 3, 4], weights=[0, 1, 0, 0.5]), example([], [5, 6], weights=[1, 1])]
  batch = make_features([row], "decoder", LENGTHS)
  assert batch["decoder_target_tokens"][0, :4].tolist() == [2, 3, 4, 6]
  assert batch["decoder_loss_weights"][0, :5].tolist() == [1, 0, 0.5, 1, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_by_example_every_example_weighs_one(layout):
  rows = [[*ROW, example([2], [6, 1], weights=[0, 1])]]
  batch = make_features(rows, layout, LENGTHS, "example")
  for segment in (1, 2, 3):
    inside = batch["decoder_segment_ids"][0] == segment
    assert batch["decoder_loss_weights"][0][inside].sum() == pytest.approx(1)


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(2, 4), max_size=3), min_size=1, max_size=5))
def test_every_token_of_every_example_is_in_the_batch_once(rows):
  built, number = [], 0
  for sizes in rows:
    row = []
    for size in sizes:
      row.append(example([number + 1], np.arange(size) + 10 * number, number=number))
      number += 1
    built.append(row)
  batch = make_features(built, "decoder", LENGTHS)
  for i, row in enumerate(built):
    for segment, stored in enumerate(row, 1):
      inside = batch["decoder_segment_ids"][i] == segment
      assert batch["decoder_input_tokens"][i][inside].tolist() == stored.targets[:-1].tolist()
      assert batch["decoder_target_tokens"][i][inside].tolist() == stored.targets[1:].tolist()
      assert batch["decoder_positions"][i][inside].tolist() == list(range(len(stored.targets) - 1))
      assert set(batch["example_ids"][i][inside]) <= {stored.example}


def test_a_row_that_is_too_full_is_refused():
  with pytest.raises(ConfigError, match="holds 12 tokens, and 10 fit"):
    make_features([[example([1] * 12, [1])]], "encoder_decoder", LENGTHS)
  with pytest.raises(ConfigError, match="length of targets is 0"):
    make_features([], "decoder", {"inputs": 4, "targets": 0})
  with pytest.raises(ConfigError, match="Did you mean 'decoder'"):
    make_features([], "decodr", LENGTHS)
  with pytest.raises(ConfigError, match="normalise"):
    make_features([], "decoder", LENGTHS, "row")


def examples_in(batch):
  return batch["example_ids"][:, 0].tolist()


def test_step_k_takes_the_k_th_rows_from_wherever_it_starts():
  assert [examples_in(b) for b in Batches(Rows(9), 2)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert [examples_in(b) for b in Batches(Rows(9), 2, start_row=6)] == [[6, 7]]
  assert [examples_in(b) for b in Batches(Rows(9), 3, 3, 9)] == [[3, 4, 5], [6, 7, 8]]
  assert len(Batches(Rows(9), 2, start_row=20)) == 0


def test_the_shares_of_the_processes_are_the_global_batch():
  whole = [examples_in(b) for b in Batches(Rows(12), 6)]
  shares = [Batches(Rows(12), 6, share=range(2 * i, 2 * i + 2)) for i in range(3)]
  joined = [
    [number for part in parts for number in examples_in(part)]
    for parts in zip(*shares, strict=True)
  ]
  assert joined == whole


def test_settings_that_cannot_be_obeyed_are_refused():
  with pytest.raises(StorageError, match="has 9 rows and 10 are needed"):
    Batches(Rows(9), 2, stop_row=10)
  with pytest.raises(ConfigError, match="1 would be left over"):
    Batches(Rows(9), 2, stop_row=9)
  with pytest.raises(ConfigError):
    Batches(Rows(9), 0)


def test_an_error_in_the_thread_is_raised_where_the_batches_are_taken():
  class Torn(Rows):
    def row(self, index):
      if index == 2:
        raise StorageError("window torn")
      return super().row(index)

  batches = iter(Batches(Torn(9), 1))
  assert examples_in(next(batches)) == [0]
  with pytest.raises(StorageError, match="torn"):
    list(batches)


def test_the_thread_ends_when_nobody_takes_more_batches():
  batches = iter(Batches(Rows(1000), 1))
  next(batches)
  batches.close()
  assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
