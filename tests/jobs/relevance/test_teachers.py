"""One way to answers, whoever gives them: kept ones first, each kept at once, never beyond the budget."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from embedders import chain_decoding
from embedders.built_chains import built_chain
from embedders.ellm_rele import RelevanceTeacher
from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import PROMPT_VERSION, QueryItem
from embedders.title_facts import TitleReader
from jobs.relevance.answer_cache import AnswerCache, address_of
from jobs.relevance.disclosed_text import Disclosure
from jobs.relevance.local_teacher import LocalTeacher, most_tokens
from jobs.relevance.teacher_endpoint import EndpointTeacher
from jobs.relevance.teachers import OnAnswer, RulesTeacher, TeacherConfig, ask, open_teacher
from jobs.relevance.token_budget import TokenBudget
from jobs.settings import describe_problem

READER = TitleReader(frozenset({"acme", "bolt"}))
PAIRS = [
    QueryItem("red chair", "Acme Red Chair"),
    QueryItem("acme table", "Blue Table with 4 Legs, the very long title of a table", "tables", None, "color: blue"),
    QueryItem("x100 drill", "Bolt X200 Drill", brand="Bolt"),
    QueryItem("½ in. brass hinge", "1/2 in. Brass Hinge (10-Pack)", None, None, 'finish: "satin"'),
]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerCache]:
    with AnswerCache.open(tmp_path / "cache") as opened:
        yield opened


class Counting:
    """Answers with the number of words of the query; remembers what it was asked."""

    def __init__(self, disclosure: Disclosure | None = None, *, stop_after: int = 10**9) -> None:
        self.identity = {"kind": "counting"}
        self.disclosure = disclosure or Disclosure()
        self.asked: list[QueryItem] = []
        self.stop_after = stop_after

    def facts(self, pair: QueryItem) -> tuple[str, ...]:
        return ()

    def answers(self, pairs: Sequence[QueryItem], *, on_answer: OnAnswer, budget: TokenBudget) -> None:
        for number, pair in enumerate(pairs):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            if not budget.reserve(10):
                return
            self.asked.append(pair)
            budget.settle(10, 7)
            score = len(pair.query.split()) / 10
            on_answer(number, TeacherAnswer(score, (1 - score, score), "bad", None, 1.0, 1, 1, 1, 7))


def test_what_is_kept_is_not_asked_and_equal_texts_are_asked_once(cache: AnswerCache):
    teacher, progress = Counting(), list[int]()
    pairs = [PAIRS[0], PAIRS[1], PAIRS[0]._replace(query=" red\n chair "), PAIRS[2], PAIRS[1]]
    answers = ask(teacher, pairs, cache, TokenBudget(), progress.append)
    assert teacher.asked == PAIRS[:3]
    assert [answer and answer.score for answer in answers] == [0.2, 0.2, 0.2, 0.2, 0.2]
    assert sum(progress) == len(pairs)
    progress.clear()
    again = ask(teacher, [PAIRS[3], *pairs], cache, TokenBudget(), progress.append)
    assert teacher.asked == PAIRS
    assert again[1:] == answers
    assert progress == [5, 1]
    assert ask(teacher, [], cache, TokenBudget()) == []


def test_the_first_are_answered_when_the_budget_is_spent_and_the_next_run_goes_on(cache: AnswerCache):
    answers = ask(Counting(), PAIRS, cache, TokenBudget(25))
    assert [answer is None for answer in answers] == [False, False, False, True]
    teacher, budget = Counting(), TokenBudget(25)
    assert None not in ask(teacher, PAIRS, cache, budget)
    assert teacher.asked == PAIRS[3:]
    assert budget.used == 7


def test_each_answer_is_kept_at_once(cache: AnswerCache):
    with pytest.raises(KeyboardInterrupt):
        ask(Counting(stop_after=2), PAIRS, cache, TokenBudget())
    assert len(cache) == 2


def test_a_teacher_reads_what_is_disclosed_and_answers_lie_under_it(cache: AnswerCache):
    teacher = Counting(Disclosure(fields=("query", "title")))
    told = PAIRS[2]._replace(query="x100 drill call 555-123-4567")
    ask(teacher, [told, told._replace(brand="Other")], cache, TokenBudget())
    shown = QueryItem("x100 drill call [phone]", "Bolt X200 Drill")
    assert teacher.asked == [shown]
    assert list(cache.get([address_of(shown, teacher.identity)])) == [address_of(shown, teacher.identity)]


def test_rules_give_a_label_and_a_chain_but_no_score_and_cost_nothing(cache: AnswerCache):
    teacher = open_teacher(TeacherConfig(), reader=READER)
    assert isinstance(teacher, RulesTeacher)
    answers = ask(teacher, PAIRS, cache, TokenBudget(0))
    for pair, answer in zip(PAIRS, answers, strict=True):
        assert answer is not None
        assert answer.reasoning == built_chain(pair, reader=READER)
        assert answer.label == answer.reasoning.label
        assert answer.score is answer.probabilities is None
        assert not answer.failed
    assert teacher.facts(PAIRS[0]) != RulesTeacher(TitleReader()).facts(PAIRS[0])
    assert teacher.identity["prompt"] == PROMPT_VERSION


@pytest.fixture(scope="module")
def model(make_lm: Callable[..., Any]) -> RelevanceTeacher:
    return RelevanceTeacher(make_lm(), READER, rows_at_once=8)


@pytest.fixture
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model never ends what it writes: cut it early."""
    monkeypatch.setattr(chain_decoding, "MAX_FACT_TOKENS", 3)
    monkeypatch.setattr(chain_decoding, "MAX_FREE_TOKENS", 12)


def local(model: RelevanceTeacher, **more: Any) -> LocalTeacher:
    return LocalTeacher(lambda: model, {"weights": "tiny"}, **more)


@pytest.mark.usefixtures("_short_answers")
@pytest.mark.parametrize("decoding", ["constrained", "scored", "label_only", "free"])
def test_an_answer_never_takes_more_tokens_than_reserved(model: RelevanceTeacher, decoding: Any):
    for num_chains in (1, 30) if decoding == "scored" else (2,):
        answers = model.score(PAIRS, decoding=decoding, num_chains=num_chains, temperature=1.3)
        for pair, answer in zip(PAIRS, answers, strict=True):
            assert answer.num_tokens <= most_tokens(model, pair, decoding, num_chains)


@pytest.mark.usefixtures("_short_answers")
@pytest.mark.parametrize("decoding", ["constrained", "scored", "label_only"])
def test_a_local_teacher_stays_within_its_budget_and_goes_on(
    model: RelevanceTeacher, cache: AnswerCache, decoding: Any
):
    teacher = local(model, decoding=decoding, num_chains=2, pairs_at_once=3)
    whole = model.score(PAIRS, decoding=decoding, num_chains=2)
    most = [most_tokens(model, pair, decoding, 2) for pair in PAIRS]
    budget = TokenBudget(whole[0].num_tokens + whole[1].num_tokens + most[2] + most[3] - 1)
    answers = ask(teacher, PAIRS, cache, budget)
    assert budget.used <= (budget.most or 0)
    assert budget.reserved == 0
    assert budget.used == sum(answer.num_tokens for answer in answers if answer)
    assert ask(teacher, PAIRS, cache, TokenBudget(0)) == answers
    assert ask(teacher, PAIRS, cache, TokenBudget(most[0] - 1 if answers[0] is None else 0))[:1] == answers[:1]
    finished = ask(teacher, PAIRS, cache, TokenBudget())
    for one, other in zip(finished, whole, strict=True):
        assert one is not None
        assert (one.label, one.reasoning, one.num_tokens) == (other.label, other.reasoning, other.num_tokens)
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_a_killed_local_run_loses_one_batch(model: RelevanceTeacher, cache: AnswerCache):
    batches: list[int] = []

    class Dies(RelevanceTeacher):
        def score(self, pairs: Sequence[QueryItem], **more: Any) -> list[TeacherAnswer]:
            batches.append(len(pairs))
            if len(batches) == 2:
                raise KeyboardInterrupt
            return super().score(pairs, **more)

    budget = TokenBudget()
    dies = Dies(model.lm, READER)
    with pytest.raises(KeyboardInterrupt):
        ask(local(dies, decoding="label_only", pairs_at_once=2), PAIRS, cache, budget)
    assert len(cache) == 2
    assert budget.reserved == 0
    assert None not in ask(local(dies, decoding="label_only", pairs_at_once=2), PAIRS, cache, budget)
    assert batches == [2, 2, 2]


def test_only_what_matters_to_a_decoding_is_in_its_identity(model: RelevanceTeacher):
    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return local(model, **one).identity == local(model, **other).identity

    assert same({"decoding": "label_only", "num_chains": 1, "seed": 1}, {"decoding": "label_only"})
    assert same({"decoding": "scored", "temperature": 0.1}, {"decoding": "scored"})
    assert not same({"decoding": "scored", "num_chains": 9}, {"decoding": "scored"})
    assert not same({"seed": 1}, {})
    assert same({"seed": 1, "temperature": 0.0}, {"temperature": 0.0})
    assert not same({"temperature": 0.5}, {})
    assert not same({"decoding": "free"}, {})


def test_a_local_model_is_named_by_its_files_and_read_when_first_asked(
    model: RelevanceTeacher, tmp_path: Path, cache: AnswerCache
):
    folder = tmp_path / "judge"
    model.save(folder)
    config = TeacherConfig(kind="local", model=str(folder), decoding="scored", num_chains=3, dtype="float32")
    teacher = open_teacher(config, reader=TitleReader())
    answers = ask(teacher, PAIRS[:2], cache, TokenBudget())
    assert [answer and answer.label for answer in answers] == [
        answer.label for answer in model.score(PAIRS[:2], decoding="scored", num_chains=3)
    ]
    facts = [answer.reasoning.query for answer in answers if answer and answer.reasoning]
    assert facts == [READER.query(pair).facts() for pair in PAIRS[:2]]  # its own reader, not ours

    moved = folder.rename(tmp_path / "moved")
    elsewhere = open_teacher(config.model_copy(update={"model": str(moved)}), reader=READER)
    for name in ("weights", "tokenizer", "brands", "dtype", "num_chains"):
        assert elsewhere.identity[name] == teacher.identity[name]
    (moved / "model.safetensors").rename(moved / "model.safetensors.gone")
    (moved / "model.safetensors").write_bytes(b"no weights")
    other = open_teacher(config.model_copy(update={"model": str(moved)}), reader=READER)
    assert other.identity["weights"] != teacher.identity["weights"]
    with pytest.raises(ValueError, match="there is no model"):
        open_teacher(config, reader=READER)


@pytest.mark.parametrize("kind", ["rules", "local"])
def test_a_new_brand_in_the_catalogue_asks_anew_about_the_pairs_that_name_it_only(
    kind: str, cache: AnswerCache, tmp_path: Path, make_lm: Callable[..., Any]
):
    if kind == "local":  # a model without a reader of its own: rules with the lake's brands read its facts
        lm = make_lm()
        lm.model.save_pretrained(tmp_path / "lm")
        lm.tokenizer.save_pretrained(tmp_path / "lm")
        config = TeacherConfig(kind="local", model=str(tmp_path / "lm"), decoding="scored", num_chains=1)
    else:
        config = TeacherConfig()
    pairs = [PAIRS[0], PAIRS[1], QueryItem("bolt drill", "Bolt X200 Drill")]
    before = open_teacher(config, reader=TitleReader(frozenset({"acme"})))
    ask(before, pairs, cache, TokenBudget())
    assert len(cache) == len(pairs)
    after = open_teacher(config, reader=READER)  # knows bolt, too
    assert after.identity == before.identity
    answers = ask(after, pairs, cache, TokenBudget())
    assert len(cache) == len(pairs) + 1
    chain = answers[2].reasoning if answers[2] else None
    assert chain is not None
    assert (chain.query.brand, chain.item.brand) == ("bolt", "bolt")


def test_settings_open_the_endpoint_they_describe():
    config = TeacherConfig(
        kind="endpoint", url="http://localhost:1/v1", model="m", num_chains=3, retries=2, max_concurrent=5, seed=9
    )
    teacher = open_teacher(config, reader=READER, disclosure=Disclosure(redact=False))
    assert isinstance(teacher, EndpointTeacher)
    for name in ("url", "model", "num_chains", "retries", "max_concurrent", "seed", "temperature", "top_logprobs"):
        assert getattr(teacher, name) == getattr(config, name)
    assert not teacher.disclosure.redact
    assert "localhost" not in str(teacher.identity)
    assert teacher.decoding == "free"


def test_a_key_in_the_wrong_place_is_told_to_nobody():
    config = TeacherConfig(kind="endpoint", url="http://localhost:1/v1", model="m", api_key_variable="sk-planted")
    assert "planted" not in config.model_dump_json()
    with pytest.raises(ValueError, match="must be the NAME of an environment variable"):
        open_teacher(config, reader=READER)
    with pytest.raises(ValidationError) as raised:
        TeacherConfig(kind="endpoint", api_key_variable="sk-planted")
    assert "planted" not in describe_problem(raised.value.errors()[0], TeacherConfig, "[label_relevance]")
    named = config.model_copy(update={"api_key_variable": "TEACHER_API_KEY"})
    assert "TEACHER_API_KEY" not in str(open_teacher(named, reader=READER).identity)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "local"}, "a local teacher needs `model`"),
        ({"kind": "endpoint", "model": "m"}, "an endpoint needs `url` and `model`"),
        ({"kind": "endpoint", "model": "m", "url": "u", "decoding": "scored"}, "must be free or label_only"),
        ({"kind": "local", "model": "m", "temperature": 0}, "set `num_chains` to 1"),
        ({"kind": "oracle"}, "rules"),
        ({"api_key": "x"}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        TeacherConfig(**settings)
