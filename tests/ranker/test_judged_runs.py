"""Rankers are judged on the same impressions with the same labels, or not at all."""

import polars as pl
import pytest

from ranker.judged_runs import MAX_SEGMENTS, Run, line_up


def predictions(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "impression_id": ["i1", "i2", "i3"],
            "user_id": ["u2", "u1", "u2"],
            "clicked": [True, False, False],
            "p_ctr": [0.5, 0.2, 0.1],
        }
        | columns
    )


def test_runs_in_another_order_are_put_on_the_rows_of_the_first() -> None:
    turned = predictions(p_ctr=[0.9, 0.8, 0.7]).reverse()
    judged = line_up([Run("a", 0, predictions()), Run("b", 0, turned)])
    assert judged.scores["b", 0]["p_ctr"].to_list() == [0.9, 0.8, 0.7]


def test_users_are_numbered_in_the_order_of_their_ids() -> None:
    judged = line_up([Run("a", 0, predictions())])
    assert judged.impressions["user"].to_list() == [1, 0, 1]
    assert judged.num_users == 2


def test_the_baseline_comes_first_and_the_others_as_they_came() -> None:
    judged = line_up([Run(name, 0, predictions()) for name in ("b", "c", "a")])
    assert judged.rankers("a") == ["a", "b", "c"]
    assert judged.rankers(None) == ["b", "c", "a"]


def test_missing_and_extra_impressions_are_counted_and_shown() -> None:
    other = predictions(impression_id=["i1", "i2", "i9"])
    with pytest.raises(ValueError, match=r"lacks 1 \(such as i3\) and has 1 others \(such as i9\)"):
        line_up([Run("a", 0, predictions()), Run("b", 4, other)])


def test_a_repeated_impression_is_refused() -> None:
    twice = pl.concat([predictions(), predictions().head(1)])
    with pytest.raises(ValueError, match=r"`a`, seed 0: 1 of 4 rows repeat an impression_id \(such as i1\)"):
        line_up([Run("a", 0, twice)])


def test_a_label_that_differs_between_rankers_is_refused() -> None:
    other = predictions(clicked=[True, True, False])
    with pytest.raises(ValueError, match=r"label `clicked` of `b`, seed 0 differs .* on 1 of 3 impressions .*i2"):
        line_up([Run("a", 0, predictions()), Run("b", 0, other)])


def test_an_outcome_known_to_one_ranker_only_is_refused() -> None:
    ours = predictions(converted=[True, None, False])
    theirs = predictions(converted=[True, False, False])
    with pytest.raises(ValueError, match="label `converted` .* differs"):
        line_up([Run("a", 0, ours), Run("b", 0, theirs)])


def test_the_same_ranker_and_seed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="two runs are called `a`, seed 0"):
        line_up([Run("a", 0, predictions()), Run("a", 0, predictions())])


def test_no_runs_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="no predictions to judge"):
        line_up([])


def test_a_column_that_is_null_throughout_counts_as_absent() -> None:
    nulls: list[object] = [None, None, None]
    frame = predictions(p_cvr=nulls, user_segment=nulls).cast({"p_cvr": pl.Float64, "user_segment": pl.String})
    judged = line_up([Run("a", 0, frame)])
    assert judged.segment_kinds == ()
    assert judged.runs_with("p_cvr", "a") == []


def test_a_score_that_one_seed_lacks_is_not_judged_for_that_ranker() -> None:
    judged = line_up([Run("a", 0, predictions(p_cvr=[0.1, 0.1, 0.1])), Run("a", 1, predictions())])
    assert len(judged.runs_with("p_ctr", "a")) == 2
    assert judged.runs_with("p_cvr", "a") == []


def test_a_segment_column_of_ids_is_refused() -> None:
    n = MAX_SEGMENTS + 1
    ids = [f"i{i}" for i in range(n)]
    frame = pl.DataFrame(
        {"impression_id": ids, "user_id": ids, "clicked": [False] * n, "p_ctr": [0.1] * n, "user_segment": ids}
    )
    with pytest.raises(ValueError, match="segment column `user_segment` has 201 values"):
        line_up([Run("a", 0, frame)])
