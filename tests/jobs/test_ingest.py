import datetime as dt
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from feature_repo.table_schemas import (
    MAX_TEXT_CHARACTERS,
    Impressions,
    ItemImages,
    Items,
    Queries,
    RelevanceGrades,
    TrueProbabilities,
    Users,
)
from jobs import ingest
from jobs.admission import BROKEN_RULES
from jobs.lake import Lake, TableError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOON = dt.datetime(2024, 7, 1, 12, tzinfo=dt.timezone.utc)
SELECT = {
    "impression_id": "id",
    "user_id": "member",
    "item_id": "sku",
    "event_timestamp": "shown_at",
    "clicked": "label = 1",
}
IMPRESSIONS = {"files": "log.parquet", "select": SELECT}
ITEMS = {"files": "items.parquet", "select": {"item_id": "sku", "title": "name"}}


def log(num_rows: int = 40, **changes: pl.Expr) -> pl.DataFrame:
    """An impression a minute of 4 users and 5 items."""
    at = range(num_rows)
    return pl.DataFrame(
        {
            "id": [f"p{i}" for i in at],
            "member": [i % 4 for i in at],
            "sku": [f"i{i % 5}" for i in at],
            "shown_at": [NOON + dt.timedelta(minutes=i) for i in at],
            "label": [i % 2 for i in at],
        }
    ).with_columns(**changes)


def items(num_items: int = 5) -> pl.DataFrame:
    return pl.DataFrame({"sku": [f"i{i}" for i in range(num_items)], "name": [f"thing {i}" for i in range(num_items)]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    log().write_parquet(tmp_path / "raw" / "log.parquet")
    items().write_parquet(tmp_path / "raw" / "items.parquet")
    return tmp_path / "raw"


def config(folder: Path, *, max_quarantined_share: float = 0.05, **options: Any) -> ingest.Config:
    return ingest.Config(
        source="columns",
        path=folder,
        max_quarantined_share=max_quarantined_share,
        options={"impressions": IMPRESSIONS, "items": ITEMS, **options},
    )


def quarantined(lake: Lake, table: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(file) for file in (lake.root / "quarantine").glob(f"{table}-*.parquet")])


def first_row(column: str, value: object) -> pl.Expr:
    return pl.when(pl.col("id") == "p0").then(pl.lit(value)).otherwise(pl.col(column))


def test_a_log_becomes_the_canonical_tables(lake: Lake, folder: Path):
    ingest.run(lake, config(folder))
    assert {schema: lake.manifest(schema).rows for schema in ingest.WRITES} == {
        Items: 5,
        ItemImages: 0,
        Users: 4,
        Queries: 0,
        Impressions: 40,
        RelevanceGrades: 0,
        TrueProbabilities: 0,
    }
    impressions = lake.read(Impressions)
    assert impressions.schema == Impressions.create_empty().schema
    assert impressions.get_column("user_id").unique().sort().to_list() == ["0", "1", "2", "3"]


def test_users_are_made_from_the_impressions_where_the_source_gives_none(lake: Lake, folder: Path):
    ingest.run(lake, config(folder))
    users = dict(lake.read(Users).iter_rows())
    assert users == {str(i): NOON + dt.timedelta(minutes=i) for i in range(4)}


def test_users_and_items_given_many_times_are_kept_once(lake: Lake, folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    pl.concat([items()] * 3).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder, users={"files": "log.parquet", "select": {"user_id": "member"}}))
    assert (lake.manifest(Items).rows, lake.manifest(Users).rows) == (5, 4)
    assert "items: 10 repeated rows, the first of each kept" in caplog.text
    assert "users: 36 repeated rows" in caplog.text


def test_an_item_is_written_as_of_the_day_it_is_first_shown(lake: Lake, folder: Path):
    ingest.run(lake, config(folder))
    row = lake.read(Items).row(0, named=True)
    assert row["event_timestamp"] == row["created_timestamp"] == NOON.replace(hour=0)


def test_a_second_run_redates_only_the_items_whose_text_changed(tmp_path: Path, folder: Path):
    clock = NOON + dt.timedelta(days=30)
    ingest.run(Lake(tmp_path / "lake", now=lambda: clock), config(folder))
    items().with_columns(pl.col("name").replace("thing 2", "another thing")).write_parquet(folder / "items.parquet")
    later = clock + dt.timedelta(days=1)
    lake = Lake(tmp_path / "lake", now=lambda: later)
    ingest.run(lake, config(folder))
    created = dict(lake.read(Items).select("item_id", "created_timestamp").iter_rows())
    assert {item for item, time in created.items() if time == later} == {"i2"}
    assert {time for item, time in created.items() if item != "i2"} == {NOON.replace(hour=0)}


def test_another_source_starts_afresh(lake: Lake, folder: Path):
    ingest.run(lake, config(folder))
    items().with_columns(name=pl.lit("of another world")).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder, label_rule="other settings, another log"))
    assert lake.read(Items).get_column("created_timestamp").unique().to_list() == [NOON.replace(hour=0)]


def test_the_manifest_says_what_the_labels_are_and_what_was_left_out(lake: Lake, folder: Path):
    ingest.run(lake, config(folder, impressions={**IMPRESSIONS, "where": "member < 3"}))
    metadata = lake.manifest(Impressions).metadata
    assert metadata["label_rule"] == "clicked = label = 1, converted = never (the log has no conversions)"
    assert metadata["source"]["name"] == "columns"
    assert metadata["share_sampled"] == 0.0
    assert metadata["left_out"] == {"[sources.columns.impressions] where: not (member < 3)": 10}


def test_sampled_negatives_are_counted_in_the_manifest(lake: Lake, folder: Path):
    log(label=pl.lit(1)).write_parquet(folder / "log.parquet")
    ingest.run(lake, config(folder, negatives={"negatives_per_positive": 4}))
    share = lake.read(Impressions).get_column("is_sampled").mean()
    assert share == lake.manifest(Impressions).metadata["share_sampled"] == 0.8


def test_impressions_of_items_without_text_are_kept_and_counted(
    lake: Lake, folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    items(3).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder))
    assert lake.manifest(Impressions).rows == 40
    assert lake.manifest(Impressions).metadata["num_impressions_without_item"] == 16
    assert "16 of 40 are of 2 items that the source does not describe" in caplog.text


def test_a_new_source_leaves_nothing_of_the_old_one_behind(lake: Lake, folder: Path):
    queries = {"files": "log.parquet", "select": {"query_id": "sku", "query_text": "sku"}}
    ingest.run(lake, config(folder, queries=queries))
    assert lake.manifest(Queries).rows == 5
    ingest.run(lake, config(folder))
    assert lake.manifest(Queries).rows == 0


# --- pictures ------------------------------------------------------------------------------------------------

PICTURES = {"files": "items.parquet", "select": {"item_id": "sku", "image": "photo"}}


def test_pictures_named_by_path_become_bytes_dated_with_their_items(lake: Lake, folder: Path):
    (folder / "photos").mkdir()
    for at in range(5):
        (folder / "photos" / f"{at}.jpg").write_bytes(b"picture %d" % at)
    photo = pl.concat_str(pl.lit("photos/"), pl.int_range(pl.len()), pl.lit(".jpg"))
    items().with_columns(photo=photo).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder, item_images=PICTURES))
    pictures = lake.read(ItemImages).sort("item_id")
    assert pictures.get_column("image").to_list() == [b"picture %d" % at for at in range(5)]
    dates = lake.read(Items).sort("item_id").get_column("event_timestamp")
    assert pictures.get_column("event_timestamp").equals(dates)


def test_a_picture_that_says_since_when_it_can_be_shown_keeps_its_date(lake: Lake, folder: Path):
    since = NOON + dt.timedelta(days=3)
    items().with_columns(photo=pl.lit(b"x"), since=pl.lit(since)).write_parquet(folder / "items.parquet")
    select = {**PICTURES["select"], "event_timestamp": "since"}
    ingest.run(lake, config(folder, item_images={**PICTURES, "select": select}))
    assert lake.read(ItemImages).get_column("event_timestamp").unique().to_list() == [since]


def test_a_missing_picture_costs_its_item_the_picture_and_not_the_run(
    lake: Lake, folder: Path, caplog: pytest.LogCaptureFixture
):
    (folder / "0.jpg").write_bytes(b"picture")
    (folder / "2.jpg").write_bytes(b"")
    (folder / "3.jpg").mkdir()
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", None]
    items().with_columns(photo=pl.Series(names)).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder, item_images=PICTURES))
    assert lake.read(ItemImages).get_column("item_id").to_list() == ["i0"]
    assert lake.manifest(Items).rows == 5
    refused = dict(quarantined(lake, "item_images").select("item_id", pl.col(BROKEN_RULES).list.join("|")).iter_rows())
    assert refused == {
        "i1": "image_file_is_missing",
        "i2": "image_is_not_empty",
        "i3": "image_file_cannot_be_read (IsADirectoryError)",
    }
    assert "item_images: 3 pictures could not be taken in" in caplog.text
    left_out = lake.manifest(Impressions).metadata["left_out"]
    assert left_out == {"[sources.columns.item_images]: no picture named": 1}


def test_two_pictures_of_an_item_are_one_and_counted(lake: Lake, folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    pl.concat([items(2), items(2)]).with_columns(photo=pl.lit(b"x")).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder, item_images=PICTURES))
    assert lake.manifest(ItemImages).rows == 2
    assert "item_images: 2 repeated rows, the first of each kept" in caplog.text


def test_a_picture_file_that_changes_is_noticed(folder: Path):
    (folder / "0.jpg").write_bytes(b"picture")
    items().with_columns(photo=pl.lit("0.jpg")).write_parquet(folder / "items.parquet")
    settings = config(folder, item_images=PICTURES)
    before = ingest.outside_inputs(settings)
    (folder / "0.jpg").write_bytes(b"another picture")
    assert ingest.outside_inputs(settings) != before


def test_many_pictures_are_written_in_short_shards(lake: Lake, folder: Path):
    items(4_500).with_columns(photo=pl.lit(b"x")).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder, item_images=PICTURES))
    rows = [shard.rows for shard in lake.manifest(ItemImages).shards]
    assert sum(rows) == 4_500
    assert max(rows) <= 2_000


# --- bad input -----------------------------------------------------------------------------------------------


def test_a_duplicate_impression_is_quarantined_and_the_first_is_kept(lake: Lake, folder: Path):
    log(id=pl.when(pl.col("id") == "p9").then(pl.lit("p3")).otherwise("id")).write_parquet(folder / "log.parquet")
    ingest.run(lake, config(folder))
    assert lake.manifest(Impressions).rows == 39
    refused = quarantined(lake, "impressions")
    assert refused.select("impression_id", "item_id").rows() == [("p3", "i4")]
    assert "primary_key" in refused.get_column(BROKEN_RULES)[0][0]


def test_too_many_bad_rows_fail_and_leave_every_table_as_it_was(lake: Lake, folder: Path):
    ingest.run(lake, config(folder))
    versions = {schema: lake.manifest(schema).version for schema in ingest.WRITES}
    log(id=pl.lit("p0")).write_parquet(folder / "log.parquet")
    with pytest.raises(TableError, match=r"impressions: rows break its rules .*\(39 of 40 rows\)"):
        ingest.run(lake, config(folder))
    assert {schema: lake.manifest(schema).version for schema in ingest.WRITES} == versions
    assert lake.manifest(Impressions).rows == 40


def test_an_impression_in_the_future_is_quarantined(lake: Lake, folder: Path, now: dt.datetime):
    future = pl.lit(now + dt.timedelta(days=1), pl.Datetime("us", "UTC"))
    log(shown_at=pl.when(pl.col("id") == "p0").then(future).otherwise("shown_at")).write_parquet(folder / "log.parquet")
    ingest.run(lake, config(folder))
    refused = quarantined(lake, "impressions")
    assert refused.get_column("impression_id").to_list() == ["p0"]
    assert refused.get_column(BROKEN_RULES)[0].to_list() == ["event_timestamp_not_in_future"]
    assert lake.read(Users).get_column("event_timestamp").max() < now


def test_a_dummy_time_is_quarantined_and_dates_nobody(lake: Lake, folder: Path):
    dummy = dt.datetime(1980, 1, 1, tzinfo=dt.timezone.utc)
    log(shown_at=first_row("shown_at", dummy)).write_parquet(folder / "log.parquet")
    ingest.run(lake, config(folder))
    assert quarantined(lake, "impressions").get_column("impression_id").to_list() == ["p0"]
    assert lake.read(Users).get_column("event_timestamp").min() == NOON + dt.timedelta(minutes=1)


def test_a_text_of_100_000_characters_is_quarantined(lake: Lake, folder: Path):
    catalogue = items(50)
    long = pl.when(pl.col("sku") == "i7").then(pl.lit("x" * 100_000)).otherwise("name")
    catalogue.with_columns(name=long).write_parquet(folder / "items.parquet")
    ingest.run(lake, config(folder))
    refused = quarantined(lake, "items")
    assert refused.get_column("item_id").to_list() == ["i7"]
    assert refused.get_column("title").str.len_chars().to_list() == [100_000]
    assert MAX_TEXT_CHARACTERS < 100_000


def test_an_empty_id_is_quarantined(lake: Lake, folder: Path):
    log(sku=first_row("sku", "")).write_parquet(folder / "log.parquet")
    ingest.run(lake, config(folder))
    assert quarantined(lake, "impressions").get_column("impression_id").to_list() == ["p0"]


def test_a_label_that_is_missing_is_quarantined_not_guessed(lake: Lake, folder: Path):
    log(label=first_row("label", None)).write_parquet(folder / "log.parquet")
    ingest.run(lake, config(folder))
    assert quarantined(lake, "impressions").get_column("impression_id").to_list() == ["p0"]


def test_a_wrong_type_is_refused_with_table_column_and_remedy(lake: Lake, folder: Path):
    catalogue = items().with_columns(cents=pl.lit("five pounds"))
    catalogue.write_parquet(folder / "items.parquet")
    select = {**ITEMS["select"], "price_cents": "cents"}
    with pytest.raises(TableError, match=r"items: column price_cents is String, expected Int64.*\n.*cast the column"):
        ingest.run(lake, config(folder, items={**ITEMS, "select": select}))
    assert not lake.exists(Impressions)


def test_an_empty_log_is_refused(lake: Lake, folder: Path):
    log().clear().write_parquet(folder / "log.parquet")
    with pytest.raises(TableError, match=r"impressions: the source columns gave no rows \(0 were left out"):
        ingest.run(lake, config(folder))
    assert not lake.exists(Items)


def test_a_log_of_which_a_rule_leaves_nothing_is_refused_with_the_count(lake: Lake, folder: Path):
    with pytest.raises(TableError, match=r"gave no rows \(40 were left out by its rules\)"):
        ingest.run(lake, config(folder, impressions={**IMPRESSIONS, "where": "label = 5"}))


def test_a_source_that_cannot_be_read_leaves_no_table_and_no_litter(lake: Lake, folder: Path):
    (folder / "log.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"log\.parquet: not a readable parquet file"):
        ingest.run(lake, config(folder))
    assert not lake.exists(Items)
    assert [path for path in lake.root.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_unknown_sources_and_options_are_refused(lake: Lake, folder: Path):
    with pytest.raises(ValidationError, match="simulate.*movielens.*online_retail.*columns"):
        ingest.Config.model_validate({"source": "movielense"})
    with pytest.raises(
        ValueError, match=r"\[sources\.columns\] key 'impresions' is unknown; did you mean 'impressions'"
    ):
        ingest.run(lake, config(folder, impresions=IMPRESSIONS))


def test_a_change_of_any_raw_file_is_noticed_and_of_others_is_not(folder: Path):
    before = ingest.outside_inputs(config(folder))
    (folder / "notes.txt").touch()
    assert ingest.outside_inputs(config(folder)) == before
    items(6).write_parquet(folder / "items.parquet")
    assert ingest.outside_inputs(config(folder)) != before


def test_the_simulator_has_no_raw_files():
    assert ingest.outside_inputs(ingest.Config()) == ingest.outside_inputs(ingest.Config(options={"seed": 8}))


# --- judged pairs, without a log --------------------------------------------------------------------------------

JUDGED = pl.DataFrame(
    {
        "query": ["wool sock", "wool sock", "door"],
        "item_id": ["a", "b", "c"],
        "title": ["A", "B", "C"],
        "grade": [1, 2, 3],
    }
)


def judged_config(path: Path, **options: Any) -> ingest.Config:
    return ingest.Config(source="judged_pairs", path=path, options={"grade_worst": 1, "grade_best": 3, **options})


def test_judged_pairs_need_no_impressions_and_the_log_says_what_they_are_good_for(
    lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture, now: dt.datetime
):
    caplog.set_level("INFO")
    JUDGED.write_parquet(tmp_path / "judged.parquet")
    ingest.run(lake, judged_config(tmp_path / "judged.parquet"))
    assert {schema: lake.manifest(schema).rows for schema in ingest.WRITES} == {
        Items: 3,
        ItemImages: 0,
        Users: 0,
        Queries: 2,
        Impressions: 0,
        RelevanceGrades: 3,
        TrueProbabilities: 0,
    }
    assert "3 judged pairs of 2 queries and 3 items, and no impressions: enough to learn relevance from" in caplog.text
    assert "label_relevance distill_relevance publish_features" in caplog.text
    assert lake.read(Items).get_column("event_timestamp").unique().to_list() == [now]
    assert lake.manifest(Impressions).metadata["share_sampled"] == 0.0
    assert not ingest.gives_impressions(judged_config(tmp_path))


def test_items_of_judged_pairs_keep_their_first_date_and_only_new_texts_are_new(tmp_path: Path, now: dt.datetime):
    file = tmp_path / "judged.parquet"
    JUDGED.write_parquet(file)
    ingest.run(Lake(tmp_path / "lake", now=lambda: now), judged_config(file))
    later = now + dt.timedelta(days=1)
    more = JUDGED.with_columns(title=pl.col("title").replace("B", "Bee")).vstack(
        pl.DataFrame({"query": ["door"], "item_id": ["d"], "title": ["D"], "grade": [3]})
    )
    more.write_parquet(file)
    lake = Lake(tmp_path / "lake", now=lambda: later)
    ingest.run(lake, judged_config(file))
    dated = {item: (since, made) for item, since, made in lake.read(Items).select(
        "item_id", "event_timestamp", "created_timestamp").iter_rows()}  # fmt: skip
    assert dated == {"a": (now, now), "b": (now, later), "c": (now, now), "d": (later, later)}


def test_items_of_judged_pairs_are_dated_as_the_settings_say(lake: Lake, tmp_path: Path):
    JUDGED.write_parquet(tmp_path / "judged.parquet")
    ingest.run(lake, judged_config(tmp_path, available_from=dt.date(2016, 1, 1)))
    assert lake.read(Items).get_column("event_timestamp").unique().to_list() == [
        dt.datetime(2016, 1, 1, tzinfo=dt.timezone.utc)
    ]


def test_no_judgements_at_all_are_an_error_and_grades_off_the_scale_are_quarantined(lake: Lake, tmp_path: Path):
    JUDGED.clear().write_parquet(tmp_path / "judged.parquet")
    with pytest.raises(TableError, match="relevance_grades: the source judged_pairs gave no rows"):
        ingest.run(lake, judged_config(tmp_path))
    JUDGED.with_columns(grade=pl.Series([1, 2, 30])).write_parquet(tmp_path / "judged.parquet")
    with pytest.raises(TableError, match=r"relevance_grades: rows break its rules \[grade\|max: 1\]"):
        ingest.run(lake, judged_config(tmp_path))
    assert not any(lake.exists(schema) for schema in ingest.WRITES)
    ingest.run(lake, judged_config(tmp_path).model_copy(update={"max_quarantined_share": 0.5}))
    assert quarantined(lake, "relevance_grades").get_column("item_id").to_list() == ["c"]


@pytest.mark.realdata
def test_movielens_latest_small_is_ingested_whole(lake: Lake, real_data: Path):
    ingest.run(lake, ingest.Config(source="movielens", path=real_data / "ml_latest_small"))
    assert (lake.manifest(Impressions).rows, lake.manifest(Items).rows, lake.manifest(Users).rows) == (
        100_004,
        9_125,
        671,
    )
    assert not (lake.root / "quarantine").exists()
    dated = lake.scan(Impressions).join(lake.scan(Items), on="item_id", suffix="_of_item")
    assert dated.filter(pl.col("event_timestamp_of_item") > pl.col("event_timestamp")).collect().is_empty()


@pytest.mark.realdata
@pytest.mark.parametrize("example", ["ifdb", "movielens", "online_retail"])
def test_an_example_finds_its_files(example: str, real_data: Path):
    sections = tomllib.loads((EXAMPLES / f"{example}.toml").read_text())
    source = sections["ingest"]["source"]
    folder = real_data / sections["ingest"]["path"].replace("ml-latest-small", "ml_latest_small")
    options = sections["sources"][source]
    assert ingest.outside_inputs(ingest.Config(source=source, path=folder, options=options))
