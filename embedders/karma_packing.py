"""How KARMA's training example becomes token sequences: one history, several read-outs, no second copy of anything.

    ctx    instruction . item_1 ... item_n                     items are one continuous token each
    R_k    [query_k .] [INT]                                   sees the items before its own cut, and itself
    B_k    title of k's target                                 sees what R_k sees, R_k, and itself:       L_gen
    C_k    [h_k] . title of k's target                         a row by itself, without any history:      L_recon

KARMA (arXiv 2603.22779) states the losses, not how they are computed. Ours [NF->P]: the read-outs of one history share
its keys and values, so that a second target costs a few tokens, not a second reading; each sees exactly what it would
see in a pass by itself, positions included. C needs h_k, the outcome of the first pass, so it is a second, short one.

Letters: B users, n items of a history, L tokens of a packed row, K read-outs of a user, M exposed items of a read-out,
S sampled items of the catalogue.
"""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.histories import PADDING

Array = TypeVar("Array", NDArray[Any], Tensor)

ITEM, READ_OUT, NOTHING = -1, -2, -3
"""In `Packed.token_BL`: an item of the history, [INT], padding. Every other number is a token of the vocabulary."""

ANY_TIME = int(np.iinfo(np.int64).max)
"""Of a choice in a log without times: everything was there by then."""

QUERY_TOKENS = 16
"""Of a query; what comes after is cut off, in training and in serving."""


class KarmaBatch(NamedTuple, Generic[Array]):
    """Some users with their read-outs.

    Attributes:
        history_BL: catalogue rows, oldest first, PADDING on the right.
        cut_BK: items of the history that read-out k sees, at least 1; 0 where there is no such read-out.
        target_BK: the catalogue row that it is to find.
        query_BK: its query, or -1 for none.
        exposed_BKM: catalogue rows shown beside the target and not clicked, PADDING on the right.
        decoded_BK: bool; whether the words of its target are decoded.
        time_BK: when its target was chosen, as the log counts time; ANY_TIME where it does not.
        sampled_S: catalogue rows that every read-out is compared with, if they were there by then.
    """

    history_BL: Array
    cut_BK: Array
    target_BK: Array
    query_BK: Array
    exposed_BKM: Array
    decoded_BK: Array
    time_BK: Array
    sampled_S: Array


class Packed(NamedTuple):
    """Token sequences of one forward pass, on the CPU.

    Attributes:
        token_BL: token of the vocabulary, or ITEM, READ_OUT, NOTHING.
        item_BL: catalogue row where the token is an item, else PADDING.
        position_BL: as the model counts them.
        segment_BL: 0 instruction and history, k + 1 read-out k with its title, -1 padding.
        reach_BL: last position of the instruction and history that the token sees.
        read_out_K2: row and place of each [INT], in the order of `cut_BK`'s entries that are not 0.
        states_T2: row and place of each state that predicts a word of a title, read-out after read-out.
        words_T: the word that it is to predict; the end token is the last one of each title.
    """

    token_BL: Tensor
    item_BL: Tensor
    position_BL: Tensor
    segment_BL: Tensor
    reach_BL: Tensor
    read_out_K2: Tensor
    states_T2: Tensor
    words_T: Tensor

    def visible(self) -> Tensor:
        """Bool [B, L, L]: whether a row's token sees a column's. Padding sees itself, so that no row is empty."""
        places = torch.arange(self.token_BL.shape[1])
        is_before_LL = places.unsqueeze(0) <= places.unsqueeze(1)
        column_B1L, row_BL1 = self.segment_BL.unsqueeze(1), self.segment_BL.unsqueeze(2)
        in_reach_BLL = (column_B1L == 0) & (self.position_BL.unsqueeze(1) <= self.reach_BL.unsqueeze(2))
        of_itself_BLL = (row_BL1 > 0) & (column_B1L == row_BL1) & is_before_LL
        return in_reach_BLL | of_itself_BLL | torch.eye(len(places), dtype=torch.bool)

    @property
    def is_history(self) -> Tensor:
        """Bool [B, L]: where the items are."""
        return self.token_BL == ITEM


def pack(
    history_BL: NDArray[np.int64],
    cut_BK: NDArray[np.int64],
    *,
    instruction: Sequence[int],
    queries_BK: Sequence[Sequence[Sequence[int]]] | None = None,
    titles_BK: Sequence[Sequence[Sequence[int] | None]] | None = None,
    end: Sequence[int] = (),
) -> Packed:
    """Lay out ctx, R_k and B_k of some users.

    Args:
        history_BL: catalogue rows, PADDING on the right.
        cut_BK: how many of them each read-out sees; 0 for no read-out.
        instruction: tokens that every row opens with.
        queries_BK: tokens between history and [INT]; None: none anywhere.
        titles_BK: tokens of the targets' titles; None where nothing is decoded.
        end: the token that closes a title; none where the tokenizer has none.
    """
    rows: list[tuple[list[int], list[int], list[int], list[int], list[int]]] = []
    read_outs: list[tuple[int, int]] = []
    states: list[tuple[int, int]] = []
    words: list[int] = []
    for row, history in enumerate(history_BL.tolist()):
        items = [item for item in history if item != PADDING]
        opening = len(instruction)
        token = [*instruction, *[ITEM] * len(items)]
        item_of = [*[PADDING] * opening, *items]
        position = list(range(len(token)))
        segment = [0] * len(token)
        reach = list(position)
        for number, cut in enumerate(cut_BK[row].tolist()):
            if cut == 0:
                continue
            assert 0 < cut <= len(items), f"read-out {number} sees {cut} of {len(items)} items"
            before = list(queries_BK[row][number]) if queries_BK is not None else []
            title = titles_BK[row][number] if titles_BK is not None else None
            own = [*before, READ_OUT, *(title or [])]
            place = len(token) + len(before)
            read_outs.append((row, place))
            if title is not None:
                to_say = [*title, *end]
                states += [(row, place + step) for step in range(len(to_say))]
                words += to_say
            token += own
            item_of += [PADDING] * len(own)
            position += range(opening + cut, opening + cut + len(own))
            segment += [number + 1] * len(own)
            reach += [opening + cut - 1] * len(own)
        rows.append((token, item_of, position, segment, reach))
    longest = max(len(token) for token, *_ in rows)
    filled = [
        torch.tensor([values + [nothing] * (longest - len(values)) for values in column], dtype=torch.int64)
        for column, nothing in zip(zip(*rows, strict=True), (NOTHING, PADDING, 0, -1, -1), strict=True)
    ]
    token_BL, item_BL, position_BL, segment_BL, reach_BL = filled
    return Packed(
        token_BL=token_BL,
        item_BL=item_BL,
        position_BL=position_BL,
        segment_BL=segment_BL,
        reach_BL=reach_BL,
        read_out_K2=_pairs(read_outs),
        states_T2=_pairs(states),
        words_T=torch.tensor(words, dtype=torch.int64),
    )


def _pairs(found: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)


class SharedPass(NamedTuple):
    """Histories of which each is the beginning of the longest one, so that one pass reads them all.

    Attributes:
        history: catalogue rows of the longest.
        numbers: which histories these are.
        cuts: how long each is.
    """

    history: NDArray[np.int32]
    numbers: list[int]
    cuts: list[int]


def shared_passes(histories: Sequence[NDArray[np.int32]]) -> list[SharedPass]:
    """Put together histories that begin alike: those of one user at successive midnights. None of them empty."""
    # in descending order of their bytes a history comes right after those that go on from it
    as_bytes = [np.ascontiguousarray(history, ">u4").tobytes() for history in histories]
    passes: list[SharedPass] = []
    longest = b""
    for number in sorted(range(len(histories)), key=as_bytes.__getitem__, reverse=True):
        if not passes or not longest.startswith(as_bytes[number]):
            longest = as_bytes[number]
            passes.append(SharedPass(histories[number], [], []))
        passes[-1].numbers.append(number)
        passes[-1].cuts.append(len(histories[number]))
    return passes
