"""`flan-jax plan`: a training launch reckoned through, for people or as JSON."""

import argparse
import dataclasses
import importlib
import json
from collections.abc import Iterator
from typing import Any

from flan_jax.cli.table import print_table
from flan_jax.errors import ConfigError
from flan_jax.jobs.compiled_plan import Compiled, compiled_plans
from flan_jax.jobs.plan import Plan, make_plans
from flan_jax.training.devices import GIB, parse_devices

_PARTS = ("parameters", "optimizer", "batch", "gradients", "casts", "activations", "transient")


def show_plan(options: argparse.Namespace) -> None:
  """Prints the plan of each phase of a launch."""
  importlib.import_module("flan_jax.jobs.configurables")
  if not 0 < options.utilisation <= 1:
    raise ConfigError(
      f"--utilisation={options.utilisation} is a part of the peak: above 0, at most 1."
    )
  if not options.gin_file:
    raise ConfigError("nothing to plan; name a recipe, as in --gin_file=recipes/quickstart.gin.")
  launch = (options.gin_file, options.gin_bindings, *parse_devices(options.devices))
  plans = make_plans(*launch, options.example_tokens)
  compiled = compiled_plans(*launch) if options.compile else [None] * len(plans)
  for plan, asked in zip(plans, compiled, strict=True):
    if options.json:
      print(json.dumps(_as_json(plan, asked, options)))
    else:
      _print(plan, asked, options)


def _print(plan: Plan, compiled: Compiled | None, options: argparse.Namespace) -> None:
  mesh = " x ".join(f"{axis}={size}" for axis, size in plan.layout.mesh.shape.items() if size > 1)
  where = f"{plan.devices} x {plan.device.name}, mesh {mesh or 'of one device'}"
  print(f"{plan.setup.phase}: {where}" if plan.setup.phase else where)
  for sentence in plan.layout.fallbacks:
    print(sentence)
  print()
  print_table(("per device", "GiB", ""), list(_memory_rows(plan)))
  print()
  print_table(("a step", "", ""), list(_step_rows(plan, options.utilisation, options.examples)))
  if compiled is not None:
    print()
    print_table(
      (f"{compiled.compiler} compiler, {compiled.seconds:.0f} s", "GiB", "plan"),
      list(_compiled_rows(plan, compiled)),
    )
  if plan.advice:
    print(f"\nIt does not fit. {plan.advice}")
  print()


def _memory_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
  memory, setup = plan.memory, plan.setup
  frozen = f", {plan.frozen:,} frozen" if plan.frozen else ""
  notes = {
    "parameters": f"{plan.trained:,} trained{frozen}",
    "optimizer": setup.optimizer.name,
    "gradients": f"at the peak, accumulation {setup.work.accumulation}",
    "casts": f"of kernels to {setup.model.config.dtype}",
    "activations": f"kept for the backward pass, remat {setup.model.config.remat!r}",
    "transient": f"the peak: {memory.moment}",
  }
  for name in _PARTS:
    yield name, _gib(getattr(memory, name)), notes.get(name, "")
  yield "total", _gib(memory.total), ""
  if plan.device.memory is not None:
    left = plan.device.memory - memory.total
    yield "headroom", _gib(left), f"of {_gib(plan.device.memory)}, and the runtime takes some"


def _step_rows(
  plan: Plan, utilisation: float, examples: int | None
) -> Iterator[tuple[str, str, str]]:
  work, flops, traffic = plan.setup.work, plan.flops, plan.traffic
  steps, positions = plan.setup.steps, work.rows * (work.inputs + work.length)
  lengths = f"{work.inputs} + {work.length}" if work.inputs else f"{work.length}"
  yield "rows", f"{work.rows:,}", f"of {lengths} tokens; {work.microbatch:,} at once"
  yield "tokens", f"{positions:,}", f"{positions * steps:.3g} in {steps:,} steps"
  if examples:
    a_pass = plan.steps_per_pass(examples)
    yield (
      "a pass",
      f"{a_pass:,.0f} steps",
      f"over {examples:,} examples; {steps / a_pass:.3g} passes",
    )
  parts = (f"{name} {value:.3g}" for name, value in flops.model._asdict().items())
  yield "model FLOPs", f"{flops.model.total:.3g}", ", ".join(parts)
  yield "executed FLOPs", f"{flops.executed:.3g}", "with remat, masked scores and logits made twice"
  moved = (f"{name} {_gib(value)}" for name, value in traffic._asdict().items())
  yield "traffic", f"{_gib(traffic.total)} GiB", f"to each device: {', '.join(moved)}"
  seconds, links = plan.seconds(utilisation), plan.seconds_on_links()
  if seconds is not None:
    whole = f"{seconds * steps / 3600:,.1f} hours in all"
    yield "time", f"{seconds:.3g} s", f"at {utilisation:.0%} of the peak; {whole}"
  if links is not None:
    yield "time on links", f"{links:.3g} s", "at the least, with all of a device's links in use"


def _compiled_rows(plan: Plan, compiled: Compiled) -> Iterator[tuple[str, str, str]]:
  memory = plan.memory
  arguments = memory.parameters + memory.optimizer + memory.batch
  yield "arguments", _gib(compiled.arguments), _gib(arguments)
  yield "temporary", _gib(compiled.temporary), _gib(memory.total - arguments)
  yield (
    "peak",
    _gib(compiled.peak),
    f"{_gib(memory.total)} ({memory.total / compiled.peak:.2f} of it)",
  )
  if compiled.flops is not None:
    each = plan.flops.executed / plan.devices
    yield "FLOPs", f"{compiled.flops:.3g}", f"{each:.3g}; the compiler counts a loop once"


def _as_json(plan: Plan, compiled: Compiled | None, options: argparse.Namespace) -> dict[str, Any]:
  config = plan.setup.model.config
  return {
    "phase": plan.setup.phase,
    "device": dataclasses.asdict(plan.device),
    "devices": plan.devices,
    "mesh": dict(plan.layout.mesh.shape),
    "fallbacks": list(plan.layout.fallbacks),
    "remat": config.remat,
    "parameters": {"trained": plan.trained, "frozen": plan.frozen},
    "bytes": {**plan.memory._asdict(), "total": plan.memory.total},
    "fits": plan.fits,
    "advice": plan.advice,
    "work": dataclasses.asdict(plan.setup.work),
    "steps": plan.setup.steps,
    "steps_per_pass": plan.steps_per_pass(options.examples) if options.examples else None,
    "flops": {
      **plan.flops.model._asdict(),
      "model": plan.flops.model.total,
      "executed": plan.flops.executed,
    },
    "traffic": {**plan.traffic._asdict(), "total": plan.traffic.total},
    "utilisation": options.utilisation,
    "seconds": plan.seconds(options.utilisation),
    "seconds_on_links": plan.seconds_on_links(),
    "compiled": compiled and {**compiled._asdict(), "peak": compiled.peak},
  }


def _gib(size: float) -> str:
  return f"{size / GIB:,.2f}"
