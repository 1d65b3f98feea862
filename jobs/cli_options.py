"""Options and ways to fail that the commands share."""

import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from jobs.settings import Settings, load_settings

console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file.  [default: ./tailrank.toml if there is one]")
]
LakeOption = Annotated[
    Path | None, typer.Option("--lake", help="Folder of the tables; one lake holds one log.  [default: lake]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting, e.g. train_ranker.seeds=[0,1]."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Run steps that are fresh, too.")]


def read_settings(
    config: Path | None, lake: Path | None, flags: list[str] | None, overrides: dict[str, dict[str, Any]] | None = None
) -> Settings:
    """The settings, as the file, the environment, the flags and the options of a command say; or exit with 2."""
    overrides = dict(overrides or {})
    if lake is not None:
        overrides["lake"] = {"path": str(lake.resolve())}
    try:
        return load_settings(config, environment=os.environ, flags=flags or (), overrides=overrides)
    except ValueError as error:
        fail(str(error), code=2)


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    errors.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)


def plain(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")
