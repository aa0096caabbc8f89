#!/usr/bin/env bash
# The built wheel, where neither TensorFlow nor SeqIO nor TFDS is: trains, evaluates and infers from a store
# that was prepared in the full environment and carried over.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
full=$repository/.venv/bin

cd "$repository"
rm -rf build
"$full/python" -m build --wheel --no-isolation --outdir "$work/dist" . >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"$full/uv" venv --quiet --python "$full/python" "$work/core"
"$full/uv" pip install --quiet --python "$work/core/bin/python" --no-deps --require-hashes -r requirements/core.lock
"$full/uv" pip install --quiet --python "$work/core/bin/python" --no-deps "$work"/dist/*.whl

cp -r "$here" "$work/here"
cd "$work/here"
recipe="--module tasks.py --gin_file=check.gin"
FLAN_JAX_HOME=$work/home "$full/flan-jax" prepare $recipe

mv "$work/home" "$work/carried"
export FLAN_JAX_HOME=$work/carried
prepared() { find "$FLAN_JAX_HOME" -type f -not -path "$FLAN_JAX_HOME/compiled/*" | sort; }
prepared >"$work/before"
"$work/core/bin/python" - <<'PY'
import importlib.util
for name in ("tensorflow", "seqio", "tensorflow_datasets", "t5"):
  assert importlib.util.find_spec(name) is None, name
PY
"$work/core/bin/flan-jax" train $recipe
"$work/core/bin/flan-jax" evaluate $recipe
"$work/core/bin/flan-jax" infer $recipe
prepared | diff "$work/before" - # nothing had to be prepared again
test "$(wc -l <runs/answers.jsonl)" -eq 2
test -s runs/judged/report.html
echo "wheel check: trained, evaluated and inferred without TensorFlow"
