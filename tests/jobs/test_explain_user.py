"""What a vector stands for: the right history, the nearest items by brute force, and nothing from later."""

import datetime as dt
import io
import shutil

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from feature_repo.table_schemas import (
    ItemKarmaEmbeddings,
    ItemLearnEmbeddings,
    Items,
    KarmaCurves,
    UserHistories,
    UserKarmaInterests,
    UserLearnInterests,
)
from jobs import embed_items_karma, embed_items_learn, embed_users_karma, embed_users_learn, explain_user
from jobs.admission import TableError
from jobs.fitted_karma import fitted_karma
from jobs.lake import Lake

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)


@pytest.fixture
def embedded(learn_lake: Lake) -> Lake:
    items = pl.DataFrame({"item_id": [f"i{n:02}" for n in range(42)]}).with_columns(
        title=pl.concat_str(pl.lit("Title of "), "item_id"),
        event_timestamp=pl.lit(START),
        created_timestamp=pl.lit(START),
    )
    learn_lake.write(Items, pl.concat([Items.create_empty(), items], how="diagonal_relaxed"))
    embed_items_learn.run(learn_lake, embed_items_learn.Config())
    embed_users_learn.run(learn_lake, embed_users_learn.Config())
    return learn_lake


def explain(lake: Lake, user_id: str, as_of: dt.datetime | None = None, k: int = 5) -> explain_user.Explanation:
    return explain_user.run(lake, user_id, as_of=as_of, k=k, console=Console(file=io.StringIO()))


def newest(lake: Lake, as_of: dt.datetime) -> tuple[dict[str, np.ndarray], dict[str, tuple[dt.datetime, np.ndarray]]]:
    """Vectors of items and of users at a time, row by row."""
    items: dict[str, np.ndarray] = {}
    for row in lake.read(ItemLearnEmbeddings).sort("event_timestamp").iter_rows(named=True):
        if row["event_timestamp"] <= as_of:
            items[row["item_id"]] = np.array(row["item_learn_embedding"])
    users: dict[str, tuple[dt.datetime, np.ndarray]] = {}
    for row in lake.read(UserLearnInterests).sort("event_timestamp").iter_rows(named=True):
        if row["event_timestamp"] <= as_of:
            users[row["user_id"]] = (row["event_timestamp"], np.array(row["user_learn_interest"]))
    return items, users


@pytest.mark.parametrize("day", [19, 22, 60])
def test_the_nearest_items_and_the_history_are_those_of_the_time_asked_for(embedded: Lake, day: int) -> None:
    as_of = START + day * DAY
    items, users = newest(embedded, as_of)
    histories = embedded.read(UserHistories)
    assert len(users) > 3
    for user_id, (dated, vector) in list(users.items())[:5]:
        found = explain(embedded, user_id, as_of)
        assert found.dated == dated <= as_of
        cosines = {item: float(vector @ of_item) for item, of_item in items.items()}
        best = sorted(cosines.values(), reverse=True)[:5]
        assert found.nearest["cosine"].to_list() == pytest.approx(best, abs=1e-5)
        assert [cosines[item] for item in found.nearest["item_id"]] == pytest.approx(best, abs=1e-5)
        past = histories.filter((pl.col("user_id") == user_id) & (pl.col("event_timestamp") <= dated))
        wanted = past.sort("event_timestamp")["history_item_ids"][-1].to_list()[::-1]
        assert found.history["item_id"].to_list() == wanted
        assert found.nearest["in_history"].to_list() == [item in wanted for item in found.nearest["item_id"]]
        assert found.history["time"].max() < dated
        assert (found.index_kind, found.num_items, found.recall) == ("flat", len(items), 1.0)


def test_what_is_printed_has_history_neighbours_and_the_recall_of_the_index(embedded: Lake) -> None:
    user_id = embedded.read(UserLearnInterests)["user_id"][0]
    page = io.StringIO()
    explain_user.run(embedded, user_id, console=Console(file=page, width=100))
    for said in (
        f"user {user_id}",
        "clicked before",
        "nearest items",
        "Title of i",
        "recall against exact search 1.0000",
    ):
        assert said in page.getvalue()


def test_a_user_without_a_vector_is_told_why(embedded: Lake) -> None:
    first = embedded.read(UserLearnInterests).sort("event_timestamp").row(-1, named=True)
    with pytest.raises(TableError, match=r"there is no vector of user 'nobody'.*(\n.*)?such as "):
        explain(embedded, "nobody")
    with pytest.raises(TableError, match="has no vector at 2025-05-31"):
        explain(embedded, first["user_id"], START - DAY)
    with pytest.raises(ValueError, match="the methods are learn, karma, content"):
        explain_user.run(embedded, "nobody", method="urm")


def test_vectors_of_two_models_are_not_compared(embedded: Lake) -> None:
    stale = embedded.manifest(ItemLearnEmbeddings).fingerprint | {"weights_sha256": "another"}
    embedded.write(ItemLearnEmbeddings, embedded.read(ItemLearnEmbeddings), fingerprint=stale)
    with pytest.raises(ValueError, match="item_learn_embeddings"):
        explain(embedded, embedded.read(UserLearnInterests)["user_id"][0])


def test_titles_of_what_is_near_are_compared_with_those_of_the_history() -> None:
    history = pl.DataFrame({"item_id": ["a", "b", "c", "a"], "title": ["red chair", "blue table", None, "red chair"]})
    found = pl.DataFrame({"item_id": ["a", "x", "y"], "title": ["red chair", "Red sofa", "!"]})
    # a with b: 0; x with a, b, a: 1/3, 0, 1/3; y has no words, c no title, a is not compared with itself
    assert explain_user.title_similarity(found, history) == pytest.approx((0 + 1 / 3 + 0 + 1 / 3) / 4)
    assert explain_user.title_similarity(found[2:], history) is None


@pytest.fixture
def karma_embedded(karma_lake: Lake) -> Lake:
    few = karma_lake.read(UserHistories).filter(pl.col("user_id").is_in([f"u{n:02}" for n in range(8)]))
    karma_lake.write(UserHistories, few)
    embed_items_karma.run(karma_lake, embed_items_karma.Config())
    embed_users_karma.run(karma_lake, embed_users_karma.Config())
    return karma_lake


def test_a_vector_of_karma_is_read_back_as_words_above_the_items_nearest_to_it(karma_embedded: Lake) -> None:
    as_of = START + 25 * DAY
    page = io.StringIO()
    found = explain_user.run(
        karma_embedded, "u03", as_of=as_of, method="karma", k=4, console=Console(file=page, width=100)
    )
    (row,) = (
        karma_embedded.read(UserKarmaInterests)
        .filter((pl.col("user_id") == "u03") & (pl.col("event_timestamp") <= as_of))
        .sort("event_timestamp")
        .tail(1)
        .rows(named=True)
    )
    assert found.dated == row["event_timestamp"]
    fitted = fitted_karma(karma_embedded)
    assert fitted is not None
    (greedy,) = fitted.load_decoder("test").decode(np.array([row["user_karma_interest"]], np.float32))
    assert found.words[0] == " ".join("".join(one if one.isprintable() else " " for one in greedy).split())
    assert 1 <= len(found.words) <= 3
    items = karma_embedded.read(ItemKarmaEmbeddings).filter(pl.col("event_timestamp") <= as_of)
    newest_items = items.sort("event_timestamp").unique("item_id", keep="last")
    cosines = np.array(newest_items["item_karma_embedding"].to_list()) @ np.array(row["user_karma_interest"])
    assert found.nearest["cosine"].to_list() == pytest.approx(sorted(cosines, reverse=True)[:4], abs=1e-5)
    text = page.getvalue()
    assert "user u03, karma vector of 2025-06-" in text
    assert text.index("reads as: ") < text.index("clicked before") < text.index("nearest items")
    assert "title words shared with the history: " in text
    again = explain_user.run(karma_embedded, "u03", as_of=as_of, method="karma", k=4, console=Console(file=page))
    assert again.words == found.words, "the draws are seeded"


def test_other_methods_have_no_words(embedded: Lake) -> None:
    page = io.StringIO()
    found = explain_user.run(embedded, "u04", console=Console(file=page, width=100))
    assert found.words == ()
    assert "reads as" not in page.getvalue()


@pytest.mark.parametrize("taught", [True, False])
def test_only_a_model_that_was_taught_to_read_vectors_reads_them(karma_embedded: Lake, taught: bool) -> None:
    epochs = pl.DataFrame(
        {
            "epoch": [0, 1],
            "stage": ["heads", "joint"],
            "reconstruction_loss": [None, 4.5 if taught else None],
            "seconds": [1.0, 1.0],
            "is_best": [False, True],
        }
    )
    curves = pl.concat([KarmaCurves.create_empty(), epochs], how="diagonal_relaxed")
    manifest = karma_embedded.manifest(KarmaCurves)
    karma_embedded.write(KarmaCurves, curves, fingerprint=manifest.fingerprint, metadata=manifest.metadata)
    page = io.StringIO()
    found = explain_user.run(karma_embedded, "u03", method="karma", k=4, console=Console(file=page, width=300))
    assert found.nearest.height == 4
    assert bool(found.words) == ("reads as: " in page.getvalue()) == taught
    assert ("not read as words: this model was trained without L_recon" in page.getvalue()) == (not taught)


def test_without_karma_or_its_decoder_what_to_do_is_told(karma_embedded: Lake) -> None:
    def karma(lake: Lake, user_id: str = "u03") -> None:
        explain_user.run(lake, user_id, method="karma", console=Console(file=io.StringIO()))

    fitted = fitted_karma(karma_embedded)
    assert fitted is not None
    with pytest.raises(TableError, match=r"user_karma_interests: there is no vector of user 'nobody'"):
        karma(karma_embedded, "nobody")
    for part in (fitted.decoder.path, fitted.serving.path):
        aside = part.rename(part.with_name("aside"))
        with pytest.raises(ValueError, match=rf"explain: .*{part.name}, or its files.*\n.*fit_embedder_karma --force"):
            karma(karma_embedded)
        aside.rename(part)
    (fitted.decoder.path / "decoder.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="explain: .*its files have changed"):
        karma(karma_embedded)
    shutil.rmtree(fitted.decoder.path)

    karma_embedded.write(KarmaCurves, KarmaCurves.create_empty())
    with pytest.raises(TableError, match="holds vectors, but this lake does without KARMA by now"):
        karma(karma_embedded)
    embed_users_karma.run(karma_embedded, embed_users_karma.Config())
    with pytest.raises(
        TableError, match=r"this lake does without KARMA(\n|.)*set \[fit_embedder_karma\] enabled = true"
    ):
        karma(karma_embedded)


def test_words_of_another_model_than_the_vectors_are_refused(karma_embedded: Lake) -> None:
    manifest = karma_embedded.manifest(KarmaCurves)
    other = {**manifest.fingerprint, "weights_sha256": "another"}
    karma_embedded.write(KarmaCurves, KarmaCurves.create_empty(), fingerprint=other, metadata=manifest.metadata)
    with pytest.raises(ValueError, match=r"run embed_users_karma first(\n|.)*weights_sha256: expected another"):
        explain_user.run(karma_embedded, "u03", method="karma", console=Console(file=io.StringIO()))
