"""Rows laid out in parts: none is lost, each is where it belongs, users have the numbers they have all at once."""

from pathlib import Path

import numpy as np
import polars as pl

from jobs.row_buckets import FrameBuckets, RecordBuckets
from jobs.staged_predictions import UserNumbers
from ranker.judged_runs import number_users

IDS = pl.Series(["u9", "u10", "ü", "u9", "", "u1", "Z", "u10", "u9"])


def test_users_who_come_in_parts_have_the_numbers_of_all_at_once() -> None:
    users = UserNumbers()
    codes = [users.code(part) for part in (IDS[:3], IDS[3:4], IDS[4:])]
    number, num_rows = users.by_id()
    np.testing.assert_array_equal(number[pl.concat(codes).to_numpy()], number_users(IDS).to_numpy())
    np.testing.assert_array_equal(num_rows, np.bincount(number_users(IDS).to_numpy()))


def test_ids_are_numbered_in_their_order_whatever_their_type() -> None:
    assert number_users(IDS).to_list() == (IDS.rank("dense").cast(pl.Int64) - 1).to_list()
    assert number_users(pl.Series([30, -1, 30, 7])).to_list() == [2, 0, 2, 1]


def test_every_row_is_in_the_bucket_of_its_id_in_the_order_it_came(tmp_path: Path) -> None:
    buckets = FrameBuckets(tmp_path, 4)
    frame = pl.DataFrame({"id": IDS, "row": range(len(IDS))})
    for part in (frame[:5], frame[5:]):
        buckets.append(part, "id")
    read = [buckets.read(bucket) for bucket in range(4)]
    assert pl.concat(read).sort("row").equals(frame)
    for rows in read:
        assert rows["row"].is_sorted()
        assert rows.schema == frame.schema
    assert sum(bool((rows["id"] == "u9").any()) for rows in read) == 1
    buckets.drop(0)
    assert buckets.read(0).is_empty()


def test_records_come_back_bucket_by_bucket(tmp_path: Path) -> None:
    buckets = RecordBuckets(tmp_path / "records", 5, np.dtype([("value", "i8")]))
    value = np.arange(20).astype([("value", "i8")])
    for part in (slice(0, 7), slice(7, 20)):
        buckets.append(value[part], value["value"][part] % 3 + 1)
    assert [rows["value"].tolist() for rows in buckets] == [list(range(start, 20, 3)) for start in range(3)]
