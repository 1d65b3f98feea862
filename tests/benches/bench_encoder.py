"""Texts per second of the default encoder, beside two plain ways of using the same weights.

    python -m pytest -m bench -s tests/benches/bench_encoder.py

The texts are item prompts of very different lengths, 10 to about 200 tokens, a tenth of them duplicates.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from embedders.backbone import load_backbone
from embedders.model_files import find_model_files

NUM_TEXTS = 512
BATCH_SIZE = 64

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = ["tent", "bag", "stove", "wool", "cotton", "steel", "red", "blue", "warm", "dry", "trail", "lamp", "rope"]
    lengths = np.minimum(rng.lognormal(mean=2.8, sigma=0.8, size=NUM_TEXTS).astype(int) + 3, 200)
    distinct = [f'Product record. Title is "{" ".join(rng.choice(words, length))}".' for length in lengths]
    return [distinct[number] for number in rng.permutation(NUM_TEXTS) % int(NUM_TEXTS * 0.9)]


@pytest.fixture(scope="module")
def encode() -> Encode:
    backbone = load_backbone("minilm", device="cpu")
    backbone.encode(["warm up"])
    return lambda texts: backbone.encode(texts, BATCH_SIZE)


def compare(name: str, ours: Encode, other: Encode, texts: list[str]) -> None:
    seconds = []
    vectors = []
    for way in (ours, other):
        started = time.perf_counter()
        vectors.append(way(texts))
        seconds.append(time.perf_counter() - started)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    rates = [len(texts) / each for each in seconds]
    print(
        f"\n{len(texts)} texts, {torch.get_num_threads()} threads: tailrank {rates[0]:.0f} texts/s, "
        f"{name} {rates[1]:.0f} texts/s, {seconds[1] / seconds[0]:.2f}x"
    )


@pytest.mark.bench
def test_beside_batches_in_the_order_of_the_texts(texts: list[str], encode: Encode):
    folder = find_model_files("minilm").folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def naive(texts: Sequence[str]) -> NDArray[np.float32]:
        batches = []
        for start in range(0, len(texts), BATCH_SIZE):
            tokens = tokenizer(
                list(texts[start : start + BATCH_SIZE]),
                padding=True,
                truncation=True,
                max_length=500,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden_NLD = model(**tokens).last_hidden_state
            mask_NL1 = tokens["attention_mask"].unsqueeze(-1)
            mean_ND = (hidden_NLD * mask_NL1).sum(1) / mask_NL1.sum(1)
            batches.append(torch.nn.functional.normalize(mean_ND, dim=1))
        return torch.cat(batches).numpy()

    compare("unsorted batches", encode, naive, texts)


@pytest.mark.bench
@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None,
    reason="sentence-transformers is not a dependency; install it to compare",
)
@pytest.mark.filterwarnings("default")
def test_beside_sentence_transformers(texts: list[str], encode: Encode):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_model_files("minilm").folder), device="cpu")
    model.max_seq_length = 500

    def theirs(texts: Sequence[str]) -> NDArray[np.float32]:
        return model.encode(list(texts), batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)

    compare("SentenceTransformer.encode", encode, theirs, texts)
