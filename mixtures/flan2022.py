"""The parts of Flan 2022 that Flan 2021 does not have (Longpre et al. 2023, "The Flan Collection").

As there, a chain-of-thought set gives 100,000 training examples at most, a set of dialogues 200,000, and a task of
Natural Instructions 5,000, which its dataset file sees to. A set is drawn in proportion to its number of examples.
Templates that are turned around are among the others, in place of the collection's sets of inverted inputs.
"""

from flan_jax.data.mixtures import register_mixture

CHAIN_OF_THOUGHT = (
  "cot_aqua",
  "cot_creak",
  "cot_ecqa",
  "cot_esnli",
  "cot_gsm8k",
  "cot_qasc",
  "cot_qed",
  "cot_sensemaking",
  "cot_strategyqa",
)
DIALOGUE = ("qrecc", "wiki_dialog")
UNCAPPED = 1_000_000_000

register_mixture("cot", CHAIN_OF_THOUGHT, max_examples=100_000, rate_cap=UNCAPPED)
register_mixture("dialogue", DIALOGUE, max_examples=200_000, rate_cap=UNCAPPED)
register_mixture("niv2", ["natural_instructions"], max_examples=UNCAPPED, rate_cap=UNCAPPED)
