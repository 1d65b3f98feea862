"""Answers of servers of several kinds, worded as they word them."""

import json
import math
from typing import Any

import numpy as np
import pytest

from embedders.relevance_prompts import Reasoning
from jobs.relevance.completion_reading import read_completion

LINE = Reasoning.of_values([*["chair", "", "", "½ in"] * 2, "match", "na", "na", "match", "good"]).line()
TOPS = [{"token": "good", "logprob": math.log(0.6)}, {"token": "bad", "logprob": math.log(0.2)}]


def token(text: str, bytes_: bytes | None = None, tops: Any = None) -> dict[str, Any]:
    given = {} if bytes_ is None else {"bytes": list(bytes_)}
    return {
        "token": text,
        "logprob": -0.1,
        "top_logprobs": [{"token": "~", "logprob": -5}] if tops is None else tops,
        **given,
    }


def body(tokens: list[dict[str, Any]] | None, content: str | None = LINE, **more: Any) -> str:
    logprobs = {} if tokens is None else {"logprobs": {"content": tokens}}
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **logprobs, **more}
    return json.dumps({"choices": [choice]})


def spelt(line: str = LINE) -> list[dict[str, Any]]:
    """A token a letter, but for the label."""
    at = line.rindex("good")
    return [*(token(sign) for sign in line[:at]), token("good", tops=TOPS), *(token(sign) for sign in line[at + 4 :])]


def test_the_label_is_scored_where_it_stands():
    chain = read_completion(body(spelt())).chain(label_only=False)
    assert chain.reasoning is not None
    assert chain.reasoning.line() == LINE
    # of the token drawn the alternatives tell, too; its own log-probability is the one that counts
    good = math.exp(-0.1)
    np.testing.assert_allclose(chain.probabilities_K, [0.2 / (0.2 + good), good / (0.2 + good)])


def test_what_is_no_part_of_the_answer_is_left_out():
    thought = [token(word) for word in ("<think>", "a good", " one", "</think>", "\n")]
    ended = [token("<|im_end|>", b"")]
    read = read_completion(body([*thought, *spelt(), *ended]))
    assert "".join(read.pieces) == LINE
    assert len(read.pieces) == len(read.alternatives)
    assert read.chain(label_only=False).label == "good"
    glued = read_completion(body([token("</think>" + LINE[0]), *spelt()[1:-1], token(LINE[-1] + "<|im_end|>")]))
    assert "".join(glued.pieces) == LINE
    assert glued.chain(label_only=False).label == "good"


def test_a_letter_cut_over_two_tokens_is_put_together_from_bytes():
    first, second = "½".encode()[:1], "½".encode()[1:]
    tokens = []
    for one in spelt():
        if one["token"] == "½":
            tokens += [token("\ufffd", first), token("\ufffd", second)]
        else:
            tokens.append({**one, "bytes": list(one["token"].encode())})
    assert "".join(read_completion(body(tokens)).pieces) == LINE
    for one in tokens:
        one.pop("bytes")
    with pytest.raises(ValueError, match="the tokens do not spell the answer"):
        read_completion(body(tokens)).chain(label_only=False)


def test_a_label_alone_is_read():
    tokens = [token('{"v":1,"label":"'), token("bad", tops=TOPS), token('"}')]
    chain = read_completion(body(tokens, '{"v":1,"label":"bad"}')).chain(label_only=True)
    assert (chain.label, chain.reasoning) == ("bad", None)


def test_a_server_without_log_probabilities_is_refused_with_what_to_switch_on():
    with pytest.raises(ValueError, match=r"without log-probabilities.*`logprobs` and `top_logprobs`.*--max-logprobs"):
        read_completion(body(None))
    with pytest.raises(ValueError, match="without log-probabilities"):
        read_completion(body([]))
    alone = [{**one, "top_logprobs": []} for one in spelt()]
    with pytest.raises(ValueError, match="without alternatives.*`top_logprobs`"):
        read_completion(body(alone))


@pytest.mark.parametrize("content", ["", None])
def test_an_empty_answer_cannot_be_read_but_is_one(content: str | None):
    with pytest.raises(ValueError, match="parse"):
        read_completion(body(None, content)).chain(label_only=False)


def test_an_answer_that_was_cut_says_so():
    with pytest.raises(ValueError, match="cut at the most tokens allowed"):
        read_completion(body(spelt()[:50], LINE[:50], finish_reason="length")).chain(label_only=False)


@pytest.mark.parametrize(
    "garbage", ["", "<html>welcome</html>", "[]", '{"choices":[]}', '{"choices":[{}]}', '{"error":"no"}', "null"]
)
def test_what_is_no_completion_is_refused(garbage: str):
    with pytest.raises(ValueError, match="expected a chat completion, got"):
        read_completion(garbage)


def test_tokens_are_those_that_the_server_counts():
    told = json.loads(body(spelt()))
    assert read_completion(json.dumps(told)).num_prompt_tokens is None
    told["usage"] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    read = read_completion(json.dumps(told))
    assert (read.num_prompt_tokens, read.num_answer_tokens) == (7, 5)
