import logging

import pytest

from jobs import progress


def test_outside_a_terminal_it_says_now_and_then_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    clock = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with (
        caplog.at_level(logging.INFO, logger="jobs.progress"),
        progress.progress_bar("encode", 100, "items") as advance,
    ):
        advance(25)
        advance(25)
        advance(50)
    assert caplog.messages == [
        "encode: 25 of 100 items, 2.5 items/s, 30 s left",
        "encode: 50 of 100 items, 2.5 items/s, 20 s left",
    ]


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress_bar("encode", 10, "items") as advance:
        advance(10)
    assert capsys.readouterr().out == ""
