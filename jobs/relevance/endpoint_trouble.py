"""What went wrong between us and an OpenAI-compatible server, in words that say what to do."""

from typing import TYPE_CHECKING

from jobs.relevance.completion_reading import SWITCH_ON

if TYPE_CHECKING:
    import openai

REFUSALS_OF_A_PAIR = (400, 413, 422)
"""Answers to a request that is wrong in itself; mostly its text is too long."""

LETTERS_SHOWN = 300


def is_refusal_of_the_pair(error: "openai.APIStatusError") -> bool:
    """Whether the server answered that this request is wrong, for a reason that another pair need not share."""
    return error.status_code in REFUSALS_OF_A_PAIR and "logprob" not in str(error).lower()


def said_by(error: "openai.APIError", key: str | None) -> str:
    """What the server said, shortened, and without the key if it repeats it."""
    return (str(error).replace(key, "[key]") if key else str(error))[:LETTERS_SHOWN]


def explained(
    error: "openai.APIError", url: str, model: str, key_variable: str | None, key: str | None, timeout_seconds: float
) -> Exception:
    """The error to raise: ValueError for what settings can mend, ConnectionError where the server is not there.

    Args:
        error: of the package, after its retries.
        key: is cut out of what the server says.
    """
    import openai

    said = said_by(error, key)
    where = f"endpoint {url}, model {model}"
    kept = "What was answered before is kept: run again to go on."
    if isinstance(error, openai.APITimeoutError):
        return ConnectionError(
            f"{where}: no answer within {timeout_seconds:g} s, several times. Raise timeout_seconds, or lower "
            f"max_concurrent if the server has too much to do. {kept}"
        )
    if isinstance(error, openai.APIConnectionError):
        return ConnectionError(
            f"{where}: the server cannot be reached ({error.__cause__ or said}). Start it, or correct the url. {kept}"
        )
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    if status in (401, 403):
        held = (
            f"in the environment variable {key_variable}" if key_variable else "(none was sent: set api_key_variable)"
        )
        return ValueError(f"{where}: the server refuses the key {held}, or it may not use this model. It says: {said}")
    if status == 404:
        return ValueError(
            f"{where}: the server knows no such path or model. The url mostly ends in /v1; {url.rstrip('/')}/models "
            f"lists the models. It says: {said}"
        )
    if status == 429:
        after = error.response.headers.get("retry-after") if isinstance(error, openai.APIStatusError) else None
        asked = f" It asks to wait {after} s." if after else ""
        return ConnectionError(
            f"{where}: too many requests, also after pauses.{asked} Lower requests_per_minute, tokens_per_minute or "
            f"max_concurrent, or see whether the account has anything left. {kept} It says: {said}"
        )
    if status is not None and status >= 500:
        return ConnectionError(f"{where}: the server failed, also after pauses. See its log. {kept} It says: {said}")
    if "logprob" in said.lower():
        return ValueError(
            f"{where}: the server refuses log-probabilities: lower top_logprobs to what it allows, or {SWITCH_ON}. It "
            f"says: {said}"
        )
    return ValueError(f"{where}: the server refuses the request. {kept} It says: {said}")
