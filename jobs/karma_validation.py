"""What KARMA is worth to held-out users while it is trained: what they went on to want, and how healthy it is.

Letters: N items, U users, B histories of a pass, d output width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from embedders.attention_maps import AttentionSummary, HeadAttention, attention_health, attention_of_language_model
from embedders.health import title_perplexity, title_similarity, vector_health
from embedders.histories import padded_rows
from embedders.karma import KarmaNetwork
from embedders.karma_curve import KarmaValidation
from embedders.karma_model import KarmaModel, Precision
from embedders.karma_packing import pack
from embedders.retrieval import retrieval_metrics
from feature_repo.table_schemas import KarmaAttention
from jobs.interaction_sequences import HeldOut

MOST_VALIDATION_USERS = 1_000
"""R@K of so many users is known to within 0.02 or so; each is a pass of the language model in every epoch."""

MOST_HISTORIES_MAPPED = 64
MAPPED_AT_ONCE = 8
"""Histories whose attention maps are in memory together."""

MOST_TITLES = 256
"""Held-out titles whose perplexity is measured."""


@dataclass(frozen=True)
class HeldOutKarma:
    """Users who went on after the validation cut, and the network as it is at each call.

    Vectors are made as they are served.
    """

    network: KarmaNetwork
    content_NC: NDArray[np.float32]
    image_NV: NDArray[np.float32] | None
    titles: Sequence[str]
    """Of the catalogue, N."""
    title_tokens: Sequence[Sequence[int]]
    users: HeldOut
    recall_at: int
    precision: Precision
    seed: int
    """Of the titles whose perplexity is measured."""
    queries: Sequence[str | None] | None = None
    """What each user searches for; None: vectors are made without queries, as those of midnights are."""

    def __len__(self) -> int:
        return len(self.users.targets)

    @torch.no_grad()
    def __call__(self) -> KarmaValidation:
        """All measures; R@K is of their targets among the whole catalogue. There must be users."""
        model = KarmaModel.of_network(self.network, self.precision)
        users_Ud = model.user_vectors(
            self.content_NC,
            self.users.history_rows_T,
            self.users.history_lengths_U,
            image_NV=self.image_NV,
            queries=self.queries,
        ).vectors
        items_Nd = model.item_vectors(self.content_NC, self.image_NV)
        targets = self.users.targets
        at_k = retrieval_metrics(users_Ud, items_Nd, targets, cutoffs=(self.recall_at,), ties="mid").at(self.recall_at)
        first_targets = targets.items_E[targets.offsets_U[:-1]]
        health = vector_health(users_Ud, items_Nd[first_targets], seed=self.seed)
        attention = attention_health(self.heads())
        return KarmaValidation(
            recall=at_k.recall,
            title_similarity=title_similarity(users_Ud, items_Nd, targets, self.titles),
            **health._asdict(),
            **attention._asdict(),
            title_perplexity=self._title_perplexity(),
        )

    def attention(self, moment: str) -> pl.DataFrame:
        """Rows of `KarmaAttention` for the network as it is; none where nobody is held out."""
        rows = [{"moment": moment, **head._asdict()} for head in self.heads()]
        return pl.DataFrame(rows, schema=KarmaAttention.create_empty().schema)

    @torch.no_grad()
    def heads(self) -> tuple[HeadAttention, ...]:
        """Where the language model attends, from items to what is before them, over the longest histories.

        A short history leaves a row few columns to choose from, so it says little of sinks.
        """
        towers, most = self.network.towers, self.network.shape.max_history
        ends_U = np.cumsum(self.users.history_lengths_U)
        longest = np.argsort(-self.users.history_lengths_U, kind="stable")[:MOST_HISTORIES_MAPPED]
        summary = AttentionSummary()
        for start in range(0, len(longest), MAPPED_AT_ONCE):
            histories = [
                self.users.history_rows_T[end - min(size, most) : end].astype(np.int32)
                for end, size in (
                    (ends_U[user], self.users.history_lengths_U[user])
                    for user in longest[start : start + MAPPED_AT_ONCE]
                )
            ]
            cut_B1 = np.array([[len(history)] for history in histories], np.int64)
            packed = pack(padded_rows(histories), cut_B1, instruction=towers.instruction)
            embedded_BLD, mask_B1LL, position_BL = towers.model_inputs(packed)
            maps = attention_of_language_model(towers.language_model, embedded_BLD, mask_B1LL, position_BL)
            summary.add(maps, packed.segment_BL == 0, packed.is_history)  # columns: the instruction's words, too
        return summary.heads()

    def _title_perplexity(self) -> float | None:
        """Of titles that held-out users went on to want, under the language model by itself."""
        wanted = np.unique(self.users.targets.items_E)
        size = min(len(wanted), MOST_TITLES)
        chosen = np.random.default_rng(self.seed).choice(wanted, size, replace=False, shuffle=False)
        return title_perplexity(
            self.network.towers.language_model,
            [self.title_tokens[row] for row in np.sort(chosen).tolist()],
            opening=self.network.lm.opening_tokens(""),
            output=self.network.output,
        )
