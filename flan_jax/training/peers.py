"""What the processes of a run tell each other beside the devices, through JAX's coordination service."""

from jax._src import distributed


def tell(topic: str, index: int, text: str) -> None:
  """Leaves a text of this process under a topic, in place of what it left there before."""
  _client().key_value_set(f"{_ROOT}/{topic}/{index}", text, allow_overwrite=True)


def told(topic: str) -> dict[int, str]:
  """What each process left under a topic, as far as it did."""
  found = _client().key_value_dir_get(f"{_ROOT}/{topic}")
  return {int(key.rpartition("/")[2]): text for key, text in found}


def tell_all(topic: str, text: str) -> bool:
  """Says the one thing that there is to say on a topic; whether this process was the first."""
  try:
    _client().key_value_set(f"{_ROOT}/{topic}", text)
  except RuntimeError:
    return False
  return True


def heard(topic: str, seconds: float) -> str:
  """Waits for `tell_all`.

  Raises:
    RuntimeError: nobody said it in that time.
  """
  return _client().blocking_key_value_get(f"{_ROOT}/{topic}", int(1000 * seconds))


def meet(name: str, seconds: float) -> None:
  """Waits for all processes at a place that they pass once.

  Raises:
    RuntimeError: one did not arrive in that time.
  """
  _client().wait_at_barrier(f"{_ROOT}/{name}", int(1000 * seconds))


_ROOT = "flan_jax"


def _client():
  return distributed.global_state.client
