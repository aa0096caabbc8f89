"""`t0`, `t0_plus`, `t0_plus_plus`: what T0, T0+ and T0++ were tuned on (Sanh et al. 2022, "Multitask Prompted
Training Enables Zero-Shot Task Generalization"); `t0_evaluation`: what T0 was judged on.

The templates are promptsource's, and each counts as a dataset of its own: one of a dataset with 500,000 examples or
fewer is drawn in proportion to all of them; those of a larger dataset share 500,000. No example is left out. A template
that is for some examples only is drawn for these alone, and in its place another of the dataset.

`t0_evaluation` holds out all of itself, so that it can be judged on and never trained on. T0 saw none of its eleven
datasets. T0+ was tuned on hellaswag, and T0++ on copa, wic and wsc.fixed as well: only the others are then zero-shot,
though of clusters that were trained on. `evaluation.trained_on` says which are not to count as held out.
"""

from flan_jax.data.mixtures import register_mixture

T0 = (
  *("glue_mrpc", "glue_qqp", "paws_labeled_final"),
  *("kilt_tasks_hotpotqa", "wiki_qa"),
  *("adversarial_qa_dbidaf", "adversarial_qa_dbert", "adversarial_qa_droberta"),
  *("duorc_SelfRC", "duorc_ParaphraseRC", "ropes", "quoref"),
  *("cos_e_v1.11", "cosmos_qa", "dream", "qasc", "quail", "quarel", "quartz", "sciq"),
  *("social_i_qa", "wiki_hop_original", "wiqa"),
  *("amazon_polarity", "app_reviews", "imdb", "rotten_tomatoes", "yelp_review_full"),
  *("common_gen", "wiki_bio"),
  *("cnn_dailymail_3.0.0", "gigaword", "multi_news", "samsum", "xsum"),
  *("ag_news", "dbpedia_14", "trec"),
)
# What GPT-3 was judged on.
PLUS = (
  *("ai2_arc_ARC_Challenge", "ai2_arc_ARC_Easy", "trivia_qa_unfiltered", "web_questions"),
  *("squad_v2", "openbookqa_main", "race_high", "race_middle", "piqa", "hellaswag"),
)
# SuperGLUE, without its two entailment datasets.
PLUS_PLUS = tuple(
  f"super_glue_{name}" for name in ("boolq", "copa", "multirc", "record", "wic", "wsc.fixed")
)
EVALUATION = (
  *("anli_r1", "anli_r2", "anli_r3", "super_glue_cb", "super_glue_rte"),
  *("super_glue_wsc.fixed", "winogrande_winogrande_xl"),
  *("super_glue_copa", "hellaswag", "story_cloze_2016"),
  "super_glue_wic",
)

for name, datasets in {
  "t0": T0,
  "t0_plus": (*T0, *PLUS),
  "t0_plus_plus": (*T0, *PLUS, *PLUS_PLUS),
}.items():
  register_mixture(
    name,
    [f"p3_{dataset}" for dataset in datasets],
    max_examples=4_000_000,  # more than any of them has
    rate_cap=500_000,
    per_template=True,
  )
register_mixture(
  "t0_evaluation",
  [f"p3_{dataset}" for dataset in EVALUATION],
  hold_out=("entailment", "coreference", "commonsense", "word_disambiguation"),
)
