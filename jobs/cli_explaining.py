"""The command that explains: whose vector a user has, or why an item answers a query."""

from datetime import datetime, timezone
from enum import StrEnum
from typing import Annotated, Any

import typer

from jobs.cli_options import ConfigOption, LakeOption, SetOption, fail, read_settings
from jobs.lake import Lake

OF_A_USER = "Of a user"
OF_A_PAIR = "Of a query and an item"


class VectorMethod(StrEnum):
    """Whose vectors are explained."""

    learn = "learn"
    karma = "karma"
    content = "content"


def explain(
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="The user_id.", show_default=False, rich_help_panel=OF_A_USER)
    ] = None,
    as_of: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            help="The newest vectors dated then or before, UTC, such as 2025-06-30.  [default: now]",
            rich_help_panel=OF_A_USER,
        ),
    ] = None,
    method: Annotated[
        VectorMethod,
        typer.Option(
            metavar="METHOD",
            help="learn (LEARN's vectors), karma (KARMA's, read back as words) or content (means of content).",
            rich_help_panel=OF_A_USER,
        ),
    ] = VectorMethod.learn,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Items to show.", rich_help_panel=OF_A_USER)] = 10,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Any query; the log need not have it.", show_default=False, rich_help_panel=OF_A_PAIR
        ),
    ] = None,
    item: Annotated[
        str | None, typer.Option(metavar="ITEM", help="The item_id.", show_default=False, rich_help_panel=OF_A_PAIR)
    ] = None,
    ask: Annotated[
        bool,
        typer.Option(
            "--ask",
            help="Ask a teacher behind an endpoint, too, where it has not answered yet: that costs tokens.",
            rich_help_panel=OF_A_PAIR,
        ),
    ] = False,
    config: ConfigOption = None,
    lake: LakeOption = None,
    settings: SetOption = None,
) -> None:
    """Say what a user's vector stands for, or why an item answers a query.

    `--user`: the history behind the vector, and the items nearest to it, found by the FAISS index that a recall system
    would use; its recall against exact search is printed, and how far their titles share words with the history's.
    With `--method karma`, the vector is read back as words, too.

    `--query` and `--item`: the relevance teacher's verdict and its steps, and its students' scores beside its own.

    Examples:

    `tailrank explain --user user-0000001`

    `tailrank explain --user user-0000001 --method karma --as-of 2025-06-30`

    `tailrank explain --query "merino socks" --item item-000001`
    """
    if user is None and query is None and item is None:
        fail("say what to explain: --user USER, or --query TEXT with --item ITEM", code=2)
    if user is not None and (query is not None or item is not None):
        fail("explain one at a time: either --user USER, or --query TEXT with --item ITEM", code=2)
    if user is not None:
        if ask:
            fail("--ask is for --query TEXT with --item ITEM: no teacher knows of users", code=2)
        from jobs import explain_user

        store = Lake(read_settings(config, lake, settings).lake_path)
        at = as_of.replace(tzinfo=timezone.utc) if as_of else None
        explain_user.run(store, user, as_of=at, method=method.value, k=k)
        return
    if query is None or item is None:
        given, missing = ("--query", "the item: --item ITEM") if item is None else ("--item", "the query: --query TEXT")
        fail(f"relevance is of a pair: beside {given}, name {missing}", code=2)
    if as_of is not None:
        fail("--as-of is for --user: a pair is explained as it is now", code=2)
    from jobs import explain_pair

    chosen = read_settings(config, lake, settings)
    labelling: Any = chosen.steps.get("label_relevance")
    explain_pair.run(Lake(chosen.lake_path), query, item, labelling=labelling, may_spend=ask)
