from flan_jax.data import register_mixture, register_templates

register_templates(".")
register_mixture("tickets_only", ["tickets"])
