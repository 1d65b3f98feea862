"""Ids to rows of embedding tables: fitted on the training rows only, with a row for padding and one for all others."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranker.batches import OUT_OF_VOCABULARY, PADDING

FIRST_ID_ROW = max(PADDING, OUT_OF_VOCABULARY) + 1


@dataclass(frozen=True)
class Vocabulary:
    """Ids with a row of their own, most frequent first; row 0 is padding, row 1 every other id."""

    ids: pl.Series

    @classmethod
    def fit(cls, train: pl.LazyFrame, column: str, min_count: int) -> "Vocabulary":
        """The ids that at least `min_count` training rows have in a column; ties in frequency by name."""
        counted = train.select(pl.col(column).cast(pl.String).alias("id")).drop_nulls().group_by("id").len()
        frequent = counted.filter(pl.col("len") >= min_count).sort(["len", "id"], descending=[True, False])
        return cls(frequent.collect(engine="streaming")["id"])

    @property
    def num_rows(self) -> int:
        """Rows an embedding table needs."""
        return FIRST_ID_ROW + len(self.ids)

    def rows_of(self, values: pl.Series) -> NDArray[np.int32]:
        """Row of each value: its own, 1 where it is not in the vocabulary, 0 where it is null."""
        values = values.cast(pl.String)
        # a cast to Enum is one hash look-up a value; the vocabulary's order gives the row
        codes = values.cast(pl.Enum(self.ids), strict=False).to_physical().cast(pl.Int32) + FIRST_ID_ROW
        rows = codes.fill_null(OUT_OF_VOCABULARY).to_numpy().copy()
        if values.null_count():
            rows[values.is_null().to_numpy()] = PADDING
        return rows


def digest_of(vocabularies: Mapping[str, Vocabulary]) -> str:
    """Short hash of every id and its row."""
    digest = hashlib.sha256()
    for name, vocabulary in vocabularies.items():
        digest.update(f"{name} {len(vocabulary.ids)}\n".encode())
        digest.update("\n".join(vocabulary.ids).encode())
    return digest.hexdigest()[:16]


def rows_of_item_attributes(
    train: pl.LazyFrame, categoricals: Sequence[str], vocabularies: Mapping[str, Vocabulary]
) -> dict[str, NDArray[np.int32]]:
    """Rows of the categoricals that have one value per item in the training rows, for each row of the item vocabulary.

    They let a ranker know what the items of a history are (DIN embeds the category beside the id); items without a
    row of their own have none.
    """
    if not categoricals:
        return {}
    item_ids = vocabularies["item_id"].ids
    by_item = (
        train.select(pl.col("item_id").cast(pl.String), *categoricals)
        .group_by("item_id")
        .agg(
            *(pl.col(name).drop_nulls().n_unique().alias(f"{name} values") for name in categoricals),
            *(pl.col(name).drop_nulls().first().cast(pl.String) for name in categoricals),
        )
        .collect(engine="streaming")
    )
    single: list[str] = [name for name in categoricals if by_item[f"{name} values"].max() == 1]
    known = pl.DataFrame({"item_id": item_ids}).join(
        by_item, on="item_id", how="left", maintain_order="left", coalesce=True
    )
    no_attribute = np.full(FIRST_ID_ROW, PADDING, dtype=np.int32)
    return {name: np.concatenate([no_attribute, vocabularies[name].rows_of(known[name])]) for name in single}
