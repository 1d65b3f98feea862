"""From frames to arrays: which columns a ranker reads, and how ids become rows of embedding tables.

What a feature is for is said by its role, a tag of the Feast field that travels with the training set:

    categorical   an id of its own vocabulary                 -> a row number
    count, rate, scalar   a number                            -> float32, NaN where missing; each ranker scales it
    history       a list of item ids, newest last             -> rows of the item vocabulary
    vector_id     a row of a vector matrix                    -> its position in the matrix; comes in pairs,
                  `user_<name>_vector_id` (or `query_<name>_vector_id`) and `item_<name>_vector_id` of one space
    timestamps    when the history happened                   -> not read by today's rankers

Only this file and `ranker.vocabularies` know polars; everything behind them works on `EncodedExamples`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranker.batches import (
    ITEM,
    UNKNOWN_LABEL,
    EncodedExamples,
    ExampleLayout,
    VectorColumn,
    VectorPair,
)
from ranker.vector_pairs import check_one_space, pair_columns
from ranker.vocabularies import Vocabulary, digest_of, rows_of_item_attributes

SCALAR_ROLES = ("count", "rate", "scalar")
LABELS = ("clicked", "converted")


class VectorMatrix(Protocol):
    """Vectors by id: what `jobs.lake` opens."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """`[M, V]`, usually memory-mapped."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Which encoder made them."""

    def rows_of(self, vector_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each id, -1 where the matrix does not hold it."""


@dataclass(frozen=True)
class FeatureColumns:
    """The features of one feature service, by role."""

    categoricals: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    scalar_roles: tuple[str, ...] = ()
    history: str | None = None
    vectors: tuple[VectorPair, ...] = ()

    @classmethod
    def from_roles(cls, roles: Mapping[str, str]) -> "FeatureColumns":
        """Sort the features of a service by role.

        Args:
            roles: feature name -> role, as `build_training_set` leaves it in the metadata of the training set.

        Raises:
            ValueError: an unknown role, more than one history, or a vector that is not one of a pair.
        """
        known = {*SCALAR_ROLES, "categorical", "history", "timestamps", "vector_id"}
        if unknown := {name: role for name, role in roles.items() if role not in known}:
            raise ValueError(
                f"feature roles: {unknown} are none of {sorted(known)}. Correct the `role` tag of these Feast fields."
            )

        def named(role: str) -> tuple[str, ...]:
            return tuple(name for name, its_role in roles.items() if its_role == role)

        histories = named("history")
        if len(histories) > 1:
            raise ValueError(
                f"feature roles: a ranker reads one history, got {list(histories)}. "
                "Put them into feature services of their own and compare the rankers."
            )
        scalars = tuple(name for name, role in roles.items() if role in SCALAR_ROLES)
        return cls(
            categoricals=named("categorical"),
            scalars=scalars,
            scalar_roles=tuple(roles[name] for name in scalars),
            history=histories[0] if histories else None,
            vectors=pair_columns(named("vector_id")),
        )

    @property
    def ids(self) -> tuple[str, ...]:
        """Columns that become rows of an embedding table; the user and the item come first."""
        return ("user_id", "item_id", *self.categoricals)

    @property
    def features(self) -> tuple[str, ...]:
        """Every column to read of a frame, labels left out."""
        history = () if self.history is None else (self.history,)
        return (*self.ids, *self.scalars, *history, *self.vector_ids)

    @property
    def vector_ids(self) -> tuple[str, ...]:
        """The columns of all pairs of vectors."""
        return tuple(column for pair in self.vectors for column in (pair.context, pair.item))


class FeatureEncoder:
    """Turns frames into `EncodedExamples`, with vocabularies fitted on the training rows only."""

    def __init__(
        self,
        columns: FeatureColumns,
        vocabularies: Mapping[str, Vocabulary],
        item_attributes: Mapping[str, NDArray[np.int32]],
        history_length: int,
    ) -> None:
        self.columns = columns
        self.vocabularies = dict(vocabularies)
        num_items = self.vocabularies["item_id"].num_rows
        self.item_attributes_IK = np.zeros((num_items, len(item_attributes)), dtype=np.int32)
        for column, rows_I in enumerate(item_attributes.values()):
            self.item_attributes_IK[:, column] = rows_I
        self.layout = ExampleLayout(
            ids=columns.ids,
            num_rows=tuple(self.vocabularies[name].num_rows for name in columns.ids),
            scalars=columns.scalars,
            scalar_roles=columns.scalar_roles,
            history=columns.history,
            history_length=history_length if columns.history else 0,
            item_attributes=tuple(item_attributes),
            vectors=columns.vectors,
            vocabulary_digest=digest_of(self.vocabularies),
        )

    @classmethod
    def fit(
        cls, columns: FeatureColumns, train: pl.LazyFrame, *, min_count: int = 2, history_length: int = 30
    ) -> "FeatureEncoder":
        """Fit the vocabularies.

        Args:
            columns: what to read.
            train: the training rows, and no others.
            min_count: an id seen in fewer rows shares the out-of-vocabulary row, so that the row is trained.
            history_length: most recent items of a history that are kept.
        """
        vocabularies = {name: Vocabulary.fit(train, name, min_count) for name in columns.ids}
        return cls(
            columns, vocabularies, rows_of_item_attributes(train, columns.categoricals, vocabularies), history_length
        )

    def encode(self, frame: pl.DataFrame, matrices: Mapping[str, VectorMatrix] | None = None) -> EncodedExamples:
        """Encode one frame.

        Args:
            frame: one row per impression. Without labels (at serving) every label reads as unknown.
            matrices: vector_id column -> its matrix.
        """
        return self.encode_chunks([frame], frame.height, matrices)

    def encode_chunks(
        self, chunks: Iterable[pl.DataFrame], num_rows: int, matrices: Mapping[str, VectorMatrix] | None = None
    ) -> EncodedExamples:
        """Encode a table that is read piece by piece, so that its strings are never all in memory.

        Args:
            chunks: frames, in order.
            num_rows: rows of all chunks together.
            matrices: vector_id column -> its matrix.

        Raises:
            ValueError: a column or a matrix is missing, the vectors of a pair are of two models, or the chunks have
                another number of rows.
        """
        layout = self.layout
        ids_NF = np.empty((num_rows, len(layout.ids)), dtype=np.int32)
        scalars_NS = np.empty((num_rows, len(layout.scalars)), dtype=np.float32)
        history_NL = np.zeros((num_rows, layout.history_length), dtype=np.int32)
        clicked_N = np.zeros(num_rows, dtype=np.bool_)
        converted_N = np.full(num_rows, UNKNOWN_LABEL, dtype=np.int8)
        vectors = {
            name: VectorColumn(np.full(num_rows, -1, dtype=np.int32), matrix.vectors, dict(matrix.fingerprint))
            for name, matrix in self._matrices(matrices or {}).items()
        }
        start = 0
        for chunk in chunks:
            if missing := [name for name in self.columns.features if name not in chunk.columns]:
                raise ValueError(
                    f"encode: columns {missing} are not in the examples (there: {chunk.columns}). "
                    "Build the training set with the feature service this encoder was fitted on."
                )
            stop = start + chunk.height
            if stop > num_rows:
                break
            for column, name in enumerate(layout.ids):
                ids_NF[start:stop, column] = self.vocabularies[name].rows_of(chunk[name])
            for column, name in enumerate(layout.scalars):
                scalars_NS[start:stop, column] = chunk[name].cast(pl.Float32).fill_null(float("nan")).to_numpy()
            if layout.history is not None:
                self._encode_history(chunk[layout.history], history_NL[start:stop])
            for name, vector_column in vectors.items():
                vector_ids = chunk[name].cast(pl.Int64).fill_null(-1).to_numpy()
                vector_column.rows_N[start:stop] = matrices[name].rows_of(vector_ids) if matrices else -1
            if "clicked" in chunk.columns:
                clicked_N[start:stop] = chunk["clicked"].to_numpy()
            if "converted" in chunk.columns:
                converted_N[start:stop] = chunk["converted"].cast(pl.Int8).fill_null(UNKNOWN_LABEL).to_numpy()
            start = stop
        if start != num_rows:
            raise ValueError(
                f"encode: expected {num_rows} rows, the chunks hold {start} or more. Count the rows again."
            )
        return EncodedExamples(
            layout=layout,
            ids_NF=ids_NF,
            scalars_NS=scalars_NS,
            history_NL=history_NL,
            clicked_N=clicked_N,
            converted_N=converted_N,
            item_attributes_IK=self.item_attributes_IK,
            vectors=vectors,
        )

    def _matrices(self, matrices: Mapping[str, VectorMatrix]) -> dict[str, VectorMatrix]:
        wanted = self.columns.vector_ids
        if missing := [name for name in wanted if name not in matrices]:
            raise ValueError(f"encode: no vector matrix for {missing}. Got matrices for {sorted(matrices)}.")
        for pair in self.columns.vectors:
            check_one_space(pair, matrices[pair.context].fingerprint, matrices[pair.item].fingerprint)
        return {name: matrices[name] for name in wanted}

    def _encode_history(self, histories: pl.Series, out_NL: NDArray[np.int32]) -> None:
        """Write item rows into `out_NL`, oldest first, padded on the right with 0."""
        recent = histories.list.tail(out_NL.shape[1])
        length_N = recent.list.len().fill_null(0).to_numpy()
        items = recent.explode(empty_as_null=False, keep_nulls=False)
        positions_L = np.arange(out_NL.shape[1])
        out_NL[positions_L < length_N[:, None]] = self.vocabularies["item_id"].rows_of(items)

    def save(self, folder: Path) -> None:
        """Write vocabularies and layout beside a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, vocabulary in self.vocabularies.items():
            pl.DataFrame({"id": vocabulary.ids}).write_parquet(folder / f"vocabulary_{name}.parquet")
        np.save(folder / "item_attributes.npy", self.item_attributes_IK)
        (folder / "layout.json").write_text(json.dumps(self.layout.as_dict(), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "FeatureEncoder":
        """Read what `save` wrote."""
        layout = ExampleLayout.from_dict(json.loads((folder / "layout.json").read_text()))
        attributes_IK = np.load(folder / "item_attributes.npy")
        encoder = cls(
            FeatureColumns(
                categoricals=layout.ids[ITEM + 1 :],
                scalars=layout.scalars,
                scalar_roles=layout.scalar_roles,
                history=layout.history,
                vectors=layout.vectors,
            ),
            {name: Vocabulary(pl.read_parquet(folder / f"vocabulary_{name}.parquet")["id"]) for name in layout.ids},
            {name: attributes_IK[:, column] for column, name in enumerate(layout.item_attributes)},
            layout.history_length,
        )
        if encoder.layout != layout:
            raise ValueError(
                f"{folder}: the vocabularies do not match layout.json (digest {layout.vocabulary_digest}, found "
                f"{encoder.layout.vocabulary_digest}). The folder was written by two runs: train again."
            )
        return encoder
