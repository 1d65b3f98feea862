"""The loss of a teacher's answers: prompts carry none, and logits of prompts are never computed.

Letters: B pairs, S tokens of prompt and answer, A tokens of an answer, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from embedders.answer_form import AnswerForm
from embedders.relevance_prompts import QueryItem, Reasoning

IGNORED = -100
"""Target of a token without loss, as in torch's cross-entropy."""

Answers = Literal["chain", "label_only"]


class TeacherExample(NamedTuple):
    """A pair with the answer that the teacher should give."""

    pair: QueryItem
    reasoning: Reasoning


class TokenRow(NamedTuple):
    """One example in tokens."""

    prompt: list[int]
    answer: list[int]


def token_rows(form: AnswerForm, examples: Sequence[TeacherExample], answers: Answers = "chain") -> list[TokenRow]:
    """Prompts and answers in the tokens that scoring uses, each answer with its end."""
    label_only = answers == "label_only"
    opening = form.instruction(label_only=label_only)
    return [
        TokenRow(
            [*opening, *form.question(one.pair)],
            form.label_only_answer(one.reasoning.label) if label_only else form.answer(one.reasoning),
        )
        for one in examples
    ]


class AnswerLoss(nn.Module):
    """From a batch to the sum of its answers' losses; one forward pass a step for data-parallel training."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BS: Tensor, mask_BS: Tensor, target_BA: Tensor) -> Tensor:
        """Cross-entropy summed over the tokens of the answers; logits elsewhere are never computed."""
        position_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        logits_BAV = self.model(
            input_ids=ids_BS,
            attention_mask=mask_BS,
            position_ids=position_BS,
            use_cache=False,
            logits_to_keep=target_BA.shape[1] + 1,
        ).logits[:, :-1]
        return nn.functional.cross_entropy(
            logits_BAV.flatten(0, 1).float(), target_BA.flatten(), ignore_index=IGNORED, reduction="sum"
        )


def answer_batch(rows: Sequence[TokenRow], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows side by side, prompts padded on the left and answers on the right, so that answers begin in one column.

    Returns:
        token ids [B, S], mask [B, S] of tokens that are there, targets [B, A]: the answers' tokens, else `IGNORED`.
    """
    longest_prompt = max(len(row.prompt) for row in rows)
    longest_answer = max(len(row.answer) for row in rows)
    ids, masks, targets = [], [], []
    for prompt, answer in rows:
        before, after = longest_prompt - len(prompt), longest_answer - len(answer)
        ids.append([0] * before + prompt + answer + [0] * after)
        masks.append([0] * before + [1] * (len(prompt) + len(answer)) + [0] * after)
        targets.append(answer + [IGNORED] * after)
    return tuple(torch.tensor(rows, device=device) for rows in (ids, masks, targets))  # type: ignore[return-value]


@torch.inference_mode()
def answer_loss(model: Any, rows: Sequence[TokenRow], pairs_at_once: int, device: torch.device) -> float:
    """Mean cross-entropy of the tokens of answers."""
    measure, total = AnswerLoss(model), 0.0
    for start in range(0, len(rows), pairs_at_once):
        total += float(measure(*answer_batch(rows[start : start + pairs_at_once], device)))
    return total / sum(len(row.answer) for row in rows)
