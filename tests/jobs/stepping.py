"""A run that only steps, to be killed, stopped and misled: all of a launch but gin's job and a model.

python stepping.py [--local N] [--steps N] [--timeout NAME=SECONDS ...] [--late PROCESS:STEP] [BINDING ...]
"""

import argparse
import os
import time

from flan_jax.jobs import supervision

PARSER = argparse.ArgumentParser()
PARSER.add_argument("--local", type=int)
PARSER.add_argument("--steps", type=int, default=1000)
PARSER.add_argument("--timeout", action="append", default=[])
PARSER.add_argument("--heartbeat", type=float)
PARSER.add_argument("--step_timeout", type=float)
PARSER.add_argument("--late", default="-1:0")
PARSER.add_argument("--fails", type=int)
PARSER.add_argument("bindings", nargs="*")


def main() -> None:
  options = PARSER.parse_args()
  seconds = {name: int(value) for name, value in (each.split("=") for each in options.timeout)}
  environments = supervision.local_processes(options.local)
  ended = supervision.supervise(environments, seconds.get("heartbeat", 100))
  if ended is not None:
    os._exit(ended)
  import jax
  import jax.numpy as jnp

  from flan_jax.errors import FlanJaxError
  from flan_jax.jobs.clusters import find_place
  from flan_jax.jobs.preflight import check_launch
  from flan_jax.jobs.processes import Timeouts, joined, watchdog_of
  from flan_jax.training.watchdog import WatchdogConfig

  late, at = map(int, options.late.split(":"))
  try:
    with joined(find_place(), Timeouts(**seconds)):
      check_launch([], options.bindings, 20)
      mesh = jax.make_mesh((jax.device_count(),), ("data",))
      rows = jax.NamedSharding(mesh, jax.P("data"))
      ones = jax.make_array_from_callback((jax.device_count(),), rows, lambda _: jnp.ones(1))
      summed = jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))
      with watchdog_of(WatchdogConfig(options.heartbeat, options.step_timeout)) as watchdog:
        for step in range(1, options.steps + 1):
          index = jax.process_index()
          if (index, step) == (late, at):
            time.sleep(600)
          if index == options.fails:
            raise FlanJaxError("this one fails")
          watchdog.beat(step)
          total = summed(ones)
          os.write(1, f"{os.getpid()} {index} {step} {total}\n".encode())
          time.sleep(0.05)
  except FlanJaxError as error:
    os.write(2, f"flan-jax: {error}\n".encode())
    os._exit(2)


if __name__ == "__main__":
  main()
