"""Files beside a report: whole or not there."""

from pathlib import Path

import polars as pl
import pytest

from jobs.report_files import write_json, write_parquet, write_text


def test_a_table_comes_back_as_it_was_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "segment_metrics.parquet"
    for values in ([1.0, None], [2.0, 3.0]):
        table = pl.DataFrame({"value": values, "segment": ["a", "b"]})
        write_parquet(path, table)
        assert pl.read_parquet(path).equals(table)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"auc": 0.5})
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"auc": float("nan")})
    assert path.read_text() == before
    write_text(path, "other")
    assert path.read_text() == "other"
