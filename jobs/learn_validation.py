"""What LEARN is worth to held-out users while it is trained: recall of what they went on to want, and its health.

Letters: U users, B histories of a pass, L history length, d output width.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from embedders.attention_maps import AttentionSummary, attention_of_learn
from embedders.health import VectorHealth, vector_health
from embedders.histories import PADDING, padded_rows
from embedders.learn import LearnNetwork
from embedders.learn_model import LearnModel
from embedders.retrieval import retrieval_metrics
from feature_repo.table_schemas import LearnAttention
from jobs.interaction_sequences import HeldOut

MOST_USERS_MEASURED = 2_000
"""The spread of so many vectors is that of all to within a percent or so."""

MOST_HISTORIES_MAPPED = 64
"""Attention is averaged over so many."""

MAPPED_AT_ONCE = 8
"""Histories whose attention maps are in memory together: 30 MB of the largest shape."""


@dataclass(frozen=True)
class HeldOutUsers:
    """Users who went on after the validation cut, and the network as it is at each call."""

    network: LearnNetwork
    content_NC: NDArray[np.float32]
    users: HeldOut
    recall_at: int
    seed: int
    """Of the users whose vectors are measured, where there are more than MOST_USERS_MEASURED."""

    def __len__(self) -> int:
        return len(self.users.targets)

    def recall(self) -> float:
        """R@K of their targets among the whole catalogue."""
        model = LearnModel(self.network)
        users = model.user_vectors(self.content_NC, self.users.history_rows_T, self.users.history_lengths_U)
        items_Nd = model.item_vectors(self.content_NC)
        at_k = retrieval_metrics(users.vectors, items_Nd, self.users.targets, cutoffs=(self.recall_at,), ties="mid")
        found = at_k.at(self.recall_at).recall
        assert found is not None, "every held-out user has a target"
        return found

    @torch.no_grad()
    def health(self) -> VectorHealth:
        """Spread of a sample of user vectors, each beside the first item that its user went on to want."""
        size = min(len(self), MOST_USERS_MEASURED)
        chosen = np.sort(np.random.default_rng(self.seed).choice(len(self), size, replace=False, shuffle=False))
        histories = self._histories(chosen)
        lengths_U = np.array([len(history) for history in histories], np.int64)
        rows_T = np.concatenate(histories) if histories else np.empty(0, np.int64)
        users = LearnModel(self.network).user_vectors(self.content_NC, rows_T, lengths_U)
        targets = torch.from_numpy(self.users.targets.items_E[self.users.targets.offsets_U[chosen]].astype(np.int64))
        wanted_Ud = self.network.items(targets.to(self._device)).float().cpu().numpy()
        return vector_health(users.vectors, wanted_Ud, seed=self.seed)

    def attention(self, moment: str) -> pl.DataFrame:
        """Rows of `LearnAttention` for the network as it is, over the longest histories; none where nobody is held out.

        A short history leaves a row few columns to choose from, so it says little of sinks.
        """
        longest = np.argsort(-self.users.history_lengths_U, kind="stable")[:MOST_HISTORIES_MAPPED]
        histories = self._histories(longest)
        summary = AttentionSummary()
        for start in range(0, len(histories), MAPPED_AT_ONCE):
            batch = [history.astype(np.int32) for history in histories[start : start + MAPPED_AT_ONCE]]
            history_BL = torch.from_numpy(padded_rows(batch)).to(self._device)
            summary.add(attention_of_learn(self.network, history_BL), history_BL != PADDING)
        rows = [{"moment": moment, **head._asdict()} for head in summary.heads()]
        return pl.DataFrame(rows, schema=LearnAttention.create_empty().schema)

    def _histories(self, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        ends_U = np.cumsum(self.users.history_lengths_U)
        starts_U = ends_U - self.users.history_lengths_U
        return [self.users.history_rows_T[starts_U[user] : ends_U[user]] for user in chosen]

    @property
    def _device(self) -> torch.device:
        return self.network.adaptor.weight.device
