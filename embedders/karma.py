"""KARMA's network in training: the towers, and two decoders that keep the user's vector sayable in words.

    KARMA: Knowledge-Action Regularized Multimodal Alignment for personalised search, arXiv:2603.22779

    L = L_act + lambda (L_gen + L_recon + L_img)
    L_gen    the target's title, word by word, with history and query in sight
    L_recon  the same words with nothing in sight but h, as one prefix token W_p h: the bottleneck
    L_img    the target's picture by a conditional flow (`embedders.karma_losses`)

What we keep: one continuous token per item, a read-out token, the user's vector taught by action, and decoders that
are there in training only; both use the language model itself and its output layer.
Ours [NF->P], because the paper's sizes and prompts could not be read: the adapter (two layers over frozen vectors,
scaled like the model's own token embeddings), d = 128, the instruction, [INT] starting as the mean of the words
"wants next", the first so many blocks of the language model as a switch, several read-outs of one history.

Letters: B users, K read-outs, T words of titles, M exposed items, F feature width, D width of the language
model, d output width.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from embedders.causal_lm import CausalLM
from embedders.karma_features import FrozenFeatures
from embedders.karma_packing import KarmaBatch, pack
from embedders.karma_towers import KarmaShape, KarmaTowers, spoken
from embedders.low_rank import merged, with_low_rank

INSTRUCTION = "Products that a shopper chose, oldest first:"
QUERY_LEAD = "\nNow searching for: "
READ_OUT_WORDS = " The shopper wants next:"

OF_LANGUAGE_MODEL = ("towers.language_model.", "output.")


class Choices(NamedTuple):
    """What some read-outs are to find, and among what.

    Attributes:
        owner_K: whose each is; a row of the batch.
        target_K: the catalogue row that it is to find.
        exposed_KM: catalogue rows shown beside it, PADDING on the right.
        time_K: when the target was chosen.
    """

    owner_K: Tensor
    target_K: Tensor
    exposed_KM: Tensor
    time_K: Tensor


class KarmaPass(NamedTuple):
    """What one training pass gives.

    Attributes:
        users_Kd: h of every read-out, row after row of the batch; unit norm.
        choices: what each is to find.
        state_KD: the state at [INT].
        mean_KF: what `residual` adds to it: the mean of the features seen; None without.
        decoded_K: bool, which of them decode their title.
        generation: states [T, D] and the words [T] to predict from them with the history in sight; None: not asked for.
        reconstruction: the same, with nothing but h in sight.
    """

    users_Kd: Tensor
    choices: Choices
    state_KD: Tensor
    mean_KF: Tensor | None
    decoded_K: Tensor
    generation: tuple[Tensor, Tensor] | None
    reconstruction: tuple[Tensor, Tensor] | None


class KarmaNetwork(nn.Module):
    """The towers with their decoders.

    Args:
        lm: the language model; its model is changed (blocks are taken out, adapters put in) and trained in place.
        features: of the catalogue.
        shape: size.

    Raises:
        ValueError: the language model has fewer blocks than asked for.
    """

    def __init__(self, lm: CausalLM, features: FrozenFeatures, shape: KarmaShape) -> None:
        super().__init__()
        self.shape, self.lm = shape, lm
        self.end, self.query_lead = tuple(lm.end), tuple(lm.tokens(QUERY_LEAD))
        if shape.num_layers is not None:
            _keep_blocks(lm.model, shape.num_layers, lm.model_id)
        self.towers = KarmaTowers(lm.model.get_decoder(), features, shape, lm.opening_tokens(INSTRUCTION))
        self.output: Any = lm.model.get_output_embeddings()
        embedding_VD = spoken(self.towers.language_model)
        typical = float(embedding_VD.square().mean().sqrt())
        with torch.no_grad():
            words_D = embedding_VD[lm.tokens(READ_OUT_WORDS)].mean(dim=0)
            self.towers.read_out_D.copy_(words_D * typical / words_D.square().mean().sqrt())
        self.prefix = nn.Linear(shape.output_dim, embedding_VD.shape[1], bias=False)
        nn.init.normal_(self.prefix.weight, std=typical)  # of a unit vector: as large as a token embedding
        self.image_flow: nn.Module | None = None
        """Of L_img, where there is one (`embedders.karma_losses.ImageFlow`)."""
        self._adapted: Any = None
        if shape.low_rank is not None:
            self._adapted = [with_low_rank(lm.model, shape.low_rank)]  # in a list: its weights are the language model's

    def language_model_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the language model that may be trained (under LoRA the adapters alone), with their names."""
        named = self.named_parameters()
        return ((name, one) for name, one in named if name.startswith(OF_LANGUAGE_MODEL) and one.requires_grad)

    def new_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that the language model did not bring, with their names."""
        return ((name, one) for name, one in self.named_parameters() if not name.startswith(OF_LANGUAGE_MODEL))

    def output_embeddings(self) -> Tensor:
        """[vocabulary, D]: what a state is compared with to predict a word."""
        weight: Tensor = self.output.weight
        return weight

    def items(self, rows: Tensor) -> Tensor:
        """Vectors of catalogue rows, [..., d] unit norm."""
        return self.towers.items(rows)

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
        is_there_BK = batch.cut_BK > 0
        decoded_BK = batch.decoded_BK & is_there_BK
        to_say = [
            [titles[target] if decoded else None for target, decoded in zip(*each, strict=True)]
            for each in zip(batch.target_BK.tolist(), decoded_BK.tolist(), strict=True)
        ]
        asked = [
            [[*self.query_lead, *queries[query]] if query >= 0 else [] for query in row]
            for row in batch.query_BK.tolist()
        ]
        packed = pack(
            batch.history_BL.cpu().numpy(),
            batch.cut_BK.cpu().numpy(),
            instruction=self.towers.instruction,
            queries_BK=asked,
            titles_BK=to_say if generation else None,
            end=self.end,
        )
        hidden_BLD = self.towers.states(packed)
        state_KD, mean_KF = self.towers.read_out(packed, hidden_BLD)
        users_Kd = self.towers.users_of(state_KD, mean_KF)
        decoded_K = decoded_BK[is_there_BK]
        said = [title for row in to_say for title in row if title is not None]
        generated = None
        if generation:
            row_T, place_T = packed.states_T2.to(hidden_BLD.device).unbind(dim=1)
            generated = hidden_BLD[row_T, place_T], packed.words_T.to(hidden_BLD.device)
        return KarmaPass(
            users_Kd=users_Kd,
            choices=Choices(
                owner_K=packed.read_out_K2[:, 0].to(users_Kd.device),
                target_K=batch.target_BK[is_there_BK],
                exposed_KM=batch.exposed_BKM[is_there_BK],
                time_K=batch.time_BK[is_there_BK],
            ),
            state_KD=state_KD,
            mean_KF=mean_KF,
            decoded_K=decoded_K,
            generation=generated,
            reconstruction=self.reconstruct(users_Kd[decoded_K], said) if reconstruction else None,
        )

    def reconstruct(self, users_Md: Tensor, titles: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """States [T, D] that predict the titles' words [T] from the vectors alone: nothing else is in their sight.

        Args:
            users_Md: h of M read-outs.
            titles: tokens of their targets' titles, M.
        """
        return self.said_after(self.prefix(users_Md), titles)

    def said_after(self, prefix_MD: Tensor, titles: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """States [T, D] that predict the words [T] of M titles, each with one token before it and nothing else."""
        words = [[*title, *self.end] for title in titles]
        ids_ML = torch.zeros((len(titles), max(map(len, titles), default=0)), dtype=torch.int64)
        for row, title in enumerate(titles):
            ids_ML[row, : len(title)] = torch.tensor(title, dtype=torch.int64)
        ids_ML = ids_ML.to(prefix_MD.device)
        embedded_MLD = self.towers.language_model.get_input_embeddings()(ids_ML)
        prefix_M1D = prefix_MD.unsqueeze(1).to(embedded_MLD.dtype)
        # padding stands on the right, so the causal mask hides it from every word
        states_MLD = self.towers.language_model(
            inputs_embeds=torch.cat([prefix_M1D, embedded_MLD], dim=1), use_cache=False
        ).last_hidden_state
        row_T = [row for row, each in enumerate(words) for _ in each]
        place_T = [place for each in words for place in range(len(each))]
        words_T = torch.tensor([word for each in words for word in each], dtype=torch.int64, device=prefix_MD.device)
        return states_MLD[row_T, place_T], words_T


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
