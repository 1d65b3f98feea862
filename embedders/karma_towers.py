"""KARMA's two towers: what serves. The decoders that training adds are in `embedders.karma`.

    ctx . [query] . [INT]  -> language model -> state at [INT] -> RMSNorm -> W_h -> unit norm = h   (the user, d wide)
    frozen text and image vectors of an item -> MLP -> W_e -> unit norm = e                         (the item, d wide)

Letters: B users, L tokens, K read-outs, N items, C text width, F feature width, D width of the language model, d output
width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedders.karma_features import FrozenFeatures, StandardFeatures
from embedders.karma_packing import ITEM, READ_OUT, Packed
from embedders.running_mean import running_mean
from embedders.standard_scale import principal_directions

SMALLEST_DEVIATION = 1e-4
"""Of a sample without any: all its histories are the same."""

LEARNT_PART = 0.1
"""Size of what is learnt beside the principal components of `residual`, at the start."""


@dataclass(frozen=True)
class KarmaShape:
    """Size of what is added to the language model, and how much of it is used."""

    output_dim: int = 128
    """d."""
    item_hidden: int = 256
    """Width of the MLP under W_e."""
    max_history: int = 50
    """Items that the language model reads; of a longer history the newest."""
    num_layers: int | None = None
    """The first so many blocks of the language model; None: all."""
    low_rank: int | None = None
    """Rank of LoRA adapters in the language model (needs peft); None: all of its weights are trained."""
    residual: bool = False
    """Add the items' principal components to e, and their mean over the history to h, as LEARN's `residual` does
    [NF->P]: training starts at the quality of the mean of the history."""
    residual_decay: float = 1.0
    """What an item weighs in that mean beside the one after it [NF->P]; 1: the plain mean."""


class KarmaTowers(nn.Module):
    """The user's side, a language model over continuous item tokens, and the item's, which needs none.

    Args:
        language_model: a transformers decoder without its output layer.
        features: of the catalogue; may be exchanged (`features.frozen`) for those of a newer one of the same widths.
        shape: size.
        instruction: tokens that open every history.
    """

    def __init__(
        self, language_model: Any, features: FrozenFeatures, shape: KarmaShape, instruction: Sequence[int]
    ) -> None:
        super().__init__()
        self.shape, self.instruction = shape, tuple(instruction)
        self.language_model = language_model
        self.features = StandardFeatures(features)
        embedding_VD = spoken(language_model)
        width, feature_dim = embedding_VD.shape[1], self.features.width
        self.adapter = nn.Sequential(nn.Linear(feature_dim, width), nn.GELU(), nn.Linear(width, width))
        self.adapter_norm = nn.RMSNorm(width)  # to the size of the model's own token embeddings
        nn.init.constant_(self.adapter_norm.weight, float(embedding_VD.square().mean().sqrt()))
        self.read_out_D = nn.Parameter(embedding_VD.mean(dim=0))
        self.user_norm = nn.RMSNorm(width)
        self.user_head = nn.Linear(width, shape.output_dim)
        nn.init.zeros_(self.user_head.bias)
        self.item_head = nn.Sequential(
            nn.Linear(feature_dim, shape.item_hidden), nn.GELU(), nn.Linear(shape.item_hidden, shape.output_dim)
        )
        self.shortcut = nn.Linear(feature_dim, shape.output_dim, bias=False) if shape.residual else None

    def standardise(self, content_NC: NDArray[np.float32], image_MV: NDArray[np.float32] | None = None) -> None:
        """Fit what the features are standardised by to a sample of the catalogue; see `StandardFeatures.fit`."""
        self.features.fit(content_NC, image_MV)
        if self.shortcut is not None:
            # of the text: a picture's first components are its light and its background
            mean_C, scale_C = self.features.content_mean_C, self.features.content_scale_C
            wanted_dC = principal_directions(content_NC, mean_C, scale_C, self.shape.output_dim)
            with torch.no_grad():
                self.shortcut.weight.zero_()
                self.shortcut.weight[: len(wanted_dC), : content_NC.shape[1]] = wanted_dC

    @torch.no_grad()
    def spread(self, packed: Packed, rows: Tensor) -> None:
        """Let users and items, as yet untrained, lie around the origin, each coordinate of variance 1 [NF->P].

        States of a language model share one large direction and differ by little beside it: without this all users
        begin at one point of the sphere, the first steps move them together, and what is learnt is what is popular.
        Beside the components of `residual` what is to be learnt begins small.

        Args:
            packed: a sample of histories.
            rows: a sample of the catalogue.
        """
        last = self.item_head[-1]
        assert isinstance(last, nn.Linear)
        size = 1.0 if self.shortcut is None else LEARNT_PART
        state_KD, _ = self.read_out(packed, self.states(packed))
        normed_KD = self.user_norm(state_KD.float())
        for layer, made in ((self.user_head, self.user_head(normed_KD)), (last, self.item_head(self.features(rows)))):
            deviation = (made - made.mean(dim=0)).square().mean().sqrt().clamp_min(SMALLEST_DEVIATION)
            layer.bias.sub_(made.mean(dim=0)).mul_(size / deviation)
            layer.weight.mul_(size / deviation)

    def items(self, rows: Tensor) -> Tensor:
        """Vectors of catalogue rows, [..., d] unit norm. Padding is read as row 0: meaningless, but finite."""
        features = self.features(rows.clamp_min(0))
        vectors = self.item_head(features).float()
        if self.shortcut is not None:
            vectors = vectors + self.shortcut(features).float()
        return functional.normalize(vectors, dim=-1)

    def item_tokens(self, rows: Tensor) -> Tensor:
        """What the language model reads of catalogue rows, [..., D]: one token an item."""
        tokens: Tensor = self.adapter_norm(self.adapter(self.features(rows)).float())
        return tokens

    def users(self, packed: Packed) -> Tensor:
        """h of every read-out, [K, d] unit norm: what serving uses."""
        return self.users_of(*self.read_out(packed, self.states(packed)))

    def states(self, packed: Packed) -> Tensor:
        """States of the language model's last layer at every token, [B, L, D]."""
        embedded_BLD, mask_B1LL, position_BL = self.model_inputs(packed)
        states: Tensor = self.language_model(
            inputs_embeds=embedded_BLD, attention_mask=mask_B1LL, position_ids=position_BL, use_cache=False
        ).last_hidden_state
        return states

    def model_inputs(self, packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
        """What the language model is given: embeddings [B, L, D], additive mask [B, 1, L, L], positions [B, L]."""
        device = self.read_out_D.device
        token_BL = packed.token_BL.to(device)
        embedded_BLD = self.language_model.get_input_embeddings()(token_BL.clamp_min(0))
        rows = packed.item_BL[packed.is_history].to(device)
        embedded_BLD = embedded_BLD.masked_scatter(
            (token_BL == ITEM).unsqueeze(-1), self.item_tokens(rows).to(embedded_BLD.dtype)
        )
        is_read_out_BL1 = (token_BL == READ_OUT).unsqueeze(-1)
        embedded_BLD = torch.where(is_read_out_BL1, self.read_out_D.to(embedded_BLD.dtype), embedded_BLD)
        visible_B1LL = packed.visible().unsqueeze(1).to(device)
        mask_B1LL = torch.zeros(visible_B1LL.shape, dtype=embedded_BLD.dtype, device=device)
        mask_B1LL = mask_B1LL.masked_fill(~visible_B1LL, torch.finfo(embedded_BLD.dtype).min)
        return embedded_BLD, mask_B1LL, packed.position_BL.to(device)

    def read_out(self, packed: Packed, hidden_BLD: Tensor) -> tuple[Tensor, Tensor | None]:
        """State at each [INT], [K, D], and what `residual` needs beside it: the mean of the features seen, [K, F]."""
        row_K, place_K = packed.read_out_K2.to(hidden_BLD.device).unbind(dim=1)
        return hidden_BLD[row_K, place_K], None if self.shortcut is None else self._mean_features(packed)

    def users_of(self, state_KD: Tensor, mean_KF: Tensor | None, *, dropout: float = 0.0) -> Tensor:
        """h of what `read_out` gives, [K, d] unit norm; `dropout` leaves out that share of the states."""
        normed_KD = functional.dropout(self.user_norm(state_KD.float()), dropout)
        users_Kd = self.user_head(normed_KD).float()
        if self.shortcut is not None:
            assert mean_KF is not None, "residual adds the mean of what was seen"
            users_Kd = users_Kd + self.shortcut(mean_KF).float()
        return functional.normalize(users_Kd, dim=-1)

    def _mean_features(self, packed: Packed) -> Tensor:
        """Mean of the features of the items that each read-out sees, [K, F], by `residual_decay`."""
        device = self.read_out_D.device
        row_K, place_K = packed.read_out_K2.unbind(dim=1)
        first = len(self.instruction)
        newest_K = packed.reach_BL[row_K, place_K] - first
        seen = slice(first, first + int(newest_K.max()) + 1)
        is_item_BL = packed.is_history[:, seen]
        features_BLF = torch.zeros(*is_item_BL.shape, self.features.width, device=device)
        features_BLF[is_item_BL.to(device)] = self.features(packed.item_BL[:, seen][is_item_BL].to(device))
        mean_BLF = running_mean(features_BLF, self.shape.residual_decay)
        return mean_BLF[row_K.to(device), newest_K.to(device)]


@torch.no_grad()
def spoken(language_model: Any) -> Tensor:
    """The vocabulary as the language model is given it, [V, D] float32: some scale their table as they read it."""
    embeddings = language_model.get_input_embeddings()
    every_token = torch.arange(embeddings.num_embeddings, device=embeddings.weight.device)
    vectors: Tensor = embeddings(every_token).detach().float()
    return vectors
