"""What is made of plain text: span corruption, prefix language modelling, language modelling.

    text            A B C D E F G H
    span corruption inputs  A B <0> E F <1>     targets  <0> C D <1> G H
    prefix LM       inputs  A B C               targets  D E F G H
    LM              inputs  (none)              targets  A B C D E F G H

These are T5's objectives (Raffel et al., arXiv 1910.10683, section 3.1.4), without TensorFlow. The same
seed gives the very masks that `t5.data.preprocessors` draws: both take their numbers from the counter-based
generator Philox (Salmon et al., 2011), which TensorFlow's stateless functions run through.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt32

from flan_jax.errors import ConfigError
from flan_jax.vocabularies import Vocabulary

Seed = tuple[int, int]
Tokens = Int[np.ndarray, "tokens"]
Mask = Bool[np.ndarray, "tokens"]


class Objective(Protocol):
  """How a stretch of text becomes inputs and targets, both without an end token.

  Attributes:
    name: as recipes call it.
    joins: stretches run on over the ends of documents; without, each lies within one.
    ends_documents: an end token stands between documents.
  """

  name: ClassVar[str]
  joins: ClassVar[bool]
  ends_documents: ClassVar[bool]

  def text_length(self, inputs: int, targets: int) -> int:
    """The longest stretch of text whose inputs and targets have at most so many tokens."""

  def apply(self, tokens: Tokens, seed: Seed, vocabulary: Vocabulary) -> tuple[Tokens, Tokens]:
    """Inputs and targets of a stretch of at least two tokens."""


@dataclass(frozen=True)
class SpanCorruption:
  """Spans of the text are left out of the inputs, each told by a sentinel, and are the targets.

  Equals `t5.data.preprocessors.span_corruption` from the cutting into stretches on.

  Args:
    noise_density: the part of the tokens that is left out.
    mean_noise_span_length: tokens of such a span on average.
  """

  noise_density: float = 0.15
  mean_noise_span_length: float = 3.0

  name: ClassVar[str] = "span_corruption"
  joins: ClassVar[bool] = True
  ends_documents: ClassVar[bool] = False

  def __post_init__(self) -> None:
    if not 0 < self.noise_density < 1 or not self.mean_noise_span_length >= 1:
      raise ConfigError(
        f"noise_density={self.noise_density} must lie between 0 and 1, and "
        f"mean_noise_span_length={self.mean_noise_span_length} be 1 or more."
      )

  def text_length(self, inputs: int, targets: int) -> int:
    length = 2
    while self._lengths(length + 1)[0] <= inputs:
      length += 1
    read, written = self._lengths(length)
    # T5 gives up a token for targets that are as long as the inputs.
    if self.noise_density == 0.5 and written > read:
      length, written = length - 1, written - 1
    if read > inputs or written > targets:
      raise ConfigError(
        f"span corruption of {length} tokens makes {read} of inputs and {written} of targets; besides end "
        f"tokens there is room for {inputs} and {targets}: give targets {written} or more, or inputs fewer."
      )
    return length

  def apply(self, tokens: Tokens, seed: Seed, vocabulary: Vocabulary) -> tuple[Tokens, Tokens]:
    seeds = split_seed(seed, 6)
    noise = random_spans_mask(
      len(tokens), self.noise_density, self.mean_noise_span_length, seeds[:2]
    )
    return with_sentinels(tokens, noise, vocabulary), with_sentinels(tokens, ~noise, vocabulary)

  def _lengths(self, length: int) -> tuple[int, int]:
    """Tokens of inputs and targets, sentinels included."""
    noise, spans = _noise_counts(length, self.noise_density, self.mean_noise_span_length)
    return length - noise + spans, noise + spans


@dataclass(frozen=True)
class PrefixLM:
  """The text is cut somewhere; what stands before is read, what follows written.

  Equals `t5.data.preprocessors.prefix_lm` from the cutting into stretches on.
  """

  name: ClassVar[str] = "prefix_lm"
  joins: ClassVar[bool] = False
  ends_documents: ClassVar[bool] = False

  def text_length(self, inputs: int, targets: int) -> int:
    return min(inputs, targets) + 1

  def apply(self, tokens: Tokens, seed: Seed, vocabulary: Vocabulary) -> tuple[Tokens, Tokens]:
    del vocabulary
    cut = uniform_integer(split_seed(seed, 6)[0], 1, len(tokens))
    return tokens[:cut], tokens[cut:]


@dataclass(frozen=True)
class LM:
  """The whole text is written, document after document, each with its end token.

  Equals `t5.data.preprocessors.full_lm`. For decoders.
  """

  name: ClassVar[str] = "lm"
  joins: ClassVar[bool] = True
  ends_documents: ClassVar[bool] = True

  def text_length(self, inputs: int, targets: int) -> int:
    return inputs + targets

  def apply(self, tokens: Tokens, seed: Seed, vocabulary: Vocabulary) -> tuple[Tokens, Tokens]:
    del seed, vocabulary
    return tokens[:0], tokens


def random_spans_mask(
  length: int, noise_density: float, mean_noise_span_length: float, seeds: list[Seed]
) -> Mask:
  """True on spans of noise, which alternate with spans of text; the text begins.

  How many tokens and spans are noise is fixed; which, all masks are equally likely.
  """
  whole = max(length, 2)
  noise, spans = _noise_counts(whole, noise_density, mean_noise_span_length)
  pairs = (_segments(whole - noise, spans, seeds[1]), _segments(noise, spans, seeds[0]))
  lengths = np.stack(pairs, axis=1).reshape(-1)
  return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)[:length]


def with_sentinels(tokens: Tokens, noise: Mask, vocabulary: Vocabulary) -> Tokens:
  """The tokens with each run of noise replaced by one sentinel: `<extra_id_0>`, `<extra_id_1>`, ...

  Raises:
    ConfigError: there are more runs than sentinels.
  """
  after_noise = np.concatenate([[False], noise[:-1]])
  first = noise & ~after_noise
  runs = int(first.sum())
  if runs > vocabulary.extra_ids:
    raise ConfigError(
      f"{runs} spans of a text of {len(tokens)} tokens need as many sentinels, and the vocabulary has "
      f"{vocabulary.extra_ids}: make it with extra_ids={runs} or more, or give shorter lengths."
    )
  written = np.array(tokens, np.int32)
  written[first] = [vocabulary.sentinel(i) for i in range(runs)]
  return written[~(noise & after_noise)]


def split_seed(seed: Seed, count: int) -> list[Seed]:
  """New seeds from one, as `tf.random.experimental.stateless_split` of an int32 seed."""
  bits = philox(seed, 2 * count).astype(np.int32)
  return [(int(a), int(b)) for a, b in bits.reshape(count, 2)]


def uniform(seed: Seed, count: int) -> Float32[np.ndarray, "count"]:
  """Numbers in [0, 1), as `tf.random.stateless_uniform`."""
  mantissa = philox(seed, count) & np.uint32(0x7FFFFF)
  return (mantissa | np.uint32(127 << 23)).view(np.float32) - np.float32(1)


def uniform_integer(seed: Seed, low: int, high: int) -> int:
  """An integer in [low, high), as `tf.random.stateless_uniform` of int32."""
  return low + int(philox(seed, 1)[0]) % (high - low)


def philox(seed: Seed, count: int) -> UInt32[np.ndarray, "count"]:
  """The first numbers of Philox4x32-10 under the key and counter that TensorFlow makes of a seed."""
  words = np.array(seed, np.int64).view(np.uint32)
  mixed = _philox_rounds(words[:, None], np.array([0x3EC8F720, 0x02461E29], np.uint32))[:, 0]
  blocks = -(-count // 4)
  counter = np.zeros((4, blocks), np.uint32)
  counter[0] = np.arange(blocks)
  counter[2:] = mixed[2:, None]
  return _philox_rounds(counter, mixed[:2]).T.reshape(-1)[:count]


def _philox_rounds(
  counter: UInt32[np.ndarray, "4 blocks"], key: UInt32[np.ndarray, "2"]
) -> UInt32[np.ndarray, "4 blocks"]:
  a, b, c, d = counter.astype(np.uint64)
  low = np.uint64(0xFFFFFFFF)
  first, second = (int(word) for word in key)
  for _ in range(10):
    one, other = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
    a, b, c, d = (
      (other >> np.uint64(32)) ^ b ^ np.uint64(first),
      other & low,
      (one >> np.uint64(32)) ^ d ^ np.uint64(second),
      one & low,
    )
    first, second = (first + 0x9E3779B9) & 0xFFFFFFFF, (second + 0xBB67AE85) & 0xFFFFFFFF
  return np.stack([a, b, c, d]).astype(np.uint32)


def _noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
  """How many tokens of a text are noise, in how many spans; in float32, as T5 rounds."""
  noise = int(np.round(np.float32(length) * np.float32(density)))
  noise = min(max(noise, 1), length - 1)
  spans = max(int(np.round(np.float32(noise) / np.float32(mean_span))), 1)
  if spans > length - noise:
    raise ConfigError(
      f"noise_density={density} leaves {length - noise} of {length} tokens, and mean_noise_span_length={mean_span} "
      f"makes {spans} spans, between which some text must stand: give a lower density or longer spans."
    )
  return noise, spans


def _segments(items: int, count: int, seed: Seed) -> Int[np.ndarray, "count"]:
  """The lengths of `count` segments that together have so many items, none empty."""
  begins = np.arange(items - 1) < count - 1
  shuffled = begins[np.argsort(uniform(seed, items - 1), kind="stable")]
  return np.bincount(np.concatenate([[0], np.cumsum(shuffled)]))
