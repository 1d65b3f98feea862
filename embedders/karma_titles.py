"""KARMA's language model learns to read an item's token and to say its title, before anything else [NF->P].

    L_titles = mean over words of -log p(word | words before it, the item's own token)

A captioner learns to read pictures in the same way: the adapter makes one token of an item's frozen vectors, and the
model says the title from it. The first so many blocks of a language model cannot speak at all until they have learnt
it; where they learn it in the joint stage, lambda times some twenty nats of it drown what users want.

Letters: M items of a step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.karma_checks import check_finite
from embedders.karma_losses import title_loss
from embedders.karma_objective import KarmaObjective
from embedders.karma_settings import KarmaSettings
from embedders.karma_start import step_alone
from embedders.rate_schedule import BETAS, share_of_peak_rate

READERS = ("towers.adapter.", "towers.adapter_norm.", "towers.features.")
"""What makes an item's token, beside the language model."""

TITLES_AT_ONCE = 64
"""Of a step."""

TITLES_AN_EPOCH = 20_000
"""At most, drawn anew in every epoch: a large catalogue says nothing more of how titles are made."""


def fit_titles(
    objective: KarmaObjective,
    trained: Mapping[str, Tensor],
    titles: Sequence[Sequence[int]],
    settings: KarmaSettings,
    *,
    epoch: int,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> float | None:
    """Train in place what reads items, and the language model as far as it learns; the mean loss of the last epoch.

    Args:
        objective: of the network.
        trained: of the network's weights those that learn in the joint stage, by name.
        titles: tokens of each catalogue row's title; an empty one teaches nothing.
        settings: `title_epochs`, `title_rate`.
        epoch: of the whole fit, for messages.
        seed: of the order; dropout, if the language model has any, is of torch's own generator.
        on_step: hears how many steps are done, of how many.

    Returns:
        None where no item has a title.

    Raises:
        ValueError: the loss is not finite.
    """
    network = objective.network.train()
    of_language_model = dict(network.language_model_parameters())
    learning = [weight for name, weight in trained.items() if name.startswith(READERS) or name in of_language_model]
    optimizer = torch.optim.AdamW(learning, lr=settings.title_rate, betas=BETAS, weight_decay=settings.weight_decay)
    named_N = np.flatnonzero([len(title) > 0 for title in titles])
    if len(named_N) == 0:
        on_step(1, 1)
        return None
    rng = np.random.default_rng(seed)
    epochs = [list(_steps(named_N, rng)) for _ in range(settings.title_epochs)]
    num_steps, step = sum(map(len, epochs)), 0
    losses: list[float] = []
    for of_epoch in epochs:
        losses = []
        for rows in of_epoch:
            for group in optimizer.param_groups:
                group["lr"] = settings.title_rate * share_of_peak_rate(step, num_steps, settings.warmup)
            loss = title_step(objective, rows, [titles[row] for row in rows.tolist()])
            check_finite(loss, {"titles": loss}, epoch, settings)
            step_alone(loss, learning, optimizer)
            losses.append(float(loss.detach()))
            step += 1
            on_step(step, num_steps)
    return float(np.mean(losses))


def title_step(objective: KarmaObjective, rows_M: NDArray[np.int64], titles: Sequence[Sequence[int]]) -> Tensor:
    """L_titles of some items; no user takes part."""
    network = objective.network
    device = network.towers.read_out_D.device
    with torch.autocast(device.type, torch.bfloat16, enabled=objective.in_bfloat16):
        token_MD = network.towers.item_tokens(torch.from_numpy(rows_M).to(device))
        state_TD, word_T = network.said_after(token_MD, titles)
        return title_loss(state_TD, network.output_embeddings(), word_T)


def _steps(named_N: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    drawn = rng.permutation(named_N)[:TITLES_AN_EPOCH]
    for start in range(0, len(drawn), TITLES_AT_ONCE):
        yield drawn[start : start + TITLES_AT_ONCE]
