"""The parts of the simulated marketplace: words, texts, pursuits, queries and their grades."""

import datetime as dt
from functools import cache

import numpy as np
import polars as pl
import pytest

from jobs.raw_sources.marketplace_catalogue import draw_catalogue
from jobs.raw_sources.marketplace_slates import Assortment
from jobs.raw_sources.marketplace_texts import items_frame
from jobs.raw_sources.marketplace_users import draw_population, pursued_themes
from jobs.raw_sources.marketplace_vocabulary import title_case, vocabulary
from jobs.raw_sources.simulate import Config, shards, world_of

WORDS = vocabulary()
TOY = Config(size="toy")
KIND_OF_NAME = {
    name: code for code, kind in enumerate(WORDS.kinds()) for name in (kind.name.lower(), kind.alias.lower())
}


@cache
def kind_named_in(text: str) -> tuple[int, str]:
    """Code of the kind with the longest name in the text, and that name."""
    words = f" {text.lower()} ".replace(",", " ")
    name = max((name for name in KIND_OF_NAME if f" {name} " in words), key=len)
    return KIND_OF_NAME[name], name


@pytest.fixture(scope="module")
def toy() -> dict[str, pl.DataFrame]:
    frames: dict[str, list[pl.DataFrame]] = {}
    for shard in shards(None, TOY):
        frames.setdefault(shard.schema.__name__, []).append(shard.frame)
    return {name: pl.concat(parts) for name, parts in frames.items()}


def test_a_theme_cuts_across_categories_and_a_category_holds_many_themes():
    pairs = pl.DataFrame({"theme": WORDS.kind_themes(), "category": WORDS.kind_categories()}).unique()
    assert pairs.group_by("theme").len()["len"].min() >= 9
    assert pairs.group_by("category").len()["len"].mean() >= 9
    assert pairs["theme"].n_unique() >= 30
    assert pairs["category"].n_unique() >= 40


def test_the_category_alone_does_not_give_the_theme_away():
    counts = pl.DataFrame({"theme": WORDS.kind_themes(), "category": WORDS.kind_categories()}).group_by(pl.all()).len()
    guessed_right = counts.group_by("category").agg(pl.col("len").max())["len"].sum() / len(WORDS.kinds())
    assert guessed_right < 0.25


def test_titles_of_ten_thousand_items_are_nearly_all_distinct_and_rarely_name_their_theme():
    rng = np.random.default_rng(1)
    catalogue = draw_catalogue(10_000, 60, WORDS, rng)
    items = items_frame(catalogue, WORDS, dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc), rng)
    assert items["title"].n_unique() > 9_900
    assert items["title"].null_count() == 0
    themes = list(WORDS.themes)
    names_theme = [
        any(word in title.lower().split() for word in themes[theme].split())
        for title, theme in zip(items["title"], catalogue.theme, strict=True)
    ]
    assert np.mean(names_theme) < 0.05


def test_title_case_keeps_capitals_digits_and_small_words():
    assert title_case("RGB keyboard for the 8x42 streamers") == "RGB Keyboard for the 8x42 Streamers"


def test_a_title_names_the_kind_of_the_item(toy):
    kinds = [kind_named_in(title)[0] for title in toy["Items"]["title"]]
    assert kinds == world_of(TOY).catalogue.kind.tolist()


def test_prices_lie_around_the_median_of_their_kind(toy):
    kind = world_of(TOY).catalogue.kind
    median = np.array([each.median_price for each in WORDS.kinds()])[kind]
    log_ratio = np.log(toy["Items"]["price_cents"].to_numpy() / 100 / median)
    assert abs(log_ratio.mean()) < 0.1
    assert 0.25 < log_ratio.std() < 0.45


def test_hobbies_last_and_projects_end():
    population = draw_population(2_000, 120, np.random.default_rng(3))
    shares = np.full(32, 1 / 32)
    users = np.arange(2_000)
    first, last = (pursued_themes(population, users, day, shares, seed=5) for day in (0, 119))
    is_hobby = np.isinf(population.project_days)
    assert (first[is_hobby] == last[is_hobby]).all()
    assert (first[~is_hobby] != last[~is_hobby]).mean() > 0.8
    assert np.array_equal(first, pursued_themes(population, users, 0, shares, seed=5))
    assert not np.array_equal(first, pursued_themes(population, users, 0, shares, seed=6))
    assert np.bincount(first.ravel(), minlength=32).min() > 100


def test_activity_has_a_heavy_tail_and_pursuits_number_one_to_three():
    population = draw_population(10_000, 60, np.random.default_rng(3))
    activity = np.sort(population.activity)
    assert activity[-1_000:].sum() > 0.4 * activity.sum()
    assert set((population.strength > 0).sum(axis=1)) == {1, 2, 3}
    assert (population.strength[:, 0] == 1).all()


def test_only_items_on_sale_are_drawn_and_an_empty_shelf_falls_back_to_a_wider_one():
    catalogue = draw_catalogue(100, 60, WORDS, np.random.default_rng(3))
    assortment = Assortment(catalogue, len(WORDS.themes), len(WORDS.kinds()), len(WORDS.categories), day=0)
    every_section = np.arange(2 + len(WORDS.themes) + len(WORDS.kinds()) + len(WORDS.categories))
    drawn = assortment.draw(np.repeat(every_section, 50), np.random.default_rng(4)).reshape(-1, 50)
    assert (catalogue.arrival_day[drawn] <= 0).all()
    on_sale = catalogue.arrival_day <= 0
    for theme in np.unique(catalogue.theme[on_sale]):
        assert (catalogue.theme[drawn[assortment.first_theme + theme]] == theme).all()
    for kind in np.unique(catalogue.kind[on_sale]):
        assert (catalogue.kind[drawn[assortment.first_kind + kind]] == kind).all()
    for category in np.unique(catalogue.category[on_sale]):
        assert (catalogue.category[drawn[assortment.first_category + category]] == category).all()


def test_grades_follow_the_rule_as_read_from_the_tables(toy):
    world = world_of(TOY)
    themes = world.words.kind_themes()
    second_theme = dict(zip(toy["Items"]["item_id"], world.catalogue.second_theme, strict=True))
    items = {item["item_id"]: item for item in toy["Items"].to_dicts()}
    shelves = {path.split(" > ")[1].lower(): path for path in WORDS.categories}
    texts = dict(toy["Queries"].iter_rows())

    def grade(query: str, item: dict) -> int:
        if query in shelves:
            return 3 if item["category"] == shelves[query] else 0
        kind, name = kind_named_in(query)
        asked = query.lower().replace(name, "").strip()
        item_kind = kind_named_in(item["title"])[0]
        attributes = dict(pair.split(": ") for pair in (item["attributes"] or "").split("; ") if pair)
        has = {item["brand"].lower(), *(value.lower() for value in attributes.values())}
        if item["category"] == WORDS.kinds()[kind].category:
            return 3 if item_kind == kind and (not asked or asked in has) else 2
        return 1 if themes[kind] in (themes[item_kind], second_theme[item["item_id"]]) else 0

    rows = toy["RelevanceGrades"]
    expected = [grade(texts[query], items[item]) for query, item in rows.select("query_id", "item_id").iter_rows()]
    assert rows["grade"].to_list() == expected
    assert min(rows["grade"].value_counts()["count"]) > 100
    assert rows["grade"].n_unique() == 4


def test_every_pair_shown_for_a_query_is_graded_once(toy):
    shown = toy["Impressions"].filter(pl.col("query_id").is_not_null()).select("query_id", "item_id").unique()
    graded = toy["RelevanceGrades"].select("query_id", "item_id")
    assert graded.is_unique().all()
    assert shown.sort(pl.all()).equals(graded.sort(pl.all()))


def test_the_more_relevant_the_more_clicked(toy):
    grades = toy["Impressions"].join(toy["RelevanceGrades"], on=["query_id", "item_id"])
    by_grade = grades.group_by("grade").agg(pl.col("clicked").mean()).sort("grade")["clicked"].to_list()
    assert by_grade == sorted(by_grade)
    assert (grades["grade"] >= 2).mean() > 0.3
