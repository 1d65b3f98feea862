"""Where a model attends: the weights of its layers, which training and serving never look at, and what they say.

    KARMA, arXiv:2603.22779, shows collapse as attention maps that turn into barcodes: a few positions, the sinks, take
    most of the weight of every row. The paper gives no formula for it; all measures are our proposal [NF->P].

Letters: B histories, L positions, H hidden width, Y layers, h heads, C columns.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embedders.learn import LearnNetwork

SINK_MASS = 0.3
"""A head has a sink if its heaviest column has a larger mean [NF->P]."""

FIRST_COLUMNS = 48
"""Column means that are kept of a head, for a picture."""


class HeadAttention(NamedTuple):
    """One head, averaged over histories; fields as the columns of `LearnAttention` and `KarmaAttention`.

    Attributes:
        layer: from 1.
        head: from 1.
        top1_mass: mean of the heaviest column.
        top4_mass: of the four heaviest together; of a history of four positions or fewer it is 1.
        column_entropy: entropy of the column means over that of even ones, in [0, 1].
        column_means: of the first positions, each over the histories that reach it.
    """

    layer: int
    head: int
    top1_mass: float
    top4_mass: float
    column_entropy: float
    column_means: list[float]


class AttentionHealth(NamedTuple):
    """A whole model, under the names that KARMA's training curve has: means over layers and heads."""

    top1_mass: float | None
    top4_mass: float | None
    column_entropy: float | None
    share_of_sink_heads: float | None


class AttentionSummary:
    """Columns of attention maps, added up batch by batch, so that no more than one batch of maps is in memory.

        m_j = mean over rows i of A_ij          sum_j m_j = 1
        top-k mass = sum of the k largest m_j   column entropy = -sum_j m_j log m_j / log(number of columns)

    Under a causal mask a row sees the columns up to its own. A mean over the rows that see j would make a sink of the
    last column, which only its own row sees; a mean over all rows would make one of the first, because the first rows
    have nowhere else to look: attention that is even over 8 positions would put 0.34 on it and count as a sink. So the
    rows are those of the newer half of each history, each of which has half the history to choose from, the same rows
    for every column. Even causal attention of n positions then has a heaviest column of at most 2 ln 2 / n and an
    entropy just below 1; a perfect sink has mass 1 and entropy 0; rows that see only themselves have 2 / n each.

    Every history weighs the same, however long; those with fewer than two columns tell nothing and are left out.
    """

    def __init__(self, first_columns: int = FIRST_COLUMNS) -> None:
        self.first_columns = first_columns
        self.num_histories = 0
        self._sums: Tensor | None = None  # [layers, heads, 3]
        self._column_sums: Tensor | None = None  # [layers, heads, first_columns]
        self._reached = torch.zeros(first_columns, dtype=torch.float64)

    def add(self, attentions: Sequence[Tensor], valid_BL: Tensor, rows_BL: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            attentions: of each layer, [B, heads, L, L] on the CPU; each row sums to 1 over what it sees.
            valid_BL: bool, the columns that count: no padding. What rows give to others is left out, and the means
                are scaled to sum 1 again. A history's p-th column is its position p, whichever side is padded.
            rows_BL: bool, the rows that count, such as those of history items; None: the same as the columns. Of these,
                the newer half of each history is looked at.
        """
        rows_BL = valid_BL if rows_BL is None else rows_BL
        for history, (valid_L, rows_L) in enumerate(zip(valid_BL.cpu(), rows_BL.cpu(), strict=True)):
            columns, rows = torch.nonzero(valid_L).flatten(), torch.nonzero(rows_L).flatten()
            if len(columns) < 2 or len(rows) == 0:
                continue
            rows = rows[len(rows) // 2 :]
            means_YhC = torch.stack(
                [layer[history][:, rows][:, :, columns].double().mean(dim=1) for layer in attentions]
            )
            self._add_history(means_YhC / means_YhC.sum(dim=-1, keepdim=True).clamp_min(1e-30))

    def _add_history(self, means_YhC: Tensor) -> None:
        """Column means of one history, [layers, heads, columns]."""
        heaviest_Yh4 = means_YhC.topk(min(4, means_YhC.shape[-1]), dim=-1).values
        entropy_Yh = torch.special.entr(means_YhC).sum(dim=-1) / math.log(means_YhC.shape[-1])
        sums = torch.stack([heaviest_Yh4[..., 0], heaviest_Yh4.sum(dim=-1), entropy_Yh], dim=-1)
        if self._sums is None or self._column_sums is None:
            self._sums = torch.zeros_like(sums)
            self._column_sums = torch.zeros(*sums.shape[:2], self.first_columns, dtype=torch.float64)
        self._sums += sums
        shown = min(self.first_columns, means_YhC.shape[-1])
        self._column_sums[..., :shown] += means_YhC[..., :shown]
        self._reached[:shown] += 1
        self.num_histories += 1

    def heads(self) -> tuple[HeadAttention, ...]:
        """One row per (layer, head), in order; empty where no history has told anything."""
        if self._sums is None or self._column_sums is None:
            return ()
        mass_Yh3 = (self._sums / self.num_histories).clamp(0.0, 1.0)  # rounding
        shown = int((self._reached > 0).sum())
        columns_YhC = self._column_sums[..., :shown] / self._reached[:shown]
        return tuple(
            HeadAttention(
                layer=layer + 1,
                head=head + 1,
                top1_mass=float(mass_Yh3[layer, head, 0]),
                top4_mass=float(mass_Yh3[layer, head, 1]),
                column_entropy=float(mass_Yh3[layer, head, 2]),
                column_means=columns_YhC[layer, head].tolist(),
            )
            for layer in range(mass_Yh3.shape[0])
            for head in range(mass_Yh3.shape[1])
        )


def summaries(
    attentions: Sequence[Tensor],
    valid_BL: Tensor,
    *,
    rows_BL: Tensor | None = None,
    first_columns: int = FIRST_COLUMNS,
) -> tuple[HeadAttention, ...]:
    """Every (layer, head) of one batch of attention maps; arguments and definitions as of `AttentionSummary`."""
    summary = AttentionSummary(first_columns)
    summary.add(attentions, valid_BL, rows_BL)
    return summary.heads()


def attention_health(heads: Sequence[HeadAttention]) -> AttentionHealth:
    """Means over the heads, and the share of heads whose heaviest column has more than SINK_MASS; None of no heads."""
    if not heads:
        return AttentionHealth(None, None, None, None)
    return AttentionHealth(
        top1_mass=math.fsum(head.top1_mass for head in heads) / len(heads),
        top4_mass=math.fsum(head.top4_mass for head in heads) / len(heads),
        column_entropy=math.fsum(head.column_entropy for head in heads) / len(heads),
        share_of_sink_heads=sum(head.top1_mass > SINK_MASS for head in heads) / len(heads),
    )


@torch.no_grad()
def attention_of_language_model(
    model: Any, inputs_embeds_BLH: Tensor, mask: Tensor, position_ids_BL: Tensor | None = None
) -> tuple[Tensor, ...]:
    """One forward pass with the weights given back; the fast attention kernels, which keep none, are off during it.

    Every layer's map of the batch is in memory at once: give a few histories at a time.

    Args:
        model: a transformers decoder, or the body of one, on any device; it is left as it was.
        inputs_embeds_BLH: token vectors.
        mask: [B, L] 1 = a token and 0 = padding, or [B, 1, L, L] of who sees whom: bool, or what is added to scores.
        position_ids_BL: None: 0, 1, 2, ...

    Returns:
        Of each layer [B, heads, L, L] float32 on the CPU.
    """
    before, was_training = model.config._attn_implementation, model.training
    if mask.ndim == 4 and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=inputs_embeds_BLH.dtype).masked_fill(
            ~mask, torch.finfo(inputs_embeds_BLH.dtype).min
        )
    model.set_attn_implementation("eager")
    model.eval()
    try:
        out = model(
            inputs_embeds=inputs_embeds_BLH,
            attention_mask=mask,
            position_ids=position_ids_BL,
            use_cache=False,
            output_attentions=True,
        )
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)
    return tuple(layer.float().cpu() for layer in out.attentions)


@torch.no_grad()
def attention_of_learn(network: LearnNetwork, history_BL: Tensor) -> tuple[Tensor, ...]:
    """Where LEARN's user tower attends; torch's encoder never returns its weights, so each layer is asked once more.

    Args:
        network: left as it was.
        history_BL: catalogue rows, oldest first, PADDING on the right, on the network's device.

    Returns:
        Of each layer [B, heads, L, L] float32 on the CPU; padded positions are rows and columns like all others.
    """
    weights: list[Tensor] = []

    def ask_again(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.TransformerEncoderLayer)
        assert not layer.norm_first, "the layer attends over its own input"
        hidden_BLH = inputs[0]
        length = hidden_BLH.shape[1]
        mask_LL = torch.ones(length, length, dtype=torch.bool, device=hidden_BLH.device).triu(1)  # True: not seen
        _, weights_BhLL = layer.self_attn(
            hidden_BLH, hidden_BLH, hidden_BLH, attn_mask=mask_LL, need_weights=True, average_attn_weights=False
        )
        weights.append(weights_BhLL.float().cpu())

    was_training = network.training
    network.eval()
    hooks = [layer.register_forward_pre_hook(ask_again) for layer in network.encoder.layers]
    try:
        network.users(history_BL)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    return tuple(weights)
