"""Checkpoints are complete or invisible, whole or told damaged, and the same on every mesh."""

import contextlib
import hashlib
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flan_jax.checkpoints import Checkpoints, Keep, checkpoint_table
from flan_jax.errors import CheckpointError, StorageError


def a_state(width=16, seed=0, optimizer=optax.adam):
  draw = np.random.default_rng(seed)
  params = {
    "embed": {"embedding": jnp.asarray(draw.normal(size=(64, width)), jnp.float32)},
    "layers": {"mlp": {"kernel": jnp.asarray(draw.normal(size=(2, width, 32)), jnp.bfloat16)}},
  }
  return {
    "params": params,
    "optimizer": {"state": optimizer(1e-3).init(params), "step": jnp.int32(seed)},
  }


def shapes(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def said():
  return []


@pytest.fixture
def checkpoints(tmp_path, said):
  with Checkpoints(tmp_path / "run", keep=Keep(3), say=said.append) as checkpoints:
    yield checkpoints


def save_steps(checkpoints, *steps):
  for step in steps:
    checkpoints.save(step, a_state(seed=step), {"step": step, "updates": step, "row": step * 8})
  checkpoints.wait()


def test_what_is_restored_is_what_was_saved(checkpoints):
  save_steps(checkpoints, 3)
  state, meta = checkpoints.restore(shapes(a_state()))
  assert_same(state, a_state(seed=3))
  assert meta == {"step": 3, "updates": 3, "row": 24}


def test_the_latest_ones_are_kept(checkpoints):
  save_steps(checkpoints, 1, 2, 3, 4, 5)
  assert checkpoints.steps() == [3, 4, 5]


def test_parameters_restore_without_the_optimizer(checkpoints):
  save_steps(checkpoints, 2)
  params, meta = checkpoints.restore_params(shapes(a_state()["params"]))
  assert_same(params, a_state(seed=2)["params"])
  assert meta["row"] == 16


def test_a_checkpoint_restores_on_another_mesh(checkpoints):
  mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  state = a_state(seed=1)
  split = NamedSharding(mesh, PartitionSpec("y", "x"))
  state["params"]["embed"] = jax.device_put(state["params"]["embed"], split)
  checkpoints.save(1, state, {})
  wanted = shapes(a_state())
  other = NamedSharding(
    jax.make_mesh((8,), ("z",), axis_types=(AxisType.Auto,)), PartitionSpec(None, "z")
  )
  wanted["params"]["embed"]["embedding"] = jax.ShapeDtypeStruct(
    (64, 16), jnp.float32, sharding=other
  )
  restored, _ = checkpoints.restore(wanted)
  assert restored["params"]["embed"]["embedding"].sharding == other
  assert_same(restored, a_state(seed=1))


def test_digests_tell_states_apart_and_do_not_depend_on_the_mesh(tmp_path, checkpoints):
  save_steps(checkpoints, 1, 2)
  mesh = jax.make_mesh((8,), ("z",), axis_types=(AxisType.Auto,))
  state = a_state(seed=1)
  state["params"] = jax.device_put(state["params"], NamedSharding(mesh, PartitionSpec()))
  state["params"]["embed"] = jax.device_put(
    state["params"]["embed"], NamedSharding(mesh, PartitionSpec("z"))
  )
  with Checkpoints(tmp_path / "other") as others:
    others.save(9, state, {"something": "else"})
    others.wait()
    assert others.digest(9) == checkpoints.digest(1) != checkpoints.digest(2)


def test_the_digest_is_over_names_dtypes_shapes_and_bytes(checkpoints):
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  checkpoints.save(1, {"params": {"b": {"kernel": array}, "a": np.int32(7)}}, {})
  checkpoints.wait()
  whole = b"params/a int32[]\n" + np.int32(7).tobytes()
  whole += b"params/b/kernel float32[2, 3]\n" + array.tobytes()
  assert checkpoints.digest(1) == hashlib.sha256(whole).hexdigest()


def test_the_table_lists_every_checkpoint(checkpoints):
  save_steps(checkpoints, 4, 8)
  rows = checkpoint_table(checkpoints.directory)
  assert [(row["step"], row["updates"], row["row"]) for row in rows] == [(4, 4, 32), (8, 8, 64)]
  assert [row["digest"] for row in rows] == [checkpoints.digest(4), checkpoints.digest(8)]
  assert all(row["damaged"] is None and row["bytes"] > 0 for row in rows)


def test_another_shape_is_told_array_by_array(checkpoints):
  save_steps(checkpoints, 1)
  with pytest.raises(CheckpointError) as error:
    checkpoints.restore(shapes(a_state(width=24)))
  told = str(error.value)
  assert "params/embed/embedding: ours float32[64, 24], the checkpoint's float32[64, 16]" in told
  assert "params/layers/mlp/kernel: ours bfloat16[2, 24, 32]" in told
  assert "optimizer/state/0/mu/embed/embedding" in told


def test_another_optimizer_is_told_in_a_sentence(checkpoints):
  save_steps(checkpoints, 1)
  with pytest.raises(CheckpointError, match="saved with another optimizer.*arrays of its state"):
    checkpoints.restore(shapes(a_state(optimizer=lambda rate: optax.sgd(rate, momentum=0.9))))


def test_no_checkpoint_is_an_error_that_says_where(checkpoints, tmp_path):
  with pytest.raises(CheckpointError, match="run holds no complete checkpoint"):
    checkpoints.restore(shapes(a_state()))
  with pytest.raises(CheckpointError, match="no directory"):
    checkpoint_table(tmp_path / "nowhere")


def damage(file, how):
  content = file.read_bytes()
  if how == "deleted":
    file.unlink()
  elif how == "cut":
    file.write_bytes(content[: len(content) // 2])
  else:
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["deleted", "cut", "changed"])
def test_whichever_file_is_damaged_the_one_before_is_taken_and_the_step_saved_again(tmp_path, how):
  with Checkpoints(tmp_path / "source") as checkpoints:
    save_steps(checkpoints, 1, 2)
  files = [path for path in sorted((tmp_path / "source/2").rglob("*")) if path.is_file()]
  # Beside the parts lie Orbax's marks, which nothing reads.
  marks = [path for path in files if path.parent.name == "2" and path.name != "sizes.json"]
  assert len(files) - len(marks) > 15
  for number, file in enumerate(files):
    run, said = tmp_path / f"run{number}", []
    shutil.copytree(tmp_path / "source", run)
    damage(run / file.relative_to(tmp_path / "source"), how)
    with Checkpoints(run, say=said.append) as checkpoints:
      state, meta = checkpoints.restore(shapes(a_state()))
      assert_same(state, a_state(seed=meta["step"]))
      assert meta["step"] == (2 if file in marks else 1), file
      if file not in marks:
        assert (
          len(said) == 1
          and "2 is damaged" in said[0]
          and (how == "changed" or file.name in said[0])
        )
        assert checkpoints.steps() == [1] and (run / "torn-2").is_dir()
      if number == len(files) - 1:
        save_steps(checkpoints, 2)
        assert checkpoints.steps() == [1, 2]


def test_whichever_part_is_gone_the_one_before_is_taken(tmp_path):
  with Checkpoints(tmp_path / "source") as checkpoints:
    save_steps(checkpoints, 1, 2)
  for part in ("params", "optimizer", "meta"):
    shutil.copytree(tmp_path / "source", tmp_path / part)
    shutil.rmtree(tmp_path / part / "2" / part)
    with Checkpoints(tmp_path / part, say=lambda text: None) as checkpoints:
      assert checkpoints.restore(shapes(a_state()))[1]["step"] == 1


def test_a_truncated_checkpoint_asked_for_by_step_is_an_error(checkpoints):
  save_steps(checkpoints, 1, 2)
  files = [path for path in (checkpoints.directory / "2").rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])
  with pytest.raises(CheckpointError, match="2 is damaged"):
    checkpoints.restore(shapes(a_state()), step=2)
  with pytest.raises(CheckpointError, match="2 is damaged"):
    checkpoints.digest(2)
  assert [bool(row["damaged"]) for row in checkpoint_table(checkpoints.directory)] == [False, True]


def test_all_truncated_is_an_error(checkpoints):
  save_steps(checkpoints, 1)
  shutil.rmtree(checkpoints.directory / "1" / "params" / "ocdbt.process_0")
  with pytest.raises(CheckpointError, match="every checkpoint"):
    checkpoints.restore(shapes(a_state()))


def test_what_is_not_renamed_yet_is_invisible_and_swept_away(checkpoints):
  save_steps(checkpoints, 1)
  half = checkpoints.directory / "2.orbax-checkpoint-tmp-123"
  shutil.copytree(checkpoints.directory / "1", half)
  assert checkpoints.steps() == [1]
  with Checkpoints(checkpoints.directory) as again:
    save_steps(again, 2)
    assert again.steps() == [1, 2]
  assert not half.exists()


@contextlib.contextmanager
def small_disk(folder):
  """A file system with room for one checkpoint and not for two; skips where none may be mounted."""
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
  if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("may not mount a file system")
  try:
    yield folder
  finally:
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_one_error_and_earlier_checkpoints_stay(tmp_path, background):
  big = {"params": {"kernel": np.random.default_rng(0).random((400, 1000), np.float32)}}
  with small_disk(tmp_path / "disk") as disk:
    checkpoints = Checkpoints(disk / "run", background=background)
    checkpoints.save(1, big, {"step": 1})
    checkpoints.wait()
    digest = checkpoints.digest(1)
    with pytest.raises(StorageError, match=r"No space left.*\[1\]"):
      checkpoints.save(2, big, {"step": 2})
      checkpoints.wait()
    checkpoints.close()
    assert [path.name for path in (disk / "run").iterdir()] == ["1"]
    assert checkpoints.digest(1) == digest
    assert checkpoints.restore(big)[1] == {"step": 1}


def test_a_refused_write_is_a_storage_error_without_a_file_system_of_ones_own(tmp_path):
  """The same where nothing may be mounted: the process may write files of 500 kB at most."""
  program = f"""
    import resource, signal, sys
    import numpy as np
    from flan_jax.checkpoints import Checkpoints
    from flan_jax.errors import StorageError
    checkpoints = Checkpoints({str(tmp_path / "run")!r})
    checkpoints.save(1, {{"params": {{"kernel": np.zeros(10, np.float32)}}}}, {{}})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    big = np.random.default_rng(0).random((400, 1000), np.float32)
    try:
      checkpoints.save(2, {{"params": {{"kernel": big}}}}, {{}})
      checkpoints.wait()
    except StorageError as error:
      checkpoints.close()
      sys.exit(7 if checkpoints.steps() == [1] else 8)
  """
  run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True)
  assert run.returncode == 7, run.stderr.decode()[-2000:]
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["1"]
