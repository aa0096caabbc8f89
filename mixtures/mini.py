"""`mini`: real datasets from published packages, small enough for a laptop.

No package needs a network other than a package registry. Sentiment and commonsense are held out:
nothing of them is trained on, and they are what zero-shot evaluation is about.
"""

from flan_jax.data.mixtures import register_mixture
from flan_jax.data.objectives import LM, PrefixLM, SpanCorruption
from flan_jax.data.texts import register_text

SENTIMENT = ("rotten_tomatoes", "amazon_snippets", "tweets", "nyt_editorials")
COMMONSENSE = ("piqa", "commonsense_qa", "openbookqa", "social_iqa")
SHORT = ("bbc_news", "nq_open", "asdiv", "quartz", "sarcasm", "chatterbot", "dreaddit")
LONG = (
  "spam_assassin",
  "boolq",
  "privacy_policy",
  "narrative_qa",
  "xsum",
  "paper_titles",
  "pararule",
)

register_mixture(
  "mini", [*SHORT, *LONG, *SENTIMENT, *COMMONSENSE], hold_out=("sentiment", "commonsense")
)
# The part whose prompts fit a hundred tokens or so: what the quickstart trains on. In the few steps that a
# laptop makes, tasks with a handful of labels are learnt and facts are not, so the draws go to the former.
register_mixture(
  "mini_short",
  {
    **dict.fromkeys([*SHORT, *SENTIMENT, *COMMONSENSE]),
    "bbc_news": 2.0,
    "nq_open": 0.5,
    "asdiv": 0.5,
  },
  rate_cap=1_500,
  hold_out=("sentiment", "commonsense"),
)
# The part whose answers are one of a few labels, for models that are too small to know facts.
register_mixture(
  "mini_labels",
  {
    "bbc_news": 2.0,
    **dict.fromkeys(["sarcasm", "dreaddit", "spam_assassin"]),
    **dict.fromkeys(["privacy_policy", "quartz"], 0.5),
    **dict.fromkeys([*SENTIMENT, *COMMONSENSE]),
  },
  rate_cap=1_500,
  hold_out=("sentiment", "commonsense"),
)

# The running text of what is trained on (training splits alone) for the objectives of pretraining: 2.2 million words.
TEXTS = (
  "bbc_news",
  "boolq",
  "xsum",
  "dreaddit",
  "sarcasm",
  "narrative_qa",
  "paper_titles",
  "privacy_policy",
  "asdiv",
  "quartz",
)
for objective in (SpanCorruption(), PrefixLM(), LM()):
  register_text(f"mini_{objective.name}", TEXTS, objective, passes=8)
