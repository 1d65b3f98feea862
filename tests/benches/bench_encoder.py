"""Texts per second of the default encoder, beside `SentenceTransformer.encode` with the same weights.

    python -m pytest -m bench -s tests/benches/bench_encoder.py

All ways encode the same texts in one process, in turn, three rounds; the best of each counts. One round before them
warms up. With 1 and with 2 threads; set TOKENIZERS_PARALLELISM=false to keep the tokenizer to one as well.

What a faster way costs is printed beside it: the least cosine of any text with its float32 vector, and the share of
each text's ten nearest neighbours that stay. To see what a machine with fewer instructions would do, set
ONEDNN_MAX_CPU_ISA=AVX512_CORE or AVX2 (the latter with MKL_ENABLE_INSTRUCTIONS=AVX2).
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from embedders.backbone import load_backbone
from embedders.model_files import find_model_files
from embedders.prompts import PROMPTS
from jobs.raw_sources import simulate

NUM_TEXTS = 512
BATCH_SIZE = 64
ROUNDS = 3
NUM_NEIGHBOURS = 10

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def simulated(_: Path) -> pl.DataFrame:
    """Items of the demo's marketplace."""
    return next(simulate.shards(None, simulate.Config())).frame


def games(real_data: Path) -> pl.DataFrame:
    """Titles of video games, about 14 tokens each."""
    return pl.read_parquet(real_data / "amazon_games_llmrank" / "items.parquet")


def industrial(real_data: Path) -> pl.DataFrame:
    """Industrial products with their whole descriptions, up to the encoder's limit."""
    return pl.read_parquet(real_data / "amazon18_minionerec" / "Industrial_and_Scientific.items.parquet")


CATALOGUES = {
    "simulated": (simulated, "learn"),
    "games": (games, "amazon"),
    "industrial": (industrial, "learn_described"),
}
"""Items, and the prompt that writes them."""


@pytest.fixture(params=CATALOGUES)
def texts(request: pytest.FixtureRequest) -> list[str]:
    items, prompt = CATALOGUES[request.param]
    folder = Path() if request.param == "simulated" else request.getfixturevalue("real_data")
    frame = items(folder)
    slots = ("description", "brand", "category", "keywords", "attributes")
    missing = {name: pl.lit(None, pl.String) for name in slots if name not in frame.columns}
    if "price_cents" not in frame.columns:
        missing["price_cents"] = pl.lit(None, pl.Int64)
    written = frame.with_columns(**missing).sample(NUM_TEXTS, seed=0).select(PROMPTS[prompt].text).to_series()
    return written.drop_nulls().to_list()


def of_this_project(dtype: str) -> Encode:
    backbone = load_backbone("minilm", device="cpu", dtype=dtype)
    return lambda texts: backbone.encode(texts, BATCH_SIZE)


def plain_loop() -> Encode:
    """Batches in the order of the texts, padded to the longest: what one writes first."""
    folder = find_model_files("minilm").folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        batches = []
        for start in range(0, len(texts), BATCH_SIZE):
            batch = list(texts[start : start + BATCH_SIZE])
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=500, return_tensors="pt")
            with torch.inference_mode():
                hidden_NLD = model(**tokens).last_hidden_state
            mask_NL1 = tokens["attention_mask"].unsqueeze(-1)
            mean_ND = (hidden_NLD * mask_NL1).sum(1) / mask_NL1.sum(1)
            batches.append(torch.nn.functional.normalize(mean_ND, dim=1))
        return torch.cat(batches).numpy()

    return encode


def sentence_transformer() -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_model_files("minilm").folder), device="cpu")
    model.max_seq_length = 500
    return lambda texts: model.encode(
        list(texts), batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False
    )


def nearest(vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    cosine_NN = vectors_ND @ vectors_ND.T
    np.fill_diagonal(cosine_NN, -np.inf)
    return np.argsort(-cosine_NN, axis=1, kind="stable")[:, :NUM_NEIGHBOURS]


def share_of_neighbours_kept(exact_ND: NDArray[np.float32], coarse_ND: NDArray[np.float32]) -> float:
    pairs = zip(nearest(exact_ND), nearest(coarse_ND), strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / NUM_NEIGHBOURS for one, other in pairs]))


@pytest.mark.bench
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
def test_beside_sentence_transformers(texts: list[str], num_threads: int, request: pytest.FixtureRequest):
    ways: dict[str, Encode] = {
        "SentenceTransformer.encode": sentence_transformer(),
        "plain loop": plain_loop(),
        "tailrank, float32": of_this_project("float32"),
        "tailrank, bfloat16": of_this_project("bfloat16"),
    }
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        vectors = {name: encode(texts) for name, encode in ways.items()}
        seconds = dict.fromkeys(ways, np.inf)
        for _ in range(ROUNDS):
            for name, encode in ways.items():
                started = time.perf_counter()
                encode(texts)
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads_before)

    exact_ND = vectors["tailrank, float32"]
    print(f"\n{request.node.callspec.id}: {len(texts)} texts, {num_threads} threads, best of {ROUNDS}")
    for name, vectors_ND in vectors.items():
        least_cosine = (vectors_ND * exact_ND).sum(axis=1).min()
        print(
            f"  {name:27s} {len(texts) / seconds[name]:7.1f} texts/s "
            f"{seconds['SentenceTransformer.encode'] / seconds[name]:5.2f}x   least cosine {least_cosine:.5f}, "
            f"neighbours kept {share_of_neighbours_kept(exact_ND, vectors_ND):.3f}"
        )
    for name in ("SentenceTransformer.encode", "plain loop"):
        np.testing.assert_allclose(vectors[name], exact_ND, atol=1e-5)
    assert (vectors["tailrank, bfloat16"] * exact_ND).sum(axis=1).min() > 0.999
