"""A run of a tiny model, for tests that kill it: run_tiny.py DIRECTORY MODEL KILL_AT [SIGNAL]."""

import os
import signal
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent))

from tiny import DECODER, TABLE, batch_of

from flan_jax.training import config as training_config
from flan_jax.training import losses, optimizers, partitioning, schedules, trainer

STEPS, ROWS, TASKS = 12, 8, 3


def batches(start, kill_at=-1, how=signal.SIGKILL):
  """Batches that are functions of their row; asked for one of them, takes the process down."""
  row = start
  while True:
    if row // ROWS == kill_at:
      os.kill(os.getpid(), how)
    yield batch_of(rows=ROWS, tasks=TASKS, seed=row)
    row += ROWS


def layout_of(model):
  mesh = partitioning.make_mesh(partitioning.MeshConfig(fsdp=2, data=1), jax.devices()[:2])
  return partitioning.make_layout(model, mesh)


def make_trainer(directory, model=TABLE, **changes):
  layout = layout_of(model)
  schedule = schedules.cosine(1e-2, total_steps=STEPS, warmup_steps=3)
  config = training_config.TrainerConfig(
    **{"steps": STEPS, "batch_size": ROWS, "accumulation": 2, "checkpoint_every": 3, "keep": 3}
    | changes.pop("config", {})
  )
  settings = {
    "model": model,
    "loss": losses.SupervisedLoss(model, z_loss=1e-4, tasks=TASKS),
    "tx": optimizers.adamw(schedule, weight_decay=0.1, decay=("*",), ema_decay=0.9),
    "schedule": schedule,
    "layout": layout,
    "batches": batches,
    "directory": directory,
    "tasks": [("first", "reading"), ("second", "reading"), ("third", "topic")],
    "fingerprints": {"store": "abc"},
    "meta": {"note": "kept"},
  }
  return trainer.Trainer(config, **settings | changes)


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  directory, name, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
  model = {"table": TABLE, "decoder": DECODER}[name]
  how = signal.Signals[sys.argv[4]] if len(sys.argv) > 4 else signal.SIGKILL
  make_trainer(directory, model, batches=lambda start: batches(start, kill_at, how)).run()
