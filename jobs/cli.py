"""The command `tailrank`. Exit codes: 0 good, 1 the data or the result is bad, 2 wrong usage.

`tailrank gate` alone: 0 promote, 1 do not promote, 2 wrong usage, 3 the data cannot be judged.
"""

import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.table import Table

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded at run time
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve a machine that does anything else

from jobs import cli_explaining, cli_judging, flow
from jobs.cli_options import (
    ConfigOption,
    ForceOption,
    LakeOption,
    SetOption,
    console,
    errors,
    fail,
    plain,
    read_settings,
)
from jobs.lake import Lake, table_name
from jobs.settings import Settings

app = typer.Typer(
    name="tailrank",
    help="Lift the tail of a ranking system: language-model features for Feast, a ranker that fuses them, "
    "and UAUC/WUAUC by cold-start and long-tail segment.\n\n"
    "Try `tailrank run`: it simulates a marketplace and takes it through every step to a report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details; show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings only.")] = False,
) -> None:
    """Options of every command."""
    if show_version:
        typer.echo(f"tailrank {version('tailrank')}")
        raise typer.Exit
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler: logging.Handler = (
        RichHandler(console=errors, show_path=False, show_level=verbose, log_time_format="%H:%M:%S")
        if sys.stderr.isatty()
        else logging.StreamHandler()
    )
    pattern = "%(message)s" if isinstance(handler, RichHandler) else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=pattern, handlers=[handler], force=True)
    for package in ("jobs", "ranker", "embedders"):
        logging.getLogger(package).setLevel(level)


@app.command()
def plan(config: ConfigOption = None, lake: LakeOption = None, settings: SetOption = None) -> None:
    """Draw the flow: every step, the tables it reads and writes, and whether it has anything to do."""
    chosen = read_settings(config, lake, settings)
    store = Lake(chosen.lake_path)
    table = Table(title=f"lake {store.root}", title_justify="left", show_lines=True)
    for column, options in (
        ("step", {"no_wrap": True, "style": "bold"}),
        ("reads", {"overflow": "fold"}),
        ("writes", {"overflow": "fold"}),
        ("state", {}),
    ):
        table.add_column(column, **options)  # type: ignore[arg-type]
    upstream_stale: set[str] = set()
    impossible = flow.needing_impressions(store, chosen.steps, flow.STEPS)
    for name in flow.STEPS:
        one = flow.step(name)
        reason = flow.why_stale(store, one, chosen.steps[name])
        changed = [table_name(schema) for schema in one.reads if table_name(schema) in upstream_stale]
        if reason is None and changed:
            reason = f"{changed[0]} will change"
        if reason is not None and name not in impossible:
            upstream_stale.update(table_name(schema) for schema in one.writes)
        last = flow.last_run(store, name)
        state = f"[yellow]stale[/]: {plain(reason)}" if reason else "[green]fresh[/]"
        if name in impossible:
            state = "[dim]not for this lake: it has no impressions[/]"
        if last is not None:
            state += f"\nlast: {last.finished:%Y-%m-%d %H:%M} UTC, {last.seconds:.1f} s"
        writes = []
        for schema in one.writes:
            rows = f" ({store.manifest(schema).rows:,})" if store.exists(schema) else ""
            writes.append(table_name(schema) + rows)
        table.add_row(name, "\n".join(map(table_name, one.reads)) or "raw files", "\n".join(writes) or "Feast", state)
    console.print(table)


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help=f"One of {', '.join(flow.SOURCES)}.", show_default=False)],
    path: Annotated[
        Path | None,
        typer.Argument(help="Folder of the raw files, or the file (`simulate` needs none).", show_default=False),
    ] = None,
    config: ConfigOption = None,
    lake: LakeOption = None,
    settings: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Read somebody's log, or pairs that people judged, into the canonical tables.

    `tailrank run` then takes a log to a report; judged pairs alone are enough for the steps of relevance. `columns` and
    `judged_pairs` read any CSV or parquet files by the names of their columns.

    Examples:

    `tailrank ingest movielens ml-latest-small --lake films`

    `tailrank ingest judged_pairs judged.csv --lake judged --set sources.judged_pairs.query=search_term
    --set sources.judged_pairs.grade_worst=1 --set sources.judged_pairs.grade_best=3`
    """
    overrides: dict[str, Any] = {"source": source}
    if path is not None:
        overrides["path"] = str(path.resolve())
    if source not in flow.SOURCES:
        fail(f"there is no source {source!r}; the sources are {', '.join(flow.SOURCES)}", code=2)
    chosen = read_settings(config, lake, settings, {"ingest": overrides})
    _run(chosen, ["ingest"], force)


@app.command()
def run(
    steps: Annotated[
        list[str] | None, typer.Argument(help="Only these steps.  [default: all]", show_default=False)
    ] = None,
    config: ConfigOption = None,
    lake: LakeOption = None,
    settings: SetOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Text encoder: a packaged model's name, a Hugging Face folder, or a GGUF file."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Whose model fit_embedder, embed_items and embed_users are about: content (what the text says), learn "
            "(LEARN) or karma (KARMA)."
        ),
    ] = "content",
    force: ForceOption = False,
) -> None:
    """Run the steps that are stale, in order: from the raw log to the report.

    Examples:

    `tailrank run embed_users --method learn`

    `tailrank run fit_embedder embed_items embed_users --method karma --set fit_embedder_karma.enabled=true`
    """
    unknown = [name for name in steps or () if name not in flow.STEPS]
    if unknown:
        fail(f"there is no step {unknown[0]!r}; the steps are {', '.join(flow.STEPS)}", code=2)
    overrides = {"embed_items": {"backbone": backbone}} if backbone else None
    named = _steps_of_method(steps, method)
    chosen = read_settings(config, lake, settings, overrides)
    model = flow.METHODS[method].get("fit_embedder")
    if model and not chosen.steps[model].model_dump()["enabled"]:
        fail(
            f"--method {method}: this lake does without it. Set [{model}] enabled = true, or add --set "
            f"{model}.enabled=true",
            code=2,
        )
    _run(chosen, named, force)


app.command()(cli_judging.evaluate)
app.command()(cli_judging.gate)
app.command()(cli_judging.recalibrate)
app.command()(cli_judging.ablate)
app.command()(cli_explaining.explain)


def _steps_of_method(steps: list[str] | None, method: str) -> list[str] | None:
    if method not in flow.METHODS:
        fail(f"there is no method {method!r}; the methods are {', '.join(flow.METHODS)}", code=2)
    instead = flow.METHODS[method]
    if instead and not set(steps or ()) & instead.keys():
        fail(
            f"--method {method} says what {', '.join(instead)} are about: name one of them, or leave --method out",
            code=2,
        )
    return [instead.get(name, name) for name in steps] if steps else steps


def _run(settings: Settings, steps: list[str] | None, force: bool) -> None:
    before = flow.last_run(Lake(settings.lake_path), "ingest")
    source = settings.steps["ingest"].model_dump()["source"]
    if before is not None and before.config["source"] != source:
        fail(
            f"lake {settings.lake_path} holds a log from {before.config['source']!r}, not {source!r}, and one lake "
            f"holds one log; name another with --lake, or remove that folder",
            code=2,
        )
    ran = flow.run_steps(Lake(settings.lake_path), settings.steps, steps or None, force=force)
    report = settings.lake_path / "reports" / "report.html"
    if not ran and report.exists():
        console.print(f"nothing has changed; the report is still {report}", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point: turn an error about data into one readable message and the exit code 1."""
    try:
        app()
    except (ValueError, TypeError, KeyError, OSError) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        errors.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True, highlight=False)
        errors.print("[dim](tailrank --verbose shows where it happened)[/]")
        sys.exit(1)
