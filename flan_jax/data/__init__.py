"""From sources to batches: records, mixtures, the prepared store, packing.

Names are imported when they are asked for. TensorFlow, SeqIO and TFDS are imported only by the
functions that cannot do without them: reading a TFDS source, and registering SeqIO tasks.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from flan_jax.data.archives import fetch, members
  from flan_jax.data.batches import Batches, make_features
  from flan_jax.data.encode import Dropped, Encoded, Encoder, OptionsEncoding, PromptEncoding
  from flan_jax.data.home import data_home
  from flan_jax.data.library import (
    dataset_names,
    dataset_spec,
    register_dataset,
    register_templates,
  )
  from flan_jax.data.locks import lock_mixture, read_lock, write_lock
  from flan_jax.data.mixtures import (
    Mixture,
    get_mixture,
    held_out_datasets,
    keep_only,
    leave_out,
    mixture_names,
    register_mixture,
    training_datasets,
  )
  from flan_jax.data.packing import pack
  from flan_jax.data.rates import (
    MixtureTask,
    TaskDescription,
    describe,
    held_out_tasks,
    mixture_tasks,
    training_tasks,
  )
  from flan_jax.data.records import RecordCounts, Records, RecordSplits, load_records
  from flan_jax.data.seqio_tasks import register_seqio
  from flan_jax.data.sources import Source, open_source
  from flan_jax.data.store import Store, StoreConfig
  from flan_jax.data.texts import TextTask, register_text
  from flan_jax.data.windows import Provenance, StoredExample

_MODULES = {
  "archives": ("fetch", "members"),
  "batches": ("Batches", "make_features"),
  "library": ("dataset_names", "dataset_spec", "register_dataset", "register_templates"),
  "encode": ("Dropped", "Encoded", "Encoder", "OptionsEncoding", "PromptEncoding"),
  "home": ("data_home",),
  "locks": ("lock_mixture", "read_lock", "write_lock"),
  "mixtures": (
    "Mixture",
    "get_mixture",
    "held_out_datasets",
    "keep_only",
    "leave_out",
    "mixture_names",
    "register_mixture",
    "training_datasets",
  ),
  "packing": ("pack",),
  "rates": (
    "MixtureTask",
    "TaskDescription",
    "describe",
    "held_out_tasks",
    "mixture_tasks",
    "training_tasks",
  ),
  "records": ("RecordCounts", "RecordSplits", "Records", "load_records"),
  "seqio_tasks": ("register_seqio",),
  "sources": ("Source", "open_source"),
  "store": ("Store", "StoreConfig"),
  "texts": ("TextTask", "register_text"),
  "windows": ("Provenance", "StoredExample"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
  "Batches",
  "Dropped",
  "Encoded",
  "Encoder",
  "Mixture",
  "MixtureTask",
  "OptionsEncoding",
  "PromptEncoding",
  "Provenance",
  "RecordCounts",
  "RecordSplits",
  "Records",
  "Source",
  "Store",
  "StoreConfig",
  "StoredExample",
  "TaskDescription",
  "TextTask",
  "data_home",
  "dataset_names",
  "dataset_spec",
  "describe",
  "fetch",
  "get_mixture",
  "held_out_datasets",
  "held_out_tasks",
  "keep_only",
  "leave_out",
  "load_records",
  "lock_mixture",
  "make_features",
  "members",
  "mixture_names",
  "mixture_tasks",
  "open_source",
  "pack",
  "read_lock",
  "register_dataset",
  "register_mixture",
  "register_seqio",
  "register_templates",
  "register_text",
  "training_datasets",
  "training_tasks",
  "write_lock",
]


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
  return sorted(__all__)
