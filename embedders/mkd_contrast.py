"""Who is a positive and who a negative of a query, as MKD's contrastive loss needs it (arXiv 2411.13045; [NF->P]).

Card: items that the teacher calls good and that share category and brand are positives; mismatches on exactly one
attribute are hard negatives. How we read it:

    positive        judged good for the query, and neither its category nor its brand mismatches;
                    or not judged for it, but of the same category and brand as one that is
    hard negative   judged, not good, and exactly one step mismatches
    negative        judged bad otherwise; or not judged for it, and no positive by the rule above
    neither         judged with an unknown verdict and not exactly one mismatch; good with a category or brand that
                    mismatches

Letters: B pairs, A steps, Q queries, I items, all of one batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from embedders.mkd_losses import UNKNOWN

CATEGORY, BRAND = 0, 1
"""Where they stand among the steps and among the attributes."""
MISMATCH = 1


class Contrasts(NamedTuple):
    """Relations of queries and items, each [Q, I] bool; a place is in one of them at most."""

    positive: Tensor
    negative: Tensor
    hard_negative: Tensor

    def weights(self, hard_weight: float) -> Tensor:
        """Of each negative in the denominator: 1, `hard_weight` for a hard one, 0 for what is no negative."""
        return self.negative.float() + hard_weight * self.hard_negative.float()


def contrasts(
    query_B: Tensor, item_B: Tensor, good_B: Tensor, match_BA: Tensor, class_IC: Tensor, num_queries: int
) -> Contrasts:
    """Relations of the queries and items of a batch. A pair judged twice is a positive if it once was.

    Args:
        query_B: place of each pair's query among the Q, and `item_B` of its item among the I.
        item_B: see there.
        good_B: 1 good, 0 bad, UNKNOWN.
        match_BA: steps: category, brand, ...; 1 is a mismatch.
        class_IC: of each item: category, brand, ...; UNKNOWN where not known. C = 0: not known of any.
        num_queries: Q.
    """
    is_mismatch_BA = match_BA == MISMATCH
    good, bad = good_B == 1, good_B == 0
    fits_B = ~(is_mismatch_BA[:, CATEGORY] | is_mismatch_BA[:, BRAND])
    one_off_B = is_mismatch_BA.sum(dim=1) == 1

    def at(chosen_B: Tensor) -> Tensor:
        place_QI = torch.zeros(num_queries, len(class_IC), dtype=torch.bool, device=query_B.device)
        place_QI[query_B[chosen_B], item_B[chosen_B]] = True
        return place_QI

    judged_QI = at(torch.ones_like(good))
    positive_QI = at(good & fits_B)
    if class_IC.shape[1] > BRAND:
        category_I, brand_I = class_IC[:, CATEGORY], class_IC[:, BRAND]
        known_I = (category_I != UNKNOWN) & (brand_I != UNKNOWN)
        alike_II = (category_I == category_I.unsqueeze(1)) & (brand_I == brand_I.unsqueeze(1))
        alike_II &= known_I & known_I.unsqueeze(1)
        reached_QI = (positive_QI.float() @ alike_II.float()) > 0
        positive_QI |= reached_QI & ~judged_QI
    hard_QI = at(~good & one_off_B) & ~positive_QI
    negative_QI = (at(bad & ~one_off_B) | ~judged_QI) & ~positive_QI & ~hard_QI
    return Contrasts(positive_QI, negative_QI, hard_QI)
