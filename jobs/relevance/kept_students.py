"""Whether students at hand can stay: another student makes all vectors and all scores of all pairs anew.

A student is kept while its settings are the same and most of the pairs that it learnt from are (`refit_share`): an
edited title or a new label among a thousand does not make it another one. As the log grows, `labels_through` moves; the
pairs are drawn as of the time that the students learnt through until that has moved by `refit_after_days`. Where it has
moved back, as settings may ask for, the students have seen too much: they are trained anew.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from feature_repo.table_schemas import StudentCurves
from jobs.lake import Lake
from jobs.relevance.distilled_pairs import LearntPairs
from jobs.relevance.fitted_students import LEARNT_FROM_FILE, Kind, fitted_students

logger = logging.getLogger(__name__)


def told_of_students(lake: Lake) -> dict[Kind, dict[str, Any]]:
    """What the manifest of `student_curves` says of each student; empty where none was trained."""
    if not lake.exists(StudentCurves):
        return {}
    told: dict[Kind, dict[str, Any]] = lake.manifest(StudentCurves).metadata.get("students", {})
    return told


def through_kept(lake: Lake, now: datetime | None, *, refit_after_days: int) -> datetime | None:
    """Through when to learn: as the students did, until `labels_through` has moved too far."""
    students = list(fitted_students(lake).values()) if told_of_students(lake) else []
    then = students[0].labels_through if students else None
    if now is None or then is None or any(student.labels_through != then for student in students):
        return now
    return then if timedelta(0) <= now - then < timedelta(days=refit_after_days) else now


def why_trained_anew(
    lake: Lake, kind: Kind, made_of: Mapping[str, Any], pairs: LearntPairs, *, refit_share: float
) -> str | None:
    """Why the student at hand cannot stay, in a few words; None where it can.

    Args:
        lake: where it is.
        kind: which student.
        made_of: all that makes another student of the same pairs.
        pairs: that it would learn from now.
        refit_share: most of the pairs that may have changed.
    """
    told = told_of_students(lake).get(kind)
    if told is None:
        return "never trained"
    now = json.loads(json.dumps(made_of))
    if changed := sorted(name for name in {*now, *told["made_of"]} if now.get(name) != told["made_of"].get(name)):
        return f"{', '.join(changed)} changed"
    student = fitted_students(lake)[kind]
    if not student.is_whole():
        return f"its files in {student.folder} are gone or changed"
    seen, now_through = student.labels_through, pairs.labels_through
    if seen is not None and now_through is not None and seen > now_through:
        return f"it has seen labels up to {seen:%Y-%m-%d %H:%M}, later than {now_through:%Y-%m-%d %H:%M} now"
    hashes = set(pairs.hashes())
    then = set(pl.read_parquet(student.folder / LEARNT_FROM_FILE).get_column("pair"))
    most = max(len(hashes), len(then))
    num_others = most - len(hashes & then)
    if num_others > refit_share * most:
        return f"{num_others:_} of the {most:_} pairs that it learnt from have changed"
    logger.info(
        "distill_relevance: kept: the %s student has learnt from %s pairs, of which %s are others now",
        kind,
        f"{most:_}",
        f"{num_others:_}",
    )
    return None


def digest_of(made_of: Mapping[str, Any], pairs: LearntPairs) -> str:
    """Names a student by all that it is made of."""
    return hashlib.sha256(json.dumps([made_of, pairs.hashes()], sort_keys=True).encode()).hexdigest()
