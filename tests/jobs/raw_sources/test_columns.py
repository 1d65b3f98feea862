import datetime as dt
import tomllib
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl
import pytest
from pydantic import ValidationError

from feature_repo.table_schemas import Impressions, ItemImages, Items, Queries, RelevanceGrades, Users
from jobs.raw_sources import LeftOut, Shard, columns
from jobs.raw_sources.columns import Config, label_rule, shards

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NOON = dt.datetime(2024, 7, 1, 12, tzinfo=dt.timezone.utc)

LOG = pl.DataFrame(
    {
        "member": [1, 1, 2],
        "sku": ["a", "b", "a"],
        "shown_at": [int(NOON.timestamp()) + i for i in range(3)],
        "label": [1, 0, 1],
    }
)
SELECT = {"user_id": "member", "item_id": "sku", "event_timestamp": "shown_at", "clicked": "label = 1"}
IMPRESSIONS = {"files": "log.parquet", "select": SELECT, "time_unit": "s"}


def read(folder: Path, **options: Any) -> dict[type[dy.Schema], pl.DataFrame]:
    pieces = list(shards(folder, Config.model_validate({"impressions": IMPRESSIONS, **options})))
    tables: dict[type[dy.Schema], list[pl.DataFrame]] = {}
    for piece in pieces:
        if isinstance(piece, Shard):
            tables.setdefault(piece.schema, []).append(piece.frame)
    return {schema: pl.concat(frames, how="diagonal") for schema, frames in tables.items()}


def left_out(folder: Path, **options: Any) -> list[LeftOut]:
    config = Config.model_validate({"impressions": IMPRESSIONS, **options})
    return [piece for piece in shards(folder, config) if isinstance(piece, LeftOut)]


def with_select(changes: dict[str, str | None], **more: Any) -> dict[str, Any]:
    select = {name: text for name, text in {**SELECT, **changes}.items() if text is not None}
    return {"impressions": {**IMPRESSIONS, "select": select, **more}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LOG.write_parquet(tmp_path / "log.parquet")
    return tmp_path


def test_four_columns_make_impressions(folder: Path):
    impressions = read(folder)[Impressions]
    assert impressions.select("user_id", "item_id", "clicked", "converted", "is_sampled").rows() == [
        ("1", "a", True, False, False),
        ("1", "b", False, False, False),
        ("2", "a", True, False, False),
    ]
    assert impressions.get_column("event_timestamp")[0] == NOON
    assert impressions.get_column("impression_id")[0] == f"1:a:{int(NOON.timestamp() * 1e6)}"


def test_csv_reads_like_parquet_and_ids_stay_text(folder: Path):
    frame = LOG.with_columns(member=pl.Series(["007", "007", "8"]))
    frame.write_csv(folder / "log.csv")
    impressions = read(folder, **with_select({}, files="log.csv"))[Impressions]
    assert impressions.get_column("user_id").to_list() == ["007", "007", "8"]


def test_several_files_are_read_in_order(folder: Path):
    LOG.with_columns(sku=pl.lit("later")).write_parquet(folder / "more-1.parquet")
    impressions = read(folder, **with_select({}, files=["log.parquet", "more-*.parquet"]))[Impressions]
    assert impressions.get_column("item_id").to_list() == ["a", "b", "a", "later", "later", "later"]


def test_a_large_log_comes_in_shards(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(columns, "ROWS_PER_SHARD", 1_000)
    pl.concat([LOG] * 2_000).write_parquet(folder / "log.parquet", row_group_size=1_000)
    pieces = list(shards(folder, Config.model_validate({"impressions": IMPRESSIONS})))
    sizes = [len(piece.frame) for piece in pieces if isinstance(piece, Shard)]
    assert sum(sizes) == 6_000
    assert max(sizes) <= 1_000


def test_a_condition_leaves_rows_out_and_counts_them_nulls_too(folder: Path):
    LOG.with_columns(country=pl.Series(["UK", None, "FR"])).write_parquet(folder / "log.parquet")
    options = with_select({}, where="country = 'UK'")
    assert read(folder, **options)[Impressions].get_column("impression_id").str.starts_with("1:a").all()
    assert left_out(folder, **options) == [LeftOut("[sources.columns.impressions] where: not (country = 'UK')", 2)]


def test_a_join_adds_columns_of_other_files_and_loses_no_row(folder: Path):
    pl.DataFrame({"member": ["1", "3"], "sku": ["a", "a"], "bought": [NOON, NOON]}).write_parquet(folder / "b.parquet")
    options = with_select({"conversion_timestamp": "bought"}, joins=[{"files": "b.parquet", "on": ["member", "sku"]}])
    impressions = read(folder, **options)[Impressions]
    assert impressions.get_column("converted").to_list() == [True, False, False]
    assert impressions.get_column("conversion_timestamp").to_list() == [NOON, None, None]


def test_a_join_that_would_repeat_rows_is_refused_or_keeps_the_first(folder: Path):
    orders = pl.DataFrame({"sku": ["a", "a", "b"], "launched": [NOON + dt.timedelta(days=1), NOON, NOON]})
    orders.write_parquet(folder / "b.parquet")
    join = {"files": "b.parquet", "on": ["sku"]}
    with pytest.raises(ValueError, match=r"1 of 3 rows of b\.parquet repeat a key \(sku\).*set first_by"):
        read(folder, **with_select({}, joins=[join]))
    options = with_select({"conversion_timestamp": "launched"}, joins=[{**join, "first_by": "launched"}])
    assert read(folder, **options)[Impressions].get_column("conversion_timestamp").to_list() == [NOON] * 3


def test_a_join_on_a_column_that_is_not_there_is_refused(folder: Path):
    LOG.write_parquet(folder / "b.parquet")
    join = {"files": "b.parquet", "on": ["user"]}
    with pytest.raises(ValueError, match=r"joins: column user missing in the files it is joined to \(found: member"):
        read(folder, **with_select({}, joins=[join]))


def test_a_conversion_without_a_time_is_dated_as_its_impression(folder: Path):
    impressions = read(folder, **with_select({"converted": "label = 1 AND sku = 'a'"}))[Impressions]
    expected = [time if sku == "a" else None for time, sku in impressions.select("event_timestamp", "item_id").rows()]
    assert impressions.get_column("conversion_timestamp").to_list() == expected


def test_the_other_tables_are_read_by_the_same_rules(folder: Path):
    pl.DataFrame({"sku": ["a"], "name": [1984], "cost": [19.989999], "since": ["2024-06-01"]}).write_csv(
        folder / "i.csv"
    )
    pl.DataFrame({"q": [7], "words": ["red sock"], "sku": ["a"], "stars": [3]}).write_csv(folder / "q.csv")
    tables = read(
        folder,
        items={
            "files": "i.csv",
            "select": {"item_id": "sku", "title": "name", "price_cents": "cost * 100", "event_timestamp": "since"},
        },
        users={"files": "log.parquet", "select": {"user_id": "member"}},
        queries={"files": "q.csv", "select": {"query_id": "q", "query_text": "words"}},
        relevance_grades={"files": "q.csv", "select": {"query_id": "q", "item_id": "sku", "grade": "stars"}},
    )
    assert tables[Items].rows() == [("a", "1984", 1999, dt.datetime(2024, 6, 1, tzinfo=dt.timezone.utc))]
    assert tables[Users].rows() == [("1",), ("1",), ("2",)]
    assert tables[Queries].rows() == [("7", "red sock")]
    assert tables[RelevanceGrades].rows() == [("7", "a", 3)]


def test_a_column_may_have_a_name_that_is_no_sql(folder: Path):
    LOG.rename({"member": "Customer ID", "label": "select"}).write_parquet(folder / "log.parquet")
    options = with_select({"user_id": "Customer ID", "clicked": '"select" = 1'})
    assert read(folder, **options)[Impressions].get_column("user_id").to_list() == ["1", "1", "2"]


def test_a_log_of_positives_gets_negatives_week_by_week(folder: Path):
    rows = [
        (user, f"i{(user * 7 + day) % 20}", NOON + dt.timedelta(days=day)) for user in range(40) for day in range(21)
    ]
    pl.DataFrame(rows, schema=["member", "sku", "shown_at"], orient="row").write_parquet(folder / "log.parquet")
    options = {**with_select({"clicked": "TRUE"}), "negatives": {"negatives_per_positive": 2}}
    impressions = read(folder, **options)[Impressions]
    assert impressions.get_column("is_sampled").sum() == 2 * 40 * 21
    assert impressions.get_column("impression_id").is_unique().all()
    assert impressions.select("request_id", "item_id").is_unique().all()


# --- bad input -----------------------------------------------------------------------------------------------


def test_a_missing_column_is_named_with_the_nearest_one(folder: Path):
    with pytest.raises(
        ValueError,
        match=r"columns\.impressions\] select\.clicked = 'lable = 1': there is no column 'lable'; is 'label' meant",
    ):
        read(folder, **with_select({"clicked": "lable = 1"}))


def test_a_column_that_the_table_does_not_have_is_refused_with_the_nearest_one(folder: Path):
    with pytest.raises(ValueError, match="there is no column 'usr_id' in the table; is 'user_id' meant"):
        read(folder, **with_select({"usr_id": "member"}))


def test_a_required_column_that_is_not_selected_is_named(folder: Path):
    with pytest.raises(ValueError, match=r"impressions\] select: clicked missing; say which column of log\.parquet"):
        read(folder, **with_select({"clicked": None}))


def test_a_label_that_is_a_number_is_refused_with_the_comparison_to_write(folder: Path):
    with pytest.raises(
        ValueError, match=r'select\.clicked = .label. is Int64, expected true or false.*clicked = "label = 1"'
    ):
        read(folder, **with_select({"clicked": "label"}))


def test_what_is_no_sql_is_refused(folder: Path):
    with pytest.raises(ValueError, match=r"select\.clicked = 'label =' is neither a column nor a SQL expression"):
        read(folder, **with_select({"clicked": "label ="}))


def test_comparing_text_with_a_number_names_the_table(folder: Path):
    with pytest.raises(ValueError, match=r"\[sources\.columns\.impressions\]: .*cannot"):
        read(folder, **with_select({"clicked": "sku = 1"}))


def test_a_wrong_time_unit_is_refused_before_the_log_is_read(folder: Path):
    with pytest.raises(
        ValueError, match=r'select\.event_timestamp = .shown_at.: read as time_unit = "ms".*set time_unit = "s"'
    ):
        read(folder, **with_select({}, time_unit="ms"))


def test_a_missing_file_is_named(folder: Path):
    with pytest.raises(ValueError, match=r"impressions\]: no file matches 'clicks\.csv' in .*which holds log\.parquet"):
        read(folder, **with_select({}, files="clicks.csv"))


def test_a_csv_in_another_encoding_is_refused_with_the_remedy_which_works(folder: Path):
    (folder / "i.csv").write_bytes("sku,name\na,café\n".encode("latin-1"))
    items = {"files": "i.csv", "select": {"item_id": "sku", "title": "name"}}
    with pytest.raises(ValueError, match=r'i\.csv: not utf-8: byte 0xe9 at offset 14 .*encoding = "latin-1"'):
        read(folder, items=items)
    assert read(folder, items={**items, "encoding": "latin-1"})[Items].rows() == [("a", "café")]


def test_a_csv_whose_numbers_turn_into_text_later_is_refused_clearly(folder: Path):
    rows = "".join(f"{i},{i}\n" for i in range(20_000)) + "x,not a price\n"
    (folder / "i.csv").write_text("sku,cents\n" + rows)
    items = {"files": "i.csv", "select": {"item_id": "sku", "price_cents": "cents"}}
    with pytest.raises(
        ValueError, match=r"\[sources\.columns\.items\]: the rows of i\.csv cannot be read: .*not a price"
    ):
        read(folder, items=items)


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError, match=r"impressions\.file_names"):
        Config.model_validate({"impressions": {**IMPRESSIONS, "file_names": "x"}})


def test_the_label_rule_says_what_the_labels_are():
    config = Config.model_validate({"impressions": IMPRESSIONS, "label_rule": "a click is a click"})
    assert (
        label_rule(config) == "a click is a click; clicked = label = 1, converted = never (the log has no conversions)"
    )


@pytest.mark.realdata
def test_ifdb_needs_no_adapter(real_data: Path):
    sections = tomllib.loads((EXAMPLES / "ifdb.toml").read_text())
    options = sections["sources"]["columns"]
    tables, (undated,) = read(real_data / "ifdb", **options), left_out(real_data / "ifdb", **options)
    impressions, items = tables[Impressions], tables[Items]
    assert (len(impressions), undated.num_rows, len(items)) == (33_976, 53_842 - 33_976, 6_103)
    assert impressions.get_column("event_timestamp").min().year == 2007  # the dummies of 1980 are gone
    assert impressions.get_column("clicked").mean() == pytest.approx(0.4766, abs=1e-3)
    square_circle = items.row(by_predicate=pl.col("title") == "Square Circle", named=True)
    assert square_circle["description"].startswith("What is your crime?")


# --- pictures ------------------------------------------------------------------------------------------------

PHOTOS = {"files": "items.csv", "select": {"item_id": "sku", "image": "photo"}}


def test_a_picture_is_looked_for_beside_the_file_that_names_it(folder: Path):
    for shop in ("north", "south"):
        (folder / shop).mkdir()
        (folder / shop / "7").write_bytes(shop.encode())
        (folder / shop / "items.csv").write_text(f"sku,photo\n{shop},7\n")
    pictures = read(folder, item_images={**PHOTOS, "files": "*/items.csv"})[ItemImages]
    assert dict(pictures.select("item_id", "image").iter_rows()) == {"north": b"north", "south": b"south"}


def test_rows_that_a_condition_leaves_out_are_counted_and_their_pictures_not_read(folder: Path):
    (folder / "items.csv").write_text("sku,photo\na,a.jpg\nb,b.jpg\n")
    (folder / "a.jpg").write_bytes(b"a")
    options = {"item_images": {**PHOTOS, "where": "sku = 'a'"}}
    assert read(folder, **options)[ItemImages].get_column("item_id").to_list() == ["a"]
    assert left_out(folder, **options) == [LeftOut("[sources.columns.item_images] where: not (sku = 'a')", 1)]
    assert [
        file.name for file in columns.raw_files(folder, Config.model_validate({"impressions": IMPRESSIONS, **options}))
    ] == ["items.csv", "log.parquet", "a.jpg"]


def test_a_picture_is_bytes_or_a_path_and_nothing_else(folder: Path):
    pl.DataFrame({"sku": ["a"], "photo": [1.5]}).write_parquet(folder / "items.parquet")
    with pytest.raises(ValueError, match=r"item_images\] select\.image = 'photo' is Float64, expected the bytes"):
        read(folder, item_images={**PHOTOS, "files": "items.parquet"})
    with pytest.raises(ValueError, match=r"item_images\] select: image missing"):
        read(folder, item_images={**PHOTOS, "select": {"item_id": "sku"}})
