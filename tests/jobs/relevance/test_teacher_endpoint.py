"""Against a real server over HTTP, with the real client: what goes out, what is made of what comes back, trouble."""

import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedders.label_tokens import ATTEMPTS, TeacherAnswer
from embedders.relevance_prompts import QueryItem, prompt
from jobs.relevance import request_pace
from jobs.relevance.answer_cache import AnswerCache
from jobs.relevance.disclosed_text import Disclosure
from jobs.relevance.teacher_endpoint import REFUSED_IN_A_ROW, EndpointTeacher
from jobs.relevance.teachers import ask
from jobs.relevance.token_budget import TokenBudget

ROOT = Path(__file__).resolve().parents[3]
PAIRS = [
    QueryItem("red chair", "Acme Red Chair"),
    QueryItem("blue chair", "Acme Blue Table"),
    QueryItem("green chair", "Acme Green Chair"),
    QueryItem("black chair", "Acme Black Sofa"),
    QueryItem("white chair", "Acme White Chair"),
    QueryItem("gray chair", "Acme Gray Chair"),
]
KEY = "sk-planted-0123456789"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerCache]:
    with AnswerCache.open(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def teacher(completion_server: Any) -> Callable[..., EndpointTeacher]:
    def make(**more: Any) -> EndpointTeacher:
        settings = {
            "url": completion_server.url,
            "model": "judge",
            "num_chains": 2,
            "retries": 1,
            "timeout_seconds": 10,
        }
        return EndpointTeacher(**{**settings, **more})

    return make


def garbage(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The same answer with a word before it: readable for people, not for us."""
    choice = answer["choices"][0]
    choice["message"]["content"] = "Sure: " + choice["message"]["content"]
    choice["logprobs"]["content"].insert(0, {"token": "Sure: ", "logprob": 0.0, "bytes": None, "top_logprobs": []})
    return answer


def test_each_chain_is_a_draw_of_its_own_and_the_score_is_their_mean(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    progress: list[int] = []
    answers = ask(teacher(num_chains=3), PAIRS, cache, TokenBudget(), progress.append)
    assert sum(progress) == len(PAIRS)
    for pair, answer in zip(PAIRS, answers, strict=True):
        sent = [one for one in completion_server.requests if one["messages"][0]["content"] == prompt(pair)]
        seeds = [one["seed"] for one in sent]
        assert len(set(seeds)) == 3
        assert answer is not None
        chances = [completion_server.chance(pair, seed) for seed in seeds]
        assert answer.score == pytest.approx(np.mean(chances))
        assert answer.label == ("good" if np.mean(chances) > 0.5 else "bad")
        assert answer.reasoning is not None
        assert (answer.num_chains, answer.num_parsed, answer.num_attempts) == (3, 3, 3)
        for one in sent:
            assert {name: one[name] for name in ("model", "temperature", "logprobs", "top_logprobs", "max_tokens")} == {
                "model": "judge",
                "temperature": 0.7,
                "logprobs": True,
                "top_logprobs": 20,
                "max_tokens": 400,
            }
    assert sum(answer.num_tokens for answer in answers if answer) == completion_server.tokens
    assert {answer.label for answer in answers if answer} == {"good", "bad"}


def test_the_same_is_drawn_again_whatever_stands_beside_it(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], tmp_path: Path
):
    alone = ask(teacher(), PAIRS[2:3], AnswerCache.open(tmp_path / "1"), TokenBudget())
    among = ask(teacher(), PAIRS, AnswerCache.open(tmp_path / "2"), TokenBudget())
    other = ask(teacher(seed=1), PAIRS[2:3], AnswerCache.open(tmp_path / "3"), TokenBudget())
    assert alone[0] == among[2]
    assert other[0] != alone[0]


def test_only_the_label_is_asked_for_where_that_is_wanted(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    answer = ask(teacher(decoding="label_only"), PAIRS[:1], cache, TokenBudget())[0]
    assert answer is not None
    assert (answer.label, answer.reasoning, answer.num_chains) == ("good", None, 1)
    assert len(completion_server.requests) == 1


def test_nothing_leaves_but_what_is_disclosed(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-somebody")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer key-of-a-gateway\nX-Team: team-of-somebody")
    pair = QueryItem(
        "chair for anna.smith@example.com call 555-123-4567",
        "Acme Chair 4111 1111 1111 1111",
        "chairs https://intranet.example.com/x",
        "Secret Supplier",
        "margin: 80 %",
    )
    allowed = Disclosure(fields=("query", "title", "category"))
    one = teacher(disclosure=allowed)
    ask(one, [pair], cache, TokenBudget())
    one.answers([pair], on_answer=lambda number, answer: None, budget=TokenBudget())  # whoever forgets to ask by `ask`
    sent = b"\n".join(completion_server.received)
    assert len(completion_server.received) == 4
    for planted in ("anna", "example.com", "555", "4567", "4111", "intranet", "Secret", "Supplier", "margin", "-of-"):
        assert planted.encode() not in sent
    assert b"chair for [e-mail] call [phone]" in sent
    assert set(completion_server.requests[0]) == {
        *("model", "messages", "max_tokens", "temperature", "seed", "logprobs", "top_logprobs"),
    }
    assert b"margin" not in (cache.file.parent / "answers.sqlite-wal").read_bytes()


def test_what_was_answered_is_not_asked_again_also_where_the_url_is_another(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    first = ask(teacher(), PAIRS, cache, TokenBudget())
    asked, budget = len(completion_server.requests), TokenBudget(0)
    assert ask(teacher(), PAIRS, cache, budget) == first
    assert ask(teacher(url="http://elsewhere.invalid/v1", api_key_variable="NOT_SET"), PAIRS, cache, budget) == first
    assert len(completion_server.requests) == asked
    assert budget.used == 0
    edited = [PAIRS[0]._replace(title="Acme Red Chair, new"), *PAIRS[1:], PAIRS[3]]
    ask(teacher(), edited, cache, TokenBudget())
    assert len(completion_server.requests) == asked + 2


@pytest.mark.parametrize("most", [0, 1500, 4000, 9000])
def test_the_server_never_counts_more_tokens_than_the_budget(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache, most: int
):
    completion_server.change = lambda request, answer: garbage(request, answer) if request["seed"] % 3 else answer
    budget = TokenBudget(most)
    answers = ask(teacher(max_answer_tokens=200), PAIRS, cache, budget)
    assert completion_server.tokens == budget.used <= most
    assert budget.reserved == 0
    left = answers.count(None)
    assert left == len(PAIRS) if most < 2000 else 0 < left < len(PAIRS)
    asked = len(completion_server.requests)
    again = ask(teacher(max_answer_tokens=200), PAIRS, cache, TokenBudget())
    assert None not in again
    assert [new for new, old in zip(again, answers, strict=True) if old] == [old for old in answers if old]
    assert left * 2 <= len(completion_server.requests) - asked <= left * 2 * ATTEMPTS


def test_a_server_that_counts_no_tokens_is_taken_at_the_most(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    completion_server.change = lambda request, answer: {name: answer[name] for name in answer if name != "usage"}
    budget = TokenBudget()
    ask(teacher(), PAIRS[:1], cache, budget)
    assert budget.used == 2 * (len(prompt(PAIRS[0]).encode()) + 128 + 400) > completion_server.tokens


def test_a_template_longer_than_expected_is_learnt_from_the_first_answer(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    def wordy(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        answer["usage"]["prompt_tokens"] += 10_000
        return answer

    completion_server.change = wordy
    budget = TokenBudget(25_000)
    answers = ask(teacher(), PAIRS, cache, budget)
    assert [answer is None for answer in answers] == [False, True, True, True, True, True]
    assert budget.used <= 25_000


def test_an_answer_that_cannot_be_read_is_drawn_again_then_given_up_and_kept(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    broken: list[int] = []

    def first_two_of_a_pair(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        broken.append(request["seed"])
        return garbage(request, answer) if len(broken) <= 2 else answer

    completion_server.change = first_two_of_a_pair
    answer = ask(teacher(), PAIRS[:1], cache, TokenBudget())[0]
    assert answer is not None
    assert (answer.num_chains, answer.num_parsed, answer.num_attempts) == (2, 2, 4)
    assert len(set(broken)) == 4
    assert all("parse" in problem for problem in answer.problems)

    completion_server.change = garbage
    failed = ask(teacher(), PAIRS[1:2], cache, TokenBudget())[0]
    assert failed is not None
    assert failed.failed
    assert failed.score is None
    assert (failed.num_parsed, failed.num_attempts, len(failed.problems)) == (0, 2 * ATTEMPTS, 2 * ATTEMPTS)
    asked = len(completion_server.requests)
    assert ask(teacher(), PAIRS[1:2], cache, TokenBudget()) == [failed]
    # the most probable answer is the same every time
    ask(teacher(temperature=0, num_chains=1), PAIRS[2:3], cache, TokenBudget())
    assert len(completion_server.requests) == asked + 1


def test_a_cut_answer_is_not_read(completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache):
    answer = ask(teacher(max_answer_tokens=30), PAIRS[:1], cache, TokenBudget())[0]
    assert answer is not None
    assert answer.failed
    assert all("cut at the most tokens allowed" in problem for problem in answer.problems)


def without(*names: str) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    def change(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        choice = answer["choices"][0]
        if "logprobs" in names:
            choice["logprobs"] = None
        else:
            for token in choice["logprobs"]["content"]:
                token["top_logprobs"] = []
        return answer

    return change


@pytest.mark.parametrize("missing", ["logprobs", "top_logprobs"])
def test_a_server_without_log_probabilities_costs_one_request_and_says_what_to_switch_on(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache, missing: str
):
    completion_server.change = without(missing)
    with pytest.raises(ValueError, match=f"{completion_server.url}, model judge: .*`top_logprobs`.*vLLM") as raised:
        ask(teacher(), PAIRS, cache, TokenBudget())
    assert "local teacher" in str(raised.value)
    assert len(completion_server.requests) == 1


def test_a_server_that_allows_fewer_alternatives_is_told_apart_from_one_that_refuses_a_pair(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    completion_server.fail(9, 400, {"error": {"message": "top_logprobs must be at most 5"}})
    with pytest.raises(ValueError, match="lower top_logprobs to what it allows.*must be at most 5"):
        ask(teacher(), PAIRS, cache, TokenBudget())
    assert len(completion_server.requests) == 1


@pytest.mark.parametrize(("status", "header"), [(429, {"Retry_After_Ms": "30"}), (500, {"Retry_After_Ms": "30"})])
def test_what_passes_is_tried_again(
    completion_server: Any,
    teacher: Callable[..., EndpointTeacher],
    cache: AnswerCache,
    status: int,
    header: dict[str, str],
):
    completion_server.fail(3, status, **header)
    answers = ask(teacher(retries=3, max_concurrent=1), PAIRS[:2], cache, TokenBudget())
    assert None not in answers
    assert len(completion_server.requests) == 2 * 2 + 3
    first = completion_server.arrivals[:4]
    assert min(later - earlier for earlier, later in itertools.pairwise(first)) >= 0.03


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "too many requests.*asks to wait 0.01 s.*requests_per_minute.*run again to go on"),
        (503, "the server failed, also after pauses.*run again to go on"),
    ],
)
def test_what_does_not_pass_ends_the_work_and_the_next_run_goes_on(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache, status: int, words: str
):
    def once_two_pairs_are_judged(server: Any, request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        return status, {"retry-after": "0.01"}, {"error": {"message": "overloaded"}}

    budget = TokenBudget()
    ask(teacher(max_concurrent=1), PAIRS[:2], cache, budget)
    completion_server.faults = [once_two_pairs_are_judged] * 2
    with pytest.raises(ConnectionError, match=f"endpoint {completion_server.url}, model judge: {words}.*overloaded"):
        ask(teacher(max_concurrent=1), PAIRS, cache, budget)
    assert budget.used == completion_server.tokens
    assert budget.reserved == 0
    asked = len(completion_server.requests)
    assert None not in ask(teacher(), PAIRS, cache, budget)
    assert len(completion_server.requests) == asked + 4 * 2


def test_pairs_under_way_when_trouble_comes_are_not_lost(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    kept: dict[int, TeacherAnswer] = {}
    completion_server.seconds = 0.05
    completion_server.change = lambda request, answer: b"<html>" if "gray" in str(request) else answer
    with pytest.raises(ValueError, match="expected a chat completion, got '<html>'"):
        teacher(num_chains=1).answers(PAIRS, on_answer=kept.__setitem__, budget=TokenBudget())
    assert set(kept) == {0, 1, 2, 3, 4}


def test_a_wrong_key_costs_one_request_and_no_key_is_ever_told(
    completion_server: Any,
    teacher: Callable[..., EndpointTeacher],
    cache: AnswerCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG)
    completion_server.key = "the right one"
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    one = teacher(api_key_variable="TEACHER_API_KEY")
    with pytest.raises(
        ValueError, match=r"refuses the key in the environment variable TEACHER_API_KEY.*\[key\]"
    ) as told:
        ask(one, PAIRS, cache, TokenBudget())
    assert KEY.encode() in completion_server.received[0]
    assert len(completion_server.requests) == 1
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__
    for text in (str(told.value), caplog.text, repr(one), json.dumps(one.identity)):
        assert KEY not in text
    completion_server.key = KEY
    assert None not in ask(one, PAIRS, cache, TokenBudget())
    assert KEY not in caplog.text
    assert KEY.encode() not in (cache.file.parent / "answers.sqlite-wal").read_bytes()
    with pytest.raises(ValueError, match=r"refuses the key \(none was sent: set api_key_variable\)"):
        ask(teacher(seed=7), PAIRS, cache, TokenBudget())


def test_a_variable_that_is_not_set_is_named(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    with pytest.raises(ValueError, match="environment variable NO_SUCH_KEY, which should hold the key, is not set"):
        ask(teacher(api_key_variable="NO_SUCH_KEY"), PAIRS, cache, TokenBudget())
    assert not completion_server.requests


@pytest.mark.parametrize("key", ["sk-planted\n0123456789", "sk-planted\u20260123456789"])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(
    completion_server: Any,
    teacher: Callable[..., EndpointTeacher],
    cache: AnswerCache,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
):
    monkeypatch.setenv("TEACHER_API_KEY", key)
    with pytest.raises(ValueError, match="environment variable TEACHER_API_KEY holds cannot be a key") as told:
        ask(teacher(api_key_variable="TEACHER_API_KEY"), PAIRS, cache, TokenBudget())
    assert "planted" not in str(told.value)
    assert not completion_server.requests


def test_settings_that_hold_secrets_are_refused_without_being_shown():
    for name in (KEY, "abcdef0123456789", "", "2X"):
        with pytest.raises(ValueError, match="must be the NAME of an environment variable") as raised:
            EndpointTeacher(url="http://localhost/v1", model="m", api_key_variable=name)
        assert not name or name not in str(raised.value)
    for url in (
        "http://me:planted@localhost/v1",
        "http://localhost/v1?key=planted",
        "localhost:8000",
        "ftp://x/v1",
        "",
    ):
        with pytest.raises(ValueError, match="expected a url such as http://localhost:8000/v1") as raised:
            EndpointTeacher(url=url, model="m")
        assert "planted" not in str(raised.value)


def test_a_server_that_is_not_there_a_wrong_path_and_a_wrong_model_are_told(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        ConnectionError, match=f"endpoint {nowhere}, model judge: the server cannot be reached.*refused"
    ):
        ask(teacher(url=nowhere, retries=0), PAIRS, cache, TokenBudget())
    with pytest.raises(ValueError, match="knows no such path or model.*/v1/models lists the models.*of other here"):
        ask(teacher(model="other"), PAIRS, cache, TokenBudget())
    with pytest.raises(ValueError, match=r"The url mostly ends in /v1"):
        ask(teacher(url=completion_server.url.removesuffix("/v1")), PAIRS, cache, TokenBudget())


def test_a_server_that_is_too_slow_is_told(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    completion_server.seconds = 0.6
    with pytest.raises(
        ConnectionError, match=r"no answer within 0.1 s, .*Raise timeout_seconds, or lower max_concurrent"
    ):
        ask(teacher(timeout_seconds=0.1, retries=0), PAIRS, cache, TokenBudget())


def test_a_pair_that_the_server_refuses_is_a_failed_answer(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    completion_server.fail(1, 400, {"error": {"message": "the context is at most 4096 tokens"}})
    answers = ask(teacher(max_concurrent=1), PAIRS, cache, TokenBudget())
    assert [answer is not None and answer.failed for answer in answers] == [True, *[False] * 5]
    assert answers[0] is not None
    assert "refused by the server" in answers[0].problems[0]
    assert "at most 4096 tokens" in answers[0].problems[0]
    assert ask(teacher(), PAIRS, cache, TokenBudget(0)) == answers


def test_a_server_that_refuses_every_pair_is_trouble_and_nothing_is_kept(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    completion_server.fail(100, 422, {"error": {"message": "temperature is not supported"}})
    with pytest.raises(ValueError, match="the server refuses the request.*temperature is not supported"):
        ask(teacher(), PAIRS, cache, TokenBudget())
    assert len(completion_server.requests) == REFUSED_IN_A_ROW + 1  # once about a plain pair
    with pytest.raises(ValueError, match="the server refuses the request"):
        ask(teacher(), PAIRS[:1], cache, TokenBudget())
    assert len(cache) == 0


@pytest.mark.parametrize("num_pairs", [1, REFUSED_IN_A_ROW, len(PAIRS)])
def test_pairs_that_are_refused_one_after_the_other_do_not_hold_up_the_rest(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache, num_pairs: int
):
    num_refused = min(num_pairs, REFUSED_IN_A_ROW)
    completion_server.fail(num_refused, 400, {"error": {"message": "content filter"}})
    answers = ask(teacher(max_concurrent=1), PAIRS[:num_pairs], cache, TokenBudget())
    refused = [answer is not None and answer.failed for answer in answers]
    assert refused == [number < num_refused for number in range(num_pairs)]
    assert len(cache) == num_pairs


def test_refused_pairs_stay_unanswered_where_the_budget_does_not_reach_for_a_plain_one(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    completion_server.fail(1, 400, {"error": {"message": "content filter"}})
    original = completion_server._reply
    budget = TokenBudget(10_000)

    def reply(*told: Any) -> Any:
        budget.most = 0
        return original(*told)

    completion_server._reply = reply
    assert ask(teacher(), PAIRS[:1], cache, budget) == [None]
    assert len(cache) == 0


def test_pairs_go_side_by_side_once_the_first_is_answered_and_never_more_than_allowed(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    completion_server.seconds = 0.1
    ask(teacher(max_concurrent=3, num_chains=1), PAIRS, cache, TokenBudget())
    assert completion_server.most_at_once == 3
    assert completion_server.arrivals[1] - completion_server.arrivals[0] >= 0.1


def test_requests_are_held_back_to_the_rate(
    completion_server: Any,
    teacher: Callable[..., EndpointTeacher],
    cache: AnswerCache,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(request_pace, "WINDOW_SECONDS", 0.4)  # a short minute
    started = time.monotonic()
    ask(teacher(num_chains=1, requests_per_minute=2), PAIRS, cache, TokenBudget())
    assert time.monotonic() - started >= 2 * 0.4
    started = time.monotonic()
    ask(teacher(num_chains=1, tokens_per_minute=1500, seed=1), PAIRS[:3], cache, TokenBudget())
    assert time.monotonic() - started >= 0.4


def test_whoever_waits_for_the_next_minute_ends_when_trouble_comes(
    completion_server: Any, teacher: Callable[..., EndpointTeacher], cache: AnswerCache
):
    started = time.monotonic()
    completion_server.faults = [*[lambda server, request: (200, {}, server.answer(request))] * 1]
    completion_server.fail(1, 403)
    with pytest.raises(ValueError, match="refuses the key"):
        ask(teacher(num_chains=1, requests_per_minute=2), PAIRS, cache, TokenBudget())
    assert time.monotonic() - started < 30
    assert len(cache) == 1


def test_without_the_package_the_extra_is_named(
    teacher: Callable[..., EndpointTeacher], cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"Install the extra: pip install 'tailrank\[endpoint\]'"):
        ask(teacher(), PAIRS, cache, TokenBudget())


ASKER = """
import sys
from pathlib import Path
from embedders.relevance_prompts import QueryItem
from jobs.relevance.answer_cache import AnswerCache
from jobs.relevance.teachers import ask
from jobs.relevance.teacher_endpoint import EndpointTeacher
from jobs.relevance.token_budget import TokenBudget
teacher = EndpointTeacher(url=sys.argv[1], model="judge", num_chains=2, max_concurrent=2)
pairs = [QueryItem("red chair", f"Acme Red Chair {number}") for number in range(30)]
answers = ask(teacher, pairs, AnswerCache.open(Path(sys.argv[2])), TokenBudget())
assert None not in answers
"""


def test_a_killed_run_goes_on_with_what_is_left(completion_server: Any, tmp_path: Path):
    command = [sys.executable, "-c", ASKER, completion_server.url, str(tmp_path / "cache")]
    completion_server.seconds = 0.03
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while len(completion_server.requests) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)  # what it had sent arrives
    with AnswerCache.open(tmp_path / "cache") as cache:
        num_kept = len(cache)
    asked = len(completion_server.requests)
    # two pairs were under way, and one may have been answered but not written
    assert asked - 2 * num_kept <= 2 * 3
    assert num_kept >= 7
    completion_server.seconds = 0.0
    pairs = [QueryItem("red chair", f"Acme Red Chair {number}") for number in range(30)]
    one = EndpointTeacher(url=completion_server.url, model="judge", num_chains=2)
    with AnswerCache.open(tmp_path / "cache") as cache:
        assert None not in ask(one, pairs, cache, TokenBudget())
        assert len(completion_server.requests) == asked + 2 * (30 - num_kept)
        assert None not in ask(one, pairs, cache, TokenBudget(0))
