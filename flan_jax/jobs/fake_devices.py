"""Devices that are not there, for the compilers of CPUs, TPUs (`libtpu`) and GPUs (JAX's CUDA plugin)."""

from collections.abc import Sequence
from importlib.util import find_spec

import jax

from flan_jax.errors import ConfigError
from flan_jax.training.devices import Device

WITHOUT_DEVICES = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "CUDA_VISIBLE_DEVICES": "-1",
}
"""An environment in which no metadata server is asked, and no device is held that another process could want."""

_TPUS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # dimensions of the network
_CUDA = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_GPUS_OF_A_MACHINE = 8

# NVIDIA's whitepapers on the A100 and the H100, of which the H200 has the chip, and the CUDA C programming guide.
_AMPERE = """
  cuda_compute_capability { major: 8 }
  core_count: 108
  fpus_per_core: 64
  clock_rate_ghz: 1.41
  l2_cache_size: 41943040
  shared_memory_per_core: 167936
  shared_memory_per_block_optin: 166912
"""
_HOPPER = """
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
"""
_GPUS = {  # and bytes a second from memory
  "a100-40": (_AMPERE, 1.555e12),
  "a100-80": (_AMPERE, 2.039e12),
  "h100": (_HOPPER, 3.35e12),
  "h200": (_HOPPER, 4.8e12),
}
_GPU = """
gpu_device_info {{
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth:.0f}
  {chip}
}}
platform_name: "CUDA"
runtime_version {{ major: {cuda} }}
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "NVIDIA {name}"
"""


def check_compiler(device: Device, count: int) -> None:
  """Raises ConfigError where the compiler for a device is not installed."""
  if device.name in _TPUS and find_spec("libtpu") is None:
    compiler, package = "the TPU compiler", "libtpu (no TPU is needed)"
  elif device.name in _GPUS and not _plugins():
    compiler = "the compiler in JAX's CUDA plugin"
    package = (
      f"{_CUDA[0].replace('_', '-')}=={jax.__version__} (no GPU and none of CUDA's libraries is needed; with "
      "JAX_PLATFORMS=cpu JAX does not look for them)"
    )
  else:
    return
  raise ConfigError(
    f"--compile for {device.name} asks {compiler}, which is not installed: pip install {package}, or ask that of the "
    f"CPU with --devices={count}."
  )


def fake_devices(device: Device, count: int) -> tuple[str, Sequence[jax.Device]]:
  """The compiler that is asked, and devices for it; of CPUs only where JAX has not looked for any yet.

  Raises:
    ConfigError: as many TPUs or GPUs as no slice and no machines have.
  """
  from jax.experimental import topologies

  if device.name in _TPUS:
    sides = _sides(count, _TPUS[device.name])
    slice_ = topologies.get_topology_desc(
      platform="tpu",
      topology_name=f"{device.name}:{'x'.join(map(str, sides))}",
      chips_per_host_bounds=(*(min(2, side) for side in sides[:2]), 1),
    )
    return f"TPU {device.name}", slice_.devices
  if device.name in _GPUS:
    machines, more = divmod(count, _GPUS_OF_A_MACHINE)
    if machines and more:
      raise ConfigError(f"--compile knows machines of {_GPUS_OF_A_MACHINE} GPUs, and not {count}.")
    cluster = topologies.get_topology_desc(
      platform="cuda",
      topology=f"1x{machines or 1}x{_GPUS_OF_A_MACHINE if machines else count}",
      target_config=_target(device),
    )
    return f"CUDA {device.name}", cluster.devices
  jax.config.update("jax_num_cpu_devices", count)
  return "CPU", jax.devices()


def _plugins() -> list[str]:
  return [name for name in _CUDA if find_spec(name)]


def _target(device: Device) -> str:
  chip, bandwidth = _GPUS[device.name]
  return _GPU.format(
    chip=chip,
    bandwidth=bandwidth,
    memory=device.memory,
    cuda=_plugins()[0].removeprefix("jax_cuda").removesuffix("_plugin"),
    name=device.name.upper(),
  )


def _sides(devices: int, dimensions: int) -> list[int]:
  """The most even box of so many chips, each side a power of two: 32 are 4 x 8."""
  power = devices.bit_length() - 1
  if devices != 1 << power:
    raise ConfigError(f"--compile knows slices of 2, 4, 8, ... TPU chips, and not of {devices}.")
  part, more = divmod(power, dimensions)
  return [1 << (part + (i >= dimensions - more)) for i in range(dimensions)]
