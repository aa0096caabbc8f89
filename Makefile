# One command each; every target first builds the environment it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install oracles quickstart test test-oracles test-parity test-network test-slow test-scale test-tpu-compiler test-gpu-compiler test-browser benchmarks lint lock wheel-check

install: .venv/installed

# uv installs a lock of pins and hashes in a third of pip's time; pip brings uv, hash-checked as well.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	awk '/^uv==/ {on=1} on {print} on && !/\\$$/ {exit}' requirements.lock > .venv/uv.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# The independent implementations that parity tests compare with (torch; transformers is in the lock already).
oracles: .venv/oracles
.venv/oracles: .venv/installed requirements/oracles.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/oracles.lock
	touch $@

quickstart: install
	$(BIN)/flan-jax train --gin_file=gin_configs/recipes/quickstart.gin

test: install
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not oracle and not network and not slow and not scale and not tpu_compiler and not gpu_compiler and not browser"

test-oracles: install oracles
	$(BIN)/python -m pytest -n auto --dist load -m "oracle and not slow"

test-parity: install oracles
	$(BIN)/python -m pytest -n auto --dist load -m oracle

test-network: install
	$(BIN)/python -m pytest -n auto --dist loadfile -m "network and not oracle and not slow"

test-slow: install
	$(BIN)/python -m pytest -n auto --dist worksteal -m "slow and not oracle and not scale and not tpu_compiler and not gpu_compiler and not browser"

# Real processes that are killed, stopped and misled; one loss curve on every mesh; an hour.
test-scale: install
	$(BIN)/python -m pytest -n auto --dist load -m scale

# The TPU compiler, in a folder of its own: where it lies beside JAX, JAX looks for TPUs.
.venv/libtpu: .venv/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $@ "$$($(BIN)/python -c 'import importlib.metadata as m; print(next(r for r in m.requires("jax") if r.startswith("libtpu")).split(";")[0])')"
	touch $@

test-tpu-compiler: install .venv/libtpu
	PYTHONPATH=.venv/libtpu $(BIN)/python -m pytest -m tpu_compiler --durations=0

# The compiler in JAX's CUDA plugin: no GPU, and none of CUDA's libraries.
.venv/cuda: .venv/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $@ $$($(BIN)/python -c 'import jax; print(*(f"jax-cuda13-{part}=={jax.__version__}" for part in ("plugin", "pjrt")))')
	touch $@

test-gpu-compiler: install .venv/cuda
	JAX_PLATFORMS=cpu PYTHONPATH=.venv/cuda $(BIN)/python -m pytest -m gpu_compiler --durations=0

# The pages in headless Chromium, where there is one: apt-get install chromium.
test-browser: install
	$(BIN)/python -m pytest -m browser

# Beside the peers, nothing else running; half an hour, and the table in docs/benchmarks.md is written anew.
benchmarks: install oracles
	$(BIN)/python benchmarks/all.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The built wheel, in an environment without TensorFlow, on a store prepared with it.
wheel-check: install
	tests/tickets/wheel_check.sh

lock: install
	requirements/lock.sh
