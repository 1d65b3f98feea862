"""The ID side of the ranker: embeddings, target attention over the history (DIN), explicit crosses (DCNv2), an MLP.

    Deep Interest Network for Click-Through Rate Prediction, arXiv:1706.06978
    DCN V2: Improved Deep & Cross Network, arXiv:2008.13535

What we keep: the activation unit on [h, t, h-t, h*t] without a softmax over the history (so many matching items weigh
more than one), category embeddings added to a history item's id embedding, full-matrix crosses beside an MLP.
What differs: embeddings of an item and of its own categoricals are summed, not concatenated, in the attention; an
empty history has a learnt interest; how many history items share the candidate's id, category or brand is counted
and read beside the attention (DIN must learn equality from embeddings, and on 200 000 rows it does not: validation
UAUC of the demo world is 0.60 without the counts, 0.63 with them); ids are replaced by the out-of-vocabulary row at
random while training, so that an unseen id meets a row that was trained to be "some id".

    B batch   F id columns   S scalars   G groups of scalars missing together   L history length   D embedding
    H hidden   X input of the crosses   E further inputs   U distinct items of a batch   I item rows   K item attributes
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ranker.batches import ITEM, OUT_OF_VOCABULARY, PADDING, USER, Batch, ExampleLayout

SCALAR_LIMIT = 5.0
"""Standardised scalars are cut here: a feature far outside the training range must not carry a score away."""

SMALLEST_DEVIATION = 1e-8

COMPRESSED_ROLES = ("count", "scalar")
"""Read as sign(x) log1p|x|: counts and prices have long tails, and small values hardly change. Rates stay as is."""

EMBEDDING_STD = 0.05
"""Of the initial embeddings: small, so that a row seen once stays close to "nothing known"."""

STATISTICS_ROWS = 1_000_000
"""Rows (evenly spread) that scalar means and deviations are taken from."""


class ScalarStatistics(NamedTuple):
    """What `ScalarInputs` knows of the training rows."""

    mean_S: Tensor
    """Of the known values, after compression."""
    deviation_S: Tensor
    """Infinite where no value is known."""
    indicator_G: Tensor
    """One column out of each group that is missing in the same rows (all columns of a feature view, as a rule)."""

    @classmethod
    def of(cls, scalars_NS: NDArray[np.float32], roles: Sequence[str]) -> "ScalarStatistics":
        """Measure the training rows (evenly spread ones, if there are very many)."""
        sample_NS = scalars_NS[:: max(1, len(scalars_NS) // STATISTICS_ROWS)]
        mean_S, deviation_S = np.zeros(len(roles)), np.full(len(roles), np.inf)
        groups: dict[bytes, int] = {}
        for column, role in enumerate(roles):
            known_N = ~np.isnan(sample_NS[:, column])
            values = sample_NS[known_N, column].astype(np.float64)
            if role in COMPRESSED_ROLES:
                values = np.sign(values) * np.log1p(np.abs(values))
            if len(values):
                mean_S[column] = values.mean()
                # a constant column reads 0 once its mean is taken off, whatever it is divided by
                deviation_S[column] = values.std() if values.std() > SMALLEST_DEVIATION else 1.0
            groups.setdefault(np.packbits(known_N).tobytes(), column)
        return cls(
            torch.tensor(mean_S, dtype=torch.float32),
            torch.tensor(deviation_S, dtype=torch.float32),
            torch.tensor(list(groups.values()), dtype=torch.int64),
        )


class ScalarInputs(nn.Module):
    """Raw scalars to network inputs: log1p for counts, standardised on train, missing = mean plus an indicator.

    A column that no training row knows stays missing: its weights have learnt nothing, and a feature that only exists
    from some day after the training rows on must not add noise.
    The statistics are buffers: they are saved and exported with the network, so serving sends raw values.
    """

    mean_S: Tensor
    deviation_S: Tensor
    indicator_G: Tensor
    compressed_S: Tensor

    def __init__(self, statistics: ScalarStatistics, roles: Sequence[str]) -> None:
        super().__init__()
        self.register_buffer("compressed_S", torch.tensor([role in COMPRESSED_ROLES for role in roles]).bool())
        self.register_buffer("mean_S", statistics.mean_S)
        self.register_buffer("deviation_S", statistics.deviation_S)
        self.register_buffer("indicator_G", statistics.indicator_G)
        self.width = len(statistics.mean_S) + len(statistics.indicator_G)

    def forward(self, scalars_BS: Tensor) -> Tensor:
        """`[B, S + G]`, finite."""
        missing_BS = scalars_BS.isnan() | self.deviation_S.isinf()
        compressed_BS = torch.where(self.compressed_S, scalars_BS.sign() * scalars_BS.abs().log1p(), scalars_BS)
        standard_BS = ((compressed_BS - self.mean_S) / self.deviation_S).clamp(-SCALAR_LIMIT, SCALAR_LIMIT)
        missing_BG = missing_BS[:, self.indicator_G].to(scalars_BS.dtype)
        return torch.cat([standard_BS.masked_fill(missing_BS, 0.0), missing_BG], dim=1)


class TargetAttention(nn.Module):
    """DIN's activation unit: how much each history item says about the target item.

        a(h, t) = w2 . relu(W1 [h; t; h-t; h*t] + b1) + b2,     interest = sum over the history of a(h, t) h

    W1 [h; t; h-t; h*t] is linear in h once t is fixed, so it is computed as h M(t) + c(t) with one small matrix per
    row: a quarter of the multiplications, and no [B, L, 4D] tensor is ever made. The test has the plain form.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * dim, hidden)
        self.score = nn.Linear(hidden, 1)
        self.empty_D = nn.Parameter(torch.zeros(dim))

    def forward(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor) -> Tensor:
        """Interest `[B, D]`; the learnt default where the history is empty."""
        if history_BLD.shape[1] == 0:
            return self.empty_D.expand_as(target_BD)
        of_h_HD, of_t_HD, of_difference_HD, of_product_HD = self.hidden.weight.chunk(4, dim=1)
        matrix_BDH = (of_h_HD + of_difference_HD).T + target_BD.unsqueeze(2) * of_product_HD.T
        constant_BH = functional.linear(target_BD, of_t_HD - of_difference_HD, self.hidden.bias)
        hidden_BLH = torch.baddbmm(constant_BH.unsqueeze(1), history_BLD, matrix_BDH).relu()
        score_B1L = (self.score(hidden_BLH).squeeze(2) * mask_BL).unsqueeze(1)
        interest_BD = torch.bmm(score_B1L, history_BLD).squeeze(1)
        return torch.where(mask_BL.any(dim=1, keepdim=True), interest_BD, self.empty_D)


class HistoryMatches(nn.Module):
    """How much of the history is of the candidate's kind: same id, same category, same brand.

    For each of them log1p(count) and the share of the history; besides, log1p of the history's length. An unknown
    value of the candidate matches nothing.
    """

    def __init__(self, attribute_columns: Sequence[int]) -> None:
        super().__init__()
        self.columns = (ITEM, *attribute_columns)
        self.width = 2 * len(self.columns) + 1

    def forward(self, ids_BF: Tensor, history_BL: Tensor, attributes_BLK: Tensor) -> Tensor:
        """`[B, 2 (K + 1) + 1]` from rows of ids, of the history's items, and of those items' attributes."""
        length_B = (history_BL != PADDING).sum(dim=1)
        kinds_BLK = torch.cat([history_BL.unsqueeze(2), attributes_BLK], dim=2)
        candidate_BK = ids_BF[:, self.columns]
        known_BK = candidate_BK > OUT_OF_VOCABULARY
        count_BK = (kinds_BLK == candidate_BK.unsqueeze(1)).sum(dim=1) * known_BK
        share_BK = count_BK / length_B.clamp(min=1).unsqueeze(1)
        return torch.cat([count_BK.float().log1p(), share_BK, length_B.float().log1p().unsqueeze(1)], dim=1)


class CrossLayer(nn.Module):
    """DCNv2, full matrix: x_{l+1} = x_0 * (W x_l + b) + x_l."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, first_BX: Tensor, x_BX: Tensor) -> Tensor:
        """`[B, X]`."""
        return torch.addcmul(x_BX, first_BX, self.linear(x_BX))


class IdNetwork(nn.Module):
    """ID, history and scalar features (and whatever vectors the auxiliary network adds) to one representation.

    Args:
        layout: the columns of the examples.
        statistics: of the training scalars.
        item_attributes_IK: rows of each item's own categoricals.
        extra_width: E, the width of further inputs given to `forward`.
        embedding_dim: D, of every id column.
        cross_layers: DCNv2 layers.
        hidden: widths of the MLP beside the crosses.
        attention_hidden: width of the activation unit.
        dropout: after each MLP layer.
        id_dropout: share of training rows whose user (and, independently, item) is replaced by out-of-vocabulary.
        sparse: embedding gradients hold only the rows of the batch, so a step costs the same with 10^7 ids.
    """

    item_attributes_IK: Tensor

    def __init__(
        self,
        layout: ExampleLayout,
        statistics: ScalarStatistics,
        item_attributes_IK: Tensor,
        *,
        extra_width: int = 0,
        embedding_dim: int = 16,
        cross_layers: int = 2,
        hidden: Sequence[int] = (128, 64),
        attention_hidden: int = 32,
        dropout: float = 0.1,
        id_dropout: float = 0.1,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.has_history = layout.history is not None
        self.attribute_columns = [layout.ids.index(name) for name in layout.item_attributes]
        self.embeddings = nn.ModuleList(
            nn.Embedding(rows, embedding_dim, padding_idx=PADDING, sparse=sparse) for rows in layout.num_rows
        )
        for embedding in self.embeddings:
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
            with torch.no_grad():
                embedding.weight[PADDING] = 0.0
        self.register_buffer("item_attributes_IK", item_attributes_IK.int())
        self.scalars = ScalarInputs(statistics, layout.scalar_roles)
        cross_width = len(layout.ids) * embedding_dim + self.scalars.width + extra_width
        if self.has_history:
            self.attention = TargetAttention(embedding_dim, attention_hidden)
            self.matches = HistoryMatches(self.attribute_columns)
            cross_width += 2 * embedding_dim + self.matches.width
        self.crosses = nn.ModuleList(CrossLayer(cross_width) for _ in range(cross_layers))
        widths = (cross_width, *hidden)
        self.mlp = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(narrow, wide), nn.ReLU(), nn.Dropout(dropout))
                for narrow, wide in pairwise(widths)
            )
        )
        self.width = cross_width + widths[-1]

    def forward(self, batch: Batch, extra_BE: Tensor | None = None) -> Tensor:
        """Representation `[B, X + hidden[-1]]` of each impression."""
        ids_BF = self._forget_some(batch.ids_BF) if self.training and self.id_dropout > 0 else batch.ids_BF
        fields = [embedding(ids_BF[:, column]) for column, embedding in enumerate(self.embeddings)]
        inputs = [self.scalars(batch.scalars_BS)]
        if self.has_history:
            target_BD = fields[ITEM] + sum(fields[column] for column in self.attribute_columns)
            mask_BL = batch.history_BL != PADDING
            history_BLD = self._embed_history(batch.history_BL)
            mean_BD = history_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
            fields += [self.attention(history_BLD, mask_BL, target_BD), mean_BD]
            attributes_BLK = self.item_attributes_IK[batch.history_BL.long()]
            inputs.append(self.matches(ids_BF, batch.history_BL, attributes_BLK))
        if extra_BE is not None:
            inputs.append(extra_BE)
        first_BX = torch.cat([*fields, *inputs], dim=1)
        x_BX = first_BX
        for cross in self.crosses:
            x_BX = cross(first_BX, x_BX)
        return torch.cat([x_BX, self.mlp(first_BX)], dim=1)

    def _forget_some(self, ids_BF: Tensor) -> Tensor:
        forgotten_B2 = torch.rand(len(ids_BF), 2, device=ids_BF.device) < self.id_dropout
        user_and_item_B2 = ids_BF[:, [USER, ITEM]].masked_fill(forgotten_B2, OUT_OF_VOCABULARY)
        return torch.cat([user_and_item_B2, ids_BF[:, ITEM + 1 :]], dim=1)

    def _embed_history(self, history_BL: Tensor) -> Tensor:
        """Embed each distinct item of the batch once: a popular item is in thousands of histories."""
        seen_I = torch.zeros(len(self.item_attributes_IK), dtype=torch.bool, device=history_BL.device)
        seen_I[history_BL.flatten().long()] = True
        items_U = seen_I.nonzero().squeeze(1)
        items_UD = self.embeddings[ITEM](items_U)
        for attribute, column in enumerate(self.attribute_columns):
            items_UD = items_UD + self.embeddings[column](self.item_attributes_IK[items_U, attribute])
        position_I = seen_I.cumsum(0) - 1
        return functional.embedding(position_I[history_BL.long()], items_UD)
