"""One value of the item changes, one step changes its answer, and everything else stays."""

import pytest

from embedders.built_chains import built_chain
from embedders.counterfactuals import changed_pairs, contrasts, flipped, stated
from embedders.relevance_prompts import STEPS, QueryItem
from embedders.title_facts import TitleReader

READER = TitleReader(frozenset({"delta", "moen", "hampton bay", "dewalt"}))
PAIR = QueryItem(
    'Delta DS-141 red shower faucets 3"', "Delta 3 in. DS141 Vero Red Shower Faucet with 2 handles (2-Pack)"
)
SHOP = [
    PAIR,
    QueryItem("moen faucet blue", "MOEN Kitchen Faucet in Blue"),
    QueryItem("dewalt drill", "DEWALT Cordless Drill"),
    QueryItem("dcd771c2", "DEWALT DCD771C2 Drill Kit"),
    QueryItem("patio chair", "Hampton Bay Patio Chair"),
    QueryItem("knob 2 in", "Brass Knob 2 in."),
    QueryItem("chair", "Stool"),
]


def matches(pair: QueryItem) -> dict[str, str]:
    return dict(zip(STEPS, built_chain(pair, reader=READER).matches(), strict=True))


@pytest.mark.parametrize(
    ("step", "other"), [("category", "Curtain"), ("brand", "Moen"), ("model", "ZZ999"), ("attributes", "4")]
)
def test_a_flipped_pair_has_the_other_value_and_its_step_flips(step: str, other: str):
    changed = flipped(PAIR, step, other, reader=READER)
    assert changed is not None
    assert other in changed.title
    assert changed.query == PAIR.query
    assert matches(changed) == {**matches(PAIR), step: "mismatch"}


def test_nothing_is_flipped_where_nothing_is_stated():
    pair = QueryItem("chair", "Stool")
    assert all(stated(pair, step, reader=READER) is None for step in STEPS)
    assert all(flipped(pair, step, "x", reader=READER) is None for step in STEPS)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("MOEN Faucet", "HAMPTON BAY Faucet"),
        ("Moen Faucet", "Hampton Bay Faucet"),
        ("moen faucet", "hampton bay faucet"),
    ],
)
def test_another_value_does_not_give_itself_away_by_its_capitals(title: str, expected: str):
    changed = flipped(QueryItem("moen faucet", title), "brand", "hampton bay", reader=READER)
    assert changed is not None
    assert changed.title == expected


def test_values_are_replaced_by_values_of_their_kind_that_others_state():
    changed = {one.before: one.after for one in changed_pairs(SHOP, "brand", reader=READER)}
    assert set(changed) == {pair for pair in SHOP if stated(pair, "brand", reader=READER)}
    assert changed[SHOP[2]].title in {"DELTA Cordless Drill", "MOEN Cordless Drill"}
    assert all(after.query == before.query for before, after in changed.items())


def test_contrasts_say_match_of_a_pair_and_mismatch_of_its_change_and_nothing_else_differs():
    made = contrasts(SHOP, 100, reader=READER)
    assert [one.step for one in made][:4] == list(STEPS)  # they take turns
    for step, (before, as_it_is), (after, changed) in made:
        assert before in SHOP
        assert after not in SHOP
        assert matches(before) == dict(zip(STEPS, as_it_is.matches(), strict=True))
        assert matches(before)[step] == "match"
        assert matches(after) == {**matches(before), step: "mismatch"}
        assert dict(zip(STEPS, changed.matches(), strict=True)) == matches(after)


@pytest.mark.parametrize("most", [0, 1, 3, 4])
def test_no_more_contrasts_than_asked_for(most: int):
    assert contrasts(SHOP, most, reader=READER) == contrasts(SHOP, 100, reader=READER)[:most]


def test_the_same_seed_gives_the_same_contrasts():
    assert contrasts(SHOP, 100, reader=READER, seed=3) == contrasts(SHOP, 100, reader=READER, seed=3)
    assert contrasts(SHOP, 100, reader=READER, seed=3) != contrasts(SHOP, 100, reader=READER, seed=4)


def test_without_values_there_is_nothing_to_contrast():
    assert contrasts([QueryItem("chair", "Stool")], 100, reader=READER) == []
    assert contrasts([], 100, reader=READER) == []
