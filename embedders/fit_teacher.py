"""Supervised training of the relevance teacher on chains of reasoning (ELLM-rele, arXiv 2411.13045).

The model reads the prompt and learns the answer, token by token; the prompt's tokens carry no loss. All weights are
trained, or low-rank adapters beside them. `answers = "label_only"` is the comparison without reasoning: the same pairs,
the same labels, the label alone.

What is ours [NF->P], because neither the paper's model size nor its rates could be read: learning rates, epochs, early
stop on the loss of held-out answers. The loop is that of `embedders.fit_learn`, and so are the schedule and the limits.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from embedders.answer_form import AnswerForm
from embedders.answer_loss import AnswerLoss, Answers, TeacherExample, TokenRow, answer_batch, answer_loss, token_rows
from embedders.causal_lm import CausalLM
from embedders.low_rank import merged, with_low_rank
from embedders.rate_schedule import GRADIENT_NORM_LIMIT, share_of_peak_rate
from embedders.trained_weights import copied, put_back

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class TeacherSettings:
    """What is learnt, how long, how fast."""

    answers: Answers = "chain"
    """The whole chain, or the label alone."""
    low_rank: int | None = None
    """Rank of LoRA adapters (needs peft); None: all weights are trained."""
    epochs: int = 3
    """Most passes over the examples."""
    patience: int = 1
    """Validations without a better one before training stops."""
    batch_size: int = 16
    """Pairs a step, of one process."""
    pairs_at_once: int = 4
    """Pairs of one forward pass; their gradients are added up to the batch's."""
    learning_rate: float = 2e-5
    """At its peak. Adapters want about ten times as much."""
    warmup: float = 0.1
    """Share of all steps until the peak."""
    weight_decay: float = 0.0
    """Of AdamW."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the passes; weights and optimizer are float32. auto: bfloat16 on a GPU, float32 on a CPU. bfloat16: on a CPU,
    too, where it has AMX: about 1.7 times as fast there."""
    seed: int = 0
    """Of the order and of dropout."""


class TeacherEpochRow(NamedTuple):
    """One epoch of a training curve."""

    epoch: int
    train_loss: float
    validation_score: float | None
    seconds: float
    is_best: bool


@dataclass(frozen=True)
class TeacherWatch:
    """Who hears of a fit, and where it starts."""

    on_pairs: Callable[[int], None] = lambda num_pairs: None
    """Pairs trained on since the last call."""
    on_epoch: Callable[[TeacherEpochRow], None] = lambda row: None
    """An epoch and its validation are over."""
    on_checkpoint: Callable[[dict[str, Any]], None] | None = None
    """Everything that `resume_from` needs, after each epoch; called in the main process only."""
    resume_from: Mapping[str, Any] | None = None
    """What `on_checkpoint` was given."""


@dataclass
class _State:
    epoch: int = 0
    best_score: float = -float("inf")
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    curve: tuple[TeacherEpochRow, ...] = ()


def fit_teacher(
    lm: CausalLM,
    train: Sequence[TeacherExample],
    settings: TeacherSettings,
    *,
    validation: Sequence[TeacherExample] = (),
    validate: Callable[[CausalLM], float] | None = None,
    watch: TeacherWatch | None = None,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> tuple[CausalLM, tuple[TeacherEpochRow, ...]]:
    """Train a language model to answer; the same seed gives the same bits, also when a run goes on from a checkpoint.

    Args:
        lm: pretrained. Its model is trained in place.
        train: pairs with chains; the label alone is taken from them under `label_only`.
        settings: how.
        validation: held-out pairs with chains: minus the mean loss of their answers' tokens is the validation score.
        validate: another score in place of it, higher is better, e.g. the ROC-AUC of what the teacher scores.
        watch: hears of progress.
        stopwatch: seconds from any origin.

    Returns:
        The model in the state of the best validation (without one: the last), adapters added into the weights, in
        eval mode; and the curve.

    Raises:
        ValueError: there is nothing to train on, an answer does not fit the model, peft is asked for and absent, or
            the loss is not finite.
    """
    watch = watch or TeacherWatch()
    form = AnswerForm(lm)
    rows = token_rows(form, train, settings.answers)
    held_out = token_rows(form, validation, settings.answers)
    if not rows:
        raise ValueError("fit_teacher: there are no examples to train on")
    instruction = form.instruction(label_only=settings.answers == "label_only")
    _check_lengths(lm, len(instruction), [*rows, *held_out])
    torch.manual_seed(settings.seed)  # of the adapters' first weights and of dropout
    model = lm.model if settings.low_rank is None else with_low_rank(lm.model, settings.low_rank)
    accelerator = Accelerator()
    half = settings.precision == "bfloat16" or (settings.precision == "auto" and accelerator.device.type == "cuda")
    measure = AnswerLoss(model, instruction)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay
    )
    step, prepared = accelerator.prepare(measure, optimizer)
    state = _State() if watch.resume_from is None else _resume(watch.resume_from, trained, optimizer)
    num_batches = math.ceil(len(rows) / (settings.batch_size * accelerator.num_processes))
    num_steps = settings.epochs * num_batches

    while state.epoch < settings.epochs and state.epoch - state.best_epoch <= settings.patience:
        started = stopwatch()
        step.train()
        loss_sum = 0.0
        mine = _batches(rows, settings, state.epoch, accelerator.process_index, accelerator.num_processes)
        for number, batch in enumerate(mine):
            rate = share_of_peak_rate(state.epoch * num_batches + number, num_steps, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate
            num_tokens = sum(len(row.answer) for row in batch)
            for start in range(0, len(batch), settings.pairs_at_once):
                some = batch[start : start + settings.pairs_at_once]
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half):
                    loss = step(*answer_batch(some, accelerator.device)) / num_tokens
                accelerator.backward(loss)
                loss_sum += float(loss.detach())
            accelerator.clip_grad_norm_(trained.values(), GRADIENT_NORM_LIMIT)
            prepared.step()
            prepared.zero_grad()
            watch.on_pairs(len(batch))
        train_loss = loss_sum / num_batches
        if not math.isfinite(train_loss):
            raise ValueError(
                f"fit_teacher: the training loss became {train_loss} in epoch {state.epoch} (seed {settings.seed}). "
                f"Expected a finite number: lower learning_rate (now {settings.learning_rate})."
            )
        model.eval()
        score = None
        if validate is not None:
            score = validate(replace(lm, model=model))
        elif held_out:
            score = -answer_loss(measure, held_out, settings.pairs_at_once, accelerator.device)
        if score is None or score > state.best_score:
            state.best_score, state.best_epoch = -float("inf") if score is None else score, state.epoch
            state.best_weights = copied(trained)
        row = TeacherEpochRow(state.epoch, train_loss, score, stopwatch() - started, is_best=False)
        state.curve = (*state.curve, row)
        state.epoch += 1
        watch.on_epoch(row)
        if watch.on_checkpoint is not None and accelerator.is_main_process:
            watch.on_checkpoint(_checkpoint(state, trained, optimizer))

    assert state.best_weights is not None, "the first epoch is the best so far"
    put_back(trained, state.best_weights)
    curve = tuple(row._replace(is_best=row.epoch == state.best_epoch) for row in state.curve)
    return replace(lm, model=(model if settings.low_rank is None else merged(model)).eval()), curve


def _batches(
    rows: Sequence[TokenRow], settings: TeacherSettings, epoch: int, process: int, num_processes: int
) -> Iterator[list[TokenRow]]:
    """This process's share of each batch; an order follows from seed and epoch alone."""
    order = np.random.default_rng([settings.seed, epoch]).permutation(len(rows))
    width = settings.batch_size * num_processes
    for start in range(0, len(order), width):
        of_all = order[start : start + width]
        # a last batch smaller than the number of processes: each still takes a step
        yield [rows[number] for number in of_all[process::num_processes]] or [rows[of_all[0]]]


def _check_lengths(lm: CausalLM, num_instruction: int, rows: Sequence[TokenRow]) -> None:
    most = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    longest = num_instruction + max(len(row.question) + len(row.answer) for row in rows)
    if most is not None and longest > most:
        raise ValueError(
            f"fit_teacher: an example has {longest} tokens, {lm.model_id} reads at most {most}. Shorten the titles or "
            "the attributes."
        )


def _checkpoint(state: _State, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything the rest of the run depends on, of the weights only those that are trained."""
    return {
        "state": {**vars(state), "curve": [tuple(row) for row in state.curve]},
        "weights": copied(trained),
        "optimizer": deepcopy(optimizer.state_dict()),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _resume(checkpoint: Mapping[str, Any], trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> _State:
    put_back(trained, checkpoint["weights"])
    optimizer.load_state_dict(deepcopy(checkpoint["optimizer"]))
    torch.set_rng_state(checkpoint["torch_rng"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
    state = _State(**checkpoint["state"])
    state.curve = tuple(TeacherEpochRow(*row) for row in checkpoint["state"]["curve"])
    return state
