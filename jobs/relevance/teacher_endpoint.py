"""A relevance teacher behind any server that speaks the OpenAI protocol (vLLM, llama.cpp, a company's gateway, ...).

Each chain is a chat completion of its own, drawn with its own seed; its label is scored by the log-probabilities that
the server gives at the label position (`embedders.label_tokens`). An answer that cannot be read is drawn again, then
the chain is given up: nothing is guessed.

    sent       the prompt over the texts that are disclosed, the settings of the draw, and the key; no id of anything
    tokens     as the server counts them. Before a pair is asked, the most that its chains may take is reserved. What a
               server computed for a request that failed, and does not report, is not counted
    trouble    timeouts, 408, 409, 429 and 5xx are tried again by the `openai` package, after growing pauses or after as
               long as the server says (two minutes at most); then the work ends with what to do. What was answered
               before has been handed on
    refusals   of pairs (400, 413, 422: a text that is too long, a filter) make failed answers; after many in a row, or
               where nothing was answered, the server is first asked about a plain pair of ours: where it refuses that,
               too, it is trouble

One pair goes alone until the first is answered: a wrong key costs one request, not as many as there are threads.
"""

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from embedders.label_tokens import TeacherAnswer, joined_answer
from embedders.relevance_prompts import PROMPT_VERSION, QueryItem
from jobs.relevance.disclosed_text import Disclosure, disclosed
from jobs.relevance.endpoint_pairs import PairsAtEndpoint, Refused
from jobs.relevance.endpoint_trouble import explained
from jobs.relevance.token_budget import TokenBudget

if TYPE_CHECKING:
    from jobs.relevance.teachers import OnAnswer

REFUSED_IN_A_ROW = 5
"""Pairs that a server may refuse one after the other before it is asked about `PLAIN_PAIR`."""

PLAIN_PAIR = QueryItem("red chair", "Red Chair")
"""Short and harmless: whoever refuses it refuses everything."""


@dataclass(frozen=True, kw_only=True)
class EndpointTeacher:
    """Asks a server.

    Attributes:
        url: where `/chat/completions` begins, e.g. http://localhost:8000/v1.
        model: the name under which the server has it.
        api_key_variable: NAME of the environment variable that holds the key; None: the server wants none.
        decoding: reasoning first, or the label alone.
        num_chains: drawn of a pair.
        temperature: of the draws.
        seed: of the draws, where the server heeds it.
        max_answer_tokens: an answer that goes on is cut, and so cannot be read.
        top_logprobs: alternatives asked for at each token; servers have a limit, often 20, some 5.
        max_concurrent: pairs under way at once.
        requests_per_minute, tokens_per_minute: None for no limit but the server's own.
        timeout_seconds: for one answer.
        retries: of one request, by the package.
        disclosure: what of a pair may be sent.
    """

    url: str
    model: str
    api_key_variable: str | None = None
    decoding: Literal["free", "label_only"] = "free"
    num_chains: int = 5
    temperature: float = 0.7
    seed: int = 0
    max_answer_tokens: int = 400
    top_logprobs: int = 20
    max_concurrent: int = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout_seconds: float = 120.0
    retries: int = 6
    disclosure: Disclosure = field(default_factory=Disclosure)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError(  # the url is not shown: a password may stand in it
                "endpoint: expected a url such as http://localhost:8000/v1, without user, password or query. A key "
                "belongs into an environment variable; name that variable in `api_key_variable`."
            )
        if self.api_key_variable is not None and not is_variable_name(self.api_key_variable):
            raise ValueError(
                "endpoint: api_key_variable must be the NAME of an environment variable, in capital letters, such as "
                "TEACHER_API_KEY. What stands there is not shown: it may be the key itself, which belongs into no file."
            )

    @property
    def identity(self) -> dict[str, str]:
        """All that decides an answer beside the pair. The url does not: a model may move to another machine."""
        return {
            "kind": "endpoint",
            "prompt": PROMPT_VERSION,
            "model": self.model,
            "decoding": self.decoding,
            "num_chains": str(self.chains_of_a_pair),
            "temperature": str(float(self.temperature)),
            "seed": str(self.seed),
            "max_answer_tokens": str(self.max_answer_tokens),
            "top_logprobs": str(self.top_logprobs),
        }

    @property
    def chains_of_a_pair(self) -> int:
        """Without reasoning there is nothing to draw."""
        return 1 if self.decoding == "label_only" else self.num_chains

    def facts(self, pair: QueryItem) -> tuple[str, ...]:
        """None: the model reads by itself."""
        return ()

    def answers(self, pairs: Sequence[QueryItem], *, on_answer: "OnAnswer", budget: TokenBudget) -> None:
        """Judge pairs; see `jobs.relevance.teachers.Teacher`.

        Raises:
            ValueError: the key, the url or the model is wrong, or the server gives no log-probabilities.
            ConnectionError: the server cannot be reached, or did not answer after all retries.
        """
        openai = _openai()
        key = self._key()
        with (
            openai.OpenAI(
                base_url=self.url, api_key=key or "none", timeout=self.timeout_seconds, max_retries=self.retries
            ) as client,
            ThreadPoolExecutor(self.max_concurrent, thread_name_prefix="teacher") as pool,
        ):
            # the package reads these from variables, OPENAI_CUSTOM_HEADERS among them, and they are of another account
            client.organization = client.project = None
            client._custom_headers = {}
            work = PairsAtEndpoint(self, client, budget, key)
            try:
                self._hand_out(pairs, work, pool, on_answer)
            except openai.APIError as error:
                raise explained(error, self.url, self.model, self.api_key_variable, key, self.timeout_seconds) from None
            finally:
                work.stopped.set()  # whoever waits for the next minute ends

    def _hand_out(
        self, pairs: Sequence[QueryItem], work: PairsAtEndpoint, pool: ThreadPoolExecutor, on_answer: "OnAnswer"
    ) -> None:
        """Keep `max_concurrent` pairs under way, one until the first is answered, and hand on what comes back."""
        import openai

        numbers = iter(range(len(pairs)))
        running: dict[Future[TeacherAnswer | Refused | None], int] = {}
        refused: list[tuple[int, Refused]] = []
        trouble: Exception | None = None
        has_answered = False
        while True:
            while not (trouble or work.is_spent) and len(running) < (self.max_concurrent if has_answered else 1):
                number = next(numbers, None)
                if number is None:
                    break
                running[pool.submit(work.judge, disclosed(pairs[number], self.disclosure))] = number
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                try:
                    outcome = future.result()
                except (openai.APIError, ValueError) as error:
                    trouble = trouble or error
                    continue
                if isinstance(outcome, Refused):
                    refused.append((number, outcome))
                    if len(refused) >= REFUSED_IN_A_ROW and not trouble:
                        trouble = self._give_up_if_well(refused, work, on_answer)
                        has_answered = has_answered or not refused
                elif outcome is not None:
                    on_answer(number, outcome)
                    has_answered = True
                    self._give_up(refused, on_answer)
            if trouble:
                work.stopped.set()
        if not trouble and refused and (not has_answered or len(refused) >= REFUSED_IN_A_ROW):
            trouble = self._give_up_if_well(refused, work, on_answer)
        elif not trouble:
            self._give_up(refused, on_answer)
        if trouble:
            raise trouble

    def _give_up_if_well(
        self, refused: list[tuple[int, Refused]], work: PairsAtEndpoint, on_answer: "OnAnswer"
    ) -> Exception | None:
        """Give refused pairs up if the server answers about a plain one; else what is wrong.

        Where the budget does not reach for that, nothing is wrong, and they stay unanswered.
        """
        import openai

        try:
            outcome = work.judge(PLAIN_PAIR)
        except (openai.APIError, ValueError) as error:
            return error
        if isinstance(outcome, Refused):
            return outcome.error
        if outcome is not None:
            self._give_up(refused, on_answer)
        return None

    def _give_up(self, refused: list[tuple[int, Refused]], on_answer: "OnAnswer") -> None:
        """The server is well, so it is these pairs that it does not want."""
        for number, refusal in refused:
            failed = joined_answer(
                [],
                num_chains=self.chains_of_a_pair,
                num_attempts=refusal.num_attempts,
                num_tokens=refusal.num_tokens,
                problems=[f"refused by the server: {refusal.said}"],
            )
            on_answer(number, failed)
        refused.clear()

    def _key(self) -> str | None:
        if self.api_key_variable is None:
            return None
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key:
            raise ValueError(
                f"endpoint {self.url}: the environment variable {self.api_key_variable}, which should hold the key, is "
                "not set. Set it, or leave api_key_variable out if the server wants no key."
            )
        if not (key.isascii() and key.isprintable()):  # the package would show it in its error
            raise ValueError(
                f"endpoint {self.url}: what the environment variable {self.api_key_variable} holds cannot be a key: it "
                "has more than one line, or letters that are not ASCII. Copy the key anew."
            )
        return key


def is_variable_name(text: str) -> bool:
    """Whether it can be the name of an environment variable, in capital letters, and so is hardly a key."""
    return text.isidentifier() and text.isupper()


def _openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise ValueError(
            "an endpoint needs the openai package. Install the extra: pip install 'tailrank[endpoint]'"
        ) from error
    return openai
