"""The list of feature tables agrees with the flow that writes them."""

import itertools

import pytest

from jobs import build_training_set, flow, publish_features
from jobs.feature_tables import FEATURE_TABLES, STEPS_TO_WRITE
from jobs.lake import table_name


@pytest.mark.parametrize("schema", FEATURE_TABLES, ids=table_name)
def test_the_last_step_named_writes_the_table_and_the_others_come_before_it(schema: type):
    steps = STEPS_TO_WRITE[schema]
    assert schema in flow.step(steps[-1]).writes
    assert all(flow.STEPS.index(one) < flow.STEPS.index(other) for one, other in itertools.pairwise(steps))


def test_both_jobs_read_every_feature_table():
    assert set(publish_features.READS) == set(FEATURE_TABLES)
    assert set(build_training_set.READS) > set(FEATURE_TABLES)
