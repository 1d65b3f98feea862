import zipfile
from pathlib import Path

import pytest

from embedders.model_files import PACKAGED_MODELS, ModelInParts, find_model_files
from embedders.model_parts import cache_folder, joined


def cut(content: bytes, folder: Path, name: str, num_parts: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(content) // num_parts)
    parts = []
    for number in range(num_parts):
        part = folder / f"{name}{number + 1:02}"
        part.write_bytes(content[number * size : (number + 1) * size])
        parts.append(part)
    return parts


def zipped_model(file: Path) -> bytes:
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            archive.writestr(f"some-model/{name}", name * 100)
    return file.read_bytes()


def test_a_file_is_the_bytes_of_its_parts_in_order(tmp_path: Path):
    parts = cut(bytes(range(256)) * 5, tmp_path / "packages", "model.gguf.part", 3)
    folder = joined(parts, "model-1.0", tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["model.gguf"]
    assert (folder / "model.gguf").read_bytes() == bytes(range(256)) * 5


def test_an_archive_is_unpacked_and_itself_not_kept(tmp_path: Path):
    parts = cut(zipped_model(tmp_path / "whole.zip"), tmp_path / "packages", "model.zip.", 3)
    folder = joined(parts, "model-1.0", tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["some-model"]
    assert (folder / "some-model" / "config.json").read_text() == "config.json" * 100


def test_the_second_time_nothing_is_read(tmp_path: Path):
    parts = cut(b"weights", tmp_path / "packages", "model.gguf.part", 2)
    first = joined(parts, "model-1.0", tmp_path / "cache")
    for part in parts:
        part.unlink()
    assert joined(parts, "model-1.0", tmp_path / "cache") == first


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path):
    parts = cut(b"weights", tmp_path / "packages", "model.gguf.part", 2)
    parts[1].unlink()
    with pytest.raises(FileNotFoundError):
        joined(parts, "model-1.0", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tailrank"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tailrank"


def install(site: Path, name: str, files: dict[str, bytes]) -> None:
    """A distribution as pip leaves it: its files, and a record of them."""
    information = site / f"{name.replace('-', '_')}-1.2.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    (information / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def test_a_model_in_parts_is_found_by_name_among_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = zipped_model(tmp_path / "whole.zip")
    site, half = tmp_path / "site", len(content) // 2
    install(site, "some-model-part-001", {"part-001/__init__.py": b"", "part-001/input/some.zip.001": content[:half]})
    monkeypatch.setitem(
        PACKAGED_MODELS, "some", ModelInParts(("some-model-part-001", "some-model-part-002"), "*.zip.0*", "some-model")
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(
        ValueError,
        match=r"packages some-model-part-001 some-model-part-002, which are not .*some \(not installed\)",
    ):
        find_model_files("some")

    install(site, "some-model-part-002", {"part-002/input/some.zip.002": content[half:]})
    files = find_model_files("some")
    assert files.model_id == "some"
    assert files.folder == tmp_path / "cache" / "tailrank" / "some-1.2" / "some-model"
    assert set(files.weights) == {"config.json", "model.safetensors"}
    assert sorted(path.name for path in site.rglob("*.zip.*")) == ["some.zip.001", "some.zip.002"]


def test_parts_whose_names_do_not_say_what_they_make_are_joined_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site = tmp_path / "site"
    install(site, "some-part1", {"some_part1/data/part01.bin": b"GGUF and ", "some_part1/data/other.txt": b""})
    install(site, "some-part2", {"some_part2/data/part02.bin": b"the rest"})
    in_parts = ModelInParts(("some-part1", "some-part2"), "data/part*.bin", "some.gguf", are_named=False)
    monkeypatch.setitem(PACKAGED_MODELS, "some", in_parts)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = find_model_files("some")
    assert (files.model_id, files.gguf_file) == ("some", "some.gguf")
    assert files.weights["some.gguf"].read_bytes() == b"GGUF and the rest"
