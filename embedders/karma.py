"""KARMA's network: a language model reads a history of continuous item tokens and a query, and says what comes next.

    KARMA: Knowledge-Action Regularized Multimodal Alignment for personalised search, arXiv:2603.22779

    ctx . [query] . [INT]  -> language model -> state at [INT] -> RMSNorm -> W_h -> unit norm = h   (the user, d wide)
    frozen text and image vectors of an item -> MLP -> W_e -> unit norm = e                         (the item, d wide)

What we keep: one continuous token per item, a read-out token, the user's vector taught by action and by two decoders
that are there in training only: of the target's title from the history (L_gen), and from h alone (L_recon).
Ours [NF->P], because the paper's sizes and prompts could not be read: the adapter (two layers over frozen vectors,
scaled like the model's own token embeddings), d = 128, the instruction, [INT] starting as the mean of the words
"wants next", the first so many blocks of the language model as a switch, `residual` as LEARN has it here.

Letters: B users, L tokens, K read-outs, T words of titles, N items, C text width, V image width, D width of the
language model, d output width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedders.causal_lm import CausalLM
from embedders.karma_features import FrozenFeatures, StandardFeatures
from embedders.karma_packing import ITEM, READ_OUT, KarmaBatch, Packed, pack
from embedders.low_rank import merged, with_low_rank

INSTRUCTION = "Products that a shopper chose, oldest first:"
QUERY_LEAD = "\nNow searching for: "
READ_OUT_WORDS = " The shopper wants next:"


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


class KarmaPass(NamedTuple):
    """What one training pass gives.

    Attributes:
        users_Kd: h of every read-out, row after row of the batch; unit norm.
        owner_K: the row of the batch that each belongs to.
        target_K: the catalogue row that each is to find.
        exposed_KM: catalogue rows shown beside it, PADDING on the right.
        state_KD: the state at [INT].
        decoded_K: bool, which of them decode their title.
        generation: states [T, D] and the words [T] to predict from them with the history in sight; None: not asked for.
        reconstruction: the same, with nothing but h in sight.
    """

    users_Kd: Tensor
    owner_K: Tensor
    target_K: Tensor
    exposed_KM: Tensor
    state_KD: Tensor
    decoded_K: Tensor
    generation: tuple[Tensor, Tensor] | None
    reconstruction: tuple[Tensor, Tensor] | None


class KarmaNetwork(nn.Module):
    """Both sides, and in training both decoders.

    Args:
        lm: the language model; its model is changed (blocks are taken out, adapters put in) and trained in place.
        features: of the catalogue; may be exchanged (`features.frozen`) for those of a newer one of the same widths.
        shape: size.

    Raises:
        ValueError: the language model has fewer blocks than asked for.
    """

    def __init__(self, lm: CausalLM, features: FrozenFeatures, shape: KarmaShape) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizer, self.model_id = lm.tokenizer, lm.model_id
        self.instruction = tuple(lm.opening_tokens(INSTRUCTION))
        self.query_lead = tuple(lm.tokens(QUERY_LEAD))
        self.end = tuple(lm.end)
        if shape.num_layers is not None:
            _keep_blocks(lm.model, shape.num_layers, lm.model_id)
        self.language_model: Any = lm.model.get_decoder()
        self.output: Any = lm.model.get_output_embeddings()
        embedding_VD = self.language_model.get_input_embeddings().weight.detach().float()
        wants_next_D = embedding_VD[lm.tokens(READ_OUT_WORDS)].mean(dim=0)
        typical = float(embedding_VD.square().mean().sqrt())
        width = embedding_VD.shape[1]
        self._adapted: Any = None
        if shape.low_rank is not None:
            self._adapted = [with_low_rank(lm.model, shape.low_rank)]  # in a list: its weights are those above

        self.features = StandardFeatures(features)
        feature_dim = self.features.width
        scaled = nn.RMSNorm(width)  # to the size of the model's own token embeddings
        nn.init.constant_(scaled.weight, typical)
        self.adapter = nn.Sequential(nn.Linear(feature_dim, width), nn.GELU(), nn.Linear(width, width), scaled)
        self.read_out_D = nn.Parameter(wants_next_D * typical / wants_next_D.square().mean().sqrt())
        self.user_norm = nn.RMSNorm(width)
        self.user_head = nn.Linear(width, shape.output_dim, bias=False)
        self.item_head = nn.Sequential(
            nn.Linear(feature_dim, shape.item_hidden), nn.GELU(), nn.Linear(shape.item_hidden, shape.output_dim)
        )
        self.shortcut = nn.Linear(feature_dim, shape.output_dim, bias=False) if shape.residual else None
        self.prefix = nn.Linear(shape.output_dim, width, bias=False)
        nn.init.normal_(self.prefix.weight, std=typical)
        self.image_flow: nn.Module | None = None
        """Of L_img; in training only, put there by `embedders.fit_karma`."""

    def standardise(self, content_NC: NDArray[np.float32], image_MV: NDArray[np.float32] | None = None) -> None:
        """Fit what the features are standardised by to a sample of the catalogue; see `StandardFeatures.fit`."""
        self.features.fit(content_NC, image_MV)
        if self.shortcut is not None:
            # of the text: a picture's first components are its light and its background
            standard_NC = (torch.from_numpy(content_NC) - self.features.content_mean_C) * self.features.content_scale_C
            _, directions_CC = torch.linalg.eigh(standard_NC.T @ standard_NC)  # ascending
            with torch.no_grad():
                self.shortcut.weight.zero_()
                wanted_dC = directions_CC[:, -self.shape.output_dim :].T
                self.shortcut.weight[: len(wanted_dC), : content_NC.shape[1]] = wanted_dC

    def language_model_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the language model that are trained at all, with their names."""
        return (
            (name, weight)
            for name, weight in self.named_parameters()
            if name.startswith(("language_model.", "output.")) and weight.requires_grad
        )

    def new_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that the language model did not bring, with their names."""
        return (
            (name, weight)
            for name, weight in self.named_parameters()
            if not name.startswith(("language_model.", "output."))
        )

    def output_embeddings(self) -> Tensor:
        """[vocabulary, D]: what a state is compared with to predict a word."""
        weight: Tensor = self.output.weight
        return weight

    def merge_low_rank(self) -> None:
        """Add LoRA's matrices into the weights: the end of training them."""
        if self._adapted is not None:
            merged(self._adapted[0])
            self._adapted = None

    def forward(
        self,
        batch: KarmaBatch[Tensor],
        titles: Sequence[Sequence[int]],
        queries: Sequence[Sequence[int]],
        *,
        generation: bool = True,
        reconstruction: bool = True,
    ) -> KarmaPass:
        """One training pass.

        Args:
            batch: users and their read-outs.
            titles: tokens of each catalogue row's title.
            queries: tokens of each query.
            generation: whether titles are decoded with the history in sight.
            reconstruction: whether they are decoded from h.
        """
        cut_BK, target_BK, decoded_BK = (
            part.cpu().numpy() for part in (batch.cut_BK, batch.target_BK, batch.decoded_BK)
        )
        decoded_BK = decoded_BK.astype(bool) & (cut_BK > 0)
        to_say = [
            [titles[target] if decoded else None for target, decoded in zip(*each, strict=True)]
            for each in zip(target_BK.tolist(), decoded_BK.tolist(), strict=True)
        ]
        asked = [
            [[*self.query_lead, *queries[query]] if query >= 0 else [] for query in row]
            for row in batch.query_BK.tolist()
        ]
        packed = pack(
            batch.history_BL.cpu().numpy(),
            cut_BK,
            instruction=self.instruction,
            queries_BK=asked,
            titles_BK=to_say if generation else None,
            end=self.end,
        )
        hidden_BLD = self.states(packed)
        state_KD, users_Kd = self._read_out(packed, hidden_BLD)
        is_there_BK = batch.cut_BK > 0
        decoded_K = torch.from_numpy(decoded_BK).to(users_Kd.device)[is_there_BK]
        said = [title for row in to_say for title in row if title is not None]
        return KarmaPass(
            users_Kd=users_Kd,
            owner_K=packed.read_out_K2[:, 0].to(users_Kd.device),
            target_K=batch.target_BK[is_there_BK],
            exposed_KM=batch.exposed_BKM[is_there_BK],
            state_KD=state_KD,
            decoded_K=decoded_K,
            generation=self._to_predict(packed, hidden_BLD) if generation else None,
            reconstruction=self.reconstruct(users_Kd[decoded_K], said) if reconstruction else None,
        )

    training_pass = forward

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
        if bool(packed.is_history.any()):
            rows = packed.item_BL[packed.is_history].to(device)
            embedded_BLD = embedded_BLD.masked_scatter(
                (token_BL == ITEM).unsqueeze(-1), self.adapter(self.features(rows)).to(embedded_BLD.dtype)
            )
        is_read_out_BL1 = (token_BL == READ_OUT).unsqueeze(-1)
        embedded_BLD = torch.where(is_read_out_BL1, self.read_out_D.to(embedded_BLD.dtype), embedded_BLD)
        visible_B1LL = packed.visible().unsqueeze(1).to(device)
        mask_B1LL = torch.zeros(visible_B1LL.shape, dtype=embedded_BLD.dtype, device=device)
        mask_B1LL = mask_B1LL.masked_fill(~visible_B1LL, torch.finfo(embedded_BLD.dtype).min)
        return embedded_BLD, mask_B1LL, packed.position_BL.to(device)

    def users(self, packed: Packed) -> Tensor:
        """h of every read-out, [K, d] unit norm: what serving uses. No decoder takes part."""
        return self._read_out(packed, self.states(packed))[1]

    def _read_out(self, packed: Packed, hidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
        row_K, place_K = packed.read_out_K2.to(hidden_BLD.device).unbind(dim=1)
        state_KD = hidden_BLD[row_K, place_K]
        users_Kd = self.user_head(self.user_norm(state_KD.float())).float()
        if self.shortcut is not None:
            users_Kd = users_Kd + self._mean_shortcut(packed)
        return state_KD, functional.normalize(users_Kd, dim=-1)

    def _mean_shortcut(self, packed: Packed) -> Tensor:
        """Mean of the shortcuts of the items that each read-out sees, [K, d]."""
        assert self.shortcut is not None
        device = self.read_out_D.device
        rows_M = packed.item_BL[packed.is_history].to(device)
        of_items_BLd = torch.zeros(*packed.token_BL.shape, self.shape.output_dim, device=device)
        of_items_BLd[packed.is_history.to(device)] = self.shortcut(self.features(rows_M)).float()
        row_K, place_K = packed.read_out_K2.unbind(dim=1)
        num_items_K1 = (packed.reach_BL[row_K, place_K] + 1 - len(self.instruction)).unsqueeze(1).to(device)
        last_K = (packed.reach_BL[row_K, place_K]).to(device)
        return of_items_BLd.cumsum(dim=1)[row_K.to(device), last_K] / num_items_K1

    def _to_predict(self, packed: Packed, hidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
        row_T, place_T = packed.states_T2.to(hidden_BLD.device).unbind(dim=1)
        return hidden_BLD[row_T, place_T], packed.words_T.to(hidden_BLD.device)

    def reconstruct(self, users_Md: Tensor, titles: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """States [T, D] that predict the titles' words [T] from the vectors alone: nothing else is in their sight.

        Args:
            users_Md: h of M read-outs.
            titles: tokens of their targets' titles, M.
        """
        device = users_Md.device
        lengths = [len(title) + 1 for title in titles]
        longest = max(lengths, default=1)
        ids_ML = torch.zeros((len(titles), longest - 1), dtype=torch.int64)
        for row, title in enumerate(titles):
            ids_ML[row, : len(title)] = torch.tensor(title, dtype=torch.int64)
        prefix_M1D = self.prefix(users_Md).unsqueeze(1)
        embedded_MLD = self.language_model.get_input_embeddings()(ids_ML.to(device))
        # padding stands on the right, so the causal mask hides it from every word
        states_MLD = self.language_model(
            inputs_embeds=torch.cat([prefix_M1D.to(embedded_MLD.dtype), embedded_MLD], dim=1), use_cache=False
        ).last_hidden_state
        words = [[*title, *self.end] for title in titles]
        states_TD = torch.cat(
            [states_MLD[row, : len(each)] for row, each in enumerate(words)]
            or [states_MLD.new_empty(0, states_MLD.shape[-1])]
        )
        return states_TD, torch.tensor([word for each in words for word in each], dtype=torch.int64, device=device)

    def items(self, rows: Tensor) -> Tensor:
        """Vectors of catalogue rows, [..., d] unit norm. Padding is read as row 0: meaningless, but finite."""
        features = self.features(rows.clamp_min(0))
        vectors = self.item_head(features).float()
        if self.shortcut is not None:
            vectors = vectors + self.shortcut(features).float()
        return functional.normalize(vectors, dim=-1)


def _keep_blocks(model: Any, num_layers: int, model_id: str) -> None:
    """Take the blocks above the first so many out of a language model."""
    body = model.get_decoder()
    if not 1 <= num_layers <= len(body.layers):
        raise ValueError(f"{model_id} has {len(body.layers)} layers; the first {num_layers} cannot be taken")
    del body.layers[num_layers:]
    config = body.config
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
