"""A feature that is missing is not a feature that is zero: no ranker may take one for the other."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss

from ranker.batches import EncodedExamples
from ranker.feature_columns import FeatureColumns, FeatureEncoder
from ranker.fit import FitSettings
from ranker.gbdt import GbdtRanker, GbdtSettings
from ranker.network_ranker import NetworkRanker
from ranker.ranker import Ranker, Scores, Validation

CLICK_RATES = {None: 0.8, 0.0: 0.1, 1.0: 0.3}
"""Of impressions whose relevance is unknown, none, full."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(rows: int, seed: int) -> pl.DataFrame:
    """Two relevances, each missing by itself: clicks follow the first, the second is noise."""
    rng = np.random.default_rng(seed)
    first, second = (rng.choice(3, rows) for _ in range(2))
    values = pl.Series([None, 0.0, 1.0])
    rates = np.array(list(CLICK_RATES.values()))[first]
    return pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 5, rows)],
            "item_id": [f"i{n}" for n in rng.integers(0, 5, rows)],
            "query_item_relevance": values.gather(first),
            "relevance_on_demand": values.gather(second),
            "clicked": rng.random(rows) < rates,
            "converted": [False] * rows,
        }
    )


COLUMNS = FeatureColumns.from_roles({"query_item_relevance": "rate", "relevance_on_demand": "rate"})


@pytest.mark.parametrize(
    "ranker",
    [
        NetworkRanker(None, FitSettings(passes=4, batch_size=128, learning_rate=5e-3)),
        GbdtRanker(GbdtSettings(num_rounds=80, min_rows_in_leaf=20, num_threads=1)),
    ],
    ids=["network", "gbdt"],
)
def test_a_missing_relevance_has_a_click_rate_of_its_own(ranker: Ranker) -> None:
    train, validation = draw(4000, 0), draw(1000, 1)
    encoder = FeatureEncoder.fit(COLUMNS, train.lazy())
    encoded: EncodedExamples = encoder.encode(validation)

    def validate(scores: Scores) -> Validation:
        return Validation(float(sklearn_log_loss(encoded.clicked_N, scores.p_ctr)), None)

    ranker.fit(encoder.encode(train), encoded, validate)
    scored = validation.with_columns(p_ctr=pl.Series(ranker.predict(encoded).p_ctr))
    for relevance, rate in CLICK_RATES.items():
        rows = scored.filter(pl.col("query_item_relevance").eq_missing(pl.lit(relevance, pl.Float64)))
        assert rows["p_ctr"].mean() == pytest.approx(rate, abs=0.07), relevance
