"""What is asked of rank classification, and what each option gets."""

from dataclasses import dataclass

from flan_jax.errors import EvaluationError, UnknownName

CONVENTIONS = ("t0", "lm_eval", "lm_eval_norm", "per_token", "pmi", "contextual")
"""How an option's token log-probabilities become its score.

t0: their sum, end of text included (Sanh et al. 2022, and T5X).
lm_eval: their sum without the end of text (the harness's `acc`).
lm_eval_norm: that sum divided by the option's length in UTF-8 bytes (the harness's `acc_norm`).
per_token: their mean, end of text included.
pmi: their sum without the end of text, less the same sum where nothing was asked: how much the prompt
  speaks for the option (Holtzman et al. 2021, arXiv 2104.08315; the harness's `acc_mutual_info`).
contextual: their sum, end of text included, less the logarithm of the option's share where the same
  prompt has no content (contextual calibration, Zhao et al. 2021, arXiv 2102.09690).
"""


@dataclass(frozen=True)
class RankRequest:
  """One prompt and the options to be ranked after it.

  Args:
    prompt_ids: at least one token; with the decoder family it begins with BOS where the model wants
      one.
    option_ids: of each option, the tokens that follow the prompt, end of text included if it has
      one.
    end_tokens: of each option, how many of its last tokens are end of text. Default: none.
    option_bytes: of each option, the length of its text. Default: unknown, `lm_eval_norm` refuses.
    name: what an error calls it.
  """

  prompt_ids: tuple[int, ...]
  option_ids: tuple[tuple[int, ...], ...]
  end_tokens: tuple[int, ...] = ()
  option_bytes: tuple[int, ...] = ()
  name: str = "a request"


@dataclass(frozen=True)
class OptionScores:
  """What each option of one request got, in the order of its options.

  Attributes:
    total: summed log-probability, end of text included.
    without_end: the same, end of text left out.
    tokens: number of tokens, end of text included.
    bytes: length of the text; 0 where unknown.
    unasked: `without_end` after a prompt that asks nothing; () where that was not scored.
    content_free: logarithm of the option's share among all options, averaged over prompts without
      content; () where those were not scored.
    greedy: whether each token, end of text included, is the most probable one; () where nobody looked.
  """

  total: tuple[float, ...]
  without_end: tuple[float, ...]
  tokens: tuple[int, ...]
  bytes: tuple[int, ...]
  unasked: tuple[float, ...] = ()
  content_free: tuple[float, ...] = ()
  greedy: tuple[bool, ...] = ()

  def by(self, convention: str) -> tuple[float, ...]:
    """The scores by one of `CONVENTIONS`.

    Raises:
      UnknownName: no convention has that name.
    """
    if convention == "t0":
      return self.total
    if convention == "lm_eval":
      return self.without_end
    if convention == "lm_eval_norm":
      if not all(self.bytes):
        raise EvaluationError("lm_eval_norm needs the length of every option's text in bytes.")
      return tuple(s / n for s, n in zip(self.without_end, self.bytes, strict=True))
    if convention == "per_token":
      return tuple(s / n for s, n in zip(self.total, self.tokens, strict=True))
    if convention == "pmi":
      if not self.unasked:
        raise EvaluationError("pmi needs the options' scores after a prompt that asks nothing.")
      return tuple(s - u for s, u in zip(self.without_end, self.unasked, strict=True))
    if convention == "contextual":
      if not self.content_free:
        raise EvaluationError("contextual needs the options' scores after prompts without content.")
      return tuple(s - c for s, c in zip(self.total, self.content_free, strict=True))
    raise UnknownName("scoring convention", convention, CONVENTIONS)
