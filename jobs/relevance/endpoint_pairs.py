"""Pairs at an endpoint, one after the other in each of many threads: their chains, their tokens, their time."""

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from embedders.label_tokens import ATTEMPTS, Chain, TeacherAnswer, joined_answer
from embedders.relevance_prompts import QueryItem, prompt
from jobs.relevance.completion_reading import Completion, read_completion
from jobs.relevance.endpoint_trouble import is_refusal_of_the_pair, said_by
from jobs.relevance.request_pace import RequestPace
from jobs.relevance.token_budget import TokenBudget

if TYPE_CHECKING:
    import openai

    from jobs.relevance.teacher_endpoint import EndpointTeacher

TEMPLATE_TOKENS = 128
"""Most that a server's chat template puts around a prompt: marks of turns, a short system prompt."""


class Refused(NamedTuple):
    """A pair that the server does not want.

    Attributes:
        error: of the package.
        said: by the server.
        num_attempts: requests for this pair, the refused one included.
        num_tokens: of those before it.
    """

    error: "openai.APIStatusError"
    said: str
    num_attempts: int
    num_tokens: int


@dataclass
class _UnderWay:
    """A pair that is being judged.

    Attributes:
        pair: as disclosed.
        words: of the prompt.
        most: tokens that one answer may take.
        reserved: tokens of the budget, in all.
        used: of these, so far.
    """

    pair: QueryItem
    words: str
    most: int
    reserved: int
    used: int = 0
    num_attempts: int = 0
    chains: list[Chain] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class PairsAtEndpoint:
    """What the threads of one call share.

    Args:
        teacher: settings.
        client: of the `openai` package.
        budget: never exceeded.
        key: is cut out of what is told of the server's answers.

    Attributes:
        stopped: set it, and no further request is begun.
        is_spent: what a pair may take did not fit into the budget.
    """

    def __init__(self, teacher: "EndpointTeacher", client: Any, budget: TokenBudget, key: str | None) -> None:
        self._teacher, self._client, self._budget, self._key = teacher, client, budget, key
        self._pace = RequestPace(teacher.requests_per_minute, teacher.tokens_per_minute)
        self._template_tokens = TEMPLATE_TOKENS
        self.stopped = threading.Event()
        self.is_spent = False

    def judge(self, pair: QueryItem) -> TeacherAnswer | Refused | None:
        """All chains of a pair; None where the budget was spent or the work stopped before its end.

        Raises:
            openai.APIError: the server does not answer, after all retries.
            ValueError: what it answers cannot be a teacher's.
        """
        import openai

        words = prompt(pair, label_only=self._teacher.decoding == "label_only")
        # no tokenizer makes more tokens than there are bytes
        most = len(words.encode()) + self._template_tokens + self._teacher.max_answer_tokens
        # for the whole pair, so that what is begun can mostly be ended
        under_way = _UnderWay(pair, words, most, reserved=most * self._teacher.chains_of_a_pair)
        if not self._budget.reserve(under_way.reserved):
            self.is_spent = True
            return None
        try:
            return self._answer(under_way)
        except openai.APIStatusError as error:
            if not is_refusal_of_the_pair(error):
                raise
            return Refused(error, said_by(error, self._key), under_way.num_attempts, under_way.used)
        finally:
            self._budget.settle(under_way.reserved, under_way.used)

    def _answer(self, under_way: _UnderWay) -> TeacherAnswer | None:
        teacher = self._teacher
        for number in range(teacher.chains_of_a_pair):
            # the most probable answer does not change by asking again
            for attempt in range(ATTEMPTS if teacher.temperature > 0 else 1):
                if under_way.reserved - under_way.used < under_way.most:  # answers drawn again took what others saved
                    if not self._budget.reserve(under_way.most, wait=False):
                        self.is_spent = True
                        return None
                    under_way.reserved += under_way.most
                completion = self._completion(under_way, _seed_of(under_way.pair, teacher.seed, number, attempt))
                if completion is None:
                    return None
                try:
                    under_way.chains.append(completion.chain(label_only=teacher.decoding == "label_only"))
                    break
                except ValueError as error:
                    under_way.problems.append(str(error))
        return joined_answer(
            under_way.chains,
            num_chains=teacher.chains_of_a_pair,
            num_attempts=under_way.num_attempts,
            num_tokens=under_way.used,
            problems=under_way.problems,
        )

    def _completion(self, under_way: _UnderWay, seed: int) -> Completion | None:
        """One answer, in its time; None where the work was stopped before."""
        teacher = self._teacher
        start = self._pace.start(time.monotonic(), under_way.most)
        if self.stopped.wait(max(0.0, start.at - time.monotonic())):
            return None
        under_way.num_attempts += 1
        response = self._client.chat.completions.with_raw_response.create(
            model=teacher.model,
            messages=[{"role": "user", "content": under_way.words}],
            max_tokens=teacher.max_answer_tokens,
            temperature=teacher.temperature,
            seed=seed,
            logprobs=True,
            top_logprobs=teacher.top_logprobs,
        )
        try:
            completion = read_completion(response.text)
        except ValueError as error:
            raise ValueError(f"endpoint {teacher.url}, model {teacher.model}: {error}") from None
        used = under_way.most
        if completion.num_prompt_tokens is not None and completion.num_answer_tokens is not None:
            used = completion.num_prompt_tokens + completion.num_answer_tokens
            around = completion.num_prompt_tokens - len(under_way.words.encode())
            self._template_tokens = max(self._template_tokens, around)
        under_way.used += used
        self._pace.took(start, used)
        return completion


def _seed_of(pair: QueryItem, seed: int, chain: int, attempt: int) -> int:
    """Of one draw: the same for the same pair, whatever is asked beside it."""
    told = json.dumps([*pair, seed, chain, attempt]).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:4], "big") >> 1
