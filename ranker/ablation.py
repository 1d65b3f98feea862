"""What a group of features is worth: the same ranker with it and without it, on the same impressions.

permuted    within each user, the group's columns are shuffled together among that user's test rows, and the trained
            ranker scores them: what it loses is what it takes from the group to order one user's candidates. No
            training; but it never sees what the ranker would have read instead, so groups that say the same (content
            and learn, say) each look cheap, and a group that is the same for all rows of a user cannot be judged.
retrained   the ranker is trained again without the group: what the metric loses is what the group adds to the others.

Permuting is within users because UAUC compares the rows of one user: values of another user would give combinations
that no impression has.

    N examples   F id columns   S scalars   K item attributes
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import FeatureGroupValues
from ranker.batches import ITEM, OUT_OF_VOCABULARY, EncodedExamples, ExampleLayout, VectorPair
from ranker.comparison import compare
from ranker.feature_columns import FeatureColumns, FeatureEncoder
from ranker.judged_runs import Run, line_up

METHODS = ("permuted", "retrained")

WITH, WITHOUT = "with", "without"
"""What the two sides of a comparison are called."""

METRICS = ("uauc", "wuauc")

VERDICTS = {"worse": "helps", "better": "hurts", "no difference": "no difference", "cannot tell": "cannot tell"}
"""Verdict on the ranker without the group -> verdict on the group."""


@dataclass(frozen=True)
class EncodedColumns:
    """Where the features of a group stand in the arrays."""

    ids: tuple[int, ...]
    scalars: tuple[int, ...]
    history: bool
    pairs: tuple[VectorPair, ...]

    @classmethod
    def of(cls, layout: ExampleLayout, features: Sequence[str]) -> "EncodedColumns":
        """Look the features up; those that no ranker reads (the times of a history) are in no array."""
        return cls(
            ids=tuple(column for column, name in enumerate(layout.ids) if name in features),
            scalars=tuple(column for column, name in enumerate(layout.scalars) if name in features),
            history=layout.history is not None and layout.history in features,
            pairs=tuple(pair for pair in layout.vectors if pair.context in features or pair.item in features),
        )

    @property
    def vectors(self) -> list[str]:
        """Names of the vector columns."""
        return [column for pair in self.pairs for column in (pair.context, pair.item)]


def shuffle_within_users(user_N: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of the rows in which each row is replaced by one of the same user: `user_N[order] == user_N`.

    Args:
        user_N: number of the user of each row, rows in any order.
        rng: every order within a user is as likely.
    """
    order_N = np.empty(len(user_N), dtype=np.int64)
    order_N[np.argsort(user_N, kind="stable")] = np.lexsort((rng.random(len(user_N)), user_N))
    return order_N


def permuted(examples: EncodedExamples, columns: EncodedColumns, order_N: NDArray[np.int64]) -> EncodedExamples:
    """The examples with the group's columns taken, together, from other rows.

    Args:
        examples: of the split that is scored.
        columns: of the group.
        order_N: for each row the row whose values it gets, as `shuffle_within_users` gives it.
    """
    ids_NF, scalars_NS = examples.ids_NF.copy(), examples.scalars_NS.copy()
    for array, chosen in ((ids_NF, columns.ids), (scalars_NS, columns.scalars)):
        for column in chosen:
            array[:, column] = array[order_N, column]
    vectors = {
        name: replace(column, rows_N=column.rows_N[order_N]) if name in columns.vectors else column
        for name, column in examples.vectors.items()
    }
    history_NL = examples.history_NL[order_N] if columns.history else examples.history_NL
    return replace(examples, ids_NF=ids_NF, scalars_NS=scalars_NS, history_NL=history_NL, vectors=vectors)


def varies_within_users(examples: EncodedExamples, columns: EncodedColumns, user_N: NDArray[np.int64]) -> bool:
    """Whether any user has two rows that differ in the group: if not, permuting changes nothing."""
    _, first, inverse_N = np.unique(user_N, return_index=True, return_inverse=True)
    first_N = first[inverse_N]  # of each row, the first row of its user
    arrays: list[NDArray[Any]] = [examples.ids_NF[:, column] for column in columns.ids]
    arrays += [examples.scalars_NS[:, column] for column in columns.scalars]
    arrays += [examples.vectors[name].rows_N for name in columns.vectors]
    arrays += [examples.history_NL] if columns.history else []
    return any(not np.array_equal(one, one[first_N], equal_nan=one.dtype.kind == "f") for one in arrays)


def encoder_without(encoder: FeatureEncoder, features: Sequence[str]) -> FeatureEncoder:
    """The encoder that would have been fitted without the features. The user and the item keep their columns."""
    layout = encoder.layout
    scalars = [
        (name, role) for name, role in zip(layout.scalars, layout.scalar_roles, strict=True) if name not in features
    ]
    dropped = EncodedColumns.of(layout, features)
    columns = FeatureColumns(
        categoricals=tuple(name for name in layout.ids[ITEM + 1 :] if name not in features),
        scalars=tuple(name for name, _ in scalars),
        scalar_roles=tuple(role for _, role in scalars),
        history=None if dropped.history else layout.history,
        vectors=tuple(pair for pair in layout.vectors if pair not in dropped.pairs),
    )
    attributes = {
        name: encoder.item_attributes_IK[:, place]
        for place, name in enumerate(layout.item_attributes)
        if name not in features
    }
    vocabularies = {name: encoder.vocabularies[name] for name in columns.ids}
    return FeatureEncoder(columns, vocabularies, attributes, layout.history_length)


def without(examples: EncodedExamples, encoder: FeatureEncoder, features: Sequence[str]) -> EncodedExamples:
    """The examples as the smaller encoder would have made them.

    Whose row it is stays known (`user_id`, `item_id` are columns of every layout): leaving these ids out means that
    each reads as one that was never seen.

    Args:
        examples: with the features.
        encoder: what `encoder_without` gives for them.
        features: of the group.
    """
    layout, smaller = examples.layout, encoder.layout
    ids_NF = np.ascontiguousarray(examples.ids_NF[:, [layout.ids.index(name) for name in smaller.ids]])
    for column in EncodedColumns.of(smaller, features).ids:
        ids_NF[:, column] = OUT_OF_VOCABULARY
    scalars = [layout.scalars.index(name) for name in smaller.scalars]
    return EncodedExamples(
        layout=smaller,
        ids_NF=ids_NF,
        scalars_NS=np.ascontiguousarray(examples.scalars_NS[:, scalars]),
        history_NL=examples.history_NL[:, : smaller.history_length],
        clicked_N=examples.clicked_N,
        converted_N=examples.converted_N,
        item_attributes_IK=encoder.item_attributes_IK,
        vectors={name: examples.vectors[name] for name in encoder.columns.vector_ids},
    )


class Judging(NamedTuple):
    """How surely differences are judged; the arguments of `ranker.comparison.compare`."""

    num_draws: int = 1000
    seed: int = 0
    min_users: int = 30
    min_positives: int = 30


def group_values(
    with_group: Sequence[Run],
    without_group: Sequence[Run],
    *,
    ranker: str,
    feature_group: str,
    method: str,
    segment_kinds: Sequence[str] = ("user_segment", "item_segment"),
    judging: Judging | None = None,
) -> dy.DataFrame[FeatureGroupValues]:
    """What one group is worth on clicks, overall and by segment, paired by user.

    Args:
        with_group: the ranker as it is, a run for each training seed.
        without_group: the same rankers without the group; several shuffles of one training seed are runs of their own
            (with any numbers for seeds), and are averaged. None: the method cannot say anything about this group.
        ranker: which.
        feature_group: which.
        method: `permuted` or `retrained`.
        segment_kinds: columns of the first run to judge by.
        judging: bootstrap draws and the smallest cells.

    Returns:
        UAUC and WUAUC of each cell; p-values are Holm-adjusted over the segments of one metric.
    """
    runs = [
        *(Run(WITH, run.seed, run.predictions) for run in with_group),
        *(Run(WITHOUT, run.seed, run.predictions) for run in without_group),
    ]
    judged = compare(line_up(runs, segment_kinds), baseline=WITH, **(judging or Judging())._asdict())
    metrics = judged.filter(pl.col("label") == "clicked", pl.col("metric").is_in(METRICS))
    cell = ["segment_kind", "segment", "metric"]
    whole = metrics.filter(pl.col("ranker") == WITH).select(*cell, "num_users", value_with="value")
    less = metrics.filter(pl.col("ranker") == WITHOUT).select(
        *cell,
        "p_value",
        value_without="value",
        value_lost=-pl.col("gain"),
        low=-pl.col("gain_high"),
        high=-pl.col("gain_low"),
        verdict=pl.col("verdict").replace_strict(VERDICTS, return_dtype=pl.String),
    )
    values = whole.join(less, on=cell, how="left", maintain_order="left").with_columns(
        pl.col("verdict").fill_null("cannot tell"),
        ranker=pl.lit(ranker),
        feature_group=pl.lit(feature_group),
        method=pl.lit(method),
        num_seeds=pl.lit(len(with_group), dtype=pl.Int64),
    )
    return FeatureGroupValues.validate(values.select(FeatureGroupValues.column_names()), cast=True)
