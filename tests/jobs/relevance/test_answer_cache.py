"""Answers outlive the process that got them, whoever else writes, and come back as they were."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import LABELS, MATCHES, QueryItem, Reasoning
from jobs.relevance.answer_cache import FILE, AnswerCache, address_of

ROOT = Path(__file__).resolve().parents[3]
REASONING = Reasoning.of_values(["chair", "", "x-1", "red, ½ in"] * 2 + ["match", "na", "na", "mismatch", "good"])
ANSWER = TeacherAnswer(0.25, (0.75, 0.25), "good", REASONING, 0.6, 5, 4, 7, 1234, ("cut", "no «label»"))
RULES = TeacherAnswer(None, None, "bad", REASONING, 1.0, 1, 1, 1, 0)
FAILED = TeacherAnswer(None, None, None, None, None, 3, 0, 9, 99, ("no",) * 9)

WRITER = """
import sys
from pathlib import Path
from jobs.relevance.answer_cache import AnswerCache
from tests_answer import ANSWER
cache = AnswerCache.open(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]}{number}", ANSWER)
    print(number, flush=True)
"""
TESTS_ANSWER = """
from embedders.label_tokens import TeacherAnswer
ANSWER = TeacherAnswer(0.25, (0.75, 0.25), "good", None, 0.6, 5, 4, 7, 1234, ())
"""


def writer(folder: Path, name: str, answers: int) -> "subprocess.Popen[str]":
    (folder.parent / "tests_answer.py").write_text(TESTS_ANSWER)
    paths = {"PYTHONPATH": f"{ROOT}:{folder.parent}"}
    command = [sys.executable, "-c", WRITER, str(folder), name, str(answers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **paths})


def test_what_is_kept_comes_back_as_it_was_also_to_the_next_process(tmp_path: Path):
    with AnswerCache.open(tmp_path / "cache") as cache:
        for address, answer in (("a", ANSWER), ("r", RULES), ("f", FAILED)):
            cache.put(address, answer)
        assert cache.get(["a", "f", "nothing", "a"]) == {"a": ANSWER, "f": FAILED}
    with AnswerCache.open(tmp_path / "cache") as cache:
        assert cache.get(["r", "a"]) == {"r": RULES, "a": ANSWER}
        cache.put("a", RULES)
        assert cache.get(["a"]) == {"a": RULES}
        assert len(cache) == 3


@given(
    good=st.floats(0, 1),
    values=st.lists(
        st.text(st.characters(exclude_characters='"\\', exclude_categories=("C",)), max_size=20), min_size=8
    ),
    matches=st.lists(st.sampled_from(MATCHES), min_size=4, max_size=4),
    label=st.sampled_from(LABELS),
    problems=st.lists(st.text(st.characters(exclude_categories=("Cs",)))),
)
def test_every_answer_survives_being_written_down(
    tmp_path_factory: pytest.TempPathFactory,
    good: float,
    values: list[str],
    matches: list[str],
    label: str,
    problems: list[str],
):
    reasoning = Reasoning.of_values([*values[:8], *matches, label])
    answer = TeacherAnswer(
        good, (1 - good, good), reasoning.label, reasoning, math.nextafter(good, 1), 1, 1, 1, 7, tuple(problems)
    )
    with AnswerCache.open(tmp_path_factory.getbasetemp() / "written") as cache:
        cache.put("it", answer)
        assert cache.get(["it"]) == {"it": answer}


def test_a_killed_process_loses_nothing_that_it_had_kept(tmp_path: Path):
    process = writer(tmp_path / "cache", "k", 10**9)
    assert process.stdout is not None
    last = 0
    while last < 50:
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told = process.communicate(timeout=20)[0]
    last = max([last, *(int(line) for line in told.splitlines()[:-1])])
    assert process.returncode == -signal.SIGKILL
    with AnswerCache.open(tmp_path / "cache") as cache:
        assert len(cache.get([f"k{number}" for number in range(last + 1)])) == last + 1
        cache.put("next", ANSWER)


def test_several_processes_write_at_once(tmp_path: Path):
    writers = [writer(tmp_path / "cache", name, 150) for name in "abc"]
    with AnswerCache.open(tmp_path / "cache") as cache:
        for number in range(50):
            cache.put(f"here{number}", RULES)
        for process in writers:
            process.communicate(timeout=60)
            assert process.returncode == 0
        assert len(cache) == 3 * 150 + 50
        assert len(cache.get(f"{name}{number}" for name in "abc" for number in range(150))) == 450


@pytest.mark.parametrize("row", ["", "{", "[]", '{"v":2}', '{"v":1,"score":0.5}', "null"])
def test_a_row_that_cannot_be_read_counts_as_not_there_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: str
):
    with AnswerCache.open(tmp_path) as cache:
        cache.put("good", ANSWER)
        cache.put("spoilt", ANSWER)
        with sqlite3.connect(tmp_path / FILE) as database:
            database.execute("UPDATE answers SET answer = ? WHERE address = 'spoilt'", (row,))
        assert cache.get(["good", "spoilt"]) == {"good": ANSWER}
        assert "1 of 2 answers cannot be read and count as not asked (spoilt" in caplog.text
        cache.put("spoilt", RULES)
        assert cache.get(["spoilt"]) == {"spoilt": RULES}
    database.close()


def test_a_chain_of_another_form_counts_as_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with AnswerCache.open(tmp_path) as cache:
        cache.put("it", ANSWER)
        with sqlite3.connect(tmp_path / FILE) as database:
            database.execute("UPDATE answers SET answer = replace(answer, '\\\"brand\\\"', '\\\"maker\\\"')")
        database.close()
        assert cache.get(["it"]) == {}
        assert "expected the keys" in caplog.text


def test_a_file_that_is_no_cache_is_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / FILE).write_bytes(b"not a database " * 1000)
    with pytest.raises(ValueError, match=r"answers\.sqlite: .*not a database.*move the file away"):
        AnswerCache.open(tmp_path)


def test_a_file_of_another_version_or_kind_is_refused(tmp_path: Path):
    for version, table in ((2, "answers"), (1, "songs"), (0, "songs")):
        file = tmp_path / f"{version}-{table}.sqlite"
        database = sqlite3.connect(file)
        database.execute(f"CREATE TABLE {table} (address TEXT)")
        database.execute(f"PRAGMA user_version = {version}")
        database.close()
        with pytest.raises(ValueError, match=f"got version {version} with the tables {table}.*move the file away"):
            AnswerCache(file)


def test_a_damaged_file_is_told_when_it_is_read(tmp_path: Path):
    with AnswerCache.open(tmp_path) as cache:
        for number in range(200):
            cache.put(f"{number}", ANSWER)
    bytes_ = bytearray((tmp_path / FILE).read_bytes())
    bytes_[4096:] = b"\x5a" * (len(bytes_) - 4096)
    (tmp_path / FILE).write_bytes(bytes_)
    with (
        pytest.raises(ValueError, match=r"answer cache .*malformed.*\.recover.*move the file away"),
        AnswerCache.open(tmp_path) as cache,
    ):
        cache.get([f"{number}" for number in range(200)])


PAIR = QueryItem("red chair", "Acme chair", None, "Acme", "red")
TEACHER = {"kind": "endpoint", "model": "m", "seed": "0"}


def test_all_that_decides_an_answer_is_in_its_address_and_nothing_else():
    others = [
        address_of(PAIR._replace(query="red chairs"), TEACHER),
        address_of(PAIR._replace(category="Acme", brand=None), TEACHER),
        address_of(PAIR._replace(category=""), TEACHER),
        address_of(PAIR, {**TEACHER, "seed": "1"}),
        address_of(PAIR, {**TEACHER, "more": ""}),
        address_of(PAIR, {}),
    ]
    assert len({address_of(PAIR, TEACHER), *others}) == 7
    assert address_of(PAIR, dict(reversed(TEACHER.items()))) == address_of(PAIR, TEACHER)
    assert len(address_of(PAIR, TEACHER)) == 64
