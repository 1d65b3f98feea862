import datetime as dt
import io
import re
from pathlib import Path

import dataframely as dy
import numpy as np
import polars as pl
import pytest
from PIL import Image

from feature_repo.table_schemas import (
    Impressions,
    ItemImages,
    Items,
    Queries,
    RelevanceGrades,
    TrueProbabilities,
    Users,
)
from jobs import ingest
from jobs.lake import Lake
from jobs.raw_sources.fashion_catalogue import pixel_looks, unsaid_looks
from jobs.raw_sources.fashion_shoppers import CLICK, Causes, logit, suits_gender
from jobs.raw_sources.fashion_traffic import (
    PICTURE_SHARE,
    Config,
    FashionWorld,
    label_rule,
    logs_of_day,
    raw_files,
    shards,
    world_of,
)

TABLES = (Items, ItemImages, Users, Queries, Impressions, RelevanceGrades, TrueProbabilities)
SMALL = Config(num_items=400, num_users=300, num_days=10, num_impressions=30_000)
COLOURS = {"Red": (200, 30, 30), "Blue": (40, 60, 190), "Black": (30, 30, 30), "Yellow": (220, 200, 40)}


def jpeg(colour: tuple[int, ...]) -> bytes:
    """A product of one colour, on white."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (12, 16), (255, 255, 255))
    image.paste(tuple(int(value) for value in np.clip(colour, 0, 220)), (2, 2, 10, 14))
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 products of six types; half of the titles name the colour, and every picture has a shade of its own."""
    folder = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    types = [("Topwear", "Shirts"), ("Topwear", "Tops"), ("Shoes", "Heels"), ("Bags", "Clutches"), ("Ties", "Ties")]
    rows = []
    for number in range(500):
        shelf, kind = types[number % 5]
        colour = list(COLOURS)[int(rng.integers(4))]
        gender = ("Men", "Women", "Unisex", "")[int(rng.integers(4))]
        words = [f"Brand{rng.integers(9)}", gender, ["Plain", "Striped"][int(rng.integers(2))]]
        words += [colour] * int(rng.random() < 0.5) + [kind]
        rows.append(
            {
                "product_id": 1000 + number,
                "title": " ".join(word for word in words if word),
                "description": f"Apparel - {shelf} - {kind} - {colour} - Casual",
                "category": "Apparel",
                "jpeg": jpeg(tuple(np.array(COLOURS[colour]) + rng.normal(0, 25, 3))),
            }
        )
    pl.DataFrame(rows).write_parquet(folder / "thumbnails_12k.parquet")
    return folder


def simulated(folder: Path, config: Config) -> dict[type[dy.Schema], pl.DataFrame]:
    frames: dict[type[dy.Schema], list[pl.DataFrame]] = {}
    for shard in shards(folder, config):
        frames.setdefault(shard.schema, []).append(shard.frame)
    return {schema: pl.concat(parts) for schema, parts in frames.items()}


@pytest.fixture(scope="module")
def small(folder: Path) -> dict[type[dy.Schema], pl.DataFrame]:
    return simulated(folder, SMALL)


def worst_decile_z(probability: np.ndarray, outcome: np.ndarray) -> float:
    """Largest distance, in standard deviations, of a decile's number of outcomes from what its probabilities say."""
    deciles = np.array_split(np.argsort(probability, kind="stable"), 10)
    return max(
        abs(outcome[rows].sum() - probability[rows].sum())
        / np.sqrt((probability[rows] * (1 - probability[rows])).sum())
        for rows in deciles
    )


def explained(targets: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Share of the variance of every third, held-out row that ridge regression on the others explains; by target."""
    is_held_out = np.arange(len(told)) % 3 == 0
    known, seen = told[~is_held_out].astype(float), targets[~is_held_out].astype(float)
    centre, mean = known.mean(axis=0), seen.mean(axis=0)
    gram = (known - centre).T @ (known - centre) + 3.0 * np.eye(told.shape[1])
    weights = np.linalg.solve(gram, (known - centre).T @ (seen - mean))
    misses = targets[is_held_out] - mean - (told[is_held_out] - centre) @ weights
    return 1 - (misses**2).mean(axis=0) / targets[is_held_out].var(axis=0)


def words_of(titles: list[str]) -> np.ndarray:
    tokens = [set(re.findall(r"[a-z]+", title.lower())) for title in titles]
    vocabulary = sorted(set.union(*tokens))
    return np.array([[word in of_title for word in vocabulary] for of_title in tokens], float)


@pytest.mark.parametrize("schema", TABLES, ids=lambda schema: schema.__name__)
def test_every_row_of_every_table_keeps_the_contract(small, schema):
    frame = small[schema].with_columns(
        pl.lit(dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)).alias("created_timestamp")
    )
    if schema is ItemImages:
        frame = frame.with_columns(event_timestamp="created_timestamp")
    for name in ("keywords", "description", "price_cents"):
        frame = frame.with_columns(pl.lit(None).alias(name)) if schema is Items else frame
    good, failures = schema.filter(frame, cast=True)
    assert failures.counts() == {}
    assert good.height == small[schema].height > 0


def test_it_is_ingested_whole_with_pictures_dated_as_their_items(folder: Path, lake: Lake):
    config = ingest.Config(source="fashion_traffic", path=folder, options=SMALL.model_dump(mode="json"))
    ingest.run(lake, config)
    assert not (lake.root / "quarantine").exists()
    dates = lake.read(Items).select("item_id", listed="event_timestamp")
    pictures = lake.read(ItemImages).join(dates, on="item_id")
    assert len(pictures) == 400
    assert (pictures["event_timestamp"] == pictures["listed"]).all()
    assert "simulated shoppers" in lake.manifest(Impressions).metadata["label_rule"]
    assert ingest.outside_inputs(config) == ingest.outside_inputs(config)
    assert raw_files(folder, SMALL) == [folder / "thumbnails_12k.parquet"]


def test_items_are_the_published_products_without_the_colour_that_was_annotated(small, folder: Path):
    published = pl.read_parquet(folder / "thumbnails_12k.parquet").with_columns(pl.col("product_id").cast(pl.String))
    joined = small[Items].join(published, left_on="item_id", right_on="product_id", suffix="_published")
    assert len(joined) == len(small[Items]) == 400
    assert (joined["title"] == joined["title_published"]).all()
    assert set(small[Items]["category"]) == {
        "Apparel > Topwear > Shirts",
        "Apparel > Topwear > Tops",
        "Apparel > Shoes > Heels",
        "Apparel > Bags > Clutches",
        "Apparel > Ties > Ties",
    }
    assert set(small[Items]["attributes"]) == {"usage: Casual"}
    branded = small[Items].filter(pl.col("title").str.contains("Men|Women|Unisex"))
    assert (branded["brand"] == branded["title"].str.split(" ").list.first()).all()


def test_ids_lead_to_rows_of_the_other_tables_and_nothing_is_shown_too_early(small):
    impressions = small[Impressions]
    joined = (
        impressions.join(small[Users].rename({"event_timestamp": "arrived"}), on="user_id")
        .join(small[Items].select("item_id", listed="event_timestamp"), on="item_id")
        .join(small[Queries], on="query_id")
    )
    assert joined.height == impressions.height
    assert (joined["arrived"] <= joined["event_timestamp"]).all()
    assert (joined["listed"] < joined["event_timestamp"]).all()
    assert small[Queries]["query_text"].is_unique().all()
    pairs = impressions.select("query_id", "item_id").unique().join(small[RelevanceGrades], on=["query_id", "item_id"])
    assert pairs.height == small[RelevanceGrades].height


def test_a_slate_is_one_page_of_ten_distinct_items_at_most(small):
    slates = (
        small[Impressions]
        .group_by("request_id")
        .agg(pl.len().alias("size"), pl.n_unique("item_id", "query_id", "user_id"), pl.col("position").sort())
    )
    assert (slates["item_id"] == slates["size"]).all()
    assert (slates["query_id"] == 1).all()
    assert all(positions == list(range(len(positions))) for positions in slates["position"].to_list())
    assert slates["size"].max() == 10


def test_the_world_is_about_as_large_as_asked_for(small):
    assert (small[Items].height, small[Users].height) == (400, 300)
    assert small[Impressions].height == pytest.approx(30_000, rel=0.15)
    days = small[Impressions]["event_timestamp"].dt.date()
    assert (days.min(), days.max(), days.n_unique()) == (dt.date(2025, 6, 21), dt.date(2025, 6, 30), 10)


def test_the_same_seed_gives_the_same_tables_and_another_seed_does_not(small, folder: Path):
    again, other = simulated(folder, SMALL), simulated(folder, SMALL.model_copy(update={"seed": 8}))
    for schema in TABLES:
        assert again[schema].equals(small[schema])
    assert not other[Impressions].equals(small[Impressions])


def test_a_day_does_not_depend_on_the_days_before_it(small, folder: Path):
    (log,) = logs_of_day(world_of(folder, SMALL), 7)
    begin = SMALL.first_midnight() + dt.timedelta(days=7)
    on_day = small[Impressions].filter(
        pl.col("event_timestamp").is_between(begin, begin + dt.timedelta(days=1), "left")
    )
    assert on_day["clicked"].to_list() == log.clicked.tolist()


def test_clicks_and_conversions_come_as_often_as_their_probabilities_say(small):
    rows = small[Impressions].join(small[TrueProbabilities], on="impression_id", maintain_order="left")
    p_ctr, clicked = rows["p_ctr"].to_numpy(), rows["clicked"].to_numpy()
    assert worst_decile_z(p_ctr, clicked) < 4
    assert worst_decile_z(p_ctr * 0.8, clicked) > 4, "the check cannot see a wrong probability"
    clicks = rows.filter("clicked")
    assert worst_decile_z(clicks["p_cvr"].to_numpy(), clicks["converted"].to_numpy()) < 4
    assert np.allclose(rows["p_ctcvr"], rows["p_ctr"] * rows["p_cvr"], rtol=1e-12)
    assert rows.filter("converted")["clicked"].all()


def test_a_grade_is_what_the_query_asks_for(small, folder: Path):
    world = world_of(folder, SMALL)
    query, products = world.queries, world.catalogue.products
    judged = small[RelevanceGrades].join(small[Queries], on="query_id").join(products, on="item_id")
    colour = dict(
        pl.read_parquet(folder / "thumbnails_12k.parquet")
        .select(pl.col("product_id").cast(pl.String), pl.col("description").str.split(" - ").list.get(3))
        .iter_rows()
    )
    assert len(query.text) == len(set(query.text))
    best = judged.filter(pl.col("query_text") == "red heels", pl.col("grade") == 3)
    assert best.height > 5
    assert set(best["category"]) == {"Apparel > Shoes > Heels"}
    assert {colour[item] for item in best["item_id"]} == {"Red"}
    less = judged.filter(pl.col("query_text") == "red heels", pl.col("grade") == 2)
    assert "Red" not in {colour[item] for item in less["item_id"]}
    women = judged.filter(pl.col("query_text") == "women shirts", pl.col("grade") == 3)
    assert not women["title"].str.contains(r"\bMen\b").any()
    shelf = judged.filter(pl.col("query_text") == "topwear", pl.col("grade") > 0)
    assert shelf["category"].str.contains("Topwear").all()


def test_unisex_and_unsaid_suit_everybody():
    found = np.array([0, 1, 4, -1])
    assert suits_gender(np.int8(0), found).tolist() == [True, False, True, True]


# --- what only the picture shows --------------------------------------------------------------------------------


def test_looks_are_read_off_the_product_and_not_off_the_white_around_it():
    light, dark, red, nothing = pixel_looks([jpeg((200,) * 3), jpeg((20,) * 3), jpeg((200, 20, 20)), b"no picture"])
    assert light[0] == pytest.approx(200 / 255, abs=0.02)
    assert dark[0] == pytest.approx(20 / 255, abs=0.02)
    assert red[1] > 0.6 > 0.02 > abs(light[1])
    assert red[4] > 0.6 > 0.02 > abs(light[4])
    assert np.isnan(nothing).all()


def test_an_item_without_a_picture_looks_like_the_mean():
    looks = np.random.default_rng(0).normal(size=(50, 5))
    looks[3] = np.nan
    assert np.abs(unsaid_looks(looks, np.zeros((50, 0), np.float32))[3]).max() < 1e-9


def check_looks_are_invisible_in_words(world: FashionWorld) -> None:
    products = world.catalogue.products
    told = words_of(products["title"].to_list())
    told = np.hstack([told, products.select("category", "attributes").to_dummies().to_numpy()])
    raw = pixel_looks(products["jpeg"].to_list())
    assert explained(world.catalogue.looks, told).max() < 0.02
    assert explained(raw, told)[[0, 4]].min() > 0.2, "the check could not see colours that titles do name"
    assert np.corrcoef(raw[:, 0], world.catalogue.looks[:, 0])[0, 1] > 0.4, "looks are of the picture"


def test_titles_and_categories_do_not_tell_the_looks(folder: Path):
    check_looks_are_invisible_in_words(world_of(folder, SMALL))


def all_causes(world: FashionWorld) -> Causes:
    logs = [log for day in range(world.config.num_days) for log in logs_of_day(world, day)]
    return Causes(*(np.concatenate(parts) for parts in zip(*(log.why for log in logs), strict=True)))


def test_clicks_follow_the_taste_in_looks(folder: Path):
    world = world_of(folder, SMALL)
    logs = [log for day in range(10) for log in logs_of_day(world, day)]
    looks, clicked = (
        np.concatenate([log.why.looks for log in logs]),
        np.concatenate([log.clicked for log in logs]),
    )
    liked, disliked = clicked[looks > 1].mean(), clicked[looks < -1].mean()
    assert liked > 3 * disliked


def test_a_folder_without_the_file_or_with_too_few_products_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"thumbnails_12k\.parquet: there is no such file"):
        world_of(tmp_path, SMALL)
    with pytest.raises(ValueError, match=r"num_items = 12_000, but only 500 products have a thumbnail"):
        world_of(folder, Config())
    pl.DataFrame({"product_id": [1], "title": ["x"]}).write_parquet(tmp_path / "thumbnails_12k.parquet")
    with pytest.raises(ValueError, match="column description, jpeg missing"):
        world_of(tmp_path, SMALL)
    with pytest.raises(ValueError, match=r"ingest\.path is not set"):
        world_of(None, SMALL)


def test_the_label_rule_says_what_is_real_and_what_is_not():
    rule = label_rule(Config())
    assert "pictures are real" in rule
    assert "simulated shoppers (seed 7)" in rule
    assert "31%" in rule


# --- the real products ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_world(real_data: Path) -> FashionWorld:
    return world_of(real_data / "fashion_products", Config())


@pytest.mark.realdata
def test_of_the_real_products_the_picture_tells_as_much_as_is_said(real_world: FashionWorld):
    why = all_causes(real_world)
    total = logit(CLICK, why)
    assert CLICK.looks**2 * why.looks.var() / total.var() == pytest.approx(PICTURE_SHARE, abs=0.03)


@pytest.mark.realdata
def test_real_titles_do_not_tell_the_looks(real_world: FashionWorld):
    catalogue = real_world.catalogue
    titles = catalogue.products["title"].to_list()
    told = words_of(titles)
    told = told[:, told.sum(axis=0) >= 30]
    assert explained(catalogue.looks, told).max() < 0.0
    some = np.random.default_rng(0).permutation(len(titles))[:3_000]
    raw = pixel_looks([catalogue.products["jpeg"][int(at)] for at in some])
    assert explained(raw, told[some]).min() > 0.2


@pytest.mark.realdata
def test_the_real_products_are_read_whole(real_world: FashionWorld):
    products = real_world.catalogue.products
    assert len(products) == products["item_id"].n_unique() == 12_000
    assert products["title"].null_count() == 0
    assert len(real_world.catalogue.type_names) == 141
    assert products["brand"].null_count() < 6_000
    assert products.filter(pl.col("item_id") == "1530")["brand"].to_list() == ["Puma"]
