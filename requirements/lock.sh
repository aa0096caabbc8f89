#!/usr/bin/env bash
# Resolves the dependencies of pyproject.toml into the three lock files: pins and hashes, no addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
UV=${UV:-.venv/bin/uv}
compile() { "$UV" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url "$@" pyproject.toml; }

compile --extra t5 --extra dev --override requirements/overrides.txt \
  --no-emit-package seqio-nightly --no-emit-package tfds-nightly --no-emit-package mesh-tensorflow \
  --output-file requirements.lock
compile --constraint requirements.lock --override requirements/overrides-core.txt \
  --no-emit-package seqio --no-emit-package tensorflow-datasets --no-emit-package tensorflow \
  --output-file requirements/core.lock
# The oracles run on torch's CPU build, whose wheel for Python 3.11 on Linux this is: PyPI's own build wants CUDA.
rm -f requirements/oracles.lock
printf 'torch==2.13.0\npeft==0.21.2\nlm_eval==0.4.13\ngrain==0.2.18\n' | "$UV" pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --constraint requirements.lock --override requirements/overrides-oracles.txt \
  --no-emit-package torch --output-file requirements/oracles.lock -
cat >>requirements/oracles.lock <<'LOCK'
torch==2.13.0+cpu \
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
LOCK
