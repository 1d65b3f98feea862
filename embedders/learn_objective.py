"""From a batch to LEARN's loss, as one module with one forward pass, which is what data-parallel training sees.

What each objective is, and where it is from: `embedders.learn_settings`; the losses: `embedders.contrastive`.

Letters: B users, L history length, H and K sampled positions, T targets, M positions of all users, N items, d width.
"""

import torch
from torch import Tensor, nn

from embedders.contrastive import (
    dense_all_action_loss,
    full_softmax_loss,
    sample_positions,
    sampled_softmax_loss,
)
from embedders.histories import PADDING
from embedders.learn import LearnNetwork
from embedders.learn_settings import LearnSettings


class LearnObjective(nn.Module):
    """The network with the loss that a batch of it has.

    Args:
        network: on the device of the batches.
        settings: which objective, and its samples.
        num_items: of the catalogue.
    """

    def __init__(self, network: LearnNetwork, settings: LearnSettings, num_items: int) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.num_items = num_items

    def forward(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        """The objective's loss, a scalar."""
        # not accelerate's: its precision is one for the whole process, and the ranker's is not ours to choose
        half = self.settings.precision == "bfloat16" or torch.is_autocast_enabled(history_BL.device.type)
        with torch.autocast(history_BL.device.type, torch.bfloat16, enabled=half):
            return self._loss(history_BL, target_BT)

    def _loss(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        match self.settings.objective:
            case "dense":
                return self._dense(history_BL, target_BT)
            case "single":
                return self._single(history_BL, target_BT)
            case "full_softmax":
                catalogue_Nd = self.network.items(torch.arange(self.num_items, device=history_BL.device))
                users_Bd = self.network.last_users(history_BL)
                return full_softmax_loss(users_Bd, target_BT[:, 0], catalogue_Nd, scale=self.settings.scale)
            case "next_item":
                return self._next_item(history_BL, target_BT)

    def _dense(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        users_BLd, targets_BTd = self.network(history_BL, target_BT)
        at_BH, valid_BH = self._sampled(history_BL)
        of_BK, valid_BK = self._sampled(target_BT)
        row_B1 = torch.arange(len(history_BL), device=history_BL.device).unsqueeze(1)
        return dense_all_action_loss(
            users_BLd[row_B1, at_BH],
            valid_BH,
            targets_BTd[row_B1, of_BK],
            valid_BK,
            target_BT[row_B1, of_BK],
            scale=self.settings.scale,
        )

    def _sampled(self, rows_BL: Tensor) -> tuple[Tensor, Tensor]:
        return sample_positions(
            (rows_BL != PADDING).sum(dim=1),
            rows_BL.shape[1],
            self.settings.num_positions,
            recency=self.settings.pair_sampling == "recency",
        )

    def _single(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        target_B1 = target_BT[:, :1]
        users_Bd = self.network.last_users(history_BL)
        all_valid_B1 = torch.ones_like(target_B1, dtype=torch.bool)
        return dense_all_action_loss(
            users_Bd.unsqueeze(1),
            all_valid_B1,
            self.network.targets(target_B1),
            all_valid_B1,
            target_B1,
            scale=self.settings.scale,
        )

    def _next_item(self, history_BL: Tensor, target_BT: Tensor) -> Tensor:
        # history and targets are put together again: each item is the target of those before it
        most = self.network.shape.max_history + 1
        whole = [
            torch.cat([h[h != PADDING], t[t != PADDING]])[-most:] for h, t in zip(history_BL, target_BT, strict=True)
        ]
        sequence_BL = nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=PADDING)
        users_BLd = self.network.users(sequence_BL[:, :-1])
        next_BL = sequence_BL[:, 1:]
        is_there_BL = next_BL != PADDING
        users_Md, next_M = users_BLd[is_there_BL], next_BL[is_there_BL]
        if self.settings.num_negatives is None:
            catalogue_Nd = self.network.items(torch.arange(self.num_items, device=history_BL.device))
            return full_softmax_loss(users_Md, next_M, catalogue_Nd, scale=self.settings.scale)
        drawn_K = torch.randperm(self.num_items, device=history_BL.device)[: self.settings.num_negatives]
        distinct, place_M = torch.unique(next_M, return_inverse=True)
        positive_Md = self.network.items(distinct)[place_M]
        drawn_Kd = self.network.items(drawn_K)
        return sampled_softmax_loss(users_Md, positive_Md, next_M, drawn_Kd, drawn_K, scale=self.settings.scale)
