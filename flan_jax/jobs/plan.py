"""`flan-jax plan`: what a training launch would take of each device, before any is at hand.

Nothing is compiled, no parameter made and no vocabulary opened: shapes are traced, and the rest is arithmetic.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from flan_jax.errors import ConfigError, MeshError
from flan_jax.jobs.data import DataPlan
from flan_jax.jobs.launch import configure, settings_of
from flan_jax.jobs.optimizer import Optimizer
from flan_jax.models import LanguageModel, build_model
from flan_jax.training.activations import Workload
from flan_jax.training.devices import Device
from flan_jax.training.flops import StepFlops, shapes_by_path, step_flops
from flan_jax.training.lora import Lora
from flan_jax.training.memory import Memory, placed, share, step_memory
from flan_jax.training.partitioning import (
  AXES,
  Layout,
  MeshConfig,
  Rules,
  check_batch,
  check_lengths,
  make_abstract_mesh,
  make_layout,
  param_shardings,
)
from flan_jax.training.step import abstract_state, check_accumulator
from flan_jax.training.traffic import Traffic, step_traffic


@dataclasses.dataclass(frozen=True)
class Setup:
  """What of a launch, or of one phase of it, decides what a step takes.

  Args:
    phase: its name; "" where there are none.
    work: rows and lengths of a step, of which `steps` are made.
    z_loss: as training is given it; only the compiler asks.
    accumulator_dtype: of the sums of gradients over microbatches.
  """

  phase: str
  model: LanguageModel
  lora: Lora | None
  optimizer: Optimizer
  mesh: MeshConfig
  rules: Rules
  work: Workload
  steps: int
  z_loss: float = 0.0
  accumulator_dtype: str = "float32"

  @property
  def trained(self) -> LanguageModel | Lora:
    """What the optimizer moves."""
    return self.lora or self.model

  def layout(self, mesh: Mesh | AbstractMesh) -> Layout:
    """On a mesh, once the batch divides over it."""
    layout = make_layout(self.model, mesh, self.rules)
    check_batch(self.work.rows, self.work.accumulation, layout)
    check_lengths((self.work.inputs, self.work.length), layout)
    return layout

  def changed(self, **to: Any) -> "Setup":
    """The same with another `remat`, `accumulation` or `mesh`."""
    setup = self
    if "remat" in to:
      config = dataclasses.replace(self.model.config, remat=to["remat"])
      both_ways = self.model.bidirectional_inputs
      model = dataclasses.replace(build_model(config), bidirectional_inputs=both_ways)
      lora = self.lora and dataclasses.replace(self.lora, model=model)
      setup = dataclasses.replace(setup, model=model, lora=lora)
    if "accumulation" in to:
      work = dataclasses.replace(self.work, accumulation=to["accumulation"])
      setup = dataclasses.replace(setup, work=work)
    return dataclasses.replace(setup, mesh=to.get("mesh", setup.mesh))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a setup takes on so many devices.

  Args:
    trained, frozen: numbers in the parameters that are trained, and in those that are only read.
    advice: where it does not fit, a sentence that says what would; "" where it does.
  """

  setup: Setup
  device: Device
  devices: int
  layout: Layout
  trained: int
  frozen: int
  memory: Memory
  flops: StepFlops
  traffic: Traffic
  advice: str = ""

  @property
  def fits(self) -> bool:
    return self.device.memory is None or self.memory.total <= self.device.memory

  def seconds(self, utilisation: float) -> float | None:
    """Of a step, where the devices reach this part of their peak; None: the peak is not known."""
    if self.device.peak is None:
      return None
    return self.flops.model.total / (self.devices * self.device.peak * utilisation)

  def steps_per_pass(self, examples: int) -> float:
    """Steps in which so many examples are read once, from rows that are full."""
    work = self.setup.work
    row = work.inputs + work.length
    return examples * min(work.example or row, row) / (row * work.rows)

  def seconds_on_links(self) -> float | None:
    """What a step's traffic takes at the least, of which some runs beside the arithmetic."""
    if self.device.interconnect is None:
      return None
    return self.traffic.total / self.device.interconnect


def make_plans(
  files: Sequence[str],
  bindings: Sequence[str],
  device: Device,
  devices: int,
  example: float | None = None,
) -> list[Plan]:
  """The plan of each phase of what `flan-jax train` would do with the same files and bindings.

  Args:
    example: tokens of a packed example on average; None: each fills its row.

  Raises:
    ConfigError: training would refuse the launch too.
    MeshError: mesh, model or batch do not divide.
  """
  made = (make_plan(setup, device, devices) for setup in setups(files, bindings, example))
  return [dataclasses.replace(plan, advice=advised(plan)) for plan in made]


def setups(
  files: Sequence[str], bindings: Sequence[str], example: float | None = None
) -> Iterator[Setup]:
  """What each phase of a launch of `train` sets."""
  for phase in configure("train", files, bindings):
    with dataclasses.replace(phase, planning=True):
      settings = settings_of("train")
    source, steps = settings["model"], settings["steps"]
    if steps < 1:
      raise ConfigError(f"train.steps={steps} must be 1 or more")
    check_accumulator(settings["accumulator_dtype"], settings["accumulation"])
    yield Setup(
      phase.name,
      settings["data"].read_by(source).model,
      source.lora,
      settings["optimizer"],
      settings["mesh"],
      settings["axis_rules"],
      _workload(source.model, settings, example),
      steps,
      settings["z_loss"],
      settings["accumulator_dtype"],
    )


def make_plan(setup: Setup, device: Device, devices: int) -> Plan:
  """The arithmetic of a setup on so many devices."""
  layout = setup.layout(make_abstract_mesh(setup.mesh, devices))
  tx = setup.optimizer.transformation(setup.trained)
  shapes, shardings = abstract_state(setup.trained, tx, layout)
  whole = setup.model.shapes()
  kernels = placed(whole, param_shardings(setup.model, layout))
  frozen = kernels if setup.lora else []
  trained = placed(shapes.params, shardings.params)
  learnt = (setup.optimizer.trained(tree) for tree in (shapes.params, shardings.params))
  config, work = setup.model.config, setup.work
  return Plan(
    setup,
    device,
    devices,
    layout,
    sum(array.leaf.size for array in trained),
    sum(array.leaf.size for array in frozen),
    step_memory(
      config,
      work,
      layout,
      parameters=share([*trained, *frozen]),
      optimizer=share(placed(shapes.opt_state, shardings.opt_state)),
      learnt=placed(*learnt),
      kernels=kernels,
      platform=device.platform,
      accumulator_dtype=setup.accumulator_dtype,
    ),
    step_flops(
      config,
      work,
      shapes_by_path(setup.optimizer.trained(shapes.params)),
      shapes_by_path(whole),
    ),
    step_traffic(config, work, layout, trained, frozen),
  )


def advised(plan: Plan) -> str:
  """What would make it fit: the first that does of changes that cost ever more."""
  if plan.fits:
    return ""
  setup, devices = plan.setup, plan.devices
  for change in _changes(setup, plan.layout):
    try:
      other = make_plan(setup.changed(**change), plan.device, devices)
    except MeshError:
      continue
    if other.fits:
      said = [f"{name}={_said(value)}" for name, value in change.items()]
      return f"It would fit with {' and '.join(said)}."
  widest = setup.changed(remat="full", mesh=_all_fsdp(setup.mesh))
  for times in (2, 4, 8, 16, 32, 64):
    try:
      fits = make_plan(widest, plan.device, devices * times).fits
    except MeshError:
      continue
    if fits:
      how = f"remat='full' and mesh={_said(widest.mesh)}"
      return f"It would fit on {devices * times} devices, with {how}."
  return "No remat policy, accumulation, or fsdp of up to 64 times the devices would make it fit."


def _workload(model: LanguageModel, settings: Mapping[str, Any], example: float | None) -> Workload:
  data: DataPlan = settings["data"]
  if missing := {"inputs", "targets"} - set(data.lengths):
    raise ConfigError(
      f"data.lengths={dict(data.lengths)} does not say {', '.join(sorted(missing))}."
    )
  inputs, targets = data.lengths["inputs"], data.lengths["targets"]
  decoder = model.layout == "decoder"
  length = inputs + targets if decoder else targets
  return Workload(
    settings["batch_size"],
    settings["accumulation"],
    0 if decoder else inputs,
    length,
    length if data.loss_on == "everything" else targets,
    example,
    model.config.dropout_rate > 0,
  )


def _changes(setup: Setup, layout: Layout) -> Iterator[dict[str, Any]]:
  """Remat first, then smaller microbatches, then parameters cut over more devices."""
  at_once = setup.work.rows // layout.shards("batch")
  accumulations = [n for n in range(setup.work.accumulation, at_once + 1) if at_once % n == 0]
  remats = dict.fromkeys((setup.model.config.remat, "dots", "full"))
  for mesh, accumulation, remat in itertools.product(
    (setup.mesh, _all_fsdp(setup.mesh)), accumulations, remats
  ):
    change = {"remat": remat, "accumulation": accumulation, "mesh": mesh}
    own = {
      "remat": setup.model.config.remat,
      "accumulation": setup.work.accumulation,
      "mesh": setup.mesh,
    }
    if changed := {name: value for name, value in change.items() if value != own[name]}:
      yield changed


def _all_fsdp(mesh: MeshConfig) -> MeshConfig:
  """The devices along data lend themselves to fsdp."""
  return dataclasses.replace(mesh, data=1, fsdp=-1)


def _said(value: Any) -> str:
  if isinstance(value, MeshConfig):
    return "(" + ", ".join(f"{k}={getattr(value, k)}" for k in AXES if getattr(value, k) != 1) + ")"
  return repr(value)
