"""promptsource's own code, from its package, without what rendering has no use for."""

import importlib.util
import sys
import types
from pathlib import Path

from flan_jax.data import archives
from flan_jax.data.library import PROMPTSOURCE, PROMPTSOURCE_SHA256


def load(folder: Path) -> tuple[types.ModuleType, Path]:
  """Its module `templates`, and the folder of its template files; the package is unpacked in `folder`."""
  archive = archives.fetch(PROMPTSOURCE, PROMPTSOURCE_SHA256, archive="sdist", cache_dir=folder)
  for member, stream in archives.members(archive, "promptsource/**"):
    path = folder / member.partition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.read())
  # The module imports two packages that rendering has no use for.
  resources = types.ModuleType("pkg_resources")
  resources.resource_filename = lambda module, name: str(folder / "promptsource" / name)
  known = {name: sys.modules.get(name) for name in ("pandas", "pkg_resources")}
  sys.modules.update({"pandas": types.ModuleType("pandas"), "pkg_resources": resources})
  spec = importlib.util.spec_from_file_location(
    "promptsource_itself", folder / "promptsource" / "templates.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for name, before in known.items():
    sys.modules.pop(name) if before is None else sys.modules.update({name: before})
  return module, folder / "promptsource" / "templates"
