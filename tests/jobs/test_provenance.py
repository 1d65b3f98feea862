"""What a report says of where it comes from."""

import json

import pytest

from jobs.provenance import command, without_passwords


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:secret@host:5432/mlflow", "postgresql://host:5432/mlflow"),
        ("http://token@host/path", "http://host/path"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://host/mail@home", "http://host/mail@home"),
        ("me@home and nothing else", "me@home and nothing else"),
        ("a redis://:pw@one/0 and a redis://:pw@two/0", "a redis://one/0 and a redis://two/0"),
        ("http://host/a.html mail me@home", "http://host/a.html mail me@home"),
    ],
)
def test_who_logs_in_is_left_out_and_nothing_else(text: str, expected: str) -> None:
    assert without_passwords(text) == expected


def test_a_configuration_stays_json_without_its_passwords() -> None:
    settings = {"a": "mysql://me:s%40cret@host/x", "b": "http://host", "c": "you@there"}
    assert json.loads(without_passwords(json.dumps(settings))) == {**settings, "a": "mysql://host/x"}


def test_the_command_line_is_told_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "evaluate_ranker.mlflow_tracking_uri=postgresql://me:secret@host/x"
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/tailrank", "run", "--set", address])
    assert command() == "tailrank run --set evaluate_ranker.mlflow_tracking_uri=postgresql://host/x"
