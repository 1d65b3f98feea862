"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def progress_bar(description: str, total: int, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Show progress while the block runs.

    Args:
        description: what is being done, e.g. "encode items".
        total: how many units there are in all.
        unit: what is counted, e.g. "items".

    Yields:
        advance(n): call it when `n` more units are done.
    """
    started = time.monotonic()
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[rate]}} {unit}/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(description, total=total, rate="-")

            def advance(count: int) -> None:
                progress.advance(task, count)
                done = progress.tasks[0].completed
                progress.update(task, rate=_readable(done / max(time.monotonic() - started, 1e-9)))

            yield advance
        return

    done, last_line = 0, started

    def advance_plainly(count: int) -> None:
        nonlocal done, last_line
        done += count
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES and done < total:
            rate = done / (now - started)
            logger.info(
                "%s: %s of %s %s, %s %s/s, %.0f s left",
                description,
                f"{done:_}",
                f"{total:_}",
                unit,
                _readable(rate),
                unit,
                (total - done) / max(rate, 1e-9),
            )
            last_line = now

    yield advance_plainly


def _readable(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
