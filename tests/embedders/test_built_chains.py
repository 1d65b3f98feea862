"""Rules read what a text says, and a step follows the one attribute that changes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from embedders.built_chains import built_chain, label_of_grade
from embedders.relevance_prompts import STEPS, QueryItem, parse
from embedders.title_facts import TitleReader, singular

READER = TitleReader(frozenset({"delta", "moen", "hampton bay", "dewalt"}))
PAIR = QueryItem(
    'Delta DS-141 red shower faucets 3"', "Delta 3 in. DS141 Vero Red Shower Faucet with 2 handles (2-Pack)"
)


def matches(pair: QueryItem) -> dict[str, str]:
    return dict(zip(STEPS, built_chain(pair, reader=READER).matches(), strict=True))


def test_facts_are_read_off_query_and_title():
    query, item = READER.query(PAIR).facts(), READER.item(PAIR).facts()
    assert (query.category, query.brand, query.model, query.attributes) == (
        "shower faucet",
        "delta",
        "ds141",
        "3 in, red",
    )
    assert (item.category, item.brand, item.model) == ("vero shower faucet", "delta", "ds141")
    assert item.attributes == "3 in, 2 handle, 2 pack, red"


@pytest.mark.parametrize(
    ("step", "other"),
    [
        ("category", QueryItem(PAIR.query, PAIR.title.replace("Faucet", "Curtain"))),
        ("brand", QueryItem(PAIR.query, PAIR.title.replace("Delta", "Moen"))),
        ("model", QueryItem(PAIR.query, PAIR.title.replace("DS141", "DS999"))),
        ("attributes", QueryItem(PAIR.query, PAIR.title.replace("Red", "Blue"))),
        ("attributes", QueryItem(PAIR.query, PAIR.title.replace("3 in", "4 in"))),
    ],
)
def test_another_value_of_one_attribute_flips_its_step_and_no_other(step: str, other: QueryItem):
    before, after = matches(PAIR), matches(other)
    assert set(before.values()) == {"match"}
    assert after == {**before, step: "mismatch"}
    assert built_chain(other, reader=READER).label == ("good" if step == "attributes" else "bad")


def test_what_is_not_asked_or_not_said_is_no_mismatch():
    assert matches(QueryItem("faucet", PAIR.title)) == dict(zip(STEPS, ["match", "na", "na", "na"], strict=True))
    assert matches(QueryItem(PAIR.query, "Faucet")) == dict(zip(STEPS, ["match", "na", "na", "na"], strict=True))


def test_fields_of_the_item_are_believed():
    item = QueryItem("moen red faucet", "Vero", category="Bath > Faucets", brand="Moen", attributes="red; 3 in.")
    assert matches(item)["brand"] == "match"
    assert matches(item)["attributes"] == "match"
    assert matches(item._replace(brand="Delta"))["brand"] == "mismatch"
    assert matches(item._replace(attributes="green"))["attributes"] == "mismatch"
    assert built_chain(item, reader=READER).item.category == "Bath > Faucets"


def test_the_human_label_is_kept_and_only_the_category_gives_way():
    sorter = QueryItem("laundry basket", "Seville Laundry Sorter")
    assert matches(sorter)["category"] == "mismatch"
    good = built_chain(sorter, "good", reader=READER)
    assert (good.category, good.label) == ("match", "good")
    bad = built_chain(QueryItem("shower", "Delta Shower"), "bad", reader=READER)
    assert (bad.category, bad.label) == ("mismatch", "bad")
    exception = built_chain(QueryItem("moen faucet", "Delta Faucet"), "good", reader=READER)
    assert (exception.brand, exception.label) == ("mismatch", "good")
    assert built_chain(PAIR, "good", reader=READER) == built_chain(PAIR, reader=READER)


def test_every_chain_is_an_answer_the_teacher_could_give():
    for pair in (PAIR, QueryItem("", ""), QueryItem('"x"\\', '3/4" \x07 "pipe" &quot;new&quot;'), QueryItem("帐", "🏕")):
        chain = built_chain(pair, reader=READER)
        assert parse(chain.line()) == chain


def test_brands_are_what_titles_begin_with():
    titles = [f"Hampton Bay {n}-Light Lamp" for n in range(6)] + [f"Moen Faucet {n}" for n in range(6)]
    titles += [f"White Chair {n}" for n in range(6)] + [f"Oak Shelf in White {n}" for n in range(9)] + ["Rare Thing"]
    reader = TitleReader.of_titles(titles, brands=["ACME Tools", None])
    assert {"hampton bay", "acme tools"} <= reader.brands
    assert not {"white", "rare", "hampton"} & reader.brands
    assert reader.query(QueryItem("lamp by hampton bay", "")).brand == "hampton bay"


def test_plural_endings_are_taken_off():
    words = ["faucets", "boxes", "batteries", "glass", "bus", "brushes", "gas"]
    assert [singular(word) for word in words] == ["faucet", "box", "battery", "glass", "bus", "brush", "gas"]


def test_two_raters_of_three_make_it_good():
    assert [label_of_grade(grade) for grade in (1.0, 2.0, 2.33, 3.0)] == ["bad", "bad", "good", "good"]
    assert label_of_grade(float(np.float32(2.33))) == "good"  # 2.3299999


@pytest.mark.realdata
def test_on_real_queries_a_match_means_a_better_grade_at_every_step(real_data: Path):
    pl = pytest.importorskip("polars")
    pairs = pl.read_parquet(real_data / "homedepot_relevance" / "train.parquet")
    reader = TitleReader.of_titles(pairs["product_title"].to_list())
    some = pairs.sample(4000, seed=0)
    grades: dict[tuple[str, str], list[float]] = {}
    kinds: Counter[str] = Counter()
    for query, title, grade in zip(some["search_term"], some["product_title"], some["relevance"], strict=True):
        chain = built_chain(QueryItem(query, title), reader=reader)
        for step, match in zip(STEPS, chain.matches(), strict=True):
            grades.setdefault((step, match), []).append(grade)
            kinds[f"{step} {match}"] += 1
    for step in ("category", "brand", "attributes"):  # too few queries name a model
        mean = {match: sum(grades[step, match]) / len(grades[step, match]) for match in ("match", "mismatch")}
        assert mean["match"] > mean["mismatch"] + 0.1, (step, kinds)
