"""From a batch to KARMA's loss, as one module with one forward pass (arXiv 2603.22779).

    L = L_act + lambda (L_gen + L_recon + L_img),     each term a switch; in the warm-up L_gen by itself

What we keep: lambda is one number for all that is decoded. Ours [NF->P]: the three decoded terms weigh alike, each is a
mean over what it is taken over; L_img's condition is the state at [INT] for H_t, h itself for h_t.

Letters: K read-outs, M exposed items of one, d output width, V of images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedders.histories import PADDING
from embedders.karma import KarmaNetwork, KarmaPass
from embedders.karma_losses import ImageFlow, flow_loss, infonce_action_loss, pairwise_action_loss, title_loss
from embedders.karma_packing import KarmaBatch
from embedders.karma_settings import Action, Image


class KarmaObjective(nn.Module):
    """The network with what its loss is made of.

    Args:
        network: with an `image_flow` where `image` is on.
        titles: token ids of each catalogue row's title.
        queries: token ids of each query.
        action: how targets and negatives are compared.
        scale: of their products; None: as they are.
        decodability: lambda.
        generation: whether L_gen is there.
        reconstruction: whether L_recon is.
        image: what L_img, if it is there, tells the picture from.
        in_bfloat16: whether the pass is; what `embedders.karma_losses` keeps in float32 is float32.
    """

    def __init__(
        self,
        network: KarmaNetwork,
        titles: Sequence[Sequence[int]],
        queries: Sequence[Sequence[int]],
        *,
        action: Action,
        scale: float | None,
        decodability: float,
        generation: bool,
        reconstruction: bool,
        image: Image,
        in_bfloat16: bool,
    ) -> None:
        super().__init__()
        self.network, self.titles, self.queries = network, titles, queries
        self.action_loss = pairwise_action_loss if action == "pairwise" else infonce_action_loss
        self.scale, self.decodability, self.in_bfloat16 = scale, decodability, in_bfloat16
        self.generation, self.reconstruction, self.image = generation, reconstruction, image

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
                terms = {"action": self._action(found), **terms, **self._picture(found)}
            loss = 0.0 * found.users_Kd.sum()  # a step has a gradient even where a warm-up's batch has no title
            for name, term in terms.items():
                loss = loss + (self.decodability if joint and name != "action" else 1.0) * term
        return loss, {name: term.detach() for name, term in terms.items()}

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

    def _action(self, found: KarmaPass) -> Tensor:
        exposed_KMd = self.network.items(found.exposed_KM) if found.exposed_KM.numel() else None
        return self.action_loss(
            found.users_Kd,
            self.network.items(found.target_K),
            found.target_K,
            found.owner_K,
            exposed_KMd,
            None if exposed_KMd is None else found.exposed_KM != PADDING,
            scale=self.scale,
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
        image_KV = frozen.image(found.target_K)
        if not bool(image_KV.any()):
            return {}
        condition_KC = found.state_KD if self.image == "history" else found.users_Kd
        return {"image": flow_loss(flow, image_KV, condition_KC)}
