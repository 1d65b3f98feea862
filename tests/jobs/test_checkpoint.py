"""A checkpoint gives back what this very run wrote last, whatever happened meanwhile."""

from pathlib import Path

import pytest
import torch

from jobs.checkpoint import Checkpoint

IDENTITY = {"inputs": "abc", "settings": {"epochs": 3, "share": (0.5, None)}}


def test_the_last_state_written_is_read_by_a_run_of_the_same_identity(tmp_path: Path):
    Checkpoint(tmp_path / "unfinished.pt", IDENTITY).write({"epoch": 1, "weights": {"a": torch.ones(2)}})
    Checkpoint(tmp_path / "unfinished.pt", IDENTITY).write({"epoch": 2, "weights": {"a": torch.zeros(2)}})
    state = Checkpoint(tmp_path / "unfinished.pt", IDENTITY).read()
    assert state is not None
    assert (state["epoch"], state["weights"]["a"].tolist()) == (2, [0.0, 0.0])
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.pt"]


def test_another_run_finds_nothing_and_replaces_it(tmp_path: Path):
    ours, other = Checkpoint(tmp_path / "unfinished.pt", IDENTITY), Checkpoint(tmp_path / "unfinished.pt", "other")
    assert ours.read() is None
    ours.write({"epoch": 1})
    assert other.read() is None
    other.write({"epoch": 5})
    assert other.read() == {"epoch": 5}
    assert ours.read() is None


def test_a_file_of_an_older_format_is_not_gone_on_from(tmp_path: Path):
    torch.save({"digest": "abc", "state": {}}, tmp_path / "unfinished.pt")
    assert Checkpoint(tmp_path / "unfinished.pt", "abc").read() is None


class PowerCut(BaseException):
    pass


def test_a_kill_while_writing_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = Checkpoint(tmp_path / "unfinished.pt", IDENTITY)
    checkpoint.write({"epoch": 1})

    def half_a_file(value: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise PowerCut

    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr(torch, "save", half_a_file)
        checkpoint.write({"epoch": 2})
    assert checkpoint.read() == {"epoch": 1}
    checkpoint.write({"epoch": 3})
    assert checkpoint.read() == {"epoch": 3}
