"""Encoded examples to the flat matrix that trees read.

scalars        raw, missing as missing
categoricals   rows of their vocabulary, as categories
user, item id  not at all: a tree learns thousands of rare categories by heart; the activity counts say what it
               could use of them
history        its length, how often the candidate is in it, and for each attribute of the candidate (category,
               brand) how many history items share it, and their share
vectors        of each pair cosine(context, item) and the first principal components of both: a tree cannot multiply two
               384-wide vectors coordinate by coordinate

N examples   B rows at once   L history length   K item attributes   V vector width   P components   Z tree inputs
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ranker.batches import (
    ITEM,
    OUT_OF_VOCABULARY,
    PADDING,
    EncodedExamples,
    ExampleLayout,
    VectorColumn,
    VectorPair,
    slices,
)

ROWS_AT_ONCE = 65_536
MAX_VECTORS = 20_000
"""Vectors that principal components are fitted on."""


class PrincipalAxes(NamedTuple):
    """Directions in which the vectors of a matrix differ most."""

    mean_V: NDArray[np.float32]
    axes_VP: NDArray[np.float32]

    @classmethod
    def of(cls, column: VectorColumn, num_components: int) -> Self:
        """Fit on the vectors that the training rows refer to (evenly spread ones, if there are very many)."""
        rows = np.unique(column.rows_N[column.rows_N >= 0])
        vectors = column.table_MV[rows[:: max(1, len(rows) // MAX_VECTORS)]].astype(np.float64)
        width = column.table_MV.shape[1]
        if len(vectors) == 0:
            return cls(np.zeros(width, np.float32), np.zeros((width, num_components), np.float32))
        mean_V = vectors.mean(axis=0)
        _, axes_VV = np.linalg.eigh((vectors - mean_V).T @ (vectors - mean_V))  # ascending
        return cls(mean_V.astype(np.float32), axes_VV[:, ::-1][:, :num_components].astype(np.float32))

    def components(self, vectors_BV: NDArray[np.float32], known_B: NDArray[np.bool_]) -> NDArray[np.float32]:
        """`[B, P]`, NaN where the vector is missing."""
        return np.where(known_B[:, None], (vectors_BV - self.mean_V) @ self.axes_VP, np.nan).astype(np.float32)


class PairAxes(NamedTuple):
    """Principal axes of both sides of a pair of vectors."""

    context: PrincipalAxes
    item: PrincipalAxes


class TreeInputs:
    """Makes the matrix, always with the same columns.

    Args:
        layout: the columns of the examples.
        principal: axes of each pair of vectors of the layout, in its order.
    """

    def __init__(self, layout: ExampleLayout, principal: Sequence[PairAxes]) -> None:
        self.layout = layout
        self.principal = tuple(principal)
        self.categoricals = list(layout.ids[ITEM + 1 :])
        names = [*layout.scalars, *self.categoricals]
        if layout.history is not None:
            names += ["history_length", "history_same_item"]
            for name in layout.item_attributes:
                names += [f"history_same_{name}", f"history_same_{name}_share"]
        for pair, pair_axes in zip(layout.vectors, self.principal, strict=True):
            names.append(f"{pair.name}_cosine")
            for side, axes in pair_axes._asdict().items():
                names += [f"{pair.name}_{side}_component_{number}" for number in range(axes.axes_VP.shape[1])]
        self.names = names

    @classmethod
    def fit(cls, train: EncodedExamples, num_components: int) -> Self:
        """Fit the principal axes of the training rows' vectors."""

        def axes(column: str) -> PrincipalAxes:
            return PrincipalAxes.of(train.vectors[column], num_components)

        return cls(train.layout, [PairAxes(axes(pair.context), axes(pair.item)) for pair in train.layout.vectors])

    def matrix(self, examples: EncodedExamples) -> NDArray[np.float32]:
        """`[N, Z]`, columns as in `names`."""
        inputs_NZ = np.empty((len(examples), len(self.names)), dtype=np.float32)
        for rows in slices(len(examples), ROWS_AT_ONCE):
            first = 0
            for block in self._blocks(examples, rows):
                inputs_NZ[rows, first : first + block.shape[1]] = block
                first += block.shape[1]
            assert first == len(self.names), "every input has a name"
        return inputs_NZ

    def _blocks(self, examples: EncodedExamples, rows: slice) -> Iterator[NDArray[np.float32]]:
        yield examples.scalars_NS[rows]
        categoricals = examples.ids_NF[rows, ITEM + 1 :].astype(np.float32)
        yield np.where(categoricals == PADDING, np.nan, categoricals)
        if self.layout.history is not None:
            yield self._history(examples, rows)
        for pair, axes in zip(self.layout.vectors, self.principal, strict=True):
            yield from _vectors(examples, rows, pair, axes)

    def _history(self, examples: EncodedExamples, rows: slice) -> NDArray[np.float32]:
        """What the history says of the candidate, `[B, 2 + 2K]`; NaN where the candidate's own value is unknown."""
        history_BL, ids_BF = examples.history_NL[rows], examples.ids_NF[rows]
        length_B = (history_BL != PADDING).sum(axis=1)

        def matches(candidate_B: NDArray[np.int32], values_BL: NDArray[np.int32]) -> NDArray[np.float64]:
            count_B = (values_BL == candidate_B[:, None]).sum(axis=1)
            return np.where(candidate_B > OUT_OF_VOCABULARY, count_B, np.nan)

        columns = [length_B, matches(ids_BF[:, ITEM], history_BL)]
        for attribute, name in enumerate(self.layout.item_attributes):
            values_BL = examples.item_attributes_IK[history_BL, attribute]
            count_B = matches(ids_BF[:, self.layout.ids.index(name)], values_BL)
            columns += [count_B, count_B / np.maximum(length_B, 1)]
        return np.stack(columns, axis=1).astype(np.float32)


def _vectors(examples: EncodedExamples, rows: slice, pair: VectorPair, axes: PairAxes) -> Iterator[NDArray[np.float32]]:
    """The cosine `[B, 1]`, NaN where either vector is missing; then the components of both sides `[B, P]`."""
    context_BV, context_known_B = examples.vectors[pair.context].gather(rows)
    item_BV, item_known_B = examples.vectors[pair.item].gather(rows)
    length_B = np.linalg.norm(context_BV, axis=1) * np.linalg.norm(item_BV, axis=1)
    both_B = context_known_B & item_known_B & (length_B > 0)
    cosine_B = np.full(len(context_BV), np.nan, dtype=np.float32)
    cosine_B[both_B] = np.einsum("bv,bv->b", context_BV[both_B], item_BV[both_B]) / length_B[both_B]
    yield cosine_B[:, None]
    yield axes.context.components(context_BV, context_known_B)
    yield axes.item.components(item_BV, item_known_B)
