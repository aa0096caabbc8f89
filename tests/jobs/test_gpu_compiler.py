"""The compiler in JAX's CUDA plugin, without a GPU, on launches and on what writes text: `make test-gpu-compiler`.

What costs time on a GPU and changes no number is read in the program: copies of the state, sums of bfloat16 in memory,
products of one row.
"""

import math
import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import flan_jax.jobs.configurables  # noqa: F401  what recipes name
from flan_jax.inference import slots
from flan_jax.jobs.compiled_plan import compiled_plans, program_of
from flan_jax.jobs.fake_devices import fake_devices
from flan_jax.jobs.plan import make_plans, setups
from flan_jax.models import DecoderConfig, build_model
from flan_jax.models.flash_attention import SameSegment, flash_attention
from flan_jax.models.splash_attention import Causal
from flan_jax.training.devices import DEVICES

pytestmark = [
  pytest.mark.gpu_compiler,
  pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None, reason="no CUDA plugin: make test-gpu-compiler"
  ),
]
DECODER = ("LENGTHS={'inputs': 1536, 'targets': 512}", "LEARNING_RATE=3e-5")
T5 = ("LENGTHS={'inputs': 1024, 'targets': 256}",)
FLASH = ("decoder.attention='flash'", "encoder_decoder.attention='flash'")


def launch(model, mesh, rows, *bindings):
  family = "encoder_decoder" if model.startswith("t5") else "decoder"
  kernels = [each for each in bindings if "attention" not in each or each.startswith(family + ".")]
  files = ["recipes/flan2021.gin", f"models/{model}.gin", f"meshes/{mesh}.gin"]
  files.append("optimizers/adamw.gin")
  given = ("VOCABULARY_PATH=none.model", f"BATCH_SIZE={rows}", "WARMUP_STEPS=10", *kernels)
  return files, given


LAUNCHES = {
  "1B on an H200": ("h200", 1, launch("decoder_1b", "single", 8, *DECODER, *FLASH)),
  "1B on 8, fsdp": ("h100", 8, launch("decoder_1b", "fsdp", 16, *DECODER, *FLASH)),
  "7B on 8, fsdp": ("h100", 8, launch("decoder_7b", "fsdp", 16, *DECODER, *FLASH)),
  "7B on 16, tensor 8": ("a100-80", 16, launch("decoder_7b", "megatron", 16, *DECODER, *FLASH)),
  "T5 large on an H200": ("h200", 1, launch("t5_1_1_large", "single", 32, *T5, *FLASH)),
  "T5 large on 8, no kernel": ("h100", 8, launch("t5_1_1_large", "fsdp", 64, *T5)),
  "1B on 8, no kernel": ("h100", 8, launch("decoder_1b", "fsdp", 16, *DECODER)),
  "T5 xl on 8, fsdp": ("h100", 8, launch("t5_1_1_xl", "fsdp", 64, *T5, *FLASH)),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_plan_is_within_15_percent_of_the_compilers_peak(name):
  kind, count, (files, bindings) = LAUNCHES[name]
  [plan] = make_plans(files, bindings, DEVICES[kind], count)
  [compiled] = compiled_plans(files, bindings, DEVICES[kind], count)
  assert plan.memory.total == pytest.approx(compiled.peak, rel=0.15)


@pytest.fixture(scope="module")
def gpu():
  _, [device] = fake_devices(DEVICES["h200"], 1)
  return device


RULES = {
  "heads of 32": {"size": 32},
  "windows": {"window": 200},
  "capped scores": {"softcap": 30.0},
  "dropout": {"dropout_rate": 0.1},
  "positions and dropout": {"dropout_rate": 0.1, "positions": True},
}


@pytest.mark.parametrize("name", RULES)
def test_flash_attention_compiles_to_the_end(name, gpu):
  rules = {"size": 128, "positions": False, **RULES[name]}
  size, positions = rules.pop("size"), rules.pop("positions")
  place = jax.sharding.SingleDeviceSharding(gpu)
  heads, tokens = (6, 6 if positions else 2), 640

  def given(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  def loss(query, key, value, bias, ids, seed):
    seen = SameSegment(ids, ids) if positions else Causal(ids)
    key_of = jax.random.key(seed)
    out = flash_attention(query, key, value, seen, bias, dropout_key=key_of, **rules)
    return jnp.sum(out, dtype=jnp.float32)

  arrays = [given(2, tokens, heads[0], size), *[given(2, tokens, heads[1], size)] * 2]
  bias = given(1, heads[0], tokens, tokens, dtype=jnp.float32) if positions else None
  ids, seed = given(2, tokens, dtype=jnp.int32), given(dtype=jnp.uint32)
  asked = (0, 1, 2, 3) if positions else (0, 1, 2)
  mesh = jax.sharding.Mesh([gpu], ("data",))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    program = jax.jit(jax.grad(loss, asked)).lower(*arrays, bias, ids, seed).compile()
  assert program.as_text().count("__gpu$xla.gpu.triton") == 3 + positions


def scatters(text, dtype):
  """Those to arrays of a dtype at places that may meet."""
  found = re.findall(rf" = {dtype}\[[\d,]+\]\S* scatter\(.*", text)
  return [each for each in found if "unique_indices=true" not in each]


@pytest.mark.parametrize("model", ["decoder_1b", "t5_1_1_large"])
def test_a_step_copies_no_state_and_sums_nothing_narrow_in_memory(model, gpu):
  files, bindings = launch(model, "single", 8, *(T5 if "t5" in model else DECODER), *FLASH)
  [setup] = setups(files, bindings)
  program = program_of(setup, [gpu])
  memory, text = program.memory_analysis(), program.as_text()
  state = memory.alias_size_in_bytes
  assert state > 0.99 * memory.argument_size_in_bytes
  # A loop over layers begins with copies of zeros, and copies a layer's gradients to those of all.
  copied = re.findall(r" = f32\[([\d,]+)\]\S* copy\((?!%broadcast)", text)
  assert sum(4 * math.prod(map(int, shape.split(","))) for shape in copied) < 0.05 * state
  assert " conditional(" not in text
  assert not scatters(text, "bf16")


@pytest.mark.parametrize("rows", [1, 2, 32])
def test_writing_compares_and_swaps_nothing_of_the_cache_and_makes_products(rows, gpu):
  config = DecoderConfig(1024, 256, 2, 4, 2, 64, 512, dtype="bfloat16", param_dtype="bfloat16")
  model = build_model(config)
  mesh = jax.sharding.Mesh([gpu], ("data",))
  separated = []

  def shaped(tree):
    place = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

  def apart(params):
    own, params = model.separated(params)
    separated.append(own)
    return params

  params = jax.eval_shape(apart, model.shapes())
  [model] = separated
  state = jax.eval_shape(lambda params: slots.empty(model, params, rows, 128, 0), params)
  hurry = shaped(jax.ShapeDtypeStruct((), jnp.bool_))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    text = (
      slots.write.lower(model, shaped(params), shaped(state), None, hurry, 8).compile().as_text()
    )
  cache = rf"bf16\[{rows},2,128,64\]"
  # One row is written as a slice.
  assert len(re.findall(rf" = {cache}\S* scatter\(", text)) == (4 if rows > 1 else 0)
  assert not scatters(text, "bf16")
  # Of one row the terms of a product with a kernel are written down before they are summed: why engines have two.
  terms = re.findall(r" = bf16\[(?:256,512|512,256|256,256|256,128)\]\S* multiply\(", text)
  assert bool(terms) == (rows == 1)
