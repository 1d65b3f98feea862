"""What serves: the same vectors after saving, shared passes that change nothing, and no decoder anywhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedders.causal_lm import CausalLM
from embedders.fit_karma import KarmaLog, KarmaSettings, fit_karma
from embedders.histories import Sequences
from embedders.karma import KarmaNetwork
from embedders.karma_decoder import KarmaDecoder
from embedders.karma_features import FrozenFeatures
from embedders.karma_model import KarmaModel
from embedders.karma_packing import QUERY_TOKENS, KarmaBatch, shared_passes
from embedders.karma_towers import KarmaShape

RNG = np.random.default_rng(0)
CONTENT_NC = RNG.normal(size=(10, 6)).astype(np.float32)
IMAGE_NV = RNG.normal(size=(10, 5)).astype(np.float32)
HISTORIES = [[1, 2], [1, 2, 3], [4], [1, 2, 3, -1, 5], [-1, -1], [1, 2], [6, 1], [], [4, 0]]


@pytest.fixture
def network(make_lm: Callable[..., CausalLM]) -> KarmaNetwork:
    torch.manual_seed(3)
    return KarmaNetwork(make_lm(), FrozenFeatures(CONTENT_NC, IMAGE_NV), KarmaShape(output_dim=8, max_history=4))


def flat(histories: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = np.array([row for history in histories for row in history], np.int64)
    return rows, np.array([len(history) for history in histories], np.int64)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=20))
def test_histories_share_a_pass_exactly_where_one_begins_the_other(histories: list[list[int]]):
    passes = shared_passes([np.array(history, np.int32) for history in histories])
    assert sorted(number for one in passes for number in one.numbers) == list(range(len(histories)))
    for one in passes:
        for number, cut in zip(one.numbers, one.cuts, strict=True):
            assert one.history[:cut].tolist() == histories[number]
    # as few as there are: a history opens a pass only where none that is longer begins with it
    distinct = {tuple(history) for history in histories}
    maximal = [
        one for one in distinct if not any(len(other) > len(one) and other[: len(one)] == one for other in distinct)
    ]
    assert len(passes) == len(maximal)


def test_user_vectors_are_those_of_each_history_alone(network: KarmaNetwork):
    model = KarmaModel.of_network(network)
    done: list[int] = []
    together = model.user_vectors(CONTENT_NC, *flat(HISTORIES), image_NV=IMAGE_NV, on_progress=done.append)
    assert together.histories.tolist() == [0, 1, 2, 3, 5, 6, 8]
    assert together.num_items.tolist() == [2, 3, 1, 4, 2, 2, 2]
    assert sum(done) == 7
    for place, number in enumerate(together.histories):
        alone = model.user_vectors(CONTENT_NC, *flat([HISTORIES[number]]), image_NV=IMAGE_NV)
        np.testing.assert_allclose(together.vectors[place], alone.vectors[0], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1.0, atol=1e-5)


def test_of_a_long_history_the_newest_items_are_read(network: KarmaNetwork):
    model = KarmaModel.of_network(network)
    long, newest = (
        model.user_vectors(CONTENT_NC, *flat([history])).vectors for history in ([7, 8, 1, 2, 3, 4], [1, 2, 3, 4])
    )
    np.testing.assert_allclose(long, newest, atol=1e-6)


def test_the_vector_that_serves_is_the_one_that_was_trained(network: KarmaNetwork):
    """Bit for bit the same towers: what training compares with items is what serving writes."""
    batch = KarmaBatch(
        *map(
            torch.from_numpy,
            (
                np.array([[1, 2, 3]]),
                np.array([[2, 3]]),
                np.array([[4, 5]]),
                np.array([[-1, -1]]),
                np.full((1, 2, 1), -1),
                np.array([[True, False]]),
                np.zeros((1, 2), np.int64),
                np.empty(0, np.int64),
            ),
        )
    )
    titles = [[30 + item, 31] for item in range(10)]
    with torch.inference_mode():
        trained = network.eval()(batch, titles, []).users_Kd.numpy()
    served = KarmaModel.of_network(network).user_vectors(CONTENT_NC, *flat([[1, 2], [1, 2, 3]]), image_NV=IMAGE_NV)
    np.testing.assert_allclose(served.vectors, trained, atol=2e-6)


def test_a_query_changes_the_vector_and_an_empty_one_does_not(network: KarmaNetwork):
    model = KarmaModel.of_network(network)
    rows, lengths = flat([[1, 2], [1, 2], [1, 2], [1, 2]])
    vectors = model.user_vectors(CONTENT_NC, rows, lengths, queries=[None, "", "red shoes", "blue tent"]).vectors
    plain = model.user_vectors(CONTENT_NC, rows, lengths).vectors
    np.testing.assert_allclose(vectors[:2], plain[:2], atol=1e-6)
    assert np.abs(vectors[2] - plain[2]).max() > 1e-3
    assert np.abs(vectors[3] - vectors[2]).max() > 1e-3


def test_a_query_is_read_as_in_training_and_cut_off(network: KarmaNetwork):
    model = KarmaModel.of_network(network)
    words = "red shoes for running on wet grass in the dark of an early winter morning with a dog"
    tokens = network.lm.tokens(words)
    assert len(tokens) > QUERY_TOKENS
    typed = [f"{words} and more", words, None]
    vectors = model.user_vectors(CONTENT_NC, *flat([[1, 2]] * 3), image_NV=IMAGE_NV, queries=typed).vectors
    one, asked = torch.ones(1, 1, dtype=torch.int64), torch.tensor([[0], [-1]])
    trained = [
        network.eval()(
            KarmaBatch(
                torch.tensor([[1, 2]]),
                2 * one,
                3 * one,
                query.reshape(1, 1),
                one.unsqueeze(2)[:, :, :0],
                one < 0,
                0 * one,
                one[0, :0],
            ),
            [[]] * 10,
            [tokens[:QUERY_TOKENS]],
            generation=False,
            reconstruction=False,
        ).users_Kd
        for query in asked
    ]
    with_query, without = (users_Kd.detach().numpy()[0] for users_Kd in trained)
    np.testing.assert_allclose(vectors, [with_query, with_query, without], atol=2e-6)


def test_a_saved_model_gives_the_same_vectors_and_the_same_hash(network: KarmaNetwork, tmp_path: Path):
    model = KarmaModel.of_network(network)
    model.save(tmp_path / "serving")
    again = KarmaModel.load(tmp_path / "serving")
    assert again.weights_sha256() == model.weights_sha256()
    assert (again.content_dim, again.image_dim, again.output_dim, again.max_history) == (6, 5, 8, 4)
    np.testing.assert_array_equal(again.item_vectors(CONTENT_NC, IMAGE_NV), model.item_vectors(CONTENT_NC, IMAGE_NV))
    queries = ["red shoes"] * len(HISTORIES)
    one, other = (
        each.user_vectors(CONTENT_NC, *flat(HISTORIES), image_NV=IMAGE_NV, queries=queries) for each in (model, again)
    )
    np.testing.assert_array_equal(one.vectors, other.vectors)


def test_a_weight_that_changes_changes_the_hash(network: KarmaNetwork):
    model = KarmaModel.of_network(network)
    before = model.weights_sha256()
    with torch.no_grad():
        model.towers.language_model.layers[1].mlp.down_proj.weight[0, 0] += 1.0
    assert model.weights_sha256() != before


def test_nothing_that_only_training_needs_is_saved_or_takes_part_in_serving(network: KarmaNetwork, tmp_path: Path):
    model = KarmaModel.of_network(network)
    model.save(tmp_path / "serving")
    served = KarmaModel.load(tmp_path / "serving")
    names = {name for name, _ in served.towers.named_parameters()} | {name for name, _ in served.towers.named_modules()}
    assert not [name for name in names if any(word in name for word in ("prefix", "output", "lm_head", "flow", "lora"))]
    saved = torch.load(tmp_path / "serving" / "network.pt", weights_only=True)
    assert not [name for name in saved if "prefix" in name or "flow" in name]
    of_all = sum(one.numel() for one in network.parameters())
    assert sum(one.numel() for one in served.towers.parameters()) == of_all - network.prefix.weight.numel()
    # and the graph that is run has none of them: with the decoders broken, the vectors are what they were
    vectors = model.user_vectors(CONTENT_NC, *flat(HISTORIES)).vectors
    with torch.no_grad():
        network.prefix.weight.fill_(float("nan"))
    np.testing.assert_array_equal(model.user_vectors(CONTENT_NC, *flat(HISTORIES)).vectors, vectors)


def test_a_model_trained_with_the_regularisers_serves_by_the_same_operations_and_bytes_as_one_without(
    make_lm: Callable[..., CausalLM], tmp_path: Path
):
    everything = KarmaSettings(epochs=1, head_epochs=1, batch_size=4, read_outs=1, image="vector")
    log = KarmaLog(Sequences.of_lists([[1, 2, 3, 4], [5, 6, 7], [8, 9, 1], [2, 4, 6]]), [[20 + i] for i in range(10)])

    def served(settings: KarmaSettings, folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
        torch.manual_seed(3)
        network = KarmaNetwork(make_lm(), FrozenFeatures(CONTENT_NC, IMAGE_NV), KarmaShape(output_dim=8))
        network.towers.standardise(CONTENT_NC, IMAGE_NV)
        curve = fit_karma(network, log, settings)
        assert (curve[-1].reconstruction_loss is None) == (settings.decodability == 0.0)
        assert (curve[-1].image_loss is None) == (settings.decodability == 0.0)
        KarmaModel.of_network(network).save(folder)
        model = KarmaModel.load(folder)
        with torch.profiler.profile(record_shapes=True) as profile:
            model.user_vectors(CONTENT_NC, *flat(HISTORIES), image_NV=IMAGE_NV)
        ran = [f"{event.name} {event.input_shapes}" for event in profile.events() if event.name.startswith("aten::")]
        assert any("[" in one.replace("[]", "") for one in ran), "the shapes are there to be compared"
        weights = torch.load(folder / "network.pt", weights_only=True)
        sizes = [(name, weight.numel()) for name, weight in weights.items()]
        model_bytes = (folder / "language_model" / "model.safetensors").stat().st_size
        return sorted(ran), [*sizes, ("language model", model_bytes)]

    with_them = served(everything, tmp_path / "with")
    assert with_them == served(replace(everything, decodability=0.0), tmp_path / "without")


def test_low_rank_adapters_are_merged_before_anything_is_saved(make_lm: Callable[..., CausalLM], tmp_path: Path):
    network = KarmaNetwork(make_lm(), FrozenFeatures(CONTENT_NC), KarmaShape(output_dim=8, low_rank=2))
    theirs = dict(network.language_model_parameters())
    assert theirs
    assert all("lora" in name for name in theirs)
    with torch.no_grad():
        for weight in theirs.values():
            weight.normal_(std=0.1)
    network.eval()
    before = KarmaModel.of_network(network).user_vectors(CONTENT_NC, *flat(HISTORIES)).vectors
    network.merge_low_rank()
    model = KarmaModel.of_network(network)
    np.testing.assert_allclose(model.user_vectors(CONTENT_NC, *flat(HISTORIES)).vectors, before, atol=1e-5)
    model.save(tmp_path / "serving")
    assert KarmaModel.load(tmp_path / "serving").weights_sha256() == model.weights_sha256()


def test_features_of_another_width_are_refused(network: KarmaNetwork):
    model = KarmaModel.of_network(network)
    with pytest.raises(ValueError, match="text vectors 6 wide, got 7"):
        model.item_vectors(np.zeros((2, 7), np.float32))
    with pytest.raises(ValueError, match="image vectors 5 wide, got 4"):
        model.item_vectors(CONTENT_NC, np.zeros((10, 4), np.float32))
    with pytest.raises(ValueError, match="add up to 1"):
        model.user_vectors(CONTENT_NC, np.array([0, 1]), np.array([1]))


def test_the_decoder_says_the_words_that_follow_the_prefix(network: KarmaNetwork, tmp_path: Path):
    model, decoder = KarmaModel.of_network(network), KarmaDecoder.of_network(network)
    vectors_Md = model.user_vectors(CONTENT_NC, *flat([[1, 2], [4]])).vectors
    said = decoder.decode(vectors_Md, most_tokens=5)
    for vector_d, text in zip(vectors_Md, said, strict=True):  # word by word, without a cache
        words: list[int] = []
        for _ in range(5):
            with torch.inference_mode():
                prefix_D = network.prefix(torch.from_numpy(vector_d))
                embedded = network.lm.model.get_input_embeddings()(torch.tensor(words, dtype=torch.long))
                logits = network.lm.model(
                    inputs_embeds=torch.cat([prefix_D.unsqueeze(0), embedded]).unsqueeze(0)
                ).logits
            words.append(int(logits[0, -1].argmax()))
            if words[-1] in network.end:
                words.pop()
                break
        assert text == network.lm.tokenizer.decode(words, skip_special_tokens=True).strip()
    model.save(tmp_path / "serving")
    decoder.save(tmp_path / "decoder")
    assert KarmaDecoder.load(tmp_path / "decoder").decode(vectors_Md, most_tokens=5) == said
    assert decoder.decode(vectors_Md[:0]) == []
    drawn = decoder.decode(vectors_Md, temperature=1.0, seed=4)
    assert drawn == decoder.decode(vectors_Md, temperature=1.0, seed=4)
    assert drawn != decoder.decode(vectors_Md, temperature=1.0, seed=5)
