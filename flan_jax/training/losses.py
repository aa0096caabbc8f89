"""Losses as sums and weights, so that any split of a batch gives the same gradient.

A loss answers two questions. `weights(batch)`: what each of its terms will be divided by, asked
once of the whole global batch. `sums(params, batch, key, frozen)`: the undivided sum of each term
over the rows given, asked of every microbatch. The training step minimises

  sum over terms of  coefficient * (sum over microbatches of its sum) / (weight of the whole batch)

A mean of microbatch means would be another number wherever the microbatches carry different numbers
of targets.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flan_jax.errors import ConfigError
from flan_jax.models import LMHead
from flan_jax.training.cross_entropy import TokenScores, token_scores

PyTree = Any
Batch = Mapping[str, Any]


class Term(NamedTuple):
  """One part of a loss, over some rows.

  Args:
    sum: undivided.
    weight: what the same rows contribute to the divisor.
    coefficient: how much the divided term counts in the loss that is minimised.
  """

  sum: Float[Array, ""]
  weight: Float[Array, ""]
  coefficient: float | Float[Array, ""] = 1.0


class LossSums(NamedTuple):
  """What a loss says about some rows.

  Args:
    terms: what is minimised, by name.
    tallies: sums for the log alone (per-task sums, token counts), added up over the microbatches.
  """

  terms: Mapping[str, Term]
  tallies: Mapping[str, Array]


class Loss(Protocol):
  """What a training step asks for. The batch is any tree of arrays with the rows first."""

  def weights(self, batch: Any) -> Mapping[str, Float[Array, ""]]:
    """The divisor of each term over these rows. Additive over rows; no function of parameters."""
    ...

  def sums(
    self, params: PyTree, batch: Any, key: jax.Array | None, frozen: PyTree = None
  ) -> LossSums:
    """The sum of each term over these rows.

    Args:
      params: what is trained, heads and adapters included.
      key: for dropout and sampling. None: neither.
      frozen: parameters that are read and not trained (a reference policy, the base under an
        adapter).
    """
    ...


class ScoredModel(Protocol):
  """What the supervised loss asks of a language model."""

  def hidden(self, params: PyTree, batch: Batch, dropout_key: jax.Array | None = None) -> Array: ...

  def lm_head(self, params: PyTree) -> LMHead: ...


@dataclasses.dataclass(frozen=True)
class SupervisedLoss:
  """Cross-entropy of `decoder_target_tokens`, weighted per token by `decoder_loss_weights`.

  Terms: "cross_entropy", and "z_loss" (squared log-normaliser; PaLM, arXiv 2204.02311, section 5)
  where it counts. Tallies: "tokens" and "targets" (tokens that are no padding, tokens with a
  weight), and, with `tasks`, "task_loss" and "task_weight" [tasks], weighted cross-entropy and
  weight by `task_ids`.

  Args:
    z_loss: coefficient of the z-loss term.
    label_smoothing: probability mass spread evenly over the vocabulary (as `optax.smooth_labels`).
    normalising_factor: divides the sums, in place of the sum of weights in the batch.
    tasks: how many tasks `task_ids` counts; 0 keeps no account.
    token_block, vocabulary_block: how many logits a device holds at a time; see `token_scores`.
  """

  model: ScoredModel
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  normalising_factor: float | None = None
  tasks: int = 0
  token_block: int | None = None
  vocabulary_block: int | None = None

  def __post_init__(self) -> None:
    if not self.z_loss >= 0:
      raise ConfigError(f"z_loss={self.z_loss} must be 0 or more")
    if not 0 <= self.label_smoothing < 1:
      raise ConfigError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")
    if self.normalising_factor is not None and not self.normalising_factor > 0:
      raise ConfigError(f"normalising_factor={self.normalising_factor} must be above 0")
    if any(size is not None and size < 1 for size in (self.token_block, self.vocabulary_block)):
      raise ConfigError("token_block and vocabulary_block must be 1 or more")

  def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
    if self.normalising_factor is None:
      weight = jnp.sum(jnp.asarray(batch["decoder_loss_weights"], jnp.float32))
    else:
      weight = jnp.float32(self.normalising_factor)
    return dict.fromkeys(self._term_names(), weight)

  def sums(
    self, params: PyTree, batch: Batch, key: jax.Array | None = None, frozen: PyTree = None
  ) -> LossSums:
    weights = jnp.asarray(batch["decoder_loss_weights"], jnp.float32)
    scores = _score(self, params, batch, key, weights != 0)
    smooth = np.float32(self.label_smoothing)
    smoothed = (np.float32(1.0) - smooth) * scores.logprob + smooth * scores.mean_logprob
    losses = -smoothed * weights
    divisor = self.weights(batch)
    terms = {"cross_entropy": Term(jnp.sum(losses), divisor["cross_entropy"])}
    if self.z_loss:
      squares = jnp.sum(jnp.square(scores.log_normaliser) * weights)
      terms["z_loss"] = Term(squares, divisor["z_loss"], self.z_loss)
    return LossSums(terms, self._tallies(batch, jax.lax.stop_gradient(losses), weights))

  def _term_names(self) -> tuple[str, ...]:
    return ("cross_entropy", "z_loss") if self.z_loss else ("cross_entropy",)

  def _tallies(self, batch: Batch, losses: jax.Array, weights: jax.Array) -> dict[str, Array]:
    segments = [batch[name] for name in batch if name.endswith("_segment_ids")]
    tallies = {
      "targets": jnp.sum(weights != 0, dtype=jnp.int32),
      "tokens": sum((jnp.sum(ids != 0, dtype=jnp.int32) for ids in segments), jnp.int32(0)),
    }
    if self.tasks:
      tasks = jnp.ravel(batch["task_ids"])
      for name, value in (("task_loss", losses), ("task_weight", weights)):
        tallies[name] = jax.ops.segment_sum(jnp.ravel(value), tasks, num_segments=self.tasks)
    return tallies


def token_logprobs(
  model: ScoredModel,
  params: PyTree,
  batch: Batch,
  key: jax.Array | None = None,
  *,
  asked: Array | None = None,
  token_block: int | None = None,
  vocabulary_block: int | None = None,
) -> Float[Array, "B T"]:
  """log p of each of `decoder_target_tokens`, by the very computation that `SupervisedLoss` trains.

  Differentiable.

  Args:
    key: for dropout; None: none.
    asked: boolean [B, T], which tokens to score; 0 elsewhere. None: all.
  """
  asked = None if asked is None else jnp.asarray(asked)
  loss = SupervisedLoss(model, token_block=token_block, vocabulary_block=vocabulary_block)
  return _score(loss, params, batch, key, asked).logprob


def _score(
  loss: SupervisedLoss, params: PyTree, batch: Batch, key: jax.Array | None, asked: Array | None
) -> TokenScores:
  return token_scores(
    loss.model.hidden(params, batch, dropout_key=key),
    loss.model.lm_head(params),
    jnp.asarray(batch["decoder_target_tokens"]),
    asked,
    token_block=loss.token_block,
    vocabulary_block=loss.vocabulary_block,
  )
