"""Which part of a log an embedding model learns from, and whether the one at hand is still right.

By default a model learns from a share of the log's span, so the cut moves as the log grows; the model is kept until it
has moved far enough, as long as all that it was trained on is still the same.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from pydantic import AwareDatetime, BaseModel, Field, NonNegativeInt

from jobs.interaction_sequences import LogSpan

LEAST_USERS = 50
"""With fewer there are too few negatives for any batch to teach much [NF->P]."""


class TrainingWindow(BaseModel, extra="forbid", frozen=True):
    """Settings that LEARN and KARMA share: the part of the log that they learn from."""

    trained_through: AwareDatetime | None = None
    """The model sees the interactions before this time, such as 2025-06-01T00:00:00Z; by default `trained_share`."""
    trained_share: float = Field(0.5, gt=0.0, le=1.0)
    """Share of the log's span that is learnt from, cut down to a midnight UTC. What comes after it trains the ranker,
    which must meet the vectors as they will be served: of a model that has not seen the clicks it is to predict."""
    validation_share: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the time learnt from that is held out at its end, for early stop. 0: all epochs are trained."""
    refit_after_days: NonNegativeInt = 30
    """With `trained_share`: a model is kept until the cut has moved so many days; a refit writes all vectors anew."""
    memory_limit: str = Field(default="2GB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")
    """Memory that DuckDB may use to sort the interactions; beyond it, it spills to disk, inside the lake."""

    def settings(self) -> dict[str, Any]:
        """What makes another model of the same data, as plain values."""
        settings = self.model_dump(mode="json", exclude={"enabled", "refit_after_days", "memory_limit"})
        if self.trained_through is not None:
            del settings["trained_share"]
        return settings


class Fitted(Protocol):
    """A model of the lake."""

    @property
    def trained_through(self) -> datetime:
        """It has seen the interactions before this time."""

    def is_whole(self) -> bool:
        """Whether its files are there, as they were written."""


def trained_through(
    span: LogSpan, now: datetime, *, time: datetime | None, share: float, step: str, way_out: str
) -> datetime:
    """The time before which interactions are learnt from.

    Args:
        span: of the log.
        now: the clock.
        time: named by the settings; None: follows from the share.
        share: of the log's span, cut down to a midnight UTC.
        step: who asks, for messages.
        way_out: what to do without a model.

    Raises:
        ValueError: it is before the log, or in the future.
    """
    period = f"the log covers {span.first:%Y-%m-%d %H:%M} to {span.last:%Y-%m-%d %H:%M} UTC"
    if time is not None:
        through = time.astimezone(timezone.utc)
        if not span.first < through <= now:
            raise ValueError(
                f"{step}: trained_through = {through:%Y-%m-%d %H:%M} UTC, but {period} and now is "
                f"{now:%Y-%m-%d %H:%M}.\n  what to do: name a time after the log begins that is not in the future"
            )
        return through
    at = span.first + share * (span.last - span.first)
    through = at.astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    if through <= span.first:
        raise ValueError(
            f"{step}: {period}, and {share:.0%} of it ends before the first midnight, so there is nothing to learn "
            "from.\n  what to do: ingest more days, raise trained_share, name a time (trained_through), or " + way_out
        )
    return through


def why_anew(
    fitted: Fitted,
    metadata: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    through: datetime,
    refit_after_days: int | None,
    digest_through: Callable[[datetime], str],
    seen: str,
) -> str | None:
    """Why the model at hand cannot stay; None: it can.

    Args:
        fitted: the model.
        metadata: of the table that names it: `settings` and `inputs`, the digest of what it was trained on.
        settings: of now, as JSON gives them back.
        through: the time before which interactions would be learnt from now.
        refit_after_days: it is kept until that time has moved so far; None: the settings name a time.
        digest_through: digest of what would be learnt from, of a time.
        seen: what the digest is of, e.g. "interactions or content vectors".
    """
    then, moved = fitted.trained_through, through - fitted.trained_through
    if changed := sorted(name for name in settings if metadata["settings"].get(name) != settings[name]):
        return f"{', '.join(changed)} changed"
    if moved and refit_after_days is not None and abs(moved) >= timedelta(days=refit_after_days):
        return f"the cut has moved by {moved.days} days, to {through:%Y-%m-%d} (refit_after_days)"
    if not fitted.is_whole():
        return "its files are gone or changed"
    if digest_through(then) != metadata["inputs"]:
        return f"{seen} before {then:%Y-%m-%d %H:%M} have changed"
    return None


def how_far_moved(fitted: Fitted, through: datetime, refit_after_days: int) -> str:
    """The end of a log line about a model that is kept."""
    moved = through - fitted.trained_through
    return f"; the cut has moved by {moved.days} of {refit_after_days} days" if moved else ""
