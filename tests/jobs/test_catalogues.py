import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from feature_repo.table_schemas import EARLIEST, Items, Users
from jobs import catalogues
from jobs.catalogues import Catalogue, FirstSeen, dated, empty_folder, with_created_timestamp

NOON = dt.datetime(2024, 7, 1, 12, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)


def items(**titles: str) -> pl.DataFrame:
    frame = pl.DataFrame({"item_id": list(titles), "title": list(titles.values())})
    empty = [pl.lit(None, dtype).alias(name) for name, dtype in Items.create_empty().schema.items()]
    missing = [column for column in empty if column.meta.output_name() not in frame.columns]
    return frame.with_columns(missing).with_columns(event_timestamp=pl.lit(NOON, pl.Datetime("us", "UTC")))


def impressions(*rows: tuple[str | None, dt.datetime]) -> pl.DataFrame:
    schema = {"item_id": pl.String, "event_timestamp": pl.Datetime("us", "UTC")}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_a_catalogue_keeps_the_first_row_of_an_id_across_frames(tmp_path: Path):
    catalogue = Catalogue(Items, tmp_path)
    catalogue.add(items(a="first", b="b"))
    catalogue.add(pl.concat([items(c="c"), items(c="again", a="later")]))
    rows = pl.concat(catalogue.frames()).select("item_id", "title").rows()
    assert rows == [("a", "first"), ("b", "b"), ("c", "c")]
    assert catalogue.num_repeated == 2
    assert catalogue.ids.get_column("item_id").to_list() == ["a", "b", "c"]


def test_rows_without_an_id_are_left_to_the_lake_to_refuse(tmp_path: Path):
    catalogue = Catalogue(Users, tmp_path)
    catalogue.add(pl.DataFrame({"user_id": [None, None, "u"]}))
    assert pl.concat(catalogue.frames()).get_column("user_id").to_list() == [None, None, "u"]


def test_first_seen_passes_over_times_out_of_range_and_rows_without_an_id():
    seen = FirstSeen("item_id", now=NOON)
    seen.add(impressions(("a", NOON - DAY), ("a", NOON), ("a", EARLIEST - DAY), ("b", NOON + DAY), (None, NOON)))
    assert seen.merged().rows() == [("a", NOON - DAY, 2)]


def test_first_seen_adds_up_over_frames_whether_merged_early_or_late(monkeypatch: pytest.MonkeyPatch):
    def counted() -> list[tuple[object, ...]]:
        seen = FirstSeen("item_id", now=NOON)
        for day in (2, 3, 1):
            seen.add(impressions(("a", NOON - day * DAY), (f"i{day}", NOON - DAY)))
        return seen.merged().sort("item_id").rows()

    late = counted()
    monkeypatch.setattr(catalogues, "GROUPS_BEFORE_MERGING", 1)
    assert counted() == late
    assert late[0] == ("a", NOON - 3 * DAY, 3)


def test_an_item_is_dated_by_its_source_its_first_impression_or_the_start_of_the_log():
    frame = pl.DataFrame(
        {
            "item_id": ["earlier", "later", "undated", "never shown"],
            "event_timestamp": [NOON - 9 * DAY, NOON + DAY, None, None],
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )
    seen = pl.DataFrame({"item_id": ["earlier", "later", "undated"], "first_seen": [NOON] * 3})
    midnight = NOON.replace(hour=0)
    times = dated(frame, seen, EARLIEST, truncate_to="1d").get_column("event_timestamp").to_list()
    assert times == [NOON - 9 * DAY, midnight, midnight, EARLIEST]
    without = dated(frame.select("item_id"), seen, EARLIEST, truncate_to="1us").get_column("event_timestamp").to_list()
    assert without == [NOON, NOON, NOON, EARLIEST]


def test_a_first_row_is_as_old_as_its_event_and_a_revised_one_as_this_run():
    before = items(same="x", edited="x").with_columns(created_timestamp=pl.lit(NOON - DAY, pl.Datetime("us", "UTC")))
    written = with_created_timestamp(items(same="x", edited="y", new="z"), before, NOON + DAY)
    created = dict(written.select("item_id", "created_timestamp").iter_rows())
    assert created == {"same": NOON - DAY, "edited": NOON + DAY, "new": NOON}
    assert written.get_column("event_timestamp").to_list() == [NOON] * 3


def test_a_text_that_moves_to_another_column_is_a_revision():
    before = items(a="x").with_columns(created_timestamp=pl.lit(NOON, pl.Datetime("us", "UTC")))
    moved = items(a="x").with_columns(brand=pl.col("title"), title=pl.lit(None, pl.String))
    assert with_created_timestamp(moved, before, NOON + DAY).get_column("created_timestamp").to_list() == [NOON + DAY]


def test_an_empty_folder_is_swept_before_and_gone_after(tmp_path: Path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "left by a killed job").touch()
    with empty_folder(tmp_path / "spool") as folder:
        assert list(folder.iterdir()) == []
    assert not (tmp_path / "spool").exists()
