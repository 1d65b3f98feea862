"""Which chains are kept: hand-worked answers of one and of two annotators."""

import polars as pl
import pytest

from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import Label, Match, QueryItem, Reasoning, parse
from feature_repo.table_schemas import RelevanceChains
from jobs.relevance.chains import Agreement, KeptChains, agreed_chains


def said(
    label: Label, brand: Match = "match", *, num_chains: int = 1, num_parsed: int = 1, share: float = 1.0, who: str = ""
) -> TeacherAnswer:
    chain = Reasoning.of_values([who, *[""] * 7, "match", brand, "na", "na", label])
    return TeacherAnswer(0.5, (0.5, 0.5), label, chain, share, num_chains, num_parsed, num_chains, 10)


UNREADABLE = TeacherAnswer(None, None, None, None, None, 3, 0, 9, 10, ("no JSON",))
LABEL_ALONE = TeacherAnswer(0.1, (0.9, 0.1), "bad", None, 1.0, 1, 1, 1, 10)
PEOPLE = ["good", "good", "bad", "good", "bad", "good", "bad"]
FIRST = [
    said("good", who="first", num_chains=5, num_parsed=4, share=0.75),
    said("bad"),
    said("bad", "mismatch", who="first"),
    UNREADABLE,
    said("bad", "mismatch"),
    None,
    LABEL_ALONE,
]
SECOND = [
    said("good", who="second", num_chains=3, num_parsed=3),
    said("good"),
    said("bad", "na"),
    said("good"),
    said("bad", "mismatch", num_chains=2, num_parsed=2, share=0.5),
    said("good"),
    said("bad"),
]


def pairs() -> pl.DataFrame:
    ids = [f"i{n}" for n in range(len(PEOPLE))]
    return pl.DataFrame({"query_id": ["q"] * len(ids), "item_id": ids, "human_label": PEOPLE})


def test_two_annotators_must_agree_with_people_and_on_the_steps():
    chains, agreement = agreed_chains(pairs(), [FIRST, SECOND])
    assert agreement == Agreement(asked=7, left=1, unreadable=2, against_people=1, against_each_other=1, kept=2)
    assert sum(agreement[1:]) == agreement.asked
    assert chains.get_column("item_id").to_list() == ["i0", "i4"]
    assert chains.get_column("label").to_list() == ["good", "bad"]
    assert parse(chains.get_column("chain")[0]).query.category == "first"
    RelevanceChains.validate(chains)


def test_the_agreement_is_the_share_of_all_chains_that_say_what_people_said():
    chains, _ = agreed_chains(pairs(), [FIRST, SECOND])
    assert chains.get_column("num_chains").to_list() == [8, 3]
    # of the first pair 3 of 5 (one of four readable says otherwise) and 3 of 3; of the other 1 and 1 of 2
    assert chains.get_column("agreement").to_list() == pytest.approx([6 / 8, 2 / 3])


def test_one_annotator_has_only_people_to_agree_with():
    chains, agreement = agreed_chains(pairs(), [SECOND])
    assert agreement == Agreement(asked=7, left=0, unreadable=0, against_people=0, against_each_other=0, kept=7)
    assert len(chains) == 7


def test_examples_are_of_one_side_in_the_order_of_the_pairs():
    with_sides = pairs().with_columns(side=pl.Series(["train", "train", "train", "test", "train", "test", "test"]))
    chains, agreement = agreed_chains(with_sides.reverse(), [FIRST[::-1], SECOND[::-1]])
    texts = [QueryItem("q", f"title {n}") for n in range(len(PEOPLE))]
    kept = KeptChains(with_sides, texts, chains, agreement)
    assert [(pair.title, chain.label) for pair, chain in kept.of("train")] == [
        ("title 0", "good"),
        ("title 4", "bad"),
    ]
    assert kept.of("validation") == []
    with pytest.raises(ValueError, match=r"before 1 of 7 pairs were annotated(.|\n)*raise max_tokens"):
        kept.check_complete()
