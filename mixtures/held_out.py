"""`bigbench_heldout`, `exams_heldout`, `mmlu_heldout`: what models are judged on and never trained on.

All of their datasets are held out, and none has a training split: a mixture that would train on one is refused, be it
named by itself, within another mixture or as a dataset.

`bigbench_heldout` has 14 of BIG-bench's tasks (Srivastava et al. 2023), all of which choose among answers, in the
clusters entailment, coreference, commonsense and social judgement. They come from the source distribution of a package,
358 MB, which is fetched when one of them is first asked for, and is never installed. BIG-bench asks that its data never
be trained on, with a mark in every file by which they can be found in a training corpus.

Held out says that a cluster is not trained on. A task may still have been seen under another name:

    BIG-bench                  the same source                                          trained on by
    strategyqa                 cot_strategyqa, its training part                        flan2022
    social_iqa                 p3_social_i_qa, another part                             t0
    winowhy                    wsc, the same schemas, asked about otherwise             flan2021, flan2022, t0_plus_plus
    epistemic_reasoning        snli, captions of the same kind                          flan2021, flan2022

`mini` has none of these in training, and shares with them one proverb of eleven words, an option of
understanding_fables that a paragraph of boolq quotes. `flan-jax contamination --train MIXTURE --eval bigbench_heldout`
finds what two mixtures have in common.

`exams_heldout` has the examination questions that packages hold, MMLU's in part, of which `mini` shares nothing;
`mmlu_heldout` is MMLU as published.
"""

from flan_jax.data.mixtures import register_mixture

BIGBENCH = {
  "entailment": (
    *("analytic_entailment", "entailed_polarity", "epistemic_reasoning", "presuppositions_as_nli"),
  ),
  "coreference": ("disambiguation_qa", "winowhy"),
  "commonsense": ("implicatures", "social_iqa", "strategyqa", "timedial", "understanding_fables"),
  "social_judgement": ("causal_judgment", "moral_permissibility", "simple_ethical_questions"),
}

register_mixture(
  "bigbench_heldout",
  [f"bigbench_{task}" for tasks in BIGBENCH.values() for task in tasks],
  hold_out=BIGBENCH,
)
register_mixture("exams_heldout", ["mmlu_sample", "medqa", "medmcqa"], hold_out=("exams",))
register_mixture("mmlu_heldout", ["mmlu"], hold_out=("exams",))
