"""Rows per second of the rankers at their default sizes. Run: `pytest -m bench -s tests/benches/bench_ranker.py`."""

import time
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from ranker.feature_columns import FeatureColumns, FeatureEncoder
from ranker.fit import FitSettings
from ranker.gbdt import GbdtRanker, GbdtSettings
from ranker.losses import log_loss
from ranker.network_ranker import NetworkRanker, NetworkSettings
from ranker.ranker import Ranker, Validation

ROWS, USERS, ITEMS, SCALARS, HISTORY = 200_000, 50_000, 20_000, 48, 30
WIDTHS = {"content": 384, "learn": 64}
"""Of the pairs of vectors."""


@dataclass(frozen=True)
class Matrix:
    """Vectors whose id is their row."""

    vectors: NDArray[np.float32]
    fingerprint: dict[str, str]

    def rows_of(self, vector_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return vector_ids


def draw_frame() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    item = (rng.zipf(1.3, ROWS) - 1) % ITEMS
    user = rng.integers(0, USERS, ROWS)
    length = np.minimum(rng.geometric(1 / 15, ROWS) - 1, HISTORY)
    clicks = pl.Series((rng.zipf(1.3, int(length.sum())) - 1) % ITEMS).cast(pl.String)
    owner = pl.Series(np.repeat(np.arange(ROWS), length))
    history = pl.DataFrame({"row": owner, "item": "item-" + clicks}).group_by("row", maintain_order=True).agg("item")
    clicked = rng.random(ROWS) < 0.1
    return (
        pl.DataFrame(
            {
                "row": np.arange(ROWS),
                "user_id": pl.Series(user).cast(pl.String),
                "item_id": pl.Series(item).cast(pl.String),
                "category": pl.Series(item % 200).cast(pl.String),
                "brand": pl.Series(item % 2000).cast(pl.String),
                **{f"count_{n}": rng.poisson(3, ROWS) for n in range(SCALARS // 2)},
                **{f"rate_{n}": rng.random(ROWS) for n in range(SCALARS // 2)},
                **{f"user_{pair}_vector_id": user for pair in WIDTHS},
                **{f"item_{pair}_vector_id": item for pair in WIDTHS},
                "clicked": clicked,
                "converted": clicked & (rng.random(ROWS) < 0.2),
            }
        )
        .join(history.rename({"item": "history"}), on="row", how="left", maintain_order="left")
        .with_columns(user_id="user-" + pl.col("user_id"), item_id="item-" + pl.col("item_id"))
    )


@pytest.mark.bench
def test_rows_per_second() -> None:
    frame = draw_frame()
    roles = {"category": "categorical", "brand": "categorical", "history": "history"}
    roles |= {name: name.split("_")[0] for name in frame.columns if name.startswith(("count_", "rate_"))}
    rng = np.random.default_rng(1)
    matrices = {
        f"{side}_{pair}_vector_id": Matrix(
            rng.normal(size=(count, width)).astype(np.float32) / width**0.5, {"model_id": "noise"}
        )
        for pair, width in WIDTHS.items()
        for side, count in (("user", USERS), ("item", ITEMS))
    }
    learn = roles | dict.fromkeys(matrices, "vector_id")
    content = {name: role for name, role in learn.items() if "learn" not in name}
    fit_settings = FitSettings(passes=1, evaluations_per_pass=1)
    rankers: dict[str, tuple[dict[str, str], Ranker, int]] = {
        "base": (roles, NetworkRanker(NetworkSettings(), fit_settings), ROWS),
        "content": (content, NetworkRanker(NetworkSettings(auxiliary="detached"), fit_settings), ROWS),
        "learn": (learn, NetworkRanker(NetworkSettings(auxiliary="detached"), fit_settings), ROWS),
        "gbdt_base": (roles, GbdtRanker(GbdtSettings(num_rounds=40)), 40 * ROWS),
        "gbdt_content": (content, GbdtRanker(GbdtSettings(num_rounds=40)), 40 * ROWS),
        "gbdt_learn": (learn, GbdtRanker(GbdtSettings(num_rounds=40)), 40 * ROWS),
    }
    for name, (its_roles, ranker, rows_read) in rankers.items():
        encoder = FeatureEncoder.fit(FeatureColumns.from_roles(its_roles), frame.lazy(), history_length=HISTORY)
        started = time.perf_counter()
        examples = encoder.encode(frame, matrices)
        encoding = time.perf_counter() - started
        few = examples.take(np.arange(1000))
        started = time.perf_counter()
        ranker.fit(
            examples, few, lambda scores, few=few: Validation(log_loss(scores, few.clicked_N, few.converted_N), None)
        )  # type: ignore[misc]
        training = time.perf_counter() - started
        started = time.perf_counter()
        ranker.predict(examples)
        prediction = time.perf_counter() - started
        print(
            f"{name:13} encode {ROWS / encoding:10,.0f} rows/s   train {rows_read / training:10,.0f} rows/s   "
            f"predict {ROWS / prediction:10,.0f} rows/s   {examples.num_bytes / ROWS:.0f} bytes a row"
        )
