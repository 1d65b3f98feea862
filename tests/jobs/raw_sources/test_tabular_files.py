from pathlib import Path

import polars as pl
import pytest

from jobs.raw_sources import tabular_files
from jobs.raw_sources.tabular_files import find_files, folder_of, id_text, read_text, scan_file


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


def test_csv_and_parquet_read_alike(tmp_path: Path, workspace: Path):
    frame = pl.DataFrame({"id": ["1", "2"], "x": [0.5, 1.5]})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "a.parquet")
    for file in ("a.csv", "a.parquet"):
        assert scan_file(tmp_path / file, workspace=workspace, text_columns=["id"]).collect().equals(frame)


def test_a_code_that_starts_with_numbers_stays_text(tmp_path: Path, workspace: Path):
    (tmp_path / "a.csv").write_text("code,n\n00123,1\n79323P,2\n")
    frame = scan_file(tmp_path / "a.csv", workspace=workspace, text_columns=["code"]).collect()
    assert frame.get_column("code").to_list() == ["00123", "79323P"]


def test_ids_of_a_csv_that_pandas_wrote_as_floats_are_whole_again_but_version_numbers_are_not(
    tmp_path: Path, workspace: Path
):
    (tmp_path / "a.csv").write_text("customer,version\n12346.0,1.10\n,1.1\n7.0,2.0\n")
    frame = scan_file(tmp_path / "a.csv", workspace=workspace, text_columns=["customer", "version"])
    ids = frame.select(id_text(pl.col(name), dtype).alias(name) for name, dtype in frame.collect_schema().items())
    assert ids.collect().rows() == [("12346", "1.10"), (None, "1.1"), ("7", "2.0")]


def test_a_byte_that_is_not_utf8_is_named_with_its_offset_and_the_remedy(tmp_path: Path, workspace: Path):
    content = "id,name\n1,tea\n2,café\n".encode("latin-1")
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a\.csv: not utf-8: byte 0xe9 at offset 19 .*encoding = \"latin-1\""
    ) as error:
        scan_file(tmp_path / "a.csv", workspace=workspace)
    assert content[19:20] == b"\xe9", str(error.value)


def test_the_offset_is_right_beyond_the_first_block_and_at_a_split_character(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tabular_files, "BLOCK_BYTES", 4)
    content = b"ab\n\xc3\xa9\n\xc3\xa9x\xff\n"  # the first e-acute lies across two blocks
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"byte 0xff at offset {content.index(0xFF)} "):
        scan_file(tmp_path / "a.csv", workspace=workspace)


def test_a_character_cut_off_at_the_end_of_the_file_is_found(tmp_path: Path, workspace: Path):
    (tmp_path / "a.csv").write_bytes(b"id\n1\n\xc3")
    with pytest.raises(ValueError, match="byte 0xc3 at offset 5 .*unexpected end of data"):
        scan_file(tmp_path / "a.csv", workspace=workspace)


def test_another_encoding_is_read_when_named(tmp_path: Path, workspace: Path):
    (tmp_path / "a.csv").write_bytes("name\r\ncafé £5\r\n".encode("latin-1"))
    frame = scan_file(tmp_path / "a.csv", workspace=workspace, encoding="latin-1").collect()
    assert frame.get_column("name").to_list() == ["café £5"]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, workspace: Path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,x\n1,2\n")
    assert scan_file(tmp_path / "a.csv", workspace=workspace).collect().columns == ["id", "x"]


def test_an_unknown_encoding_is_named(tmp_path: Path, workspace: Path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="'utf9' is not an encoding"):
        scan_file(tmp_path / "a.csv", workspace=workspace, encoding="utf9")


def test_empty_missing_and_broken_files_are_told_apart(tmp_path: Path, workspace: Path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"empty\.csv: the file is empty"):
        scan_file(tmp_path / "empty.csv", workspace=workspace)
    with pytest.raises(ValueError, match=r"broken\.parquet: not a readable parquet file"):
        scan_file(tmp_path / "broken.parquet", workspace=workspace)
    with pytest.raises(ValueError, match=r"none\.csv: there is no such file.*broken\.parquet, empty\.csv"):
        scan_file(tmp_path / "none.csv", workspace=workspace)


def test_files_are_found_by_name_glob_and_list_in_order(tmp_path: Path):
    for name in ("b-2.csv", "b-1.csv", "a.csv"):
        (tmp_path / name).touch()
    found = find_files(tmp_path, ["b-*.csv", "a.csv"], "files")
    assert [file.name for file in found] == ["b-1.csv", "b-2.csv", "a.csv"]
    assert find_files(tmp_path, str(tmp_path / "a.csv"), "files") == [tmp_path / "a.csv"]


def test_a_pattern_without_a_file_names_the_setting_and_what_is_there(tmp_path: Path):
    (tmp_path / "log.csv").touch()
    with pytest.raises(ValueError, match=r"\[x\] files: no file matches 'lob\.csv' in .*, which holds log\.csv"):
        find_files(tmp_path, "lob.csv", "[x] files")


def test_a_path_that_is_not_set_or_not_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"movielens: ingest\.path is not set"):
        folder_of("movielens", None)
    with pytest.raises(ValueError, match="is not a folder"):
        folder_of("movielens", tmp_path / "none")


def test_ids_are_text_without_the_point_zero_of_pandas():
    frame = pl.DataFrame({"i": [7, None], "f": [12346.0, 0.5], "s": [" a ", "b"]})
    ids = frame.select(id_text(pl.col(name), dtype).alias(name) for name, dtype in frame.schema.items())
    assert ids.to_dict(as_series=False) == {"i": ["7", None], "f": ["12346", "0.5"], "s": ["a", "b"]}


def test_text_that_is_not_utf8_is_read_as_latin_1(tmp_path: Path):
    (tmp_path / "old").write_bytes("Léon".encode("latin-1"))
    (tmp_path / "new").write_bytes("Léon".encode())
    assert read_text(tmp_path / "old") == read_text(tmp_path / "new") == "Léon"
