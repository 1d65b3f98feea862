"""Each read-out of a packed pass gives what it would give alone, and the decoders see what they may see."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from embedders.causal_lm import CausalLM
from embedders.histories import PADDING
from embedders.karma import KarmaNetwork
from embedders.karma_features import FrozenFeatures
from embedders.karma_packing import ANY_TIME, KarmaBatch, pack
from embedders.karma_towers import KarmaShape

NUM_ITEMS, CONTENT, IMAGE = 12, 6, 5
QUERIES = [[11, 12], [13]]
TITLES = [[20 + item, 40 + item, 60 + item][: 1 + item % 3] for item in range(NUM_ITEMS)]
ATOL = 2e-5


def features(seed: int = 0, image: bool = True) -> FrozenFeatures:
    rng = np.random.default_rng(seed)
    image_NV = rng.normal(size=(NUM_ITEMS, IMAGE)).astype(np.float32)
    image_NV[3] = 0.0  # no picture
    return FrozenFeatures(rng.normal(size=(NUM_ITEMS, CONTENT)).astype(np.float32), image_NV if image else None)


@pytest.fixture
def make_network(make_lm: Callable[..., CausalLM]) -> Callable[..., KarmaNetwork]:
    def make(image: bool = True, **shape: int | bool) -> KarmaNetwork:
        lm = make_lm()
        torch.manual_seed(1)
        return KarmaNetwork(lm, features(image=image), KarmaShape(output_dim=8, item_hidden=16, **shape)).eval()  # type: ignore[arg-type]

    return make


def batch_of(
    histories: Sequence[Sequence[int]],
    cuts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    queries: Sequence[Sequence[int]] | None = None,
    decoded: bool = True,
) -> KarmaBatch[Tensor]:
    def padded(rows: Sequence[Sequence[int]], nothing: int) -> NDArray[np.int64]:
        width = max(map(len, rows))
        return np.array([[*row, *[nothing] * (width - len(row))] for row in rows], np.int64)

    cut_BK = padded(cuts, 0)
    arrays = (
        padded(histories, PADDING),
        cut_BK,
        padded(targets, 0),
        np.full_like(cut_BK, -1) if queries is None else padded(queries, -1),
        np.full((*cut_BK.shape, 1), PADDING, np.int64),
        np.full(cut_BK.shape, decoded),
        np.full(cut_BK.shape, ANY_TIME),
        np.empty(0, np.int64),
    )
    return KarmaBatch(*map(torch.from_numpy, arrays))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=ATOL, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [{"residual": False}, {"residual": True}, {"residual": True, "residual_decay": 0.5}])
def test_read_outs_that_share_a_history_give_what_each_gives_alone(
    make_network: Callable[..., KarmaNetwork], shape: dict[str, Any]
):
    network = make_network(**shape)
    network.towers.standardise(network.towers.features.frozen.content.content_NC)
    history, cuts, targets, queries = [4, 3, 9, 1, 7], [1, 3, 3, 5], [3, 1, 8, 2], [0, -1, 1, 0]
    # beside a longer history and one with fewer read-outs, so that padding is everywhere
    together = network(
        batch_of(
            [[0, 1, 2, 3, 4, 5, 6], history, [8]], [[7], cuts, [1]], [[1], targets, [0]], queries=[[-1], queries, [1]]
        ),
        TITLES,
        QUERIES,
    )
    assert together.choices.owner_K.tolist() == [0, 1, 1, 1, 1, 2]
    assert together.choices.target_K.tolist() == [1, *targets, 0]
    for number, (cut, target, query) in enumerate(zip(cuts, targets, queries, strict=True)):
        alone = network(batch_of([history[:cut]], [[cut]], [[target]], queries=[[query]]), TITLES, QUERIES)
        close(together.users_Kd[1 + number], alone.users_Kd[0])
        start = sum(len(TITLES[each]) + len(network.end) for each in [1, *targets[:number]])
        words = slice(start, start + len(TITLES[target]) + len(network.end))
        for decoded, by_itself in zip(
            (together.generation, together.reconstruction), (alone.generation, alone.reconstruction), strict=True
        ):
            assert decoded is not None
            assert by_itself is not None
            assert decoded[1][words].tolist() == by_itself[1].tolist() == [*TITLES[target], *network.end]
            close(decoded[0][words], by_itself[0])


@torch.inference_mode()
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_with_the_residual_comes_the_mean_of_what_a_read_out_sees_the_newest_weighing_most(
    make_network: Callable[..., KarmaNetwork], decay: float
):
    towers = make_network(residual=True, residual_decay=decay).towers
    histories, cuts = [[4, 3, 9, 1], [2, 5]], [[1, 3, 4], [2]]
    packed = pack(
        np.array([histories[0], [*histories[1], PADDING, PADDING]]),
        np.array([cuts[0], [*cuts[1], 0, 0]]),
        instruction=towers.instruction,
        queries_BK=[[[7], [], []], [[], [], []]],
        end=(0,),
    )
    _, found_KF = towers.read_out(packed, towers.states(packed))
    assert found_KF is not None
    seen = [history[:cut] for history, of_it in zip(histories, cuts, strict=True) for cut in of_it]
    for found_F, rows in zip(found_KF, seen, strict=True):
        weights = decay ** np.arange(len(rows) - 1, -1, -1)
        expected_F = np.average(towers.features(torch.tensor(rows)).numpy(), axis=0, weights=weights)
        np.testing.assert_allclose(found_F.numpy(), expected_F, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_a_pass_is_that_of_the_language_model_over_the_same_embeddings_in_a_row(
    make_network: Callable[..., KarmaNetwork],
):
    network = make_network()
    towers, model = network.towers, network.lm.model
    history, target = [4, 3, 9], 5
    found = network(batch_of([history], [[3]], [[target]], queries=[[0]]), TITLES, QUERIES)
    embed = model.get_input_embeddings()
    row = torch.cat(
        [
            embed(torch.tensor(towers.instruction)),
            towers.item_tokens(torch.tensor(history)),
            embed(torch.tensor([*network.query_lead, *QUERIES[0]])),
            towers.read_out_D.unsqueeze(0),
            embed(torch.tensor(TITLES[target])),
        ]
    )
    plain = model(inputs_embeds=row.unsqueeze(0))  # its own causal mask, its own positions
    assert found.generation is not None
    states_TD, words_T = found.generation
    logits_TV = states_TD @ network.output_embeddings().T
    close(logits_TV, plain.logits[0, -len(TITLES[target]) - 1 :][: len(words_T)])
    prefix_D = network.prefix(found.users_Kd[0])
    from_vector = model(
        inputs_embeds=torch.cat([prefix_D.unsqueeze(0), embed(torch.tensor(TITLES[target]))]).unsqueeze(0)
    )
    assert found.reconstruction is not None
    close(found.reconstruction[0] @ network.output_embeddings().T, from_vector.logits[0, : len(words_T)])


@torch.inference_mode()
def test_reconstruction_does_not_move_when_the_history_changes_at_a_fixed_vector(
    make_network: Callable[..., KarmaNetwork],
):
    network = make_network()
    one, other = (network(batch_of([history], [[3]], [[6]]), TITLES, QUERIES) for history in ([0, 1, 2], [9, 10, 11]))
    assert not torch.allclose(one.users_Kd, other.users_Kd)
    assert not torch.allclose(one.generation[0], other.generation[0])
    fixed_1d = one.users_Kd
    close(network.reconstruct(fixed_1d, [TITLES[6]])[0], one.reconstruction[0])
    # beside the words of other users, too
    among = network.reconstruct(torch.cat([other.users_Kd, fixed_1d]), [TITLES[8], TITLES[6]])[0]
    close(among[-len(one.reconstruction[1]) :], one.reconstruction[0])
    assert not torch.allclose(one.reconstruction[0], other.reconstruction[0])


def test_no_token_sees_the_future_and_no_read_out_sees_another(make_network: Callable[..., KarmaNetwork]):
    network = make_network()
    history, cuts, targets = [4, 3, 9, 1], [2, 4], [6, 7]

    def said(history: list[int], targets: list[int], titles: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
        with torch.inference_mode():
            found = network(batch_of([history], [cuts], [targets]), titles, QUERIES)
        lengths = [len(titles[target]) + len(network.end) for target in targets]
        return found.users_Kd, list(found.generation[0].split(lengths))

    users, (first, second) = said(history, targets, TITLES)
    # an item after the first cut: the second read-out moves, the first does not
    later_users, (later_first, later_second) = said([4, 3, 9, 2], targets, TITLES)
    close(later_users[0], users[0])
    close(later_first, first)
    assert not torch.allclose(later_users[1], users[1], atol=1e-3)
    assert not torch.allclose(later_second, second, atol=1e-3)
    # another last word of the first title: no user moves, no state before the word, nothing of the second title
    changed = [*TITLES]
    changed[6] = [*TITLES[6][:-1], 99]
    changed_users, (changed_first, changed_second) = said(history, targets, changed)
    close(changed_users, users)
    close(changed_second, second)
    close(changed_first[: len(TITLES[6])], first[: len(TITLES[6])])
    # an item in sight of both moves both
    moved_users, _ = said([5, 3, 9, 1], targets, TITLES)
    assert (moved_users - users).abs().max(dim=1).values.min() > 1e-3


@pytest.mark.parametrize("term", ["action", "generation", "reconstruction"])
def test_gradients_of_every_term_reach_the_vector_and_the_history(make_network: Callable[..., KarmaNetwork], term: str):
    network = make_network().train()
    found = network(batch_of([[4, 3, 9]], [[3]], [[6]]), TITLES, QUERIES)
    if term == "action":
        loss = -(found.users_Kd @ network.items(torch.tensor([6, 2])).T)[0].mul(torch.tensor([1.0, -1.0])).sum()
    else:
        states, words = found.generation if term == "generation" else found.reconstruction
        loss = torch.nn.functional.cross_entropy(states @ network.output_embeddings().T, words)
    if term != "generation":  # which reads the state at [INT] itself, and shares with the vector all that is below it
        (of_users,) = torch.autograd.grad(loss, found.users_Kd, retain_graph=True)
        assert of_users.norm() > 1e-6
    loss.backward()
    for name in (
        "towers.adapter.0.weight",
        "towers.read_out_D",
        "towers.language_model.layers.0.self_attn.q_proj.weight",
    ):
        gradient = dict(network.named_parameters())[name].grad
        assert gradient is not None, name
        assert gradient.norm() > 1e-8, name


@torch.inference_mode()
def test_a_missing_picture_is_one_learnt_vector_whatever_the_catalogue(make_network: Callable[..., KarmaNetwork]):
    network = make_network()
    with_pictures = network.items(torch.arange(NUM_ITEMS))
    network.towers.features.no_image_P.data.fill_(0.7)
    moved = (network.items(torch.arange(NUM_ITEMS)) - with_pictures).abs().max(dim=1).values > 1e-4
    assert moved.nonzero().flatten().tolist() == [3]
    network.towers.features.frozen = FrozenFeatures(features().content.content_NC)
    none_has_one = network.items(torch.arange(NUM_ITEMS))
    network.towers.features.frozen = features()
    close(none_has_one[3], network.items(torch.tensor([3]))[0])


def test_the_first_blocks_of_a_language_model_can_be_taken_and_no_more_than_it_has(
    make_network: Callable[..., KarmaNetwork],
):
    network = make_network(num_layers=1)
    assert len(network.towers.language_model.layers) == network.towers.language_model.config.num_hidden_layers == 1
    with pytest.raises(ValueError, match="has 2 layers; the first 3"):
        make_network(num_layers=3)


def test_parameters_are_those_of_the_language_model_or_new_and_none_is_both(make_network: Callable[..., KarmaNetwork]):
    network = make_network()
    ours, theirs = dict(network.new_parameters()), dict(network.language_model_parameters())
    assert not ours.keys() & theirs.keys()
    assert ours.keys() | theirs.keys() == dict(network.named_parameters()).keys()
    assert sum(one.numel() for one in theirs.values()) == sum(one.numel() for one in network.lm.model.parameters())


def test_the_read_out_starts_as_words_and_as_large_as_a_word(make_network: Callable[..., KarmaNetwork]):
    network = make_network()
    typical = network.lm.model.get_input_embeddings().weight.detach().square().mean().sqrt()
    torch.testing.assert_close(network.towers.read_out_D.square().mean().sqrt(), typical)
    prefix_MD = network.prefix(torch.nn.functional.normalize(torch.randn(200, 8), dim=1)).detach()
    assert 0.8 < float(prefix_MD.square().mean().sqrt() / typical) < 1.25


def test_untrained_users_and_items_lie_around_the_origin(make_network: Callable[..., KarmaNetwork]):
    network = make_network()
    towers = network.towers
    histories = np.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 0]])
    packed = pack(histories, np.full((6, 1), 2), instruction=towers.instruction)

    def lengths_of_means() -> tuple[float, float]:
        with torch.inference_mode():
            users, items = towers.users(packed), towers.items(torch.arange(NUM_ITEMS))
        return float(users.mean(dim=0).norm()), float(items.mean(dim=0).norm())

    users_before, items_before = lengths_of_means()
    towers.spread(packed, torch.arange(NUM_ITEMS))
    users, items = lengths_of_means()
    assert users < 0.6 < users_before  # of unit vectors: 1 is one point
    assert items < 0.6
    assert items <= items_before


def test_a_table_that_the_model_scales_as_it_reads_it_is_measured_as_it_is_read(
    byte_level_tokenizer: PreTrainedTokenizerFast,
):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(byte_level_tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=64,
    )
    lm = CausalLM("tiny gemma", Gemma3ForCausalLM(config).eval(), byte_level_tokenizer)
    towers = KarmaNetwork(lm, features(), KarmaShape(output_dim=8)).towers
    with torch.inference_mode():
        token_TD = lm.model.get_input_embeddings()(torch.arange(100))
        item_ND = towers.item_tokens(torch.arange(NUM_ITEMS))
    typical = token_TD.square().mean().sqrt()
    assert (
        typical > 4 * lm.model.get_input_embeddings().weight.detach().square().mean().sqrt()
    )  # times 8, as it is read
    for found in (item_ND, towers.read_out_D.detach()):
        assert 0.7 < float(found.square().mean().sqrt() / typical) < 1.4


def test_a_sample_in_which_all_histories_are_the_same_leaves_finite_users(make_network: Callable[..., KarmaNetwork]):
    network = make_network()
    packed = pack(np.full((4, 1), 3), np.ones((4, 1), np.int64), instruction=network.towers.instruction)
    network.towers.spread(packed, torch.arange(NUM_ITEMS))
    with torch.inference_mode():
        assert torch.isfinite(network.towers.users(packed)).all()
