"""The shapes and dtypes in signatures are true: traced with jaxtyping and beartype checking them."""

import subprocess
import sys
import textwrap

TRACE = """
  from jaxtyping import install_import_hook

  with install_import_hook(["flan_jax.models", "flan_jax.inference"], "beartype.beartype"):
    import flan_jax.inference
    import flan_jax.models
  import jax
  import jax.numpy as jnp
  from flan_jax.inference import slots as on_devices
  from flan_jax.inference.beam_search import beam_search
  from flan_jax.models import DecoderConfig, EncoderDecoderConfig, build_model

  def trace(model):
    batch = {
      f"{side}_{key}": jnp.ones((3, length), jnp.int32)
      for side, length in (("encoder", 7), ("decoder", 5))
      for key in ("input_tokens", "segment_ids", "positions")
    }
    params = jax.eval_shape(model.init, jax.random.key(0))

    def everything(params, batch, mask, key):
      side = "decoder" if model.layout == "decoder" else "encoder"
      embeds = model.embed(params, batch[f"{side}_input_tokens"])
      logits = model.logits(
        params, batch, dropout_key=key, attention_mask=mask, inputs_embeds=embeds
      )
      few = {name: value for name, value in batch.items() if name.endswith("tokens")}
      return logits, model.logits(params, few)

    mask, key = jnp.ones((3, 5, 5), jnp.bool_), jax.random.key(0)
    if model.layout == "decoder":
      batch = {name: value for name, value in batch.items() if name.startswith("decoder")}
    jax.eval_shape(jax.grad(lambda *args: everything(*args)[0].sum()), params, batch, mask, key)
    for logits in jax.eval_shape(everything, params, batch, mask, key):
      assert logits.shape == (3, 5, 32) and logits.dtype == jnp.float32
    twins = []
    def separated(params):
      twin, apart = model.separated(params)
      twins.append(twin)
      return apart
    apart = jax.eval_shape(separated, params)
    own = twins[0]
    prompts, lengths = jnp.ones((3, 6), jnp.int32), jnp.array([6, 2, 0])
    for either, p in ((model, params), (own, apart)):
      search = lambda p: beam_search(either, p, prompts, lengths, 4, 2, (2,))
      jax.eval_shape(search, p)
    slots = jax.eval_shape(lambda p: on_devices.empty(own, p, 4, 12, 8), apart)
    rows = jnp.array([2, 0, 4])
    if model.layout == "encoder_decoder":
      jax.eval_shape(lambda p, s: on_devices.encode(own, p, s, rows, prompts, lengths), apart, slots)
    jax.eval_shape(lambda p, s: on_devices.read(own, p, s, rows, prompts, lengths, lengths, None), apart, slots)
    for some in (rows, None):
      jax.eval_shape(lambda p, s: on_devices.write(own, p, s, some, True, 4), apart, slots)

  for dtype in ("float32", "bfloat16"):
    for family in (
      {},
      {
        "norm": "rms_plus_one", "post_norms": True, "qk_norm": True, "sliding_window": 3,
        "window_pattern": (True, False), "local_rope_theta": 100.0, "embedding_scale": 4.0,
        "attention_softcap": 5.0, "logit_softcap": 3.0,
      },
      {
        "norm": "layer", "learned_positions": 16, "mlp_activations": ("gelu",),
        "biases": ("query_key_value", "attention_out", "mlp"),
      },
      {
        "norm": "layer", "block": "parallel_shared_norm", "rotary_dim": 4,
        "tied_embeddings": False, "biases": ("mlp", "logits"),
      },
    ):
      sizes = (32, 16, 2, 4, 2, 8, 24)
      trace(build_model(DecoderConfig(*sizes, dtype=dtype, dropout_rate=0.1, **family)))
    trace(build_model(EncoderDecoderConfig(32, 16, 4, 8, 2, 3, 24, dtype=dtype, dropout_rate=0.1)))
"""


def test_every_method_keeps_the_shapes_that_it_declares():
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(TRACE)], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
