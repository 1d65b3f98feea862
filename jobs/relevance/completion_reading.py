"""What an OpenAI-compatible server answered, read strictly: the tokens of the answer and what could have stood there.

Tokens are put together from their bytes where the server gives them, so that a letter cut over two tokens is whole.
What is no part of the answer (an end token, a preamble of thought that the server cut off) is left out: the tokens that
spell the message's content are kept.
"""

import codecs
from typing import NamedTuple

from pydantic import BaseModel, Field, ValidationError

from embedders.label_tokens import Chain, read_chain

SWITCH_ON = (
    "ask for a server and a model that give `logprobs` and `top_logprobs` of chat completions (vLLM does, up to its "
    "--max-logprobs; llama.cpp and OpenAI's models that do not think do, too), or use a local teacher"
)


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(_Alternative):
    bytes: list[int] | None = None
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class Completion(NamedTuple):
    """One answer as it came.

    Attributes:
        text: of the answer.
        pieces: the texts of its P tokens; together they are `text`.
        alternatives: for each of them the log-probabilities of the tokens that could have stood there.
        num_prompt_tokens: as the server counts; None where it does not.
        num_answer_tokens: likewise.
        was_cut: the answer was longer than allowed.
    """

    text: str
    pieces: list[str]
    alternatives: list[dict[str, float]]
    num_prompt_tokens: int | None
    num_answer_tokens: int | None
    was_cut: bool

    def chain(self, *, label_only: bool) -> Chain:
        """The chain that was written.

        Raises:
            ValueError: the answer is not in the form.
        """
        try:
            if self.text and not self.pieces:
                raise ValueError(f"the tokens do not spell the answer, which begins {self.text[:60]!r}")
            return read_chain(self.pieces, self.alternatives, label_only=label_only)
        except ValueError as error:
            raise ValueError(f"cut at the most tokens allowed; {error}" if self.was_cut else str(error)) from None


def read_completion(body: str) -> Completion:
    """Read the body of a response of `/chat/completions`.

    Raises:
        ValueError: it is no such thing, or has no log-probabilities: this server, or this model, cannot be a teacher.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ValueError(
            f"expected a chat completion, got {body[:80]!r} ({where}: {first['msg']}). The url must lead to an "
            "OpenAI-compatible server; mostly it ends in /v1."
        ) from None
    choice, usage = completion.choices[0], completion.usage
    text = choice.message.content or ""
    tokens = (choice.logprobs and choice.logprobs.content) or []
    if text and not tokens:
        raise ValueError(f"the server answered without log-probabilities of tokens: {SWITCH_ON}")
    if text and not any(token.top_logprobs for token in tokens):
        raise ValueError(f"the server answered without alternatives to its tokens (`top_logprobs`): {SWITCH_ON}")
    pieces, alternatives = _spelling(text, tokens)
    return Completion(
        text=text,
        pieces=pieces,
        alternatives=alternatives,
        num_prompt_tokens=usage.prompt_tokens if usage else None,
        num_answer_tokens=usage.completion_tokens if usage else None,
        was_cut=choice.finish_reason == "length",
    )


def _spelling(text: str, tokens: list[_Token]) -> tuple[list[str], list[dict[str, float]]]:
    """Pieces of the tokens that spell the text, with their alternatives; nothing where they spell something else."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces = [
        decoder.decode(token.token.encode() if token.bytes is None else bytes(sign & 255 for sign in token.bytes))
        for token in tokens
    ]
    begin = "".join(pieces).rfind(text)
    if begin < 0 or not text:
        return [], []
    spelt, alternatives, at = [], [], 0
    for piece, token in zip(pieces, tokens, strict=True):
        kept = piece[max(0, begin - at) : max(0, begin + len(text) - at)]
        at += len(piece)
        if kept:
            spelt.append(kept)
            # the token drawn need not be among the likeliest
            alternatives.append({other.token: other.logprob for other in [*(token.top_logprobs or ()), token]})
    return spelt, alternatives
