import datetime as dt
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import Impressions, ItemContentEmbeddings, Queries, TrainingExamples, Users
from jobs.admission import BROKEN_RULES
from jobs.lake import Lake, TableError, table_name

T = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)


def users(*ids: str, at: dt.datetime = T) -> pl.DataFrame:
    return pl.DataFrame({"user_id": list(ids), "event_timestamp": [at] * len(ids)})


def embeddings(vectors: list[list[float]]) -> pl.DataFrame:
    count = len(vectors)
    return pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(count)],
            "event_timestamp": [T] * count,
            "created_timestamp": [T] * count,
            "item_content_vector_id": list(range(count)),
            "item_content_embedding": vectors,
            "item_content_hash": ["h"] * count,
        }
    )


def test_a_table_is_named_in_snake_case():
    assert table_name(ItemContentEmbeddings) == "item_content_embeddings"


def test_what_is_written_is_read_back_with_the_types_of_the_schema(lake: Lake):
    lake.write(Users, users("u1", "u2").with_columns(pl.col("event_timestamp").dt.replace_time_zone(None)))
    read = lake.read(Users)
    assert read.get_column("user_id").to_list() == ["u1", "u2"]
    assert read.schema["event_timestamp"] == pl.Datetime("us", "UTC")


def test_integer_ids_become_strings(lake: Lake):
    lake.write(Users, users("1").with_columns(pl.col("user_id").cast(pl.Int64)))
    assert lake.read(Users).get_column("user_id").to_list() == ["1"]


def test_a_missing_table_names_itself_and_the_remedy(lake: Lake):
    with pytest.raises(TableError, match=r"item_content_embeddings: there is no such table[\s\S]*what to do: run"):
        lake.scan(ItemContentEmbeddings)


def test_a_missing_column_names_the_nearest_one(lake: Lake):
    with pytest.raises(TableError, match="column user_id missing[\\s\\S]*is 'userid' meant to be 'user_id'"):
        lake.write(Users, users("u1").rename({"user_id": "userid"}))


@pytest.mark.parametrize("wrong", [pl.lit("yesterday"), pl.lit(1.5)])
def test_a_column_of_the_wrong_type_is_refused_whole(lake: Lake, wrong: pl.Expr):
    with pytest.raises(TableError, match="users: column event_timestamp is .* expected Datetime"):
        lake.write(Users, users("u1").with_columns(wrong.alias("event_timestamp")))
    assert not lake.exists(Users)


def test_bad_rows_are_quarantined_with_the_rule_they_broke(lake: Lake):
    frame = pl.concat([users("u1", "u2", "u3", ""), users("u4", at=dt.datetime(1980, 1, 1, tzinfo=dt.timezone.utc))])
    lake.write(Users, frame, max_quarantined_share=0.5)
    assert lake.read(Users).get_column("user_id").to_list() == ["u1", "u2", "u3"]
    (quarantine,) = (lake.root / "quarantine").glob("users-*.parquet")
    refused = pl.read_parquet(quarantine)
    assert refused.get_column("user_id").to_list() == ["", "u4"]
    assert refused.get_column(BROKEN_RULES).to_list() == [["user_id|min_length"], ["event_timestamp|min"]]


def test_too_many_bad_rows_leave_the_old_table_and_keep_the_rows_for_a_look(lake: Lake):
    lake.write(Users, users("old"))
    with pytest.raises(TableError) as caught:
        lake.write(Users, users("u1", "", ""), max_quarantined_share=0.5)
    assert caught.value.count == 2
    assert caught.value.total == 3
    assert caught.value.quarantine is not None
    assert len(pl.read_parquet(caught.value.quarantine)) == 2
    assert lake.read(Users).get_column("user_id").to_list() == ["old"]


def test_of_rows_with_one_key_the_first_is_kept(lake: Lake):
    later = dt.timedelta(days=1)
    lake.write(Users, pl.concat([users("u1"), users("u1", at=T + later)]), max_quarantined_share=0.5)
    assert lake.read(Users).rows() == [("u1", T)]


def test_a_key_that_comes_again_in_a_later_shard_is_quarantined(lake: Lake):
    with lake.writer(Users, max_quarantined_share=0.5) as writer:
        writer.write_shard(users("u1", "u2"))
        writer.write_shard(users("u3", "u2"))
        writer.write_shard(users("u1"))
    assert writer.kept == 3
    assert writer.quarantined == 2
    assert lake.read(Users).get_column("user_id").to_list() == ["u1", "u2", "u3"]


def test_a_rule_of_the_caller_holds_beside_those_of_the_schema(lake: Lake, now: dt.datetime):
    rules = {"not_in_future": pl.col("event_timestamp") <= now}
    frame = pl.concat([users("u1"), users("u2", at=now + dt.timedelta(days=1))])
    with pytest.raises(TableError, match="not_in_future: 1"):
        lake.write(Users, frame, rules=rules)


@pytest.mark.parametrize("bad", [[float("nan"), 0.0], [float("inf"), 0.0], [0.5, 0.5]])
def test_a_vector_that_is_not_finite_and_of_unit_norm_is_refused(lake: Lake, bad: list[float]):
    with pytest.raises(TableError, match="finite_and_unit_norm"):
        lake.write(ItemContentEmbeddings, embeddings([[1.0, 0.0], bad]))
    assert not lake.exists(ItemContentEmbeddings)


def test_a_vector_of_another_width_than_the_fingerprint_says_is_refused(lake: Lake):
    with pytest.raises(TableError, match="item_content_embedding is 2 wide: 1"):
        lake.write(ItemContentEmbeddings, embeddings([[1.0, 0.0], [1.0, 0.0, 0.0]]), fingerprint={"dimension": "2"})
    assert not lake.exists(ItemContentEmbeddings)


def test_appending_keeps_the_old_rows_and_the_fingerprint(lake: Lake):
    lake.write(Users, users("u1"), fingerprint={"model_id": "m"}, metadata={"k": 1})
    with lake.writer(Users, append=True) as writer:
        writer.write_shard(users("u2"))
    manifest = lake.manifest(Users)
    assert lake.read(Users).get_column("user_id").to_list() == ["u1", "u2"]
    assert (manifest.version, manifest.rows, manifest.fingerprint, manifest.metadata) == (
        2,
        2,
        {"model_id": "m"},
        {"k": 1},
    )


def test_appending_a_key_that_is_there_leaves_the_old_version_untouched(lake: Lake):
    lake.write(Users, users("u1", "u2"))
    before = lake.manifest(Users)
    with pytest.raises(TableError, match="primary_key"), lake.writer(Users, append=True) as writer:
        writer.write_shard(users("u2"))
    assert lake.manifest(Users) == before
    assert len(lake.read(Users)) == 2


def test_equal_content_has_an_equal_digest(lake: Lake):
    first = lake.write(Users, users("u1"))
    second = lake.write(Users, users("u1"))
    third = lake.write(Users, users("u2"))
    assert first.digest == second.digest != third.digest


def test_a_lazy_frame_is_written_in_shards(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.lake.ROWS_PER_SHARD", 100)
    lake.write(Users, users(*[f"u{i}" for i in range(1000)]).lazy())
    assert len(lake.parquet_files(Users)) > 1
    assert lake.read(Users).get_column("user_id").to_list() == [f"u{i}" for i in range(1000)]


def test_a_half_written_shard_is_found_out(lake: Lake):
    lake.write(Users, users("u1"))
    (shard,) = lake.parquet_files(Users)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(TableError, match="is half-written"):
        lake.read(Users)


def test_an_error_inside_the_block_leaves_the_old_table(lake: Lake):
    lake.write(Users, users("old"))
    with pytest.raises(RuntimeError), lake.writer(Users) as writer:
        writer.write_shard(users("new"))
        raise RuntimeError
    assert lake.read(Users).get_column("user_id").to_list() == ["old"]


def test_a_killed_writer_leaves_the_old_table_and_the_next_one_sweeps_up(lake: Lake):
    lake.write(Users, users("old"))
    script = f"""
        import time, polars as pl, datetime as dt
        from pathlib import Path
        from jobs.lake import Lake
        from feature_repo.table_schemas import Users
        with Lake(Path({str(lake.root)!r})).writer(Users) as writer:
            writer.write_shard(pl.DataFrame({{"user_id": ["new"], "event_timestamp": [dt.datetime(2025, 1, 1)]}}))
            print("written", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    with pytest.raises(TableError, match="another process is writing"), lake.writer(Users):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert lake.read(Users).get_column("user_id").to_list() == ["old"]
    assert list((lake.root / "users" / "versions").glob(".staging-*"))
    lake.write(Users, users("newer"))
    assert lake.read(Users).get_column("user_id").to_list() == ["newer"]
    assert not list((lake.root / "users" / "versions").glob(".staging-*"))


def test_a_reader_of_the_old_version_can_read_on_while_a_new_one_is_committed(lake: Lake):
    lake.write(Users, users("u1"))
    scan = lake.scan(Users)
    lake.write(Users, users("u2"))
    assert scan.collect().get_column("user_id").to_list() == ["u1"]


def test_an_empty_table_can_be_written_and_read(lake: Lake):
    lake.write(Queries, Queries.create_empty())
    assert lake.read(Queries).is_empty()
    assert lake.read(Queries).schema == Queries.create_empty().schema
    # so do Feast's stores, which know of the folder alone
    of_folder = pl.read_parquet(lake.table_path(Queries) / "*.parquet")
    assert of_folder.is_empty()
    assert of_folder.schema == Queries.create_empty().schema


def test_rows_can_be_added_to_an_empty_table(lake: Lake):
    lake.write(Queries, Queries.create_empty())
    with lake.writer(Queries, append=True) as writer:
        writer.write_shard(pl.DataFrame({"query_id": ["q"], "query_text": ["brass lamp"]}))
    assert lake.read(Queries).rows() == [("q", "brass lamp")]
    assert lake.manifest(Queries).rows == 1


def test_an_open_table_keeps_its_feature_columns_in_line_with_its_rows(lake: Lake):
    frame = pl.DataFrame(
        {
            "impression_id": ["a", "b"],
            "user_id": ["u", "u"],
            "item_id": ["i", "j"],
            "event_timestamp": [T, T],
            "split": ["train", "test"],
            "clicked": [True, False],
            "converted": [None, False],
            "is_sampled": [False, False],
            "item_num_clicks_7d": [3, 4],
        }
    )
    lake.write(TrainingExamples, frame)
    assert lake.read(TrainingExamples).select("impression_id", "item_num_clicks_7d").rows() == [("a", 3), ("b", 4)]


def test_a_conversion_without_a_click_or_before_its_impression_is_refused(lake: Lake):
    row = {
        "impression_id": "a",
        "request_id": None,
        "user_id": "u",
        "item_id": "i",
        "query_id": None,
        "position": None,
        "event_timestamp": T,
        "clicked": True,
        "converted": True,
        "conversion_timestamp": T,
        "is_sampled": False,
    }
    bad = [
        row | {"impression_id": "b", "clicked": False},
        row | {"impression_id": "c", "conversion_timestamp": T - dt.timedelta(hours=1)},
        row | {"impression_id": "d", "conversion_timestamp": None},
        row | {"impression_id": "e", "is_sampled": True},
    ]
    frame = pl.DataFrame([row, *bad], schema=Impressions.create_empty().schema)
    lake.write(Impressions, frame, max_quarantined_share=0.9)
    assert lake.read(Impressions).get_column("impression_id").to_list() == ["a"]
    (quarantine,) = (lake.root / "quarantine").glob("impressions-*.parquet")
    broken = dict(pl.read_parquet(quarantine).select("impression_id", BROKEN_RULES).rows())
    assert broken == {
        "b": ["conversion_needs_click"],
        "c": ["conversion_not_before_impression"],
        "d": ["conversion_timestamp_goes_with_converted"],
        "e": ["sampled_rows_are_negatives"],
    }


def test_a_matrix_finds_vectors_by_id_and_says_where_there_is_none(lake: Lake):
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    lake.write_matrix("item_content", np.array([30, 10, 20]), vectors, {"model_id": "m"})
    matrix = lake.open_matrix("item_content")
    rows = matrix.rows_of(np.array([10, 30, 99, -1]))
    assert rows.tolist()[2:] == [-1, -1]
    assert matrix.vectors[rows[:2]].tolist() == [[2.0, 3.0], [0.0, 1.0]]
    assert matrix.fingerprint == {"model_id": "m"}
    with pytest.raises(TableError, match="run `build_training_set`"):
        lake.open_matrix("user_content")


def test_the_lake_can_live_under_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lake = Lake(Path("lake"))
    lake.write(Users, users("u1"))
    assert (tmp_path / "lake" / "users" / "current" / "manifest.json").exists()
    assert time.time() - lake.manifest(Users).created_timestamp.timestamp() < 60
