"""`flan2021`: the datasets of FLAN 2021 (Wei et al. 2022, "Finetuned Language Models Are Zero-Shot Learners").

As in the paper, a dataset gives 30,000 training examples at most, and is drawn in proportion to their number with a
cap of 3,000. The clusters are those of the paper's code; the names of the paper itself can be used as well, as in
"flan2021 without nli, closed_book_qa". `mnli_mismatched` has no training split and is for
evaluation. The datasets come from TFDS, and XSum, which TFDS wants downloaded by hand, from the Hugging Face hub.
"""

from flan_jax.data.mixtures import register_mixture

CLUSTERS = {
  "summarisation": (
    *(
      "aeslc",
      "ag_news_subset",
      "cnn_dailymail",
      "gigaword",
      "multi_news",
      "newsroom",
      "samsum",
      "flan_xsum",
    ),
    *("opinion_abstracts_idebate", "opinion_abstracts_rotten_tomatoes", "wiki_lingua_english_en"),
  ),
  "structure_to_text": ("common_gen", "dart", "e2e_nlg", "web_nlg_en"),
  "reading_comprehension": (
    "flan_boolq",
    "drop",
    "multirc",
    "flan_openbookqa",
    "squad_v1",
    "squad_v2",
  ),
  "open_domain_qa": ("arc_challenge", "arc_easy", "natural_questions", "trivia_qa"),
  "paraphrase": ("glue_mrpc", "glue_qqp", "paws_wiki", "stsb"),
  "sentiment": ("imdb_reviews", "sentiment140", "sst2", "yelp_polarity_reviews"),
  "text_formatting": ("fix_punct", "true_case", "word_segment"),
  "commonsense": ("copa", "hellaswag", "flan_piqa", "story_cloze"),
  "translation": (
    *("para_crawl_enes", "wmt14_enfr", "wmt16_translate_csen", "wmt16_translate_deen"),
    *(
      "wmt16_translate_fien",
      "wmt16_translate_roen",
      "wmt16_translate_ruen",
      "wmt16_translate_tren",
    ),
  ),
  "coreference": ("definite_pronoun_resolution", "winogrande", "wsc"),
  "entailment": (
    *("anli_r1", "anli_r2", "anli_r3", "cb", "mnli_matched", "qnli", "rte", "snli", "wnli"),
  ),
  "maths": ("math_dataset",),
  "conversational_qa": ("coqa", "quac"),
  "word_disambiguation": ("wic",),
  "linguistic_acceptability": ("cola",),
  "question_classification": ("trec",),
  "read_comp_and_common_sense": ("cosmos_qa", "record"),
}

DATASETS = [name for names in CLUSTERS.values() for name in names]
# The paper's two rules: of paraphrase and entailment, and of the cluster that is both of two others.
TOGETHER = [
  ("entailment", "paraphrase"),
  ("reading_comprehension", "read_comp_and_common_sense"),
  ("commonsense", "read_comp_and_common_sense"),
]
# The twelve clusters of the paper, figure 3, whose 62 datasets count the parts of ANLI, MNLI, ARC and SQuAD once, and
# of the text formatting the punctuation alone.
PAPER = {
  "nli": ("entailment",),
  "commonsense": ("commonsense",),
  "sentiment": ("sentiment",),
  "paraphrase": ("paraphrase",),
  "closed_book_qa": ("open_domain_qa",),
  "struct_to_text": ("structure_to_text",),
  "reading_comp": ("reading_comprehension",),
  "reading_comp_with_commonsense": ("read_comp_and_common_sense",),
  "coreference": ("coreference",),
  "misc": (
    *("conversational_qa", "question_classification", "linguistic_acceptability"),
    *("word_disambiguation", "maths", "text_formatting"),
  ),
  "translation": ("translation",),
  "summarization": ("summarisation",),
}

register_mixture("flan2021", DATASETS, together=TOGETHER, groups=PAPER)
