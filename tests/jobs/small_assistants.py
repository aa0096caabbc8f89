"""Models that answer within milliseconds, and nothing that makes sense."""

import jax

from flan_jax.inference import Engine, Texts
from flan_jax.jobs.assistants import Assistant
from flan_jax.jobs.models import scratch
from flan_jax.models import DecoderConfig
from flan_jax.vocabularies import ByteVocabulary, PlainFormat

CONFIG = DecoderConfig(384, 32, 2, 2, 2, 16, 64)


def assistant(name, seed=0, slots=4):
  source = scratch(CONFIG, ByteVocabulary())
  params = jax.tree.map(
    lambda x: x * 6.0 if x.ndim > 1 else x, source.model.init(jax.random.key(seed))
  )
  engine = Engine(source.model, params, stop_ids=(1,), slots=slots, length=128, block=4)
  return Assistant(name, source, PlainFormat(), Texts(engine, source.vocabulary))
