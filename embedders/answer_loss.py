"""The loss of a teacher's answers: prompts carry none, and logits of prompts are never computed.

Letters: B pairs, P tokens of the instruction, S tokens of question and answer, A tokens of an answer, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from embedders.answer_form import AnswerForm
from embedders.relevance_prompts import QueryItem, Reasoning

IGNORED = -100
"""Target of a token without loss, as in torch's cross-entropy."""

Answers = Literal["chain", "label_only"]


class TeacherExample(NamedTuple):
    """A pair with the answer that the teacher should give.

    Attributes:
        is_judged: False: nobody said whether the item is good, so the answer is learnt up to its label, not the label.
    """

    pair: QueryItem
    reasoning: Reasoning
    is_judged: bool = True


class TokenRow(NamedTuple):
    """One example in tokens, without the instruction that all of them begin with."""

    question: list[int]
    answer: list[int]


def token_rows(form: AnswerForm, examples: Sequence[TeacherExample], answers: Answers = "chain") -> list[TokenRow]:
    """Questions and answers in the tokens that scoring uses, each answer with its end; of an example that nobody judged
    what stands before the label.

    Raises:
        ValueError: an example that nobody judged, where the label is all there is to learn.
    """
    if answers == "label_only":
        if not all(one.is_judged for one in examples):
            raise ValueError("token_rows: an example that nobody judged has no label to learn (answers = label_only)")
        return [TokenRow(form.question(one.pair), form.label_only_answer(one.reasoning.label)) for one in examples]
    return [
        TokenRow(form.question(one.pair), form.answer(one.reasoning) if one.is_judged else form.steps(one.reasoning))
        for one in examples
    ]


class AnswerLoss(nn.Module):
    """From a batch to the sum of its answers' losses; one forward pass a step for data-parallel training.

    The instruction is read once for all rows of the batch, with its gradient: the loss and the gradient are those of
    every row read whole, at about half the cost where rows are titles.

    Args:
        model: a transformers causal language model.
        instruction: tokens that every row begins with; at least one.
    """

    def __init__(self, model: Any, instruction: Sequence[int]) -> None:
        super().__init__()
        self.model, self.instruction = model, list(instruction)

    def forward(self, ids_BS: Tensor, mask_BS: Tensor, target_BA: Tensor) -> Tensor:
        """Cross-entropy summed over the tokens of the answers; logits elsewhere are never computed."""
        cache = DynamicCache(config=self.model.config)
        opening_1P = torch.tensor([self.instruction], device=ids_BS.device)
        self.model(input_ids=opening_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ids_BS))
        num_answer = target_BA.shape[1]
        # places by number, not as a slice: the states of a slice are no one piece of memory, and a CPU then multiplies
        # by a copy of the vocabulary for every row
        before_each_A = torch.arange(ids_BS.shape[1] - num_answer - 1, ids_BS.shape[1] - 1, device=ids_BS.device)
        whole_mask_B = torch.cat([mask_BS.new_ones(len(ids_BS), len(self.instruction)), mask_BS], dim=1)
        logits_BAV = self.model(
            input_ids=ids_BS,
            attention_mask=whole_mask_B,
            position_ids=(whole_mask_B.cumsum(dim=1) - 1)[:, len(self.instruction) :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=before_each_A,
        ).logits
        return nn.functional.cross_entropy(
            logits_BAV.flatten(0, 1).float(), target_BA.flatten(), ignore_index=IGNORED, reduction="sum"
        )


def answer_batch(rows: Sequence[TokenRow], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows side by side, questions padded on the left and answers on the right, so that answers begin in one column.

    Returns:
        token ids [B, S], mask [B, S] of tokens that are there, targets [B, A]: the answers' tokens, else `IGNORED`.
    """
    longest_question = max(len(row.question) for row in rows)
    longest_answer = max(len(row.answer) for row in rows)
    ids, masks, targets = [], [], []
    for question, answer in rows:
        before, after = longest_question - len(question), longest_answer - len(answer)
        ids.append([0] * before + question + answer + [0] * after)
        masks.append([0] * before + [1] * (len(question) + len(answer)) + [0] * after)
        targets.append(answer + [IGNORED] * after)
    return tuple(torch.tensor(rows, device=device) for rows in (ids, masks, targets))  # type: ignore[return-value]


@torch.inference_mode()
def answer_loss(measure: AnswerLoss, rows: Sequence[TokenRow], pairs_at_once: int, device: torch.device) -> float:
    """Mean cross-entropy of the tokens of answers."""
    total = 0.0
    for start in range(0, len(rows), pairs_at_once):
        total += float(measure(*answer_batch(rows[start : start + pairs_at_once], device)))
    return total / sum(len(row.answer) for row in rows)
