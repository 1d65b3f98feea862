"""The teachers that judge whether an item answers a query, behind one protocol, and how they are asked.

    rules      chains built from the texts (`embedders.built_chains`): a label and the steps, no score; costs nothing
    local      a language model of this machine (`embedders.ellm_rele`)
    endpoint   any server that speaks the OpenAI protocol and gives log-probabilities
               (`jobs.relevance.teacher_endpoint`)

`ask` is the way to answers: what has been answered is read from the cache, only what is disclosed is asked, each answer
is kept at once, and the budget is never exceeded.
"""

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self, TypeAlias

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from embedders import built_chains, title_facts
from embedders.built_chains import built_chain
from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import PROMPT_VERSION, QueryItem
from embedders.title_facts import TitleReader
from jobs.relevance.answer_cache import AnswerCache, address_of
from jobs.relevance.disclosed_text import Disclosure, disclosed
from jobs.relevance.local_teacher import CATALOGUE, facts_read, open_local
from jobs.relevance.teacher_endpoint import EndpointTeacher, is_variable_name
from jobs.relevance.token_budget import TokenBudget

OnAnswer: TypeAlias = Callable[[int, TeacherAnswer], None]
"""Told of the number of a pair and its answer, in the thread that asked."""


class Teacher(Protocol):
    """Whoever answers."""

    @property
    def identity(self) -> dict[str, str]:
        """All that decides an answer beside the pair; never a key, never a url."""
        ...

    @property
    def disclosure(self) -> Disclosure:
        """What of a pair it may read."""
        ...

    def facts(self, pair: QueryItem) -> tuple[str, ...]:
        """What rules that know the catalogue read off a disclosed pair for it; none where it reads by itself."""
        ...

    def answers(self, pairs: Sequence[QueryItem], *, on_answer: OnAnswer, budget: TokenBudget) -> None:
        """Judge pairs, in their order as far as many are not judged at once.

        Args:
            pairs: as disclosed.
            on_answer: called as soon as an answer is there.
            budget: when it is spent, the rest is left unanswered.
        """
        ...


class TeacherConfig(BaseModel, extra="forbid", frozen=True):
    """Which teacher, and how it is asked."""

    kind: Literal["rules", "local", "endpoint"] = "rules"
    """Rules over the texts, a language model of this machine, or a server that speaks the OpenAI protocol."""
    model: str = ""
    """Local: a packaged name, a Hugging Face folder or a GGUF file. Endpoint: the name that the server has for it."""
    url: str = ""
    """Of an endpoint: where /chat/completions begins, such as http://localhost:8000/v1."""
    api_key_variable: str | None = None
    """NAME of the environment variable that holds the endpoint's key; never the key itself."""
    decoding: Literal["free", "constrained", "scored", "label_only"] | None = None
    """How a chain is got (`embedders.ellm_rele`); `constrained` by default, `free` of an endpoint, which has no other
    with reasoning."""
    num_chains: PositiveInt = 5
    """Chains of a pair; with `scored`, the most that are followed."""
    temperature: NonNegativeFloat = 0.7
    """Of the draws. It never bends the scores of a local teacher."""
    seed: NonNegativeInt = 0
    """Of the draws. Another seed asks everything anew."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Local: of weights and forward pass."""
    rows_at_once: PositiveInt = 32
    """Local: chains of one forward pass."""
    max_answer_tokens: PositiveInt = 400
    """Endpoint: longer answers are cut, and so cannot be read."""
    top_logprobs: int = Field(20, ge=2)
    """Endpoint: alternatives asked for at each token; some servers allow no more than 5."""
    max_concurrent: PositiveInt = 8
    """Endpoint: pairs under way at once."""
    requests_per_minute: PositiveInt | None = None
    """Endpoint: no limit but the server's own by default."""
    tokens_per_minute: PositiveInt | None = None
    """Endpoint: no limit but the server's own by default."""
    timeout_seconds: PositiveFloat = 120.0
    """Endpoint: for one answer."""
    retries: NonNegativeInt = 6
    """Endpoint: of one request that fails for a reason that may pass, after growing pauses."""

    @field_validator("api_key_variable")
    @classmethod
    def _holds_no_key(cls, name: str | None) -> str | None:
        """A key that was put here by mistake goes into no ledger and no message; opening the teacher refuses it."""
        return name if name is None or is_variable_name(name) else "not a name"

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "local" and not self.model:
            raise ValueError("a local teacher needs `model`: a packaged name, a Hugging Face folder or a GGUF file")
        if self.kind == "endpoint" and not (self.model and self.url):
            raise ValueError("an endpoint needs `url` and `model`")
        if self.kind == "endpoint" and self.decoding not in (None, "free", "label_only"):
            raise ValueError("an endpoint writes freely: `decoding` must be free or label_only")
        drawn = self.kind != "rules" and (self.decoding or "free") in ("free", "constrained")
        if drawn and self.temperature == 0 and self.num_chains > 1:
            raise ValueError("at temperature 0 all chains of a pair are the same: set `num_chains` to 1")
        return self


class RulesTeacher:
    """Rules over the texts: a label and a chain for every pair, no score, no tokens.

    Args:
        reader: knows the brands of the catalogue. Learn it from items of the training split only.
        disclosure: what of a pair is read.
    """

    def __init__(self, reader: TitleReader, *, disclosure: Disclosure | None = None) -> None:
        self._reader, self.disclosure = reader, disclosure or Disclosure()

    @property
    def identity(self) -> dict[str, str]:
        """The rules are their source code: they change with it."""
        return {
            "kind": "rules",
            "prompt": PROMPT_VERSION,
            "rules": _sha256(*(inspect.getsource(module) for module in (built_chains, title_facts))),
            "reader": CATALOGUE,
        }

    def facts(self, pair: QueryItem) -> tuple[str, ...]:
        """All that the rules go by; see `Teacher`."""
        return facts_read(self._reader, pair)

    def answers(self, pairs: Sequence[QueryItem], *, on_answer: OnAnswer, budget: TokenBudget) -> None:
        """Judge pairs; see `Teacher`."""
        for number, pair in enumerate(pairs):
            chain = built_chain(pair, reader=self._reader)
            answer = TeacherAnswer(
                score=None,
                probabilities=None,
                label=chain.label,
                reasoning=chain,
                agreement=1.0,
                num_chains=1,
                num_parsed=1,
                num_attempts=1,
                num_tokens=0,
            )
            on_answer(number, answer)


def open_teacher(config: TeacherConfig, *, reader: TitleReader, disclosure: Disclosure | None = None) -> Teacher:
    """The teacher that settings name. No model is read and no server asked before the first answer is wanted.

    Args:
        config: which one.
        reader: of rules, and of a local teacher that decodes `scored` and has no reader of its own.
        disclosure: what of a pair it may read; of an endpoint, what leaves this process. Everything by default, without
            what tells of a person.

    Raises:
        ValueError: there is no such model on this machine, or the url or the key's variable cannot be one.
    """
    disclosure = disclosure or Disclosure()
    if config.kind == "rules":
        return RulesTeacher(reader, disclosure=disclosure)
    if config.kind == "local":
        return open_local(config, reader=reader, disclosure=disclosure)
    return EndpointTeacher(
        url=config.url,
        model=config.model,
        api_key_variable=config.api_key_variable,
        decoding="label_only" if config.decoding == "label_only" else "free",
        num_chains=config.num_chains,
        temperature=config.temperature,
        seed=config.seed,
        max_answer_tokens=config.max_answer_tokens,
        top_logprobs=config.top_logprobs,
        max_concurrent=config.max_concurrent,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
        timeout_seconds=config.timeout_seconds,
        retries=config.retries,
        disclosure=disclosure,
    )


def ask(
    teacher: Teacher,
    pairs: Sequence[QueryItem],
    cache: AnswerCache,
    budget: TokenBudget,
    on_progress: Callable[[int], None] | None = None,
    *,
    addresses: Sequence[str] | None = None,
) -> list[TeacherAnswer | None]:
    """Answers to pairs: those that are kept, then the teacher's, each of which is kept at once.

    Pairs that read the same are asked about once. A failed answer is an answer: it is kept, and not asked for again.

    Args:
        teacher: sees of a pair what its disclosure allows.
        pairs: the first are asked about first.
        cache: of answers.
        budget: of tokens; never exceeded.
        on_progress: told of the number of pairs finished since the last call.
        addresses: of the pairs as disclosed (`addresses_of`), where the caller has them: rules take their time to read.

    Returns:
        One answer a pair, in their order; None where the budget was spent before.
    """
    shown = [disclosed(pair, teacher.disclosure) for pair in pairs]
    addresses = addresses_of(teacher, shown) if addresses is None else addresses
    answers = cache.get(addresses)
    times = Counter(addresses)
    if on_progress:
        on_progress(sum(times[address] for address in answers))
    pending = {address: pair for address, pair in zip(addresses, shown, strict=True) if address not in answers}
    pending_addresses = list(pending)

    def keep(number: int, answer: TeacherAnswer) -> None:
        address = pending_addresses[number]
        cache.put(address, answer)
        answers[address] = answer
        if on_progress:
            on_progress(times[address])

    if pending:
        teacher.answers(list(pending.values()), on_answer=keep, budget=budget)
    return [answers.get(address) for address in addresses]


def addresses_of(teacher: Teacher, pairs: Sequence[QueryItem]) -> list[str]:
    """Where a teacher's answers to disclosed pairs are kept."""
    identity = teacher.identity
    return [address_of(pair, identity, teacher.facts(pair)) for pair in pairs]


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
