import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
)

from embedders.backbone import load_backbone
from embedders.hidden_layer import last_layer, layer_below
from embedders.model_files import find_model_files

NUM_LAYERS = 4
VOCABULARY = 50


def bert() -> torch.nn.Module:
    return BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=2,
            intermediate_size=32,
        ),
        add_pooling_layer=False,
    )


def llama() -> torch.nn.Module:
    return LlamaModel(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            pad_token_id=None,
        )
    )


def gemma() -> torch.nn.Module:
    """Layers of two kinds of attention, one of them sliding."""
    return Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            pad_token_id=None,
        )
    )


def gpt2() -> torch.nn.Module:
    return GPT2Model(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=NUM_LAYERS, n_head=2, n_positions=64))


def t5() -> torch.nn.Module:
    return T5EncoderModel(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=NUM_LAYERS, num_heads=2)
    ).get_encoder()


FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "bert": bert,
    "llama": llama,
    "gemma": gemma,
    "gpt2": gpt2,
    "t5": t5,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A tiny model with random weights, of each family. Copy to change."""
    torch.manual_seed(0)
    model = FAMILIES[request.param]().eval()
    model.config.use_cache = False
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of 9 and 5 tokens."""
    ids_NL = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    mask_NL = torch.ones(2, 9, dtype=torch.int64)
    mask_NL[1, 5:] = 0
    return ids_NL, mask_NL


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_each_layer_is_the_one_the_whole_model_lists(
    model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor], layer: int
):
    ids_NL, mask_NL = batch
    states = layer_below(copy.deepcopy(model), layer, NUM_LAYERS)
    with torch.inference_mode():
        all_layers = model(input_ids=ids_NL, attention_mask=mask_NL, output_hidden_states=True).hidden_states
        for _ in range(2):  # a second batch must not see the first
            torch.testing.assert_close(states(ids_NL, mask_NL), all_layers[layer])


def test_the_last_layer_is_what_the_model_gives(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]):
    ids_NL, mask_NL = batch
    with torch.inference_mode():
        expected = model(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        assert torch.equal(last_layer(model)(ids_NL, mask_NL), expected)


def test_layers_above_are_not_computed_and_not_kept(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]):
    cut = copy.deepcopy(model)
    blocks = next(p for p in cut.modules() if isinstance(p, torch.nn.ModuleList) and len(p) == NUM_LAYERS)

    def refuse(*_: object) -> None:
        raise AssertionError("a block above the layer was run")

    for block in blocks[2:]:
        block.register_forward_pre_hook(refuse)
    layer_below(cut, 2, NUM_LAYERS)(*batch)
    assert len(blocks) == 2
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_model_whose_layers_share_their_weights_is_refused():
    shared = AlbertModel(
        AlbertConfig(
            vocab_size=VOCABULARY,
            embedding_size=8,
            hidden_size=16,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    with pytest.raises(ValueError, match="AlbertModel has no list of its 4 layers, so layer 2 cannot be read"):
        layer_below(shared, 2, NUM_LAYERS)


@pytest.mark.parametrize("pooling", ["mean", "mean_without_first"])
def test_a_backbone_pools_the_layer_that_was_asked_for(pooling: str):
    folder, text = find_model_files("minilm").folder, "A two-man tent for cold nights"
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        states_LD = AutoModel.from_pretrained(folder)(**tokens, output_hidden_states=True).hidden_states[2][0]
    mean_D = states_LD[0 if pooling == "mean" else 1 :].mean(dim=0).numpy()
    backbone = load_backbone("minilm", layer=2, pooling=pooling, device="cpu")
    vectors = backbone.encode([text, "A lipstick that is much longer than the tent, in words at least"])
    np.testing.assert_allclose(vectors[0], mean_D / np.linalg.norm(mean_D), atol=1e-5)


def test_layer_and_pooling_are_part_of_the_identity():
    def identity(layer: int | None = None, pooling: str = "mean") -> str:
        return load_backbone("minilm", layer=layer, pooling=pooling, device="cpu").fingerprint("learn_v1").pooling

    assert identity() == "masked mean of the last layer, 500 tokens"
    assert identity(layer=6) == identity()
    assert identity(layer=2) == "masked mean of layer 2 of 6, 500 tokens"
    assert identity(layer=2, pooling="mean_without_first") == (
        "masked mean of layer 2 of 6 without the first token, 500 tokens"
    )


@pytest.mark.parametrize("layer", [0, 7, -1])
def test_a_layer_that_the_model_does_not_have_is_refused(layer: int):
    with pytest.raises(ValueError, match=f"minilm has layers 1 to 6; there is no layer {layer}"):
        load_backbone("minilm", layer=layer, device="cpu")
