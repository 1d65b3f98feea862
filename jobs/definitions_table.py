"""Other definitions of AUC by user on a terminal: what each gives from the same scores, and whom it leaves out."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ranker.judged_runs import LABELS, JudgedRuns
from ranker.other_definitions import Reconciliation, other_definitions
from ranker.wording import LABEL_NAMES

OURS = ("UAUC", "WUAUC", "AUC")


def reconcile(judged: JudgedRuns) -> dict[str, dict[str, Reconciliation]]:
    """By label and ranker: every definition on the scores of its first seed, rows in the order of the first file."""
    found: dict[str, dict[str, Reconciliation]] = {}
    for label in LABELS:
        mask = judged.impressions.select(label.rows.alias("judged"))["judged"]
        if not mask.any():
            continue
        rows = judged.impressions.select("user", label.name).filter(mask)
        for ranker in judged.rankers(None):
            runs = judged.runs_with(label.score, ranker)
            if runs:
                scored = rows.with_columns(runs[0][label.score].filter(mask))
                one = other_definitions(scored, label.name, label.score, user="user")
                found.setdefault(label.name, {})[ranker] = one
    return found


def reconciliation_json(found: Mapping[str, Mapping[str, Reconciliation]]) -> dict[str, Any]:
    """Plain values for a JSON file, by label and ranker."""
    return {label: {ranker: one.as_json() for ranker, one in rankers.items()} for label, rankers in found.items()}


def definitions_table(rankers: Mapping[str, Reconciliation], label: str = "clicked") -> RenderableType:
    """Every definition with its value for each ranker, who uses it, and the warning about ties.

    Fits 80 columns with two rankers.

    Args:
        rankers: by name, what `other_definitions` gives; at least one.
        label: which outcome, for the title.
    """
    table = Table(
        title=f"{LABEL_NAMES[label]}: what other definitions of AUC by user give from the same scores",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("definition", no_wrap=True)
    for ranker in rankers:
        table.add_column(ranker, justify="right", overflow="fold", min_width=6, max_width=11)
    table.add_column("ties", no_wrap=True)
    table.add_column("1 class", no_wrap=True)
    table.add_column("users\nout", justify="right", no_wrap=True)
    table.add_column("impr.\nout", justify="right", no_wrap=True)
    table.add_column("pos.\nout", justify="right", no_wrap=True)
    first = next(iter(rankers.values()))
    for place, one in enumerate(first.values):
        values = [several.values[place].value for several in rankers.values()]
        table.add_row(
            one.name,
            *("–" if value is None else f"{value:.4f}" for value in values),
            one.ties.removeprefix("file "),
            one.one_class_users,
            f"{one.num_users_left_out / max(one.num_users + one.num_users_left_out, 1):.0%}",
            f"{one.share_impressions_left_out:.0%}",
            f"{one.share_positives_left_out:.0%}",
            style="bold" if one.name in OURS else "",
        )
    return Group(table, *_users_of_each(first), *_warnings(rankers))


def _users_of_each(first: Reconciliation) -> Iterator[RenderableType]:
    yield Text("Who computes which", "bold")
    for one in first.values:
        if one.used_by:
            yield Padding(Text.assemble(f"{one.name}: ", (one.used_by, "dim")), (0, 0, 0, 2))
    yield Text()


def _warnings(rankers: Mapping[str, Reconciliation]) -> Iterator[RenderableType]:
    if len(rankers) > 1:
        yield Text("The rows of every file are taken in the order of the first.", "dim")
    for ranker, one in rankers.items():
        yield Text.assemble(
            (f"Ties of {ranker}. ", "bold yellow" if one.tied.num_tied else "bold"), one.tied.sentence()
        )
