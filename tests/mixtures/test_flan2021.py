"""`flan2021` has the clusters of FLAN 2021, and leaves out what FLAN leaves out.

The table and the rules are facts of Wei et al. 2022 and of the task splits that the paper's code makes.
"""

import pytest

from flan_jax.data import (
  dataset_names,
  dataset_spec,
  get_mixture,
  held_out_datasets,
  leave_out,
  training_datasets,
)
from flan_jax.errors import UnknownName
from flan_jax.mixtures.flan2021 import CLUSTERS, PAPER

FLAN = get_mixture("flan2021")
SIZES = {
  "summarisation": 11,
  "structure_to_text": 4,
  "reading_comprehension": 6,
  "open_domain_qa": 4,
  "paraphrase": 4,
  "sentiment": 4,
  "text_formatting": 3,
  "commonsense": 4,
  "translation": 8,
  "coreference": 3,
  "entailment": 10,
  "maths": 1,
  "conversational_qa": 2,
  "word_disambiguation": 1,
  "linguistic_acceptability": 1,
  "question_classification": 1,
  "read_comp_and_common_sense": 2,
}
EVALUATED_ONLY = {"mnli_mismatched": "entailment"}
# What the paper trains on neither, when it judges a cluster.
OVERLAPS = {
  "entailment": {"paraphrase"},
  "paraphrase": {"entailment"},
  "commonsense": {"read_comp_and_common_sense"},
  "reading_comprehension": {"read_comp_and_common_sense"},
  "read_comp_and_common_sense": {"commonsense", "reading_comprehension"},
}


def datasets_of(clusters):
  return {name for cluster in clusters for name in CLUSTERS[cluster]}


def test_the_clusters_have_the_paper_s_numbers_of_datasets():
  found = {cluster: len(names) for cluster, names in CLUSTERS.items()}
  for cluster in EVALUATED_ONLY.values():
    found[cluster] += 1
  assert found == SIZES


def test_the_paper_s_names_are_a_grouping_of_the_same_clusters():
  assert len(PAPER) == 12
  grouped = [cluster for clusters in PAPER.values() for cluster in clusters]
  assert sorted(grouped) == sorted(CLUSTERS)
  # Figure 3 of the paper counts some datasets together, and has of the text formatting the punctuation alone.
  together = ("anli_r", "arc_", "squad_v", "mnli_")
  figure = {"nli": 7, "commonsense": 4, "sentiment": 4, "paraphrase": 4, "closed_book_qa": 3}
  figure |= {"struct_to_text": 4, "reading_comp": 5, "reading_comp_with_commonsense": 2}
  figure |= {"coreference": 3, "misc": 7, "translation": 8, "summarization": 11}
  for group, count in figure.items():
    names = datasets_of(PAPER[group]) - {"true_case", "word_segment"}
    assert len({next((t for t in together if n.startswith(t)), n) for n in names}) == count, group
  assert sum(figure.values()) == 62


def test_clusters_are_left_out_by_the_paper_s_names_too():
  assert training_datasets(leave_out(FLAN, "nli")) == training_datasets(
    "flan2021 without entailment"
  )
  assert training_datasets("flan2021 only misc") == training_datasets(
    f"flan2021 only {', '.join(PAPER['misc'])}"
  )
  assert training_datasets("flan2021_30k without nli, closed_book_qa") == training_datasets(
    "flan2021 without entailment, open_domain_qa"
  )
  with pytest.raises(UnknownName, match="Did you mean 'nli'"):
    leave_out(FLAN, "nlli")


def test_every_dataset_is_in_one_cluster_and_in_the_mixture():
  names = [name for names in CLUSTERS.values() for name in names]
  assert len(names) == len(set(names))
  assert list(FLAN.datasets) == names and set(names) <= set(dataset_names())
  assert not EVALUATED_ONLY.keys() & set(names)


def test_what_is_evaluated_only_has_no_training_split():
  for name, cluster in EVALUATED_ONLY.items():
    spec = dataset_spec(name)
    assert "train" not in spec.splits and spec.cluster == cluster


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_dataset_s_folder_is_its_cluster(cluster):
  assert {dataset_spec(name).cluster for name in CLUSTERS[cluster]} == {cluster}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_cluster_is_left_out_with_what_tells_of_it_and_nothing_else(cluster):
  out = {cluster} | OVERLAPS.get(cluster, set())
  split = leave_out(FLAN, cluster)
  judged, trained = held_out_datasets(split), training_datasets(split)
  assert set(judged) == datasets_of(out)
  assert sorted([*judged, *trained]) == sorted(FLAN.datasets)
  folders = [{dataset_spec(name).cluster for name in names} for names in (judged, trained)]
  assert cluster in folders[0] and not folders[0] & folders[1]
  assert split == get_mixture(f"flan2021 without {cluster}")


def test_several_clusters_are_left_out_as_each_of_them_is():
  split = get_mixture("flan2021 without entailment, commonsense, open_domain_qa")
  each = [set(held_out_datasets(leave_out(FLAN, name))) for name in split.hold_out]
  assert set(held_out_datasets(split)) == set.union(*each)


def test_the_caps_are_those_of_the_paper():
  assert (FLAN.max_examples, FLAN.rate_cap, FLAN.temperature) == (30_000, 3_000, 1.0)
