"""From a batch to KARMA's loss, as one module with one forward pass (arXiv 2603.22779).

    L = L_act + lambda (L_gen + L_recon + L_img),     each term a switch; in the warm-up L_gen by itself

What we keep: lambda is one number for all that is decoded. Ours [NF->P]: the three decoded terms weigh alike, each is a
mean over what it is taken over; L_img's condition is the state at [INT] for H_t, h itself for h_t.

Letters: N items, K read-outs, M exposed items of one, S sampled items, d output width, V of images.
"""

import numpy as np
import torch
from torch import Tensor, nn

from embedders.histories import PADDING
from embedders.karma import Choices, KarmaNetwork, KarmaPass
from embedders.karma_draws import KarmaLog
from embedders.karma_losses import (
    ImageFlow,
    SampledItems,
    flow_loss,
    infonce_action_loss,
    pairwise_action_loss,
    title_loss,
)
from embedders.karma_packing import KarmaBatch
from embedders.karma_settings import Image, KarmaSettings


class KarmaObjective(nn.Module):
    """The network with what its loss is made of.

    Args:
        network: with an `image_flow` where `image` is on.
        log: what is said, and since when items are there.
        settings: the terms and what they weigh; with a decodability of 0 nothing is decoded.
        device: of the passes: on a GPU they are in bfloat16 unless `precision` says otherwise.
    """

    listed_N: Tensor

    def __init__(self, network: KarmaNetwork, log: KarmaLog, settings: KarmaSettings, device: torch.device) -> None:
        super().__init__()
        self.network, self.titles, self.queries = network, log.titles, log.queries
        listed_N = np.zeros(len(log.titles), np.int64) if log.listed_N is None else log.listed_N
        self.register_buffer("listed_N", torch.tensor(listed_N))  # a copy: the array may be read-only
        self.action_loss = pairwise_action_loss if settings.action == "pairwise" else infonce_action_loss
        self.scale, self.in_batch_weight = settings.scale, settings.in_batch_weight
        self.decodability = settings.decodability
        decodes = settings.decodability > 0.0
        self.generation = settings.generation and decodes
        self.reconstruction = settings.reconstruction and decodes
        self.image: Image = settings.image if decodes else "off"
        automatic = "bfloat16" if device.type == "cuda" else "float32"
        self.in_bfloat16 = (automatic if settings.precision == "auto" else settings.precision) == "bfloat16"

    def forward(self, batch: KarmaBatch[Tensor], joint: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a scalar, and what it is made of (of `embedders.karma_curve.KarmaLosses`), detached.

        A term is absent where it is switched off, or where the batch has nothing for it: no title, no picture.

        Args:
            batch: on the network's device.
            joint: false in the warm-up.
        """
        with torch.autocast(batch.history_BL.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            found = self._pass(batch, joint)
            terms = self._words(found)
            if joint:
                terms = {
                    "action": self.action(found.users_Kd, found.choices, batch.sampled_S),
                    **terms,
                    **self._picture(found),
                }
            loss = 0.0 * found.users_Kd.sum()  # a step has a gradient even where a warm-up's batch has no title
            for name, term in terms.items():
                loss = loss + (self.decodability if joint and name != "action" else 1.0) * term
        return loss, {name: term.detach() for name, term in terms.items()}

    def at_rest(self, batch: KarmaBatch[Tensor]) -> KarmaPass:
        """A pass in which nothing is decoded."""
        with torch.autocast(batch.history_BL.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            found: KarmaPass = self.network(batch, self.titles, self.queries, generation=False, reconstruction=False)
        return found

    def _pass(self, batch: KarmaBatch[Tensor], joint: bool) -> KarmaPass:
        decodes = bool(batch.decoded_BK.any())
        found: KarmaPass = self.network(
            batch,
            self.titles,
            self.queries,
            generation=decodes and (self.generation or not joint),
            reconstruction=decodes and self.reconstruction and joint,
        )
        return found

    def action(self, users_Kd: Tensor, choices: Choices, sampled_S: Tensor) -> Tensor:
        """L_act of some read-outs.

        Args:
            users_Kd: h of each.
            choices: what each is to find.
            sampled_S: catalogue rows that each is compared with if they were there by then.
        """
        exposed_KM = choices.exposed_KM
        exposed_KMd = self.network.items(exposed_KM) if exposed_KM.numel() else None
        sampled = None
        if len(sampled_S):
            known_KS = self.listed_N[sampled_S] <= choices.time_K.unsqueeze(1)
            sampled = SampledItems(self.network.items(sampled_S), sampled_S, known_KS)
        return self.action_loss(
            users_Kd,
            self.network.items(choices.target_K),
            choices.target_K,
            choices.owner_K,
            exposed_KMd,
            None if exposed_KMd is None else exposed_KM != PADDING,
            sampled,
            scale=self.scale,
            in_batch_weight=self.in_batch_weight,
        )

    def _words(self, found: KarmaPass) -> dict[str, Tensor]:
        output_WD = self.network.output_embeddings()
        decoded = {"generation": found.generation, "reconstruction": found.reconstruction}
        return {
            name: title_loss(of_words[0], output_WD, of_words[1])
            for name, of_words in decoded.items()
            if of_words is not None and len(of_words[1])
        }

    def _picture(self, found: KarmaPass) -> dict[str, Tensor]:
        if self.image == "off":
            return {}
        frozen, flow = self.network.towers.features.frozen, self.network.image_flow
        assert frozen.image is not None, "L_img needs pictures"
        assert isinstance(flow, ImageFlow), "L_img needs a flow"
        image_KV = frozen.image(found.choices.target_K)
        if not bool(image_KV.any()):
            return {}
        condition_KC = found.state_KD if self.image == "history" else found.users_Kd
        return {"image": flow_loss(flow, image_KV, condition_KC)}
