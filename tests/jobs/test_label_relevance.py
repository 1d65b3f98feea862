"""The step on a small shop, with rules and with a tiny language model that knows nothing."""

import csv
import datetime as dt
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from embedders import chain_decoding
from embedders.causal_lm import CausalLM
from embedders.counterfactuals import contrasts
from embedders.ellm_rele import RelevanceTeacher
from embedders.query_split import side_of
from embedders.relevance_prompts import QueryItem
from feature_repo import table_schemas as tables
from jobs import flow
from jobs.label_relevance import CACHE, Config, outside_inputs, run
from jobs.lake import Lake
from jobs.relevance import teacher_training
from jobs.relevance.answer_cache import AnswerCache
from jobs.relevance.disclosed_text import Disclosure
from jobs.relevance.fine_tune_settings import FineTune
from jobs.relevance.teachers import TeacherConfig

START = dt.datetime(2025, 6, 1, 12, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
THINGS = ("chair", "lamp", "sofa", "table")
BRANDS = ("Acme", "Bolt")
ITEMS = [(f"i{n}", f"{BRANDS[n % 2]} Red {THINGS[n // 2].title()}, 3 in", BRANDS[n % 2]) for n in range(8)]
QUERIES = [(f"q{n:02}", f"{BRANDS[n % 2].lower()} {THINGS[n // 2 % 4]} {n} in") for n in range(24)]


def item(number: int, title: str | None = None) -> dict[str, object]:
    item_id, known, brand = ITEMS[number]
    return {"item_id": item_id, "title": title or known, "brand": brand} | dict.fromkeys(
        ("event_timestamp", "created_timestamp"), START
    )


def write_items(lake: Lake, edited: dict[int, str]) -> None:
    rows = pl.DataFrame([item(n, edited.get(n)) for n in range(len(ITEMS))])
    lake.write(tables.Items, pl.concat([tables.Items.create_empty(), rows], how="diagonal_relaxed"))


@pytest.fixture
def shop(lake: Lake) -> Lake:
    """24 queries, each with four judged items and two shown ones, one of them judged; ten days.

    Query n is judged with items n to n + 3 (mod 8): good where thing and brand are those asked for. On day n % 10 it
    shows item n and item n + 4. Queries n % 10 >= 5 are shown after the cut of half of the log.
    """
    write_items(lake, {})
    lake.write(tables.Queries, pl.DataFrame(QUERIES, schema=["query_id", "query_text"], orient="row"))
    grades = [
        (query, f"i{(n + k) % 8}", 3.0 if (n + k) % 8 == n % 8 else 0.0)
        for n, (query, _) in enumerate(QUERIES)
        for k in range(4)
    ]
    lake.write(tables.RelevanceGrades, pl.DataFrame(grades, schema=["query_id", "item_id", "grade"], orient="row"))
    log = [
        {
            "impression_id": f"{query}-{k}",
            "user_id": "u",
            "item_id": f"i{(n + k) % 8}",
            "query_id": query,
            "event_timestamp": START + (n % 10) * DAY,
            "clicked": False,
            "converted": False,
            "is_sampled": False,
        }
        for n, (query, _) in enumerate(QUERIES)
        for k in (0, 4)
    ]
    lake.write(
        tables.Impressions, pl.concat([tables.Impressions.create_empty(), pl.DataFrame(log)], how="diagonal_relaxed")
    )
    return lake


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model never ends what it writes: cut it early."""
    monkeypatch.setattr(chain_decoding, "MAX_FACT_TOKENS", 3)
    monkeypatch.setattr(chain_decoding, "MAX_FREE_TOKENS", 12)


@pytest.fixture(scope="session")
def tiny(make_lm: Callable[..., CausalLM], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a language model that knows nothing."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    RelevanceTeacher(make_lm()).save(folder)
    return str(folder)


def local(tiny: str, **more: Any) -> TeacherConfig:
    return TeacherConfig(**{"kind": "local", "model": tiny, "decoding": "label_only", "num_chains": 1, **more})


def expected(judged_sides: tuple[str, ...]) -> set[tuple[str, str]]:
    """Judged pairs of these sides whose first impression is before the cut (June 6, midnight), or that have none."""
    return {
        (query, f"i{(n + k) % 8}")
        for n, (query, text) in enumerate(QUERIES)
        for k in range(4)
        if side_of(text) in judged_sides and (k != 0 or n % 10 < 5)
    }


def pool(shown: tuple[int, ...] = (4,)) -> set[tuple[str, str]]:
    """Pairs shown before the cut to training queries; of the two shown to a query, the one that nobody judged."""
    return {
        (query, f"i{(n + k) % 8}")
        for n, (query, text) in enumerate(QUERIES)
        for k in shown
        if side_of(text) == "train" and n % 10 < 5
    }


def keys(frame: pl.DataFrame) -> set[tuple[str, str]]:
    return set(frame.select("query_id", "item_id").iter_rows())


def num_kept(lake: Lake) -> int:
    with AnswerCache.open(lake.root / CACHE) as cache:
        return len(cache)


def test_the_shop_has_queries_on_all_sides():
    assert {side_of(text) for _, text in QUERIES} == {"train", "validation", "test"}


def test_a_lake_may_do_without_relevance(lake: Lake):
    run(lake, Config())
    for schema in (tables.RelevanceChains, tables.RelevanceAnswers):
        assert (lake.manifest(schema).rows, lake.manifest(schema).metadata) == (0, {"enabled": False})


def test_rules_answer_judged_pairs_and_the_pool_and_explain_themselves(shop: Lake):
    run(shop, Config(enabled=True))
    chains, answers = shop.read(tables.RelevanceChains), shop.read(tables.RelevanceAnswers)
    assert keys(chains) == expected(("train", "validation"))
    assert keys(answers) == expected(("train", "validation", "test")) | pool()
    manifest = shop.manifest(tables.RelevanceAnswers)
    assert manifest.metadata == {
        "enabled": True,
        "labels_through": "2025-06-06T00:00:00+00:00",
        "good_from": 2.0,
        "folder": None,
        "num_left": 0,
    }
    assert manifest.fingerprint
    told = shop.manifest(tables.RelevanceChains).metadata
    assert (told["asked"], told["kept"]) == (len(chains), len(chains))
    assert told["annotators"][0]["told"] == "what people said"

    # rules know no certainty, and here they are right: brand and thing decide
    assert answers.get_column("score").null_count() == len(answers)
    grades = shop.read(tables.RelevanceGrades)
    judged = answers.join(grades, on=["query_id", "item_id"])
    assert (judged.get_column("label").cast(pl.String) == "good").to_list() == (
        judged.get_column("grade") > 2
    ).to_list()
    of_other_brand = answers.filter(pl.col("brand_match") == "mismatch")
    assert set(of_other_brand.get_column("label").cast(pl.String)) == {"bad"}

    sheet = (shop.root / "reports" / "relevance_audit.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(sheet.splitlines()))
    assert len(rows) == len(answers)
    assert {(row["query_id"], row["item_id"]) for row in rows} == keys(answers)


def test_a_second_run_asks_nothing_and_writes_the_same(shop: Lake, tiny: str, caplog: pytest.LogCaptureFixture):
    config = Config(enabled=True, teacher=local(tiny), max_pool_pairs=3)
    run(shop, config)
    digest, kept = shop.manifest(tables.RelevanceAnswers).digest, num_kept(shop)
    assert kept == len(expected(("train", "validation", "test"))) + 3
    with caplog.at_level(logging.INFO):
        run(shop, config)
    assert "0 unreadable, 0 left, 0 tokens" in caplog.text
    assert (shop.manifest(tables.RelevanceAnswers).digest, num_kept(shop)) == (digest, kept)


def test_an_edited_title_is_asked_about_again_and_nothing_else(shop: Lake, tiny: str):
    config = Config(enabled=True, teacher=local(tiny))
    run(shop, config)
    before, kept = shop.read(tables.RelevanceAnswers), num_kept(shop)
    write_items(shop, {3: "Bolt Green Lamp"})
    run(shop, config)
    after = shop.read(tables.RelevanceAnswers)
    of_item = [pair for pair in keys(before) if pair[1] == "i3"]
    assert num_kept(shop) == kept + len(of_item)
    same = before.join(after, on=["query_id", "item_id", "answer_hash"])
    assert keys(same) == keys(before) - set(of_item)


def test_a_spent_budget_writes_what_is_there_and_the_next_run_goes_on(
    shop: Lake, tiny: str, caplog: pytest.LogCaptureFixture
):
    teacher = local(tiny)
    whole = len(expected(("train", "validation", "test"))) + len(pool())
    with caplog.at_level(logging.WARNING):
        run(shop, Config(enabled=True, teacher=teacher, max_tokens=1_500))
    there = shop.manifest(tables.RelevanceAnswers)
    assert 0 < there.rows < whole
    assert there.metadata["num_left"] == whole - there.rows
    assert f"{whole - there.rows} pairs are left" in caplog.text
    assert "--force` goes on" in caplog.text
    spent = shop.read(tables.RelevanceAnswers).get_column("num_tokens").sum()
    assert 0 < spent <= 1_500
    run(shop, Config(enabled=True, teacher=teacher))
    assert shop.manifest(tables.RelevanceAnswers).rows == whole
    assert num_kept(shop) == whole


def test_a_budget_that_reaches_for_no_pair_is_told_to_be_raised(
    shop: Lake, tiny: str, caplog: pytest.LogCaptureFixture
):
    run(shop, Config(enabled=True, teacher=local(tiny), max_tokens=1))
    assert "raise max_tokens: it is less than the next pair may take" in caplog.text
    assert "--force" not in caplog.text


def test_unreadable_answers_are_quarantined_with_their_problems(shop: Lake, tiny: str):
    teacher = local(tiny, decoding="free")  # a random model writes no JSON
    config = Config(enabled=True, teacher=teacher, max_judged_pairs=3, max_test_pairs=0, max_pool_pairs=0)
    run(shop, config.model_copy(update={"max_unreadable_share": 1.0}))
    assert shop.manifest(tables.RelevanceAnswers).rows == 0
    (file,) = (shop.root / "quarantine").glob("relevance_answers-*.parquet")
    refused = pl.read_parquet(file)
    assert refused.get_column("broken_rules").to_list() == [["unreadable"]] * 3
    assert refused.get_column("problems").list.len().min() >= 1

    with pytest.raises(ValueError, match=r"3 of 3 answers could not be read(.|\n)*decoding = .constrained."):
        run(shop, config)


def test_two_annotators_are_both_asked_and_their_differences_counted(shop: Lake, tiny: str):
    writer = local(tiny, decoding="constrained", num_chains=2)
    run(shop, Config(enabled=True, annotators=(TeacherConfig(), writer), max_annotated_pairs=12))
    told = shop.manifest(tables.RelevanceChains).metadata
    parts = ("left", "unreadable", "against_people", "against_each_other", "kept")
    assert told["asked"] == sum(told[name] for name in parts) == 12
    assert told["against_people"] + told["against_each_other"] > 0
    assert len(told["annotators"]) == 2


def test_an_endpoint_annotates_and_answers_sees_only_what_it_may_and_is_not_asked_twice(
    shop: Lake, completion_server: Any
):
    endpoint = TeacherConfig(kind="endpoint", url=completion_server.url, model="judge", num_chains=2)
    config = Config(
        enabled=True,
        annotators=(endpoint,),
        teacher=endpoint,
        disclosure=Disclosure(fields=("query", "title")),
        max_annotated_pairs=10,
        max_judged_pairs=10,
        max_test_pairs=4,
        max_pool_pairs=4,
    )
    run(shop, config)
    asked = len(completion_server.requests)
    assert all(b"Title: " in body and b"Brand: " not in body for body in completion_server.received)
    answers = shop.read(tables.RelevanceAnswers)
    assert (len(answers), answers.get_column("score").null_count()) == (18, 0)
    # two chains for every pair that reads differently, though the endpoint is annotator and teacher
    assert asked == 2 * answers.get_column("answer_hash").n_unique()
    told = shop.manifest(tables.RelevanceChains).metadata
    assert told["kept"] > 0
    assert told["asked"] == told["kept"] + told["against_people"] == 10
    run(shop, config)
    assert len(completion_server.requests) == asked


def test_a_local_teacher_is_fine_tuned_on_the_chains_and_then_asked(shop: Lake, tiny: str):
    fine_tune = FineTune(enabled=True, answers="label_only", epochs=1, learning_rate=1e-3, batch_size=8)
    config = Config(enabled=True, teacher=local(tiny), fine_tune=fine_tune, max_annotated_pairs=16)
    run(shop, config)
    manifest = shop.manifest(tables.RelevanceAnswers)
    folder = shop.root / manifest.metadata["folder"]
    assert (folder / "config.json").exists()
    assert folder.parent == shop.root / "teachers"
    written = (folder / "training.json").stat().st_mtime_ns
    run(shop, config)
    assert (folder / "training.json").stat().st_mtime_ns == written
    assert shop.manifest(tables.RelevanceAnswers).digest == manifest.digest
    run(shop, config.model_copy(update={"fine_tune": FineTune()}))
    assert shop.manifest(tables.RelevanceAnswers).fingerprint != manifest.fingerprint


def test_contrasts_are_made_of_pairs_of_training_queries(shop: Lake, tiny: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[QueryItem]] = []

    def listening(pairs: list[QueryItem], *told: Any, **more: Any) -> Any:
        seen.append(pairs)
        return contrasts(pairs, *told, **more)

    monkeypatch.setattr(teacher_training, "contrasts", listening)
    fine_tune = FineTune(enabled=True, epochs=1, learning_rate=1e-3, batch_size=8, contrast_share=0.5)
    config = Config(enabled=True, teacher=local(tiny, decoding="scored"), fine_tune=fine_tune, max_annotated_pairs=16)
    run(shop, config)
    assert {pair.query for pair in seen[0]} == {text for _, text in QUERIES if side_of(text) == "train"}
    assert {(pair.query, pair.title) for pair in seen[0]} > {
        (text, ITEMS[(n + 4) % 8][1]) for n, (_, text) in enumerate(QUERIES) if side_of(text) == "train" and n % 10 < 5
    }  # what was shown and nobody judged, too


def test_a_teacher_is_not_trained_on_half_of_the_chains(shop: Lake, tiny: str):
    config = Config(
        enabled=True,
        annotators=(local(tiny, decoding="constrained"),),
        teacher=local(tiny, decoding="constrained"),
        fine_tune=FineTune(enabled=True),
        max_tokens=2_000,
    )
    with pytest.raises(ValueError, match="the teacher was not fine-tuned"):
        run(shop, config)
    assert shop.manifest(tables.RelevanceChains).metadata["left"] > 0
    assert not (shop.root / "teachers").exists()


def test_what_is_not_disclosed_does_not_count(shop: Lake):
    run(shop, Config(enabled=True, disclosure=Disclosure(fields=("query", "category"))))
    answers = shop.read(tables.RelevanceAnswers)
    assert set(answers.get_column("brand_match").cast(pl.String)) == {"na"}
    assert "Red Chair" not in (shop.root / "reports" / "relevance_audit.csv").read_text()


def test_a_lake_without_impressions_has_judged_pairs_all_the_same(shop: Lake):
    shop.write(tables.Impressions, tables.Impressions.create_empty())
    run(shop, Config(enabled=True))
    assert shop.manifest(tables.RelevanceAnswers).rows == len(QUERIES) * 4
    assert shop.manifest(tables.RelevanceAnswers).metadata["labels_through"] is None


def test_what_is_missing_is_named_with_what_to_do(shop: Lake, tiny: str):
    shop.write(tables.RelevanceGrades, tables.RelevanceGrades.create_empty())
    with pytest.raises(ValueError, match=r"rules alone know no relevance(.|\n)*kind = .local. or .endpoint."):
        run(shop, Config(enabled=True))
    with pytest.raises(ValueError, match=r"fine-tuning needs them(.|\n)*take the teacher as it is"):
        run(shop, Config(enabled=True, teacher=local(tiny, decoding="scored"), fine_tune=FineTune(enabled=True)))
    run(shop, Config(enabled=True, teacher=local(tiny)))  # a model needs no grades
    assert keys(shop.read(tables.RelevanceAnswers)) == pool(shown=(0, 4))
    with pytest.raises(ValueError, match=r"no pair is judged(.|\n)*nothing to ask about"):
        run(shop, Config(enabled=True, teacher=local(tiny), max_pool_pairs=0))
    shop.write(tables.Queries, tables.Queries.create_empty())
    with pytest.raises(ValueError, match=r"the log has no queries(.|\n)*what to do: ingest a search log"):
        run(shop, Config(enabled=True))


def test_settings_that_do_not_fit_together_are_refused(tiny: str):
    chains = local(tiny, decoding="scored")
    with pytest.raises(ValidationError, match="an annotator writes chains"):
        Config(annotators=(local(tiny, decoding="label_only"),))
    with pytest.raises(ValidationError, match="fine_tune needs teacher.kind"):
        Config(fine_tune=FineTune(enabled=True))
    with pytest.raises(ValidationError, match="asked for what it has learnt"):
        Config(teacher=chains, fine_tune=FineTune(enabled=True, answers="label_only"))
    with pytest.raises(ValidationError, match="shows steps of chains"):
        Config(teacher=local(tiny), fine_tune=FineTune(enabled=True, answers="label_only", contrast_share=1.0))
    with pytest.raises(ValidationError):
        Config(annotators=(TeacherConfig(),) * 3)


def test_other_weights_make_the_step_stale(tiny: str, tmp_path: Path, make_lm: Callable[..., CausalLM]):
    assert outside_inputs(Config(teacher=local(tiny))) is None  # not enabled
    config = Config(enabled=True, teacher=local(tiny))
    assert outside_inputs(config) == outside_inputs(config)
    RelevanceTeacher(make_lm(seed=1)).save(tmp_path / "other")
    assert outside_inputs(config) != outside_inputs(Config(enabled=True, teacher=local(str(tmp_path / "other"))))


def test_the_step_stands_before_whoever_reads_it():
    assert flow.STEPS.index("embed_users_learn") < flow.STEPS.index("label_relevance")
    assert flow.STEPS.index("label_relevance") < flow.STEPS.index("publish_features")
