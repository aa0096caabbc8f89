"""A model as EleutherAI's lm-evaluation-harness (`lm_eval`) asks it.

The harness has three questions: the log-probability of a continuation, that of a whole text, and what the model goes
on to write. Texts become ids as its own model class `hf` makes them, so that both give a decoder the same numbers:

                      decoder                                  encoder-decoder
  text                begin token, where there is one          end token behind what the encoder reads
  continuation        tokenised with its context, cut off      tokenised alone, the decoder's
  space between       belongs to the continuation              belongs to the continuation
  empty context       the prefix token                         the prefix token, for the encoder
  too long            cut from the left                        what the encoder reads is cut from the left

lm_eval itself is imported by `register` alone.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from flan_jax.checkpoints.hugging_face import named_begin_token
from flan_jax.errors import ConfigError, EvaluationError, UnknownName, VocabularyError
from flan_jax.evaluation import RankRequest, row_lengths_up_to, score_options
from flan_jax.inference import Engine, Sampling, Texts
from flan_jax.jobs.assistants import open_source, stop_tokens, talking_format
from flan_jax.jobs.typed_calls import typed
from flan_jax.models import parameter_count
from flan_jax.training.partitioning import MeshConfig, make_layout, make_mesh
from flan_jax.vocabularies import ChatFormat
from flan_jax.vocabularies.formats import Message

NAME = "flan_jax"
"""What the harness calls the model."""

_LONGEST = 2048  # of a model that does not say, as in the harness
_AT_ONCE = 16
_ROW_TOKENS = 256
_TOGETHER = 4096  # requests after which the harness's cache is told
_SIZES = 128  # shapes of the cache of keys and values, in tokens

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = {
  "top_k": "top_k",
  "top_p": "top_p",
  "min_p": "min_p",
  "repetition_penalty": "repetition_penalty",
  "no_repeat_ngram_size": "no_repeat_ngram",
}
_GENERATION = ("until", "do_sample", "temperature", *_LENGTHS, *_SAMPLING)

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Settings:
  """What `--model_args` may say.

  Args:
    path: the folder of a run, or a published model: a folder, a GGUF file, a package.
    dtype: of the activations, and of a published model's parameters; None: float32, or as the run had it.
    batch_size: texts that are written at once; times 256, tokens that are scored at once on each shard of the rows.
      "auto": 16.
    max_batch_size: no more than that with "auto".
    max_length: tokens of the longest text; None: as the model says, else 2048.
    max_gen_toks: tokens that are written where a task does not say.
    add_bos_token: whether begin and end tokens are added to texts; None: as the vocabulary has them. Without, an
      encoder reads no end token.
    prefix_token_id: what an empty context is; None: the begin token, else the end token.
    mesh: such as "tensor=4"; "": all devices hold a copy.
  """

  path: str
  dtype: Literal["float32", "bfloat16"] | None = None
  batch_size: int | Literal["auto"] = "auto"
  max_batch_size: int | None = None
  max_length: int | None = None
  max_gen_toks: int = 256
  add_bos_token: bool | None = None
  prefix_token_id: int | None = None
  mesh: str = ""

  @staticmethod
  def of(given: Mapping[str, Any]) -> "Settings":
    """Settings by name, as the harness has read them from the command line.

    Raises:
      UnknownName: no setting has that name.
      ConfigError: a value that cannot be, or no path.
    """
    known = [field.name for field in fields(Settings)]
    for name in given:
      if name not in known:
        raise UnknownName("name in --model_args", name, known)
    if not given.get("path"):
      raise ConfigError(
        "--model_args names no model: say path=FOLDER, a run's or a published model's."
      )
    read = {**given, "path": str(given["path"])}
    size = str(read.get("batch_size", "auto")).partition(":")[0]
    read["batch_size"] = int(size) if size.isdecimal() else size
    settings: Settings = typed(Settings, "model_args", {})(**read)
    for name in ("batch_size", "max_batch_size", "max_length", "max_gen_toks"):
      if isinstance(value := getattr(settings, name), int) and value < 1:
        raise ConfigError(f"model_args.{name} is {value}; it must be 1 or more.")
    return settings

  @property
  def at_once(self) -> int:
    """Texts that are written at once."""
    if isinstance(self.batch_size, int):
      return self.batch_size
    return min(_AT_ONCE, self.max_batch_size or _AT_ONCE)


class HarnessModel:
  """Answers the harness's questions in plain Python types.

  Attributes:
    prefix_id: the token that an empty context is.
    max_length: tokens of the longest text.

  Raises:
    CheckpointError: there is no such model.
    ConfigError: a setting that the model cannot have, or several processes.
  """

  def __init__(self, settings: Settings):
    if jax.process_count() > 1:
      raise ConfigError("the harness asks one process: run this launch in one, on its devices.")
    self._settings = settings
    self._source = source = open_source(settings.path, settings.dtype)
    self._vocabulary, self._model = source.vocabulary, source.model
    self._encodes = source.model.layout == "encoder_decoder"
    self._format = talking_format(source)
    self.max_length = settings.max_length or self._longest()
    named = named_begin_token(Path(settings.path))
    begin_id = self._vocabulary.bos_id
    if begin_id is None and named is not None and len(ids := self._vocabulary.encode(named)) == 1:
      begin_id = ids[0]
    end_id = self._vocabulary.eos_id
    self.prefix_id = end_id if begin_id is None else begin_id
    if settings.prefix_token_id is not None:
      self.prefix_id = settings.prefix_token_id
    if not 0 <= self.prefix_id < self._model.config.vocab_size:
      raise ConfigError(
        f"model_args.prefix_token_id is {self.prefix_id}, and the model knows 0 to "
        f"{self._model.config.vocab_size - 1:,}."
      )
    adds = settings.add_bos_token
    if adds and begin_id is None and not self._encodes:
      raise ConfigError("model_args.add_bos_token is True, and the vocabulary has no begin token.")
    begins = source.begins if adds is None else adds
    self._begin = [] if begin_id is None or self._encodes or not begins else [begin_id]
    self._end = [end_id] if adds is not False and self._encodes else []
    self._written_prefix = self._written(self.prefix_id)
    self._layout = make_layout(
      source.model, make_mesh(MeshConfig.of(settings.mesh, "model_args.mesh"))
    )
    self._params = source.load(self._layout, jax.random.key(0))

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, with begin and end tokens unless the text spells the prefix token itself."""
    return [
      ids if text.startswith(self._written_prefix) else [*self._begin, *ids, *self._end]
      for text, ids in zip(texts, self._vocabulary.encode_batch(texts), strict=True)
    ]

  def pairs(self, asked: Sequence[tuple[str, str]]) -> list[Pair]:
    """Ids of contexts and of their continuations."""
    moved = [_space_moved(context, continuation) for context, continuation in asked]
    contexts = list(dict.fromkeys(context for context, _ in moved if context))
    read = dict(zip(contexts, self.encode(contexts), strict=True))
    joined = self.encode([context + rest for context, rest in moved])
    alone = self._vocabulary.encode_batch([rest for _, rest in moved])
    found: list[Pair] = []
    for (context, _), together, rest in zip(moved, joined, alone, strict=True):
      if not context and rest[:1] == [self.prefix_id]:
        found.append((rest[:1], rest[1:]))
      elif not context:
        found.append(([self.prefix_id], rest))
      else:
        found.append((read[context], rest if self._encodes else together[len(read[context]) :]))
    return found

  def score(
    self, pairs: Sequence[Pair], progress: Callable[[int], object] | None = None
  ) -> list[tuple[float, bool]]:
    """The log-probability of each continuation, and whether it is what greedy decoding would write.

    Continuations of one context are scored behind one copy of it.

    Args:
      progress: called with the number of pairs that were newly scored.

    Raises:
      EvaluationError: a continuation without tokens, or longer than `max_length`.
    """
    requests = []
    for number, (context, rest) in enumerate(pairs):
      name = f"request {number}"
      if len(rest) > self.max_length:
        raise EvaluationError(
          f"{name}: the continuation has {len(rest):,} tokens, and the longest text {self.max_length:,}."
        )
      # A decoder does not read a continuation's last token.
      room = self.max_length if self._encodes else self.max_length + 1 - len(rest)
      requests.append(RankRequest(tuple(context[-room:]), (tuple(rest),), name=name))
    tokens = sum(len(each.prompt_ids) + len(each.option_ids[0]) for each in requests)
    found = score_options(
      self._model,
      self._params,
      requests,
      row_lengths=row_lengths_up_to(self.max_length),
      batch_tokens=min(_ROW_TOKENS * self._settings.at_once, tokens),
      start_id=self._source.start_id,
      layout=self._layout,
      progress=progress,
    )
    return [(each.total[0], each.greedy[0]) for each in found]

  def write(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[int, str]]:
    """What the model writes behind each context: places and texts, in the order in which they are done.

    Args:
      asked: contexts, each with what the harness calls generation_kwargs.

    Raises:
      ConfigError: an argument of generation that is not obeyed here, or a text that leaves no room for a context.
    """
    prompts = self.encode([context for context, _ in asked])
    # NumPy's generator is one of those that the harness seeds.
    seeds = np.random.randint(0, 2**32, len(asked), np.uint32)
    samplings = [self._sampling(how, int(s)) for (_, how), s in zip(asked, seeds, strict=True)]
    for i, sampling in enumerate(samplings):
      room = self.max_length - (0 if self._encodes else sampling.max_new_tokens)
      if room < 1:
        raise ConfigError(
          f"{sampling.max_new_tokens:,} new tokens leave no room for a context in a text of {self.max_length:,}."
        )
      prompts[i] = prompts[i][-room:] or [self.prefix_id]
    lengths = [
      (1 if self._encodes else len(prompt)) + sampling.max_new_tokens
      for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    ends = stop_tokens(self._source, self._format)
    engine = Engine(
      self._model,
      self._params,
      stop_ids=ends,
      start_id=self._source.start_id,
      slots=min(self._settings.at_once, len(asked)),
      length=-(-max(lengths) // _SIZES) * _SIZES,
      source_length=-(-max(map(len, prompts)) // _SIZES) * _SIZES,
      layout=self._layout,
    )
    texts, places, said = Texts(engine, self._vocabulary), dict[int, int](), [""] * len(asked)
    for i, (prompt, sampling, (_, how)) in enumerate(zip(prompts, samplings, asked, strict=True)):
      words, ids = self._stops(how.get("until"))
      stops = tuple(dict.fromkeys([*ends, *ids]))
      places[texts.add(prompt, sampling, words, stop_ids=stops)] = i
    while texts.busy:
      for news in texts.step():
        i = places[news.number]
        said[i] += news.text
        if news.finish == "broken":
          raise EvaluationError(
            f"request {i}: the model's logits are not finite. Its parameters or its input are broken."
          )
        if news.finish:
          yield i, said[i]

  def conversation(self, messages: Sequence[Message], answers: bool) -> str:
    """A conversation as the model is to read it.

    Args:
      answers: the last message is to be answered; else it is the beginning of an answer, to be gone on with.
    """
    told, begun = (messages, "") if answers else (messages[:-1], messages[-1]["content"])
    try:
      return self._format.conversation(told) + begun
    except VocabularyError:
      rest = [message for message in told if message["role"] != "system"]
      if len(rest) == len(told):
        raise
      logging.getLogger(__name__).warning("the chat template takes no system message: left out")
      return self._format.conversation(rest) + begun

  def chat_template(self, name: str | bool) -> str:
    """How conversations are written, for the harness's record.

    Raises:
      ConfigError: the model has no way to write them, or none of that name.
    """
    if isinstance(name, str):
      raise ConfigError(
        f"--apply_chat_template={name}: the model has one template, so leave out its name."
      )
    if isinstance(self._format, ChatFormat):
      return self._format.template
    if self._source.format is None:
      raise ConfigError(
        f"{self._source.origin} came without a chat template: leave out --apply_chat_template."
      )
    return str(self._format.as_dict())

  @property
  def tokenizer_name(self) -> str:
    """A name of the vocabulary and of how conversations are written, for the harness's cache of requests."""
    return f"{NAME}-{self._vocabulary.fingerprint[:16]}-{self._format.fingerprint[:16]}"

  def about(self) -> dict[str, Any]:
    """What the harness's results say of the model."""
    return {
      "model_num_parameters": parameter_count(self._model),
      "model_dtype": str(np.dtype(self._model.config.dtype)),
      "model_revision": self._source.origin,
      "model_sha": self._source.fingerprint,
    }

  def _longest(self) -> int:
    config = self._model.config
    learned = getattr(config, "learned_positions", None)
    return learned or getattr(config, "context_length", None) or _LONGEST

  def _written(self, token_id: int) -> str:
    return self._vocabulary.token(token_id) if token_id < self._vocabulary.size else "\0"

  def _sampling(self, how: Mapping[str, Any], seed: int) -> Sampling:
    """Where neither task nor command line says, as the model's publisher has it generate."""
    for name in how:
      if name not in _GENERATION:
        raise UnknownName("argument of generation", name, _GENERATION)
    told = [how[name] for name in _LENGTHS if how.get(name) is not None]
    temperature = float(how.get("temperature") or 0.0)
    if how.get("do_sample") and how.get("temperature") is None:
      temperature = 1.0
    if how.get("do_sample") is False:
      temperature = 0.0
    said = {
      ours: value
      for theirs, ours in _SAMPLING.items()
      if (value := how.get(theirs, self._source.generation.get(theirs))) is not None
    }
    new = int(told[0]) if told else self._settings.max_gen_toks
    return Sampling(new, temperature=temperature, seed=seed, **said)

  def _stops(self, until: str | Sequence[str] | None) -> tuple[list[str], list[int]]:
    """Texts and tokens that end an answer: a control token is written as a text, and never read in one."""
    words: list[str] = []
    tokens: list[int] = []
    for stop in [until] if isinstance(until, str) else until or []:
      ids = self._vocabulary.encode(stop)
      if len(ids) == 1 and self._written(ids[0]) == stop and not self._vocabulary.decode(ids):
        tokens += ids
      elif stop:
        words.append(stop)
    return words, tokens


@functools.cache
def register() -> type:
  """Makes the harness know the model `flan_jax`, and gives its class.

  Raises:
    ConfigError: lm_eval is not installed.
  """
  try:
    import lm_eval.models  # noqa: F401  (its own, which it looks for only as long as it knows none)
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import (
      get_rolling_token_windows,
      make_disjoint_window,
      simple_parse_args_string,
    )
  except ModuleNotFoundError as error:
    raise ConfigError(
      f"lm_eval is not installed (no module {error.name!r}): pip install 'flan-jax[lm-eval]'."
    ) from None

  @register_model(NAME)
  class FlanJaxLM(LM):
    def __init__(self, **given: Any):
      super().__init__()
      self.model = HarnessModel(Settings.of(given))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> "FlanJaxLM":
      return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: Any = None) -> "FlanJaxLM":
      # The harness names a device where nobody did; JAX takes those that it finds. No code comes with a model here.
      said = {k: v for k, v in (additional_config or {}).items() if k != "device" and v is not None}
      return cls(**{**said, **{k: v for k, v in arg_dict.items() if k != "trust_remote_code"}})

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
      asked, found = [request.args for request in requests], []
      with tqdm(total=len(asked), desc="loglikelihood", disable=disable_tqdm) as bar:
        for start in range(0, len(asked), _TOGETHER):
          part = asked[start : start + _TOGETHER]
          scores = self.model.score(self.model.pairs(part), bar.update)
          found += scores
          for pair, score in zip(part, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, score)
      return found

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list:
      texts, found = [request.args[0] for request in requests], []
      ways = self.model.prefix_id, self.model.max_length, 1
      with tqdm(total=len(texts), desc="loglikelihood_rolling", disable=disable_tqdm) as bar:
        for start in range(0, len(texts), _TOGETHER):
          part = texts[start : start + _TOGETHER]
          cut = [
            [*map(make_disjoint_window, get_rolling_token_windows(ids, *ways))]
            for ids in self.model.encode(part)
          ]
          scores = iter(self.model.score([window for windows in cut for window in windows]))
          for text, windows in zip(part, cut, strict=True):
            found.append(sum(next(scores)[0] for _ in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
            bar.update()
      return found

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list:
      asked, found = [request.args for request in requests], [""] * len(requests)
      with tqdm(total=len(asked), desc="generate_until", disable=disable_tqdm) as bar:
        for i, text in self.model.write(asked) if asked else ():
          found[i] = text
          self.cache_hook.add_partial("generate_until", asked[i], text)
          bar.update()
      return found

    def apply_chat_template(self, chat_history: list, add_generation_prompt: bool = True) -> str:
      return self.model.conversation(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
      return self.model.chat_template(chat_template)

    @property
    def tokenizer_name(self) -> str:
      return self.model.tokenizer_name

    def get_model_info(self) -> dict:
      return self.model.about()

  return FlanJaxLM


def _space_moved(context: str, continuation: str) -> tuple[str, str]:
  """A context without the white space at its end, which goes before the continuation."""
  kept = context.rstrip()
  return kept, context[len(kept) :] + continuation
