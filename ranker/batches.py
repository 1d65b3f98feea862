"""Encoded examples: impressions as compact arrays, and shuffled minibatches of tensors over them.

`ranker.feature_columns` makes the arrays from a frame; from here on nobody needs polars, so a ranker trains on a bare
GPU image. Vectors stay where they are (a memory-mapped matrix on disk): an example holds a row number of 4 bytes,
and a minibatch gathers only the rows it needs.

Vectors come in pairs: the item's, and one of the context that it is shown in (the user or the query). Both are of one
embedding space, so that their product means something.

    N examples   B batch   F id columns   S scalars   L history length   V vector width   M rows of a vector matrix
    I rows of the item vocabulary   K item attributes
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PADDING = 0
"""Row of a vocabulary that stands for "no value": the end of a short history, a null category."""

OUT_OF_VOCABULARY = 1
"""Row of a vocabulary that stands for every id the training rows did not hold (or held too rarely)."""

USER, ITEM = 0, 1
"""The first two id columns of every layout: `user_id`, `item_id`."""

UNKNOWN_LABEL = -1
"""`converted` of an impression whose conversion window had not passed."""


@dataclass(frozen=True)
class VectorPair:
    """The columns of a context vector and an item vector that may be multiplied: both are of one embedding space."""

    name: str
    """Of the embedding space: `content`, `learn`, `relevance`."""
    context: str
    """Column of the user's or the query's vector ids."""
    item: str
    """Column of the item's vector ids."""


@dataclass(frozen=True)
class ExampleLayout:
    """What stands in which column of the arrays, and how many rows each embedding table needs."""

    ids: tuple[str, ...]
    """`user_id`, `item_id`, then the categoricals."""
    num_rows: tuple[int, ...]
    """Vocabulary size of each id column, padding and out-of-vocabulary rows included."""
    scalars: tuple[str, ...]
    scalar_roles: tuple[str, ...]
    """`count`, `rate` or `scalar`, for each scalar."""
    history: str | None
    history_length: int
    """Most recent items kept; 0 without a history."""
    item_attributes: tuple[str, ...]
    """The categoricals that belong to the item (one value per item): known for the items of a history too."""
    vectors: tuple[VectorPair, ...]
    vocabulary_digest: str
    """Of all vocabularies: arrays made with other vocabularies mean other ids."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExampleLayout":
        """The inverse of `as_dict`.

        Raises:
            ValueError: the values are not those of a layout.
        """
        expected = [part.name for part in fields(cls)]
        if differing := sorted({*expected} ^ {*values}):
            raise ValueError(
                f"layout: expected the entries {expected}, got {sorted(values)} (differing: {differing}). "
                "Another version of this program wrote it: train the ranker again."
            )
        sides = [part.name for part in fields(VectorPair)]
        if differing := sorted({key for pair in values["vectors"] for key in {*sides} ^ {*pair}}):
            raise ValueError(
                f"layout: expected each pair of vectors to have the entries {sides} (differing: {differing}). "
                "Another version of this program wrote it: train the ranker again."
            )
        plain: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**{**plain, "vectors": tuple(VectorPair(**pair) for pair in values["vectors"])})


@dataclass(frozen=True)
class VectorColumn:
    """A vector per example, by reference."""

    rows_N: NDArray[np.int32]
    """Row of the matrix, -1 where the example has no vector."""
    table_MV: NDArray[np.float32]
    """May be memory-mapped; never copied whole."""
    fingerprint: Mapping[str, str]
    """Which encoder made the vectors."""

    def gather(self, index: NDArray[np.int64] | slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors `[B, V]` of the chosen examples, zero where missing, and which are there `[B]`."""
        rows_B = self.rows_N[index]
        known_B = rows_B >= 0
        # sorted reads walk the file forwards, and an item shown often is read from disk once
        unique_rows, inverse = np.unique(rows_B[known_B], return_inverse=True)
        vectors_BV = np.zeros((len(rows_B), self.table_MV.shape[1]), dtype=np.float32)
        vectors_BV[known_B] = self.table_MV[unique_rows][inverse]
        return vectors_BV, known_B


@dataclass(frozen=True)
class EncodedExamples:
    """N impressions as arrays. Scalars are raw (NaN where missing): each ranker scales them as it likes."""

    layout: ExampleLayout
    ids_NF: NDArray[np.int32]
    scalars_NS: NDArray[np.float32]
    history_NL: NDArray[np.int32]
    """Item rows, oldest first, padded on the right."""
    clicked_N: NDArray[np.bool_]
    converted_N: NDArray[np.int8]
    """1, 0, or -1 where it is not known yet."""
    item_attributes_IK: NDArray[np.int32]
    """Rows of each item's own categoricals: what a history item is, beyond its id."""
    vectors: Mapping[str, VectorColumn] = field(default_factory=dict)
    """Column name -> its vectors, for both columns of each pair of the layout."""

    def __len__(self) -> int:
        return len(self.clicked_N)

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays, vector matrices left out (they are mapped)."""
        arrays = (self.ids_NF, self.scalars_NS, self.history_NL, self.clicked_N, self.converted_N)
        return sum(array.nbytes for array in (*arrays, *(column.rows_N for column in self.vectors.values())))

    @property
    def vector_fingerprints(self) -> dict[str, dict[str, str]]:
        """Fingerprint of each vector column, by its name."""
        return {name: dict(column.fingerprint) for name, column in self.vectors.items()}

    def take(self, index: NDArray[Any]) -> "EncodedExamples":
        """The chosen examples (row numbers or a mask), in that order."""

        def chosen(name: str, value: Any) -> Any:
            if name == "vectors":
                return {each: replace(column, rows_N=column.rows_N[index]) for each, column in value.items()}
            return value[index] if isinstance(value, np.ndarray) and name != "item_attributes_IK" else value

        return EncodedExamples(**{part.name: chosen(part.name, getattr(self, part.name)) for part in fields(self)})


class PairVectors(NamedTuple):
    """The vectors of one pair in a minibatch; zero where they are not known."""

    context_BV: Tensor
    context_known_B: Tensor
    item_BV: Tensor
    item_known_B: Tensor


class Batch(NamedTuple):
    """One minibatch, on the device of the model."""

    ids_BF: Tensor
    scalars_BS: Tensor
    history_BL: Tensor
    """Cut to the longest history of the batch."""
    vectors: tuple[PairVectors, ...]
    """One for each pair of the layout, in its order."""
    clicked_B: Tensor
    """float: 0 or 1."""
    converted_B: Tensor
    """float: 0 or 1; 0 where unknown."""
    converted_known_B: Tensor


@dataclass(frozen=True)
class ShuffledPasses:
    """The order in which the examples are read: a fresh permutation for each pass, a function of (seed, pass) only.

    Nothing is carried from pass to pass, so a run that starts again at (pass, step) reads the same batches.
    """

    num_examples: int
    batch_size: int
    seed: int
    steps_per_pass: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps_per_pass", -(-self.num_examples // self.batch_size))

    def batches(self, pass_number: int, start: int, stop: int) -> Iterator[NDArray[np.int64]]:
        """Row numbers of the steps `start <= step < stop` of one pass."""
        order = np.random.default_rng((self.seed, pass_number)).permutation(self.num_examples)
        for step in range(start, stop):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]


def batch_of(examples: EncodedExamples, index: NDArray[np.int64] | slice, device: torch.device) -> Batch:
    """Tensors of the chosen examples.

    Args:
        examples: all examples, on the CPU.
        index: row numbers, or a slice.
        device: where the model lives.
    """

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    history_BL = examples.history_NL[index]
    longest = int(np.flatnonzero((history_BL != PADDING).any(axis=0)).max(initial=-1)) + 1
    vectors = tuple(
        PairVectors(
            *map(tensor, examples.vectors[pair.context].gather(index)),
            *map(tensor, examples.vectors[pair.item].gather(index)),
        )
        for pair in examples.layout.vectors
    )
    converted_B = examples.converted_N[index]
    return Batch(
        ids_BF=tensor(examples.ids_NF[index]),
        scalars_BS=tensor(examples.scalars_NS[index]),
        history_BL=tensor(history_BL[:, :longest]),
        vectors=vectors,
        clicked_B=tensor(examples.clicked_N[index].astype(np.float32)),
        converted_B=tensor((converted_B == 1).astype(np.float32)),
        converted_known_B=tensor(converted_B != UNKNOWN_LABEL),
    )


def slices(num_examples: int, batch_size: int) -> Iterator[slice]:
    """The examples in order, a batch at a time: for prediction."""
    for start in range(0, num_examples, batch_size):
        yield slice(start, min(start + batch_size, num_examples))
