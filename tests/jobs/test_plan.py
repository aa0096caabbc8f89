"""`flan-jax plan`: its arithmetic against real arrays, JAX's partial evaluation and the compiler."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flan_jax.jobs.configurables  # noqa: F401  what recipes name
from flan_jax.jobs.compiled_plan import compile_step
from flan_jax.jobs.gin_files import CONFIG_DIRECTORY
from flan_jax.jobs.optimizer import as_optimizer
from flan_jax.jobs.plan import Setup, advised, make_plan, make_plans, setups
from flan_jax.models import DecoderConfig, EncoderDecoderConfig, LoraConfig, build_model
from flan_jax.training import cross_entropy, optimizers, schedules
from flan_jax.training.activations import Workload, kept_bytes, stacks
from flan_jax.training.devices import DEVICES
from flan_jax.training.lora import Lora
from flan_jax.training.partitioning import (
  DEFAULT_RULES,
  MeshConfig,
  make_abstract_mesh,
  make_layout,
  make_mesh,
  param_shardings,
)
from flan_jax.training.step import TrainState, abstract_state

DECODER = DecoderConfig(
  vocab_size=512,
  emb_dim=64,
  num_layers=3,
  num_heads=8,
  num_kv_heads=4,
  head_dim=16,
  mlp_dim=192,
  scan_layers=False,
)
T5 = EncoderDecoderConfig(
  vocab_size=512,
  emb_dim=64,
  num_heads=8,
  head_dim=16,
  num_encoder_layers=3,
  num_decoder_layers=5,
  mlp_dim=192,
  scan_layers=False,
)
CONFIGS = {"decoder": DECODER, "t5": T5}
OPTIMIZERS = {
  "adafactor": (optimizers.adafactor, {"min_dim_size_to_factor": 1}),
  "adamw with averages": (optimizers.adamw, {"ema_decay": 0.99}),
  "adamw, embeddings frozen": (optimizers.adamw, {"multipliers": {"*embed*": 0.0}}),
  "lion": (optimizers.lion, {}),
  "muon": (optimizers.muon, {}),
}
MESHES = (
  MeshConfig(),
  MeshConfig(1, 8),
  MeshConfig(2, 1, 1, 4),
  MeshConfig(2, 2, 1, 2),
  MeshConfig(1, 4, 2, 1),
)
CPU = DEVICES["cpu"]
PRESETS = ("single", "fsdp", "fsdp_tensor", "megatron", "pod")


def setup_of(config, optimizer="adamw with averages", mesh=MeshConfig(), lora=False, **work):
  decoder = isinstance(config, DecoderConfig)
  given = {"rows": 8, "accumulation": 1, "inputs": 0 if decoder else 64, "length": 48, "scored": 48}
  make, settings = OPTIMIZERS[optimizer]
  model = build_model(config)
  return Setup(
    "",
    model,
    Lora(model, LoraConfig(4, 8.0, 0.0, False, ("*attention*kernel",))) if lora else None,
    as_optimizer(make)(schedules.constant(peak=1e-3, total_steps=10), **settings),
    mesh,
    DEFAULT_RULES,
    Workload(**{**given, **work}),
    steps=10,
  )


def zeros_on(shape, sharding):
  return jax.device_put(np.zeros(shape.shape, shape.dtype), sharding)


def on_one_device(tree):
  """Bytes that the first device really holds."""
  first = jax.devices()[0]
  shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
  return sum(shard.data.nbytes for shard in shards if shard.device == first)


@pytest.mark.parametrize(
  "mesh", [*MESHES[3:], *(pytest.param(m, marks=pytest.mark.slow) for m in MESHES[:3])], ids=str
)
@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_and_optimizer_take_the_bytes_that_the_arrays_really_have(family, mesh):
  for name in OPTIMIZERS:
    for lora in (False, True) if name == "lion" else (False,):
      setup = setup_of(CONFIGS[family], name, mesh, lora)
      memory = make_plan(setup, CPU, 8).memory
      layout = setup.layout(make_mesh(mesh))
      tx = setup.optimizer.transformation(setup.trained)
      shapes, shardings = abstract_state(setup.trained, tx, layout)
      zeros = jax.tree.map(zeros_on, shapes, shardings)
      assert isinstance(zeros, TrainState)
      held = on_one_device(zeros.params)
      if lora:
        base = jax.eval_shape(setup.model.init, jax.random.key(0))
        held += on_one_device(jax.tree.map(zeros_on, base, param_shardings(setup.model, layout)))
      assert memory.parameters == held, name
      assert memory.optimizer == on_one_device(zeros.opt_state), name


KINDS = {
  "llama": dataclasses.replace(DECODER, num_layers=7, dtype="bfloat16"),
  "gemma": dataclasses.replace(
    DECODER,
    num_layers=7,
    mlp_activations=("gelu", "linear"),
    attention_softcap=50.0,
    post_norms=True,
  ),
  "qwen 3": dataclasses.replace(DECODER, num_layers=7, qk_norm=True),
  "neox": dataclasses.replace(
    DECODER, num_layers=7, mlp_activations=("gelu_exact",), block="parallel", dtype="bfloat16"
  ),
  "gpt-j": dataclasses.replace(
    DECODER, num_layers=7, mlp_activations=("relu",), block="parallel_shared_norm", norm="layer"
  ),
  "t5": dataclasses.replace(T5, num_encoder_layers=7, num_decoder_layers=11, dtype="bfloat16"),
  "t5 with dropout": dataclasses.replace(
    T5, num_encoder_layers=7, num_decoder_layers=11, dropout_rate=0.1
  ),
  "t5 1.0": dataclasses.replace(
    T5, num_encoder_layers=7, num_decoder_layers=11, mlp_activations=("relu",)
  ),
  "llama by flash attention": dataclasses.replace(
    DECODER, num_layers=7, dtype="bfloat16", attention="flash", head_dim=16
  ),
  "t5 by flash attention": dataclasses.replace(
    T5,
    num_encoder_layers=7,
    num_decoder_layers=11,
    dtype="bfloat16",
    attention="flash",
    head_dim=16,
  ),
}


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize(
  "kind",
  [
    k
    if k in ("llama", "t5 with dropout", "t5 by flash attention")
    else pytest.param(k, marks=pytest.mark.slow)
    for k in KINDS
  ],
)
def test_layers_keep_what_the_partial_evaluation_of_jax_saves_of_them(kind, remat):
  config = dataclasses.replace(KINDS[kind], remat=remat, scan_layers=True)
  length = 64 if config.attention == "flash" else 40  # It pads rows to 64.
  setup = setup_of(config, rows=2, length=length, dropout=config.dropout_rate > 0)
  model, work = setup.model, setup.work
  token = {
    f"{side}_{name}": jax.ShapeDtypeStruct((2, tokens), jnp.int32)
    for side, tokens in (("decoder", work.length), ("encoder", work.inputs))
    for name in ("input_tokens", "segment_ids", "positions")
    if tokens
  }
  params = jax.eval_shape(model.init, jax.random.key(0))
  key = jax.random.key(0) if work.dropout else None
  saved = jax.eval_shape(
    lambda p, b: jax.vjp(lambda p: model.hidden(p, b, dropout_key=key), p)[1], params, token
  )
  given = {leaf.shape for leaf in jax.tree.leaves(params)}
  # What a layer saves is stacked over the 7 or 11 of them; no other array begins so.
  of_layers = [
    leaf
    for leaf in jax.tree.leaves(saved)
    if leaf.ndim > 2 and leaf.shape[0] in (7, 11) and leaf.shape not in given
  ]
  layout = make_layout(model, make_abstract_mesh(MeshConfig(), 1))
  ours = sum(s.layers * kept_bytes(s.arrays, remat, layout) for s in stacks(config, work))
  theirs = sum(leaf.size * leaf.dtype.itemsize for leaf in of_layers)
  # Ours leaves out one or two numbers a token of norms and softmax.
  assert ours <= theirs <= 1.03 * ours if remat == "none" else ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize(("family", "length"), [("decoder", 48), ("decoder", 250), ("t5", 48)])
def test_executed_flops_are_those_that_the_compiler_counts(family, length, monkeypatch):
  config = (
    dataclasses.replace(CONFIGS[family], emb_dim=256, mlp_dim=768, head_dim=32, num_kv_heads=8)
    if family == "decoder"
    else dataclasses.replace(T5, emb_dim=256, mlp_dim=768, head_dim=32)
  )
  # The compiler counts what is in a loop once: those that are scored, 8 rows of 48, are one block.
  monkeypatch.setattr(cross_entropy, "logits_at_a_time", lambda _: (512, config.vocab_size))
  setup = setup_of(config, "lion", length=length)
  ours = make_plan(setup, CPU, 1).flops.executed
  theirs = compile_step(setup, jax.devices()[:1], "CPU").flops
  assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("family", "remat"),
  [("decoder", "none"), ("decoder", "dots"), ("decoder", "full"), ("t5", "none")],
)
def test_memory_is_near_what_the_compiler_asks_for(family, remat):
  config = dataclasses.replace(CONFIGS[family], remat=remat, scan_layers=True)
  # Rows of one block: of several, XLA on CPU holds all scores at once. The compiler for TPUs is asked elsewhere.
  setup = setup_of(config, mesh=MeshConfig(2, 2, 1, 2), rows=256, length=64, scored=16)
  memory = make_plan(setup, CPU, 8).memory
  asked = compile_step(setup, jax.devices(), "CPU")
  assert memory.parameters + memory.optimizer <= asked.arguments
  assert 0.75 < memory.total / asked.peak < 1.25


def test_the_state_is_cut_over_meshes_of_any_size_that_need_not_be_there():
  # So wide that memory is at its peak in the layers on either mesh, where all gradients but the last are there.
  config = dataclasses.replace(DECODER, remat="full", mlp_dim=4096)
  one, many = (
    make_plan(setup_of(config, mesh=MeshConfig(1, n), rows=64), CPU, n).memory for n in (1, 64)
  )
  assert one.parameters == 64 * many.parameters
  assert one.gradients == 64 * many.gradients


def test_causal_attention_is_counted_as_half_and_packed_examples_apart():
  def attention(**work):
    return make_plan(setup_of(DECODER, **work), CPU, 1).flops.model.attention

  width = 4 * DECODER.num_heads * DECODER.head_dim
  assert attention() == 3 * DECODER.num_layers * width * 8 * 48 * 49 / 2
  assert attention(example=12) == 3 * DECODER.num_layers * width * 8 * 4 * 12 * 13 / 2


def test_adapters_ask_for_fewer_flops_and_no_gradient_of_their_base():
  whole, adapters = (
    make_plan(setup_of(DECODER, "lion", lora=lora), CPU, 8) for lora in (False, True)
  )
  assert adapters.frozen == whole.trained
  assert adapters.memory.gradients <= 4 * adapters.trained < whole.memory.gradients
  assert (
    0.6 < adapters.flops.model.kernels / whole.flops.model.kernels < 0.75
  )  # two products of three, and their own


def test_what_does_not_fit_is_told_what_would():
  small = dataclasses.replace(CPU, memory=50 << 20)
  setup = setup_of(dataclasses.replace(DECODER, remat="none"), rows=64, length=256)
  plan = make_plan(setup, small, 8)
  assert not plan.fits
  assert advised(plan).startswith("It would fit with remat='dots'")
  hopeless = make_plan(setup, dataclasses.replace(CPU, memory=1), 8)
  assert advised(hopeless).startswith("No remat policy")


T5_JSON = {
  "model_type": "t5",
  "d_model": 64,
  "d_kv": 8,
  "num_heads": 4,
  "d_ff": 128,
  "vocab_size": 512,
}
RECIPES = sorted(path.name for path in (CONFIG_DIRECTORY / "recipes").glob("*.gin"))
PHASES = {
  "t5_mini.gin": ["pretrain", "adapt", "tune"],
  "mini_clusters.gin": [f"clusters_{k}" for k in (1, 2, 4, 7)],
  "mini_prompts.gin": [
    *(f"prompts_{k}" for k in (1, 2, 4, "all")),
    *("options_shown", "options_hidden"),
  ],
}
TRAINING = [name for name in RECIPES if not name.endswith("_eval.gin")]


@pytest.mark.parametrize("recipe", TRAINING)
def test_every_shipped_recipe_is_planned_and_opens_nothing(recipe, monkeypatch):
  monkeypatch.setattr("flan_jax.jobs.models.published_config", lambda *_: DECODER)
  published = ("flan2021.gin", "flan_t5.gin", "t0.gin")
  bindings = ("INITIAL_CHECKPOINT=nowhere",) if recipe in published else ()
  plans = make_plans([f"recipes/{recipe}"], bindings, DEVICES["v5e"], 8)
  assert [plan.setup.phase for plan in plans] == PHASES.get(recipe, [""])
  assert all(
    (plan.fits or plan.advice) and plan.memory.total > 0 and plan.flops.model.total > 0
    for plan in plans
  )


def test_of_a_published_folder_config_json_is_enough(flan_jax, folder):
  (folder / "config.json").write_text(json.dumps({**T5_JSON, "num_layers": 2}))
  recipe = ("--gin_file=recipes/flan_t5.gin", f"--gin.INITIAL_CHECKPOINT={folder}")
  told = json.loads(flan_jax("plan", *recipe, "--devices=h100-8", "--json").stdout)
  assert told["mesh"] == {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
  assert told["bytes"]["total"] == sum(told["bytes"][part] for part in PARTS)
  passed = ("--example_tokens=160", "--examples=640000")
  table = flan_jax("plan", *recipe, "--devices=h100-8", *passed).stdout
  tokens = told["work"]["rows"] * (told["work"]["inputs"] + told["work"]["length"])
  assert f"{640_000 * 160 / tokens:,.0f} steps" in table
  assert f"{told['parameters']['trained']:,} trained" in table
  assert "headroom" in table


PARTS = ("parameters", "optimizer", "batch", "gradients", "casts", "activations", "transient")


@pytest.mark.parametrize("before", PRESETS)
def test_a_mesh_after_another_one_takes_its_place(before):
  for mesh in PRESETS:
    files = ["recipes/t5_tiny.gin", f"meshes/{before}.gin", f"meshes/{mesh}.gin"]
    [setup], [alone] = setups(files, []), setups([files[0], files[2]], [])
    assert setup.mesh == alone.mesh


def test_another_model_after_a_recipe_needs_nothing_of_the_first(flan_jax):
  files = ("--gin_file=recipes/flan_t5.gin", "--gin_file=models/t5_1_1_xxl.gin")
  words = flan_jax("plan", *files, "--gin.VOCABULARY_PATH=spiece.model", "--devices=v5e-64").stdout
  assert "11,135,332,352 trained" in words


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--devices=h100",), "write a kind and how many"),
    (("--devices=h10-8",), "Did you mean 'h100'"),
    (("--devices=h100-0",), "write a kind and how many"),
    (("--devices=v5e-64",), "use a multiple of 64"),
    (("--utilisation=40",), "part of the peak"),
    (("--gin.STEPS=0",), "must be 1 or more"),
    (("--gin.STPES=5",), "STEPS"),
    (("--gin.data.lengths={'inputs': 8}",), "targets"),
  ],
)
def test_what_cannot_be_planned_is_refused(flan_jax, arguments, words):
  assert words in flan_jax("plan", "--gin_file=recipes/t5_tiny.gin", *arguments, status=2).stderr


@pytest.mark.parametrize(
  ("devices", "package"), [("v5e-8", "libtpu"), ("h100-8", "jax-cuda13-plugin==")]
)
def test_a_compiler_is_asked_for_by_name_where_it_is_not_installed(
  flan_jax, monkeypatch, devices, package
):
  monkeypatch.setattr("flan_jax.jobs.fake_devices.find_spec", lambda _: None)
  recipe = ("--gin_file=recipes/t5_tiny.gin", f"--devices={devices}", "--compile")
  assert f"pip install {package}" in flan_jax("plan", *recipe, status=2).stderr
