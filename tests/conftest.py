"""Fixtures that several test files share."""

import datetime as dt
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from embedders.fingerprint import Fingerprint
from feature_repo import table_schemas as tables
from jobs.lake import Lake

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from embedders.causal_lm import CausalLM

os.environ["HF_HUB_OFFLINE"] = "1"

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The command line sets levels and handlers for its process; a test that calls it in ours must not."""
    loggers = [logging.getLogger(name) for name in (None, "jobs", "ranker", "embedders")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def now() -> dt.datetime:
    """The time on the clock of the `lake` fixture."""
    return NOW


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake whose clock stands still."""
    return Lake(tmp_path / "lake", now=lambda: NOW)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets, beside the project; skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def feature_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A small lake with impressions and every feature table: 8 users, 10 items, 30 days. Read only: copy to change.

    Values are made up but tell their origin: a count is 1000 * (number of the user or item) + day. Planted:
    u7 and i9 have no features; the impressions of user u0 are slates of 20 in one microsecond, two for each item;
    i0 was embedded again on day 15 (vector 100); a vector of i1 for day 2 was written on day 20 (vector 101: a
    backfill); i2 has an activity row on day 60, after the log.

    LEARN's model was trained on the first 12 days, so its vectors (8 wide) are known from then on: those of i0 to i7 on
    day 12, another of i1 on day 25 (vector 201), one of i8 on day 60 only (vector 208); a vector of i2 for day 13 was
    written on day 26 (vector 202: a backfill).
    """
    lake = Lake(tmp_path_factory.mktemp("features") / "lake", now=lambda: NOW)
    start, day = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc), dt.timedelta(days=1)
    times = {"event_timestamp": pl.Datetime("us", "UTC"), "created_timestamp": pl.Datetime("us", "UTC")}
    users, items, days = [f"u{n}" for n in range(8)], [f"i{n}" for n in range(10)], range(30)

    impressions = [
        {
            "impression_id": f"{user}-{d}-{slot}",
            "request_id": f"{user}-{d}",
            "user_id": user,
            "item_id": items[(slot + d) % 10],
            "query_id": None,
            "position": slot,
            "event_timestamp": start + d * day + dt.timedelta(hours=2 * int(user[1]), minutes=5),
            "clicked": (slot + d + int(user[1])) % 3 == 0,
            "converted": (slot + d + int(user[1])) % 6 == 0,
            "conversion_timestamp": None,
            "is_sampled": False,
        }
        for d in days
        for user in users
        for slot in range(20 if user == "u0" else 4)
    ]
    for number, row in enumerate(impressions):
        if row["converted"]:
            row["conversion_timestamp"] = row["event_timestamp"] + (number % 4) * day  # type: ignore[operator]
    conversion = {"conversion_timestamp": times["event_timestamp"], "query_id": pl.String}
    lake.write(tables.Impressions, pl.DataFrame(impressions, schema_overrides={**times, **conversion}))

    catalogue = [
        {"item_id": item, "title": f"item {item}", "category": f"c{n % 3}", "brand": None, "price_cents": 100 * n}
        for n, item in enumerate(items[:9])
    ]
    text_columns = dict.fromkeys(("brand", "keywords", "attributes", "description"), pl.String)
    lake.write(
        tables.Items,
        pl.DataFrame(
            [{**row, **dict.fromkeys(text_columns), **dict.fromkeys(times, start)} for row in catalogue],
            schema_overrides={**times, **text_columns},
        ),
    )

    for schema, kind, ids in ((tables.UserActivity, "user", users[:7]), (tables.ItemActivity, "item", items[:9])):
        numbers = schema.column_names()[3:]
        midnights = [(one, d) for one in ids for d in range(1, 30)] + ([("i2", 60)] if kind == "item" else [])
        rows = [
            {f"{kind}_id": one, "event_timestamp": start + d * day, "created_timestamp": start + d * day}
            | {name: 1000 * int(one[1]) + d if "_num_" in name else 1.0 / (1 + d) for name in numbers}
            for one, d in midnights
        ]
        lake.write(schema, pl.DataFrame(rows, schema_overrides=times))

    histories = [
        {
            "user_id": user,
            "event_timestamp": start + d * day,
            "created_timestamp": start + d * day,
            "history_item_ids": [items[(d + n) % 10] for n in range(3)],
            "history_timestamps": [start + d * day - dt.timedelta(hours=3 - n, microseconds=1) for n in range(3)],
        }
        for user in users[:7]
        for d in range(1, 30, 3)
    ]
    history_type = {"history_timestamps": pl.List(pl.Datetime("us", "UTC"))}
    lake.write(tables.UserHistories, pl.DataFrame(histories, schema_overrides={**times, **history_type}))

    fingerprint = {"model_id": "made up", "dimension": "4"}

    def vectors(number: int, seed: int, width: int = 4) -> pl.Series:
        drawn = np.random.default_rng(seed).normal(size=(number, width))
        unit = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        return pl.Series(unit.tolist(), dtype=pl.List(pl.Float32))

    embedded = [(f"i{n}", 0, 0, n) for n in range(9)] + [("i0", 15, 15, 100), ("i1", 2, 20, 101)]
    embeddings = pl.DataFrame(
        {
            "item_id": [item for item, *_ in embedded],
            "event_timestamp": [start + d * day for _, d, _, _ in embedded],
            "created_timestamp": [start + d * day for _, _, d, _ in embedded],
            "item_content_vector_id": [vector for *_, vector in embedded],
            "item_content_embedding": vectors(len(embedded), seed=1),
            "item_content_hash": [str(vector) for *_, vector in embedded],
        },
        schema_overrides=times,
    )
    lake.write(tables.ItemContentEmbeddings, embeddings, fingerprint=fingerprint)
    interests = pl.DataFrame(
        {
            "user_id": [row["user_id"] for row in histories],
            "event_timestamp": [row["event_timestamp"] for row in histories],
            "created_timestamp": [row["created_timestamp"] for row in histories],
            "user_content_vector_id": list(range(len(histories))),
            "user_content_interest": vectors(len(histories), seed=2),
            "user_content_num_items": [3] * len(histories),
            "user_content_hash": [str(number) for number in range(len(histories))],
        },
        schema_overrides=times,
    )
    lake.write(tables.UserContentInterests, interests, fingerprint=fingerprint)

    learn = {"model_id": "made up too", "dimension": "8", "trained_through": str(start + 12 * day)}
    learnt = [(f"i{n}", 12, 12, n) for n in range(8)] + [("i1", 25, 25, 201), ("i2", 13, 26, 202), ("i8", 60, 60, 208)]
    item_vectors = pl.DataFrame(
        {
            "item_id": [item for item, *_ in learnt],
            "event_timestamp": [start + d * day for _, d, _, _ in learnt],
            "created_timestamp": [start + d * day for _, _, d, _ in learnt],
            "item_learn_vector_id": [vector for *_, vector in learnt],
            "item_learn_embedding": vectors(len(learnt), seed=3, width=8),
            "item_learn_content_vector_id": [vector % 100 for *_, vector in learnt],
        },
        schema_overrides=times,
    )
    lake.write(tables.ItemLearnEmbeddings, item_vectors, fingerprint=learn)
    aligned = [row for row in histories if row["event_timestamp"] >= start + 12 * day]
    user_vectors = pl.DataFrame(
        {
            "user_id": [row["user_id"] for row in aligned],
            "event_timestamp": [row["event_timestamp"] for row in aligned],
            "created_timestamp": [row["created_timestamp"] for row in aligned],
            "user_learn_vector_id": list(range(len(aligned))),
            "user_learn_interest": vectors(len(aligned), seed=4, width=8),
            "user_learn_num_items": [3] * len(aligned),
            "user_learn_hash": [str(number) for number in range(len(aligned))],
        },
        schema_overrides=times,
    )
    lake.write(tables.UserLearnInterests, user_vectors, fingerprint=learn)
    return lake


@pytest.fixture(scope="session")
def published_lake(feature_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """`feature_lake`, after publish_features. Read only: copy to change (and publish the copy anew)."""
    from jobs import publish_features  # imports Feast, which takes seconds

    root = tmp_path_factory.mktemp("published") / "lake"
    shutil.copytree(feature_lake.root, root, symlinks=True)
    lake = Lake(root, now=lambda: NOW)
    publish_features.run(lake, publish_features.Config())
    return lake


@pytest.fixture(scope="session")
def fitted_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A log of 40 days with LEARN's model of its first 20. Read only: copy to change.

    Users u00 to u79 click on 12 items each; those of an even number like even items (of i00 to i39), and an item's
    content vector says whether it is even. Planted: u80 clicks once on day 2; i40 has no content vector; the vector of
    i41 is known from day 30 on; i00 was edited on day 25 (content vector 100). Written: impressions,
    item_content_embeddings, user_histories, and what fit_embedder writes.
    """
    from jobs import collect_histories, fit_embedder

    lake = Lake(tmp_path_factory.mktemp("fitted") / "lake", now=lambda: NOW)
    start, day = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc), dt.timedelta(days=1)
    rng = np.random.default_rng(0)
    clicks = [("u80", "i02", 2.5), ("u00", "i40", 0.25), ("u01", "i41", 39.75), ("u02", "i01", 0.0)]
    for user in range(80):
        liked = 2 * rng.choice(20, 12, replace=False) + user % 2
        days = np.sort(rng.uniform(0.0, 40.0, 12))
        clicks += [(f"u{user:02}", f"i{item:02}", float(at)) for item, at in zip(liked, days, strict=True)]
    log = pl.DataFrame(
        [
            {
                "impression_id": f"{number:04}",
                "user_id": user,
                "item_id": item,
                "event_timestamp": start + at * day,
                "clicked": True,
                "converted": False,
                "is_sampled": False,
            }
            for number, (user, item, at) in enumerate(clicks)
        ]
    )
    lake.write(tables.Impressions, pl.concat([tables.Impressions.create_empty(), log], how="diagonal_relaxed"))
    vectors = rng.normal(size=(42, 8))
    vectors[:, 0] = np.where(np.arange(42) % 2 == 0, 3.0, -3.0)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    embedded = [(f"i{n:02}", 0, n, n) for n in range(40)] + [("i41", 30, 41, 41), ("i00", 25, 100, 1)]
    content = pl.DataFrame(
        {
            "item_id": [item for item, *_ in embedded],
            "event_timestamp": [start + known * day for _, known, _, _ in embedded],
            "created_timestamp": [start + known * day for _, known, _, _ in embedded],
            "item_content_vector_id": [number for _, _, number, _ in embedded],
            "item_content_embedding": [vectors[row].tolist() for *_, row in embedded],
            "item_content_hash": [str(number) for _, _, number, _ in embedded],
        },
        schema_overrides={"item_content_embedding": pl.List(pl.Float32)},
    )
    encoder = Fingerprint("words", "w", "t", "learn_v1", "mean", 8, "l2", "float32")
    lake.write(tables.ItemContentEmbeddings, content, fingerprint=encoder.as_tags())
    collect_histories.run(lake, collect_histories.Config())
    fit_embedder.run(lake, fit_embedder.Config(shape="tiny", epochs=8, batch_size=16, recall_at=10))
    return lake


@pytest.fixture
def learn_lake(fitted_lake: Lake, tmp_path: Path) -> Lake:
    """A copy of `fitted_lake`, to be changed."""
    shutil.copytree(fitted_lake.root, tmp_path / "learn_lake", symlinks=True)
    return Lake(tmp_path / "learn_lake", now=lambda: NOW)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> "PreTrainedTokenizerFast":
    """BPE over bytes, learnt from a few prompts and answers; with an end, without a beginning."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # here: torch takes seconds to import
    from transformers import PreTrainedTokenizerFast

    from embedders.relevance_prompts import QueryItem, Reasoning, prompt

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pair = QueryItem("red chair", "Acme red chair", "chairs", "Acme", "red, 3 in")
    values = ["chair", "acme", "x100", "red, 3 in"] * 2
    lines = [
        Reasoning.of_values([*values, "match", "mismatch", "na", "match", label]).line() for label in ("good", "bad")
    ]
    tokenizer.train_from_iterator([prompt(pair), prompt(pair, label_only=True), *lines] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="session")
def make_lm(byte_level_tokenizer: "PreTrainedTokenizerFast") -> "Callable[..., CausalLM]":
    """Makes a random Llama, small enough to train in a test; the same for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from embedders.causal_lm import CausalLM

    def make(seed: int = 0, width: int = 32) -> CausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(byte_level_tokenizer) + 4,  # as often, the model has more rows than there are tokens
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=1024,
            initializer_range=0.2,
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        return CausalLM("tiny", LlamaForCausalLM(config).eval(), byte_level_tokenizer)

    return make


@pytest.fixture(scope="session")
def relevance_lake(feature_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """`feature_lake` with searches and relevance. Read only: copy to change.

    On even days users search: user un asks for q0 to q3 on days 0, 2, 4, 6, ..., beginning with q(n mod 4); on odd days
    they see a feed, without a query. The labels that taught the student end on day 10, so nothing is known before.

    Vectors (8 wide): of q0 to q2 and of i0 to i7 from day 10 on; another of i0 from day 18 on (vector 100), one of i8
    on day 60 only (vector 108); a vector of q1 for day 12 was written on day 21 (vector 101: a backfill). q3 has none.
    Scores: 0.01 * (10 * query + item) of the pairs whose sum is even, q0 to q2 with i0 to i8, from day 10 on; (q0, i0)
    was scored again on day 20 (0.9), and a score of (q1, i1) for day 13 was written on day 23 (0.8: a backfill).
    """
    root = tmp_path_factory.mktemp("relevance") / "lake"
    shutil.copytree(feature_lake.root, root, symlinks=True)
    lake = Lake(root, now=lambda: NOW)
    start, day = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc), dt.timedelta(days=1)
    number = (pl.col("event_timestamp") - start).dt.total_days()
    asked = pl.format("q{}", (pl.col("user_id").str.slice(1).cast(pl.Int64) + number // 2) % 4)
    searched = pl.when(number % 2 == 0).then(asked).alias("query_id")
    lake.write(tables.Impressions, feature_lake.read(tables.Impressions).with_columns(searched))
    lake.write(tables.Queries, pl.DataFrame({"query_id": ["q0", "q1", "q2", "q3"], "query_text": list("abcd")}))
    fingerprint = {"model_id": "made up, to be relevant", "dimension": "8", "trained_through": str(start + 10 * day)}
    rng = np.random.default_rng(5)

    def write(schema: type[Any], key: str, side: str, rows: list[tuple[str, int, int, int]], **more: float) -> None:
        drawn = rng.normal(size=(len(rows), 8))
        unit = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        frame = pl.DataFrame(
            {
                key: [one for one, *_ in rows],
                "event_timestamp": [start + known * day for _, known, _, _ in rows],
                "created_timestamp": [start + written * day for _, _, written, _ in rows],
                f"{side}_relevance_vector_id": [vector for *_, vector in rows],
                f"{side}_relevance_embedding": unit.tolist(),
                f"{side}_relevance_hash": [str(vector) for *_, vector in rows],
            },
            schema_overrides={f"{side}_relevance_embedding": pl.List(pl.Float32)},
        )
        lake.write(schema, frame.with_columns(pl.lit(v).alias(n) for n, v in more.items()), fingerprint=fingerprint)

    queries = [(f"q{n}", 10, 10, n) for n in range(3)] + [("q1", 12, 21, 101)]
    calibration = {"query_relevance_scale": 7.3, "query_relevance_bias": -1.1}
    write(tables.QueryEmbeddings, "query_id", "query", queries, **calibration)
    items = [(f"i{n}", 10, 10, n) for n in range(8)] + [("i0", 18, 18, 100), ("i8", 60, 60, 108)]
    write(tables.ItemRelevanceEmbeddings, "item_id", "item", items)

    scores = [(q, i, 10, 10, 0.01 * (10 * q + i)) for q in range(3) for i in range(9) if (q + i) % 2 == 0]
    scores += [(0, 0, 20, 20, 0.9), (1, 1, 13, 23, 0.8)]
    pairs = pl.DataFrame(
        {
            "query_id": [f"q{q}" for q, *_ in scores],
            "item_id": [f"i{i}" for _, i, *_ in scores],
            "event_timestamp": [start + known * day for _, _, known, _, _ in scores],
            "created_timestamp": [start + written * day for *_, written, _ in scores],
            "query_item_relevance": [score for *_, score in scores],
            "query_item_relevance_hash": [str(n) for n in range(len(scores))],
        }
    )
    lake.write(tables.QueryItemRelevance, pairs)
    return lake


@pytest.fixture(scope="session")
def published_relevance_lake(relevance_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """`relevance_lake`, after publish_features. Read only: copy to change (and publish the copy anew)."""
    from jobs import publish_features  # imports Feast, which takes seconds

    root = tmp_path_factory.mktemp("published_relevance") / "lake"
    shutil.copytree(relevance_lake.root, root, symlinks=True)
    lake = Lake(root, now=lambda: NOW)
    publish_features.run(lake, publish_features.Config())
    return lake


@pytest.fixture(scope="session")
def word_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT of two layers that reads the words of `search_lake`; the same every time."""
    import torch  # takes seconds, and most tests do without
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "words"
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", ".", *(f"{n}{k}" for n in ("maker", "kind", "word") for k in range(9))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **special).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            pad_token_id=1,
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def search_lake(lake: Lake) -> Lake:
    """Searches with judged pairs and a teacher's answers about those of the first 20 of 40 days.

    A query names one of three makers and one of three kinds, and so does an item: grade 3 where both agree, 1 where
    one does, 0 otherwise, of every pair shown. Query q000 is shown on day 0 at noon, q001 on day 1, q040 on day 0
    again, with six items each (two that fit, four drawn). Item i00 to i26 are there from day 0, i27 on from day 30.
    The teacher is sure of the grade, and gives its reasons. Planted: i35 has no text, q119 is blank.
    """
    from embedders.relevance_prompts import STEPS, Reasoning

    start, day = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc), dt.timedelta(days=1)
    rng = np.random.default_rng(0)
    traits = [(n % 3, n // 3 % 3) for n in range(120)]
    items, queries = [f"i{n:02}" for n in range(36)], [f"q{n:03}" for n in range(120)]
    titles = [f"maker{traits[n][0]} kind{traits[n][1]} word{n // 9}" for n in range(35)]
    times = [start if n < 27 else start + 30 * day for n in range(36)]
    catalogue = pl.DataFrame(
        {"item_id": items, "title": [*titles, None], "event_timestamp": times, "created_timestamp": times}
    )
    lake.write(tables.Items, pl.concat([tables.Items.create_empty(), catalogue], how="diagonal_relaxed"))
    texts = [f"maker{maker} kind{kind} word{n % 9} x{n}" for n, (maker, kind) in enumerate(traits)]
    lake.write(tables.Queries, pl.DataFrame({"query_id": queries, "query_text": [*texts[:-1], "  "]}))
    log, grades, answers = [], [], []
    for n, query in enumerate(queries):
        fits = [m for m in range(35) if traits[m] == traits[n]]
        for slot, m in enumerate(
            [*fits[:2], *rng.choice([m for m in range(36) if m not in fits[:2]], 4, replace=False)]
        ):
            shown = start + (n % 40) * day + dt.timedelta(hours=12, minutes=slot)
            log.append((f"{query}-{slot}", f"u{n % 7}", items[m], query, slot, shown, False, False, False))
            agree = [traits[m][side] == traits[n][side] for side in (0, 1)]
            grades.append((query, items[m], {2: 3.0, 1: 1.0, 0: 0.0}[sum(agree)]))
            if n % 40 >= 20 or m == 35 or n == 119:
                continue
            facts = {"category": f"kind{traits[m][1]}", "brand": f"maker{traits[m][0]}"}
            label, matches = ("good" if all(agree) else "bad"), ["match" if one else "mismatch" for one in agree[::-1]]
            chain = Reasoning.of_values(
                [
                    f"kind{traits[n][1]}",
                    f"maker{traits[n][0]}",
                    "",
                    "",
                    *facts.values(),
                    "",
                    "",
                    *matches,
                    "na",
                    "na",
                    label,
                ]
            )
            answers.append(
                {
                    "query_id": query,
                    "item_id": items[m],
                    "score": {2: 0.95, 1: 0.2, 0: 0.05}[sum(agree)],
                    "label": label,
                    **{f"{step}_match": match for step, match in zip(STEPS, chain.matches(), strict=True)},
                    "chain": chain.line(),
                    **dict.fromkeys(("agreement", "num_chains", "num_parsed", "num_attempts", "num_tokens"), 1),
                    "answer_hash": f"{query} {items[m]}",
                }
            )
    columns = ["impression_id", "user_id", "item_id", "query_id", "position", "event_timestamp"]
    shown_rows = pl.DataFrame(log, schema=[*columns, "clicked", "converted", "is_sampled"], orient="row")
    lake.write(tables.Impressions, pl.concat([tables.Impressions.create_empty(), shown_rows], how="diagonal_relaxed"))
    lake.write(tables.RelevanceGrades, pl.DataFrame(grades, schema=["query_id", "item_id", "grade"], orient="row"))
    lake.write(
        tables.RelevanceAnswers,
        pl.DataFrame(answers, schema=dict(tables.RelevanceAnswers.create_empty().schema)),
        fingerprint={"teacher": "sure"},
        metadata={"enabled": True, "labels_through": (start + 20 * day).isoformat(), "good_from": 2.0},
    )
    return lake
