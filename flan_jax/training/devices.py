"""What the makers of accelerators say of them: memory, peak and links, and how many a plan is for.

The numbers are those of one chip as JAX counts devices (a v4 or v5p chip is one device, two cores together).
Memory is in GiB: the makers write GB and build powers of two. A link's number is what a chip can send while it
receives as much, over all of its links together; one ring along one mesh axis has a part of it.

  v4, v5e, v5p, v6e   Google Cloud, "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e": HBM, bf16 peak, and half of the
                      "bidirectional inter-chip interconnect bandwidth" per chip; v6e's 800 GB/s fit its
                      102.4 TB/s of all-reduce a pod of 256, older pages say 3,584 Gb/s each way; v4's six
                      links of 50 GB/s are in arXiv 2304.01433
  a100-40, a100-80    NVIDIA A100 Tensor Core GPU datasheet (SXM; NVLink 600 GB/s both ways together)
  h100, h200          NVIDIA H100 and H200 datasheets (SXM, dense bf16; NVLink 900 GB/s both ways together)
"""

import dataclasses
import re

from flan_jax.errors import ConfigError, UnknownName

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Device:
  """One kind of accelerator.

  Args:
    memory: bytes; None: not known, as of a CPU, which has what its machine has.
    peak: bf16 products and sums a second, dense; None: not known.
    interconnect: bytes a second that it sends while it receives as many; None: not known.
  """

  name: str
  memory: int | None = None
  peak: float | None = None
  interconnect: float | None = None

  @property
  def platform(self) -> str:
    """As JAX calls it: "cpu", "gpu" or "tpu"."""
    if self.name == "cpu":
      return "cpu"
    return "tpu" if re.match(r"v\d|TPU", self.name) else "gpu"


DEVICES = {
  device.name: device
  for device in (
    Device("v4", 32 * GIB, 275e12, 300e9),
    Device("v5e", 16 * GIB, 197e12, 200e9),
    Device("v5p", 95 * GIB, 459e12, 600e9),
    Device("v6e", 32 * GIB, 918e12, 400e9),
    Device("a100-40", 40 * GIB, 312e12, 300e9),
    Device("a100-80", 80 * GIB, 312e12, 300e9),
    Device("h100", 80 * GIB, 989e12, 450e9),
    Device("h200", 141 * GIB, 989e12, 450e9),
    Device("cpu"),
  )
}


def parse_devices(text: str) -> tuple[Device, int]:
  """The kind and the number that "v5e-64", "a100-80-8" or "8" names; a number alone is of CPUs.

  Raises:
    UnknownName: no such kind.
    ConfigError: it names no number.
  """
  if text.isdecimal():
    text = f"cpu-{text}"
  kind, _, count = text.rpartition("-")
  if text in DEVICES or not re.fullmatch(r"[1-9]\d*", count):
    raise ConfigError(
      f"--devices={text}: write a kind and how many, such as v5e-64 or h100-8, or a number alone."
    )
  if kind not in DEVICES:
    raise UnknownName("kind of device", kind, DEVICES, f"It stands in --devices={text}.")
  return DEVICES[kind], int(count)


def device_of(kind: str) -> Device:
  """The device that JAX calls by this `device_kind`; one of which nothing is known, where none is."""
  found = [device for pattern, device in _KINDS if re.search(pattern, kind, re.IGNORECASE)]
  return found[0] if found else Device(kind)


_KINDS = tuple(
  (pattern, DEVICES[name])
  for pattern, name in (
    (r"TPU v4$", "v4"),
    (r"TPU v5 ?lite|TPU v5e", "v5e"),
    (r"TPU v5p?$", "v5p"),
    (r"TPU v6 ?lite|TPU v6e", "v6e"),
    (r"A100.*80", "a100-80"),
    (r"A100", "a100-40"),
    (r"H100", "h100"),
    (r"H200", "h200"),
  )
)
