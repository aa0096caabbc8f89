"""TFRecord files of `tf.train.Example`s. Reading one imports TensorFlow."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from flan_jax.errors import ConfigError, RecordError


def read_tfrecords(stream: IO[bytes], origin: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """The place and the features of each record.

  A feature with one value is that value, any other is a list of them, for an Example does not tell a list
  of one from a value alone. Bytes stay bytes.

  Args:
    stream: an uncompressed file.
    origin: how errors name it.

  Raises:
    RecordError: the file is cut short or altered, or a record is no Example.
    ConfigError: TensorFlow is not installed.
  """
  try:
    import tensorflow as tf
    from google.protobuf.message import DecodeError
  except ImportError as error:
    raise ConfigError(f"{origin}: TFRecords are read by TensorFlow: {error}.") from error
  number = 0
  with ExitStack() as files:
    # TensorFlow reads, and checks the sums of, files on the disk only.
    if isinstance(stream, io.BufferedReader) and isinstance(stream.name, str):
      path = stream.name
    else:
      copy = files.enter_context(tempfile.NamedTemporaryFile(suffix=".tfrecord"))
      shutil.copyfileobj(stream, copy)
      copy.flush()
      path = copy.name
    try:
      for number, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator(), start=1):
        features = tf.train.Example.FromString(record).features.feature
        yield f"{origin}: record {number}", {name: _value(features[name]) for name in features}
    except tf.errors.DataLossError as error:
      raise RecordError(
        f"{origin}: record {number + 1}: the file is cut short, altered or no TFRecord file: "
        f"{error.message}."
      ) from error
    except DecodeError as error:
      raise RecordError(f"{origin}: record {number}: not a tf.train.Example.") from error


def _value(feature: Any) -> Any:
  kind = feature.WhichOneof("kind")
  values = list(getattr(feature, kind).value) if kind else []
  return values[0] if len(values) == 1 else values
