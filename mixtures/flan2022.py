"""`flan2022`: the Flan Collection (Longpre et al. 2023), that the released Flan-T5 were tuned on (Chung et al. 2022).

Its parts are mixtures of their own: `flan2021_30k`, `t0_sf`, `niv2`, `cot`, `dialogue`. A dataset is drawn in
proportion to its training examples up to a cap: 30,000 of FLAN 2021's, 20,000 for each template of T0's, 100,000
with chains of thought, 200,000 dialogues; of a task of Natural Instructions 5,000, which its dataset file sees to.
The parts have three published proportions, of which `flan2022` has those of the released models.

Half of the collection is zero-shot and half few-shot: `data.few_shot=5` and `data.few_shot_share=0.5` make it so.
Options are shown by some templates of a dataset and not by others; templates that are turned around stand for its
inverted inputs. The collection's program synthesis was never released.

A chain-of-thought set stands in the cluster of its task, so that "flan2022 without entailment" leaves e-SNLI's out
as well. Natural Instructions has tasks of every cluster: who judges zero-shot leaves "instructions" out too, or
looks with `flan-jax contamination` at what is shared.
"""

from flan_jax.data.mixtures import Weight, register_mixture
from flan_jax.mixtures.flan2021 import DATASETS, PAPER, TOGETHER

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
# T0's datasets that FLAN 2021 does not have: 193 templates.
NOT_IN_FLAN = (
  *("adversarial_qa_dbert", "adversarial_qa_dbidaf", "adversarial_qa_droberta", "amazon_polarity"),
  *("app_reviews", "cos_e_v1.11", "dbpedia_14", "dream", "duorc_ParaphraseRC", "duorc_SelfRC"),
  *(
    "kilt_tasks_hotpotqa",
    "qasc",
    "quail",
    "quarel",
    "quartz",
    "quoref",
    "race_high",
    "race_middle",
  ),
  *(
    "ropes",
    "sciq",
    "social_i_qa",
    "web_questions",
    "wiki_bio",
    "wiki_hop_original",
    "wiki_qa",
    "wiqa",
  ),
)
# T0's names for what FLAN's clusters hold as well.
ALIKE = [
  ("commonsense", "multiple_choice_qa"),
  ("read_comp_and_common_sense", "multiple_choice_qa"),
  ("reading_comprehension", "multiple_choice_qa"),
  ("reading_comprehension", "extractive_qa"),
  ("read_comp_and_common_sense", "extractive_qa"),
  ("open_domain_qa", "closed_book_qa"),
]
UNCAPPED = 1_000_000_000

register_mixture("cot", CHAIN_OF_THOUGHT, max_examples=100_000, rate_cap=UNCAPPED)
register_mixture("dialogue", DIALOGUE, max_examples=200_000, rate_cap=UNCAPPED)
register_mixture("niv2", ["natural_instructions"], max_examples=UNCAPPED, rate_cap=UNCAPPED)
register_mixture("flan2021_30k", DATASETS, rate_cap=30_000, together=TOGETHER, groups=PAPER)
register_mixture(
  "t0_sf",
  [f"p3_{name}" for name in NOT_IN_FLAN],
  max_examples=20_000,
  rate_cap=UNCAPPED,
  per_template=True,
)

# Chung et al. 2022, table 23: of the released models, whose figures add up to 99.9 %; then of its sections 3 and 4.
# Last those that the collection was published with.
PROPORTIONS: dict[str, dict[str, Weight]] = {
  "flan2022": {"flan2021_30k": None, "t0_sf": "27.9%", "niv2": "24.2%", "cot": "1.8%"},
  "flan2022_scaling": {"flan2021_30k": "52%", "t0_sf": "15%", "niv2": "30%", "cot": "3%"},
  "flan2022_collection": {
    "flan2021_30k": "40%",
    "t0_sf": "32%",
    "niv2": "20%",
    "cot": "5%",
    "dialogue": "3%",
  },
}
for name, parts in PROPORTIONS.items():
  register_mixture(name, parts, together=ALIKE)
