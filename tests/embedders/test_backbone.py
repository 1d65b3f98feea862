import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from embedders.backbone import Backbone, LocalBackbone, load_backbone
from embedders.model_files import PACKAGED_MODELS, find_model_files

ATOL = 1e-5
"""What the module promises for a text encoded beside others, per component."""

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .é帐🏕"
TEXTS = ["two-man tent", "t", "a sleeping bag for cold nights " * 4, "crème 帐 🏕", "two-man tent", "lipstick."]


def save_tokenizer(folder: Path, *, special: bool) -> int:
    """A tokenizer of single letters; with [CLS] text [SEP] and padding, or (like many decoders) with neither."""
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *LETTERS] if special else ["[UNK]", *LETTERS]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    roles = {"unk_token": "[UNK]"}
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        roles |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    size = save_tokenizer(folder, special=True)
    config = BertConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        pad_token_id=1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    """A decoder with a language-model head, saved without a padding token."""
    torch.manual_seed(1)
    size = save_tokenizer(folder, special=False)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=2048,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """A decoder with learnt positions: padding on the left would shift them."""
    torch.manual_seed(2)
    size = save_tokenizer(folder, special=False)
    config = GPT2Config(
        vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=256, bos_token_id=None, eos_token_id=None
    )
    GPT2Model(config).save_pretrained(folder)
    return folder


def save_t5(folder: Path) -> Path:
    torch.manual_seed(3)
    size = save_tokenizer(folder, special=True)
    config = T5Config(
        vocab_size=size,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=1,
        pad_token_id=1,
    )
    T5Model(config).save_pretrained(folder)
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": save_bert,
    "llama": save_llama,
    "gpt2": save_gpt2,
    "t5": save_t5,
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, of each family."""
    return FAMILIES[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def minilm() -> LocalBackbone:
    return load_backbone("minilm", device="cpu")


def encoded_alone(folder: Path, text: str, max_tokens: int = 500) -> NDArray[np.float32]:
    """The oracle: one text, no padding, no mask, plain mean over its tokens."""
    tokens = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert len(tokens) <= max_tokens
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].numpy().astype(np.float64)
    mean = states.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_every_family_gives_what_each_text_gives_alone_without_padding(folder: Path):
    vectors = load_backbone(str(folder), device="cpu").encode(TEXTS, batch_size=3)
    expected = np.stack([encoded_alone(folder, text) for text in TEXTS])
    np.testing.assert_allclose(vectors, expected, atol=ATOL)


def test_vectors_are_float32_of_unit_norm_and_the_declared_width(folder: Path):
    backbone: Backbone = load_backbone(str(folder), device="cpu")
    vectors = backbone.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), backbone.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_neighbours_and_batch_size_move_a_vector_by_rounding_only(folder: Path):
    backbone = load_backbone(str(folder), device="cpu")
    alone = backbone.encode([TEXTS[1]])
    for batch_size in (1, 2, 64):
        np.testing.assert_allclose(backbone.encode(TEXTS, batch_size)[1:2], alone, atol=ATOL)


def test_the_same_call_gives_the_same_bytes(folder: Path):
    backbone = load_backbone(str(folder), device="cpu")
    assert backbone.encode(TEXTS, 2).tobytes() == backbone.encode(TEXTS, 2).tobytes()
    assert load_backbone(str(folder), device="cpu").encode(TEXTS, 2).tobytes() == backbone.encode(TEXTS, 2).tobytes()


def test_texts_come_back_in_their_order_and_equal_texts_get_equal_bytes(minilm: LocalBackbone):
    texts = [f"{'very ' * (number % 7)}good tent number {number % 20}" for number in range(60)]
    vectors = minilm.encode(texts, batch_size=8)
    single = minilm.encode(texts[::-1], batch_size=8)[::-1]
    np.testing.assert_allclose(vectors, single, atol=ATOL)
    for first, text in enumerate(texts):
        again = texts.index(text)
        assert vectors[first].tobytes() == vectors[again].tobytes()


def test_progress_counts_every_text_once_duplicates_too(minilm: LocalBackbone):
    told: list[int] = []
    minilm.encode(["a", "b", "a", "a", "c"], batch_size=2, on_progress=told.append)
    assert sum(told) == 5
    assert len(told) == 2


def test_no_texts_give_no_vectors(minilm: LocalBackbone):
    assert minilm.encode([]).shape == (0, 384)


def test_a_text_beyond_the_limit_is_read_up_to_the_limit(minilm: LocalBackbone):
    long = "tent " * 20_000  # 100 000 characters
    vectors = minilm.encode([long, "tent " * 498, "tent " * 300])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=ATOL)  # 498 words and two special tokens
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4


def test_one_word_of_a_hundred_thousand_letters_is_read(minilm: LocalBackbone):
    assert np.isfinite(minilm.encode(["x" * 100_000])).all()


def test_the_models_own_limit_holds_where_it_is_lower(tmp_path: Path):
    backbone = load_backbone(str(save_bert(tmp_path / "bert")), device="cpu")
    assert backbone.max_tokens == 128
    long = backbone.encode(["a" * 1000, "a" * 126])
    np.testing.assert_allclose(long[0], long[1], atol=ATOL)


def test_scripts_and_emoji_are_read(minilm: LocalBackbone):
    vectors = minilm.encode(["Zelt für zwei Personen", "帐篷", "🏕️", "\u202eأحمر"])
    assert np.isfinite(vectors).all()


def test_a_text_without_tokens_is_refused_by_a_model_without_special_tokens(tmp_path: Path):
    backbone = load_backbone(str(save_llama(tmp_path / "llama")), device="cpu")
    with pytest.raises(ValueError, match="llama: 1 of 2 texts have no tokens"):
        backbone.encode(["", "tent"])


def test_meaning_is_near_and_other_things_are_far(minilm: LocalBackbone):
    tent, bag, lipstick = minilm.encode(["A two-man tent", "A warm sleeping bag", "A matte red lipstick"])
    assert tent @ bag > tent @ lipstick + 0.1


def test_weights_that_lack_tensors_are_refused_not_left_random(tmp_path: Path):
    folder = save_bert(tmp_path / "bert")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ValueError, match=r"weights lack \d+ tensors"):
        load_backbone(str(folder), device="cpu").encode(["tent"])


def test_a_limit_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="max_tokens must be 1 or more, got 0"):
        load_backbone("minilm", max_tokens=0)


def test_the_fingerprint_is_known_before_the_weights_are_read_and_sees_each_change(tmp_path: Path):
    folder = save_bert(tmp_path / "bert")
    one = load_backbone(str(folder), device="cpu").fingerprint("learn_v1")
    assert (one.model_id, one.dimension, one.dtype, one.trained_through) == ("bert", 16, "float32", None)
    assert load_backbone(str(folder), device="cpu").fingerprint("learn_v1") == one
    assert load_backbone(str(folder), device="cpu").fingerprint("amazon_v1") != one
    assert load_backbone(str(folder), device="cpu", max_tokens=50).fingerprint("learn_v1") != one
    assert load_backbone(str(folder), device="cpu", dtype="bfloat16").fingerprint("learn_v1") != one
    torch.manual_seed(9)
    model = AutoModel.from_pretrained(folder)
    torch.nn.init.normal_(model.embeddings.word_embeddings.weight)
    model.save_pretrained(folder)
    assert load_backbone(str(folder), device="cpu").fingerprint("learn_v1").weights_sha256 != one.weights_sha256


def test_bfloat16_stays_near_float32():
    exact = load_backbone("minilm", device="cpu").encode(TEXTS)
    coarse = load_backbone("minilm", device="cpu", dtype="bfloat16").encode(TEXTS)
    assert coarse.dtype == np.float32
    assert (exact * coarse).sum(axis=1).min() > 0.999


def test_it_prints_nothing_uses_no_network_and_no_data_library(tmp_path: Path):
    folder = save_bert(tmp_path / "bert")
    program = (
        "import socket, sys\n"
        "def refuse(*args): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "import embedders.interests\n"
        "from embedders.backbone import load_backbone\n"
        f"print(load_backbone({str(folder)!r}).encode(['tent']).shape)\n"
        "print({'polars', 'duckdb', 'feast', 'pydantic', 'pandas', 'jobs', 'ranker'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("(1, 16)\nset()\n", "", 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_what_the_cpu_gives_up_to_bfloat16(minilm: LocalBackbone):
    backbone = load_backbone("minilm")
    assert backbone.fingerprint("learn_v1").dtype == "bfloat16"
    assert (backbone.encode(TEXTS) * minilm.encode(TEXTS)).sum(axis=1).min() > 0.999


def save_as_gguf(folder: Path, file: Path) -> None:
    """The tiny Llama of `save_llama`, in the layout of llama.cpp, with the same tokens for letters and digits."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, weights = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    # byte-level tokens write a space as \u0120; the merge, which GGUF wants, is of letters that do not occur
    tokens = ["[UNK]", *LETTERS.replace(" ", "\u0120"), "\u00fe", "\u00fe\u00fe"]
    extra = np.zeros((len(tokens) - config.vocab_size, config.hidden_size), np.float32)

    def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
        halves = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["\u00fe \u00fe"])
    writer.add_tensor("token_embd.weight", np.concatenate([weights["model.embed_tokens.weight"], extra]))
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        for name, ggml in (
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            writer.add_tensor(f"{theirs}.{ggml}.weight", weights[f"{ours}.{name}.weight"])
        for name, ggml, heads in (
            ("q_proj", "attn_q", config.num_attention_heads),
            ("k_proj", "attn_k", config.num_key_value_heads),
        ):
            weight = interleaved(weights[f"{ours}.self_attn.{name}.weight"], heads)
            writer.add_tensor(f"{theirs}.{ggml}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_what_the_same_weights_give_from_a_folder(tmp_path: Path):
    folder, file = save_llama(tmp_path / "llama"), tmp_path / "llama.gguf"
    save_as_gguf(folder, file)
    texts = ["two man tent", "t", "a sleeping bag for cold nights", "7 tents."]
    from_file = load_backbone(str(file), device="cpu")
    np.testing.assert_allclose(
        from_file.encode(texts, batch_size=2), load_backbone(str(folder), device="cpu").encode(texts), atol=ATOL
    )
    fingerprint = from_file.fingerprint("learn_v1")
    assert fingerprint.model_id == "llama.gguf"
    assert fingerprint.tokenizer_sha256 == fingerprint.weights_sha256


@pytest.mark.slow
def test_the_packaged_gguf_decoder_is_read():
    try:
        find_model_files("smollm2")
    except ValueError:
        pytest.skip(f"{PACKAGED_MODELS['smollm2'].distribution} is not installed")
    backbone = load_backbone("smollm2", device="cpu")
    texts = ["A two-man tent", "A tent", "A matte red lipstick " * 3]
    vectors = backbone.encode(texts)
    assert vectors.shape == (3, 576)
    np.testing.assert_allclose(vectors[1:2], backbone.encode(texts[1:2]), atol=ATOL)
