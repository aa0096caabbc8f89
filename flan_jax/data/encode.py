"""From a rendering to token ids: loss spans, prompts to go on from, options to be scored."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from flan_jax.data.truncation import Dropped, Render, fit
from flan_jax.errors import ConfigError, VocabularyError, nearest
from flan_jax.prompting import Rendering, Turn
from flan_jax.vocabularies import Format, Vocabulary

Layout = Literal["encoder_decoder", "decoder"]


@dataclass(frozen=True)
class Encoded:
  """One example as ids.

  Attributes:
    inputs: what the encoder reads; empty for a decoder.
    targets: what the encoder-decoder's decoder writes; for a decoder the whole text.
    spans: [start, end) stretches of `targets` that the loss is taken on.
    prefix: how many of the first `targets` stand before anything that is to be written; a decoder may
      read them in both directions. 0 for an encoder-decoder.
    shortened: the long field was cut.
    shots_dropped: few-shot exemplars that did not fit.
    template, style: of the rendering; "" and "none" where there was none.
    exemplars: which records the exemplars are that did fit, in their order.
  """

  inputs: Int[np.ndarray, "inputs"]
  targets: Int[np.ndarray, "targets"]
  spans: tuple[tuple[int, int], ...]
  prefix: int = 0
  shortened: bool = False
  shots_dropped: int = 0
  template: str = ""
  style: str = "none"
  exemplars: tuple[int, ...] = ()


@dataclass(frozen=True)
class PromptEncoding:
  """What a model goes on from: the encoder's ids, or the beginning of a decoder's text."""

  prompt_ids: list[int]
  rendering: Rendering
  shortened: bool = False
  shots_dropped: int = 0


@dataclass(frozen=True)
class OptionsEncoding:
  """One prompt and the continuations to be scored after it.

  Attributes:
    prompt_ids: what all options share.
    option_ids: the rest of each option's text, with what ends the turn. Prompt and option are
      tokenised together: where a token reaches across the boundary it belongs to the options, and
      then every option begins with as much of the prompt.
    ends: how many of an option's last tokens only end the turn; a score without EOS leaves them out.
    rendering: the query as it was encoded.
  """

  prompt_ids: list[int]
  option_ids: list[list[int]]
  ends: list[int]
  rendering: Rendering
  shortened: bool = False
  shots_dropped: int = 0


@dataclass(frozen=True)
class Encoder:
  """Turns renderings into ids for one model family.

  Args:
    vocabulary: text to ids.
    format: how turns become text.
    layout: "encoder_decoder" or "decoder".
    lengths: {"inputs": I, "targets": T}, the tokens of a row. A decoder's row holds I + T.
    loss_on: "targets", or "everything" (a decoder is then trained on the prompts as well).

  Raises:
    ConfigError: an unknown layout, a length that is not positive, or a loss that does not fit.
    VocabularyError: the format wants a begin token that the vocabulary does not have.
  """

  vocabulary: Vocabulary
  format: Format
  layout: Layout
  lengths: Mapping[str, int]
  loss_on: Literal["targets", "everything"] = "targets"

  def __post_init__(self) -> None:
    check_layout(self.layout, self.lengths)
    if self.loss_on not in ("targets", "everything"):
      raise ConfigError(f"loss_on is {self.loss_on!r}; it is 'targets' or 'everything'.")
    if self.loss_on == "everything" and self.layout != "decoder":
      raise ConfigError("loss_on='everything' is for decoders: an encoder's text is not predicted.")
    if self.format.bos and self.vocabulary.bos_id is None:
      raise VocabularyError("the format begins with a begin token and the vocabulary has none.")

  @property
  def capacities(self) -> tuple[int, ...]:
    """The tokens of a row: (inputs, targets), or (I + T,) for a decoder."""
    return row_capacities(self.layout, self.lengths)

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The ids that end what a model writes."""
    end = self.vocabulary.encode(self.format.end_of_turn) if self.format.end_of_turn else []
    return tuple(dict.fromkeys([self.vocabulary.eos_id, *end[:1]]))

  @property
  def nothing_asked(self) -> int:
    """The one id of a prompt that asks nothing: what begins a text, or ends the one before it."""
    begins = self.vocabulary.bos_id if self.layout == "decoder" else None
    return self.vocabulary.eos_id if begins is None else begins

  def encode(self, render: Render) -> Encoded | Dropped:
    """The ids to train on.

    Args:
      render: called with None, and with limits for the long field if that does not fit.
    """
    fitted = fit(render, self._tokenise, self.capacities)
    if isinstance(fitted, Dropped):
      return fitted
    ids = fitted.ids
    if not ids.spans or not ids.targets or (self.layout != "decoder" and not ids.inputs):
      return Dropped("empty")
    return Encoded(
      np.asarray(ids.inputs, np.int32),
      np.asarray(ids.targets, np.int32),
      ids.spans,
      ids.prefix,
      fitted.shortened,
      fitted.shots_dropped,
      fitted.rendering.template,
      fitted.rendering.style,
    )

  def encode_prompt(self, render: Render) -> PromptEncoding | Dropped:
    """The ids that a model goes on from, with room for T target tokens behind them."""
    room = self.lengths["inputs"]
    fitted = fit(render, self._tokenise_prompt, (room,))
    if isinstance(fitted, Dropped):
      return fitted
    return PromptEncoding(
      fitted.ids.inputs, fitted.rendering, fitted.shortened, fitted.shots_dropped
    )

  def encode_options(self, render: Render) -> OptionsEncoding | Dropped:
    """The prompt and the ids of each option, for rank classification.

    Every option fits into a row with the prompt; the longest decides how far the long field is cut.

    Raises:
      ValueError: the rendering has no options.
    """
    tokenise = self._tokenise_options if self.layout == "decoder" else self._tokenise_targets
    fitted = fit(render, tokenise, self.capacities)
    if isinstance(fitted, Dropped):
      return fitted
    return OptionsEncoding(
      fitted.ids.prompt,
      fitted.ids.options,
      fitted.ids.ends,
      fitted.rendering,
      fitted.shortened,
      fitted.shots_dropped,
    )

  def _tokenise(self, rendering: Rendering) -> "_Ids":
    if self.layout == "encoder_decoder":
      targets, _ = self._target_ids(rendering.turns)
      inputs = self._encoder_ids(rendering.turns)
      return _Ids(inputs, targets, ((0, len(targets)),), (len(inputs), len(targets)))
    pieces = self.format.pieces(rendering.turns)
    if not pieces[-1][0]:
      return _Ids([], [], (), (0,))
    ids, ends = self._decoder_ids("".join(text for text, _ in pieces))
    if self.format.eos:
      ids.append(self.vocabulary.eos_id)
    spans = _spans(pieces, ends, len(ids))
    prefix = spans[0][0] if spans else 0
    if self.loss_on == "everything":
      spans = ((0, len(ids)),)
    # The last token is never read and the first never predicted: n ids take n - 1 places.
    return _Ids([], ids, spans, (len(ids) - 1,), prefix)

  def _tokenise_prompt(self, rendering: Rendering) -> "_Ids":
    if self.layout == "encoder_decoder":
      ids = self._encoder_ids(rendering.turns)
    else:
      pieces = self.format.pieces(rendering.turns, open_end=True)
      ids, _ = self._decoder_ids("".join(text for text, _ in pieces))
    return _Ids(ids, [], (), (len(ids),))

  def _tokenise_targets(self, rendering: Rendering) -> "_OptionIds":
    prompt = self._encoder_ids(rendering.turns)
    encoded = [self._target_ids(turns) for turns in _answered(rendering)]
    options = [ids for ids, _ in encoded]
    used = (len(prompt), max(map(len, options)))
    return _OptionIds(prompt, options, [end for _, end in encoded], used)

  def _tokenise_options(self, rendering: Rendering) -> "_OptionIds":
    opened = "".join(t for t, _ in self.format.pieces(rendering.turns, open_end=True))
    prompt, _ = self._decoder_ids(opened)
    whole: list[list[int]] = []
    ends: list[int] = []
    for turns, option in zip(_answered(rendering), rendering.options, strict=True):
      text = "".join(text for text, _ in self.format.pieces(turns))
      ids, char_ends = self._decoder_ids(text)
      said = len(opened) + _place(text[len(opened) :], option)
      end = len(ids) - _tokens_within(char_ends, said)
      if self.format.eos:
        ids.append(self.vocabulary.eos_id)
        end += 1
      whole.append(ids)
      ends.append(end)
    shared = min((common_prefix(prompt, ids) for ids in whole), default=len(prompt))
    # An option keeps a token of its own even if all of its text is swallowed by the prompt's.
    shared = min([shared, *(len(ids) - 1 for ids in whole)])
    used = (max(map(len, whole)) - 1,)
    return _OptionIds(prompt[:shared], [ids[shared:] for ids in whole], ends, used)

  def _encoder_ids(self, turns: Sequence[Turn]) -> list[int]:
    ids = self.vocabulary.encode(self.format.encoder_text(turns))
    return [*ids, self.vocabulary.eos_id] if self.format.eos_on_inputs else ids

  def _target_ids(self, turns: Sequence[Turn]) -> tuple[list[int], int]:
    """The target's ids, and how many of the last ones only end the turn."""
    text = self.format.target_text(turns)
    if not text:
      return [], 0
    if self.format.eos:
      return [*self.vocabulary.encode(text), self.vocabulary.eos_id], 1
    ids, char_ends = self.vocabulary.encode_with_ends(text)
    return ids, len(ids) - _tokens_within(char_ends, _place(text, turns[-1].target))

  def _decoder_ids(self, text: str) -> tuple[list[int], list[int]]:
    ids, ends = self.vocabulary.encode_with_ends(text)
    if not self.format.bos:
      return list(ids), ends
    assert self.vocabulary.bos_id is not None
    return [self.vocabulary.bos_id, *ids], [0, *ends]


def row_capacities(layout: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
  """The tokens of a row in each dimension that packing fills: (I, T), or (I + T,) for a decoder."""
  if layout == "decoder":
    return (lengths["inputs"] + lengths["targets"],)
  return (lengths["inputs"], lengths["targets"])


def places(encoded: Encoded, layout: str) -> tuple[int, ...]:
  """The tokens of a row that an example takes in each dimension that packing fills."""
  if layout == "decoder":
    return (len(encoded.targets) - 1,)
  return (len(encoded.inputs), len(encoded.targets))


def check_layout(layout: str, lengths: Mapping[str, int]) -> None:
  """Raises ConfigError if there is no such layout, or the lengths are not {inputs, targets} above 0."""
  layouts = ("encoder_decoder", "decoder")
  if layout not in layouts:
    close = nearest(layout, layouts)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"unknown layout {layout!r}: it is 'encoder_decoder' or 'decoder'.{hint}")
  if set(lengths) != {"inputs", "targets"}:
    raise ConfigError(
      f"the lengths are {dict(lengths)!r}; they name the tokens of 'inputs' and 'targets'."
    )
  for name, length in lengths.items():
    if length < 1:
      raise ConfigError(f"the length of {name} is {length}; a row needs at least one token of it.")


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
  """How many ids both begin with."""
  for i, (a, b) in enumerate(zip(one, other, strict=False)):
    if a != b:
      return i
  return min(len(one), len(other))


@dataclass
class _Ids:
  inputs: list[int]
  targets: list[int]
  spans: tuple[tuple[int, int], ...]
  used: tuple[int, ...]
  prefix: int = 0


@dataclass
class _OptionIds:
  prompt: list[int]
  options: list[list[int]]
  ends: list[int]
  used: tuple[int, ...]


def _spans(
  pieces: Sequence[tuple[str, bool]], ends: Sequence[int], count: int
) -> tuple[tuple[int, int], ...]:
  """The stretches of tokens that spell targets; a token across a boundary belongs to the target.

  Args:
    pieces: the text and whether the loss is taken on it.
    ends: for each token of the text how many characters are spelt once it is read.
    count: the ids in all; those after `ends` continue the last piece.
  """
  spans: list[tuple[int, int]] = []
  position = 0
  for number, (text, is_target) in enumerate(pieces):
    start, position = position, position + len(text)
    if not is_target:
      continue
    first = bisect_right(ends, start)
    stop = count if number == len(pieces) - 1 else _tokens_within(ends, position)
    if spans:
      first = max(first, spans[-1][1])
    if first < stop:
      spans.append((first, stop))
  return tuple(spans)


def _tokens_within(ends: Sequence[int], position: int) -> int:
  """How many tokens it takes to spell the text up to a position, the one that crosses it included."""
  count = bisect_right(ends, position)
  crossed = count < len(ends) and (count == 0 or ends[count - 1] < position)
  return count + crossed


def _answered(rendering: Rendering) -> list[tuple[Turn, ...]]:
  """The turns with each of the options as the answer."""
  if not rendering.options:
    raise ValueError(f"template {rendering.template!r} offers no options to score")
  *earlier, query = rendering.turns
  return [(*earlier, Turn(query.input, option)) for option in rendering.options]


def _place(text: str, words: str) -> int:
  """Where the words end in the text; chat templates may strip them first."""
  for spelt in (words, words.strip()):
    at = text.find(spelt)
    if at >= 0:
      return at + len(spelt)
  return len(text)
