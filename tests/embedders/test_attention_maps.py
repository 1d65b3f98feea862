"""Attention maps made by hand, and maps of models against weights recomputed from their parameters."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from embedders.attention_maps import (
    AttentionHealth,
    AttentionSummary,
    HeadAttention,
    attention_health,
    attention_of_language_model,
    attention_of_learn,
    summaries,
)
from embedders.histories import PADDING
from embedders.learn import IdTable, LearnNetwork, LearnShape


def even(length: int) -> torch.Tensor:
    """Each row gives the same weight to all that it sees."""
    seen = torch.ones(length, length).tril()
    return seen / seen.sum(dim=1, keepdim=True)


def sink(length: int, at: int = 0) -> torch.Tensor:
    """Each row gives everything to one column, those before it to themselves."""
    rows = torch.eye(length)
    rows[at:] = 0.0
    rows[at:, at] = 1.0
    return rows


def one_head(map_LL: torch.Tensor, **more: object) -> HeadAttention:
    valid = torch.ones(1, len(map_LL), dtype=torch.bool)
    (head,) = summaries([map_LL[None, None]], valid, **more)
    return head


def test_even_attention_under_a_causal_mask_is_no_sink_however_short_the_history():
    for length in (8, 20, 50):
        head = one_head(even(length))
        assert head.top1_mass <= 2 * math.log(2) / length < 0.3
        assert head.top1_mass <= head.top4_mass <= 4 * head.top1_mass + 1e-9
        assert 0.95 < head.column_entropy < 1.0
    # of four rows the last two count: columns (1/3 + 1/4) / 2 three times, and 1/4 / 2
    assert one_head(even(4)).column_means == pytest.approx([7 / 24, 7 / 24, 7 / 24, 1 / 8])
    assert one_head(even(4)).top4_mass == pytest.approx(1.0)


@pytest.mark.parametrize("at", [0, 3])
def test_a_perfect_sink_has_all_the_mass_and_no_entropy(at):
    head = one_head(sink(12, at))
    assert head.top1_mass == pytest.approx(1.0)
    assert head.top4_mass == pytest.approx(1.0)
    assert head.column_entropy == pytest.approx(0.0)
    assert head.column_means == pytest.approx([1.0 if column == at else 0.0 for column in range(12)])


def test_rows_that_see_only_themselves_are_even_over_the_newer_half():
    head = one_head(torch.eye(20))
    assert head.top1_mass == pytest.approx(1 / 10)
    assert head.top4_mass == pytest.approx(4 / 10)
    assert head.column_entropy == pytest.approx(math.log(10) / math.log(20))


def test_four_sinks_together_are_the_top_four():
    rows = torch.zeros(16, 16)
    rows[:, :4] = 0.24
    rows[:, 4:8] = 0.01
    head = one_head(rows)
    assert head.top1_mass == pytest.approx(0.24)
    assert head.top4_mass == pytest.approx(0.96)


def test_histories_of_different_length_weigh_alike_on_whichever_side_they_are_padded():
    long, short = sink(10), even(4)
    padded_right, padded_left = torch.zeros(2, 1, 10, 10), torch.zeros(2, 1, 10, 10)
    padded_right[0, 0], padded_left[0, 0] = long, long
    padded_right[1, 0, :4, :4], padded_left[1, 0, 6:, 6:] = short, short
    padded_right[1, 0, 4:] = 0.1  # what padding attends to does not matter
    valid = torch.arange(10) < torch.tensor([[10], [4]])
    expected = one_head(long), one_head(short)
    for maps, is_there in ((padded_right, valid), (padded_left, valid.flip(1) | torch.tensor([[True], [False]]))):
        (head,) = summaries([maps], is_there)
        assert head.top1_mass == pytest.approx(sum(each.top1_mass for each in expected) / 2)
        assert head.column_entropy == pytest.approx(sum(each.column_entropy for each in expected) / 2)
        assert head.column_means[:4] == pytest.approx([(1 + 7 / 24) / 2, 7 / 48, 7 / 48, 1 / 16])
        assert head.column_means[4:] == pytest.approx([0.0] * 6)  # only the long one reaches them


def test_batches_add_up_to_what_they_give_together():
    maps = torch.rand(6, 3, 9, 9).tril().softmax(-1)
    valid = torch.arange(9) < torch.tensor([9, 7, 5, 2, 1, 9])[:, None]
    bit_by_bit = AttentionSummary()
    for at in range(0, 6, 2):
        bit_by_bit.add([maps[at : at + 2]] * 2, valid[at : at + 2])
    assert bit_by_bit.num_histories == 5  # one of a single item tells nothing
    together = summaries([maps] * 2, valid)
    assert [(head.layer, head.head) for head in together] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    for one, other in zip(bit_by_bit.heads(), together, strict=True):
        assert one[:5] == pytest.approx(other[:5])
        assert one.column_means == pytest.approx(other.column_means)


def test_rows_and_columns_can_be_chosen_apart():
    # two instruction tokens and four items; rows give half to the first token, the rest to the first item
    rows = torch.zeros(6, 6)
    rows[:, 0], rows[:, 2] = 0.5, 0.5
    everything = torch.ones(1, 6, dtype=torch.bool)
    items = torch.tensor([[False, False, True, True, True, True]])
    (head,) = summaries([rows[None, None]], everything, rows_BL=items)
    assert head.column_means == pytest.approx([0.5, 0, 0.5, 0, 0, 0])
    (head,) = summaries([rows[None, None]], items)
    assert head.column_means == pytest.approx([1.0, 0, 0, 0])  # scaled to sum 1 again


def test_only_the_first_columns_are_kept_for_the_picture_and_all_count():
    head = one_head(sink(12, at=6), first_columns=5)
    assert head.column_means == [0.0] * 5
    assert head.top1_mass == pytest.approx(1.0)


def test_without_a_history_of_two_items_there_is_nothing_to_tell():
    assert summaries([torch.ones(2, 1, 1, 1)], torch.ones(2, 1, dtype=torch.bool)) == ()
    assert AttentionSummary().heads() == ()
    assert attention_health(()) == AttentionHealth(None, None, None, None)


def test_a_model_is_judged_by_the_mean_of_its_heads_and_the_share_with_a_sink():
    heads = summaries(
        [torch.stack([sink(10), even(10)])[None], torch.stack([even(10), even(10)])[None]], torch.ones(1, 10) > 0
    )
    health = attention_health(heads)
    assert health.share_of_sink_heads == 1 / 4
    assert health.top1_mass == pytest.approx(sum(head.top1_mass for head in heads) / 4)


@given(st.integers(2, 12), st.integers(0, 1000))
def test_shares_are_shares(length, seed):
    scores = torch.randn(1, 2, length, length, generator=torch.Generator().manual_seed(seed)) * 4
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    for head in summaries([scores.masked_fill(hidden, -torch.inf).softmax(-1)], torch.ones(1, length) > 0):
        assert 1 / length - 1e-9 <= head.top1_mass <= head.top4_mass <= 1
        assert 0 <= head.column_entropy <= 1
        assert sum(head.column_means) == pytest.approx(1.0)


@pytest.fixture
def network() -> LearnNetwork:
    torch.manual_seed(0)
    shape = LearnShape(num_layers=2, num_heads=4, hidden=16, feedforward=32, output_dim=8, dropout=0.5, max_history=12)
    learn = LearnNetwork(IdTable(30, 16), shape)
    for layer in learn.encoder.layers:  # as initialised, attention is even to four digits
        nn.init.normal_(layer.self_attn.in_proj_weight, std=0.7)
        nn.init.normal_(layer.self_attn.in_proj_bias, std=0.3)
    return learn


HISTORY = torch.tensor([[3, 1, 4, 15, 9, 2], [6, 5, 3, PADDING, PADDING, PADDING]])


def test_the_maps_of_learn_give_its_attention_layers_own_output(network):
    inputs, outputs = [], []
    network.eval()
    layers = list(network.encoder.layers)
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    hooks += [layer.self_attn.register_forward_hook(lambda _, __, out: outputs.append(out[0])) for layer in layers]
    users = network.users(HISTORY)  # with gradients, torch calls the attention modules one by one
    for hook in hooks:
        hook.remove()
    assert len(outputs) == 2
    network.train()
    maps = attention_of_learn(network, HISTORY)
    assert network.training
    for layer, hidden, output, weights in zip(layers, inputs, outputs, maps, strict=True):
        attention = layer.self_attn
        assert weights.shape == (2, 4, 6, 6)
        query_weight, key_weight, value_weight = attention.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = attention.in_proj_bias.chunk(3)

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.view(2, 6, 4, 4).transpose(1, 2)

        query, key = heads(hidden @ query_weight.T + query_bias), heads(hidden @ key_weight.T + key_bias)
        scores = query @ key.transpose(-1, -2) / math.sqrt(4)
        by_hand = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        torch.testing.assert_close(weights, by_hand, atol=1e-5, rtol=1e-4)
        mixed = (weights @ heads(hidden @ value_weight.T + value_bias)).transpose(1, 2).reshape(2, 6, 16)
        torch.testing.assert_close(attention.out_proj(mixed), output, atol=1e-5, rtol=1e-4)
    network.eval()
    torch.testing.assert_close(network.users(HISTORY), users)  # and the network is as it was


def test_a_history_of_learn_attends_alike_alone_and_beside_a_longer_one(network):
    alone = attention_of_learn(network, HISTORY[1:, :3])
    beside = attention_of_learn(network, HISTORY)
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(one[0], other[1, :, :3, :3])


@pytest.fixture
def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=2, initializer_range=0.5, **shape)).eval()


def by_hand(model: LlamaForCausalLM, embedded: torch.Tensor) -> torch.Tensor:
    """The first layer's map from its projections, under a plain causal mask."""
    body, length = model.model, embedded.shape[1]
    attention = body.layers[0].self_attn
    hidden = body.layers[0].input_layernorm(embedded)
    cos, sin = body.rotary_emb(hidden, torch.arange(length)[None])

    def turned(states: torch.Tensor) -> torch.Tensor:
        halves = torch.cat([-states[..., 2:], states[..., :2]], dim=-1)
        return states * cos[:, None] + halves * sin[:, None]

    query = turned(attention.q_proj(hidden).view(-1, length, 4, 4).transpose(1, 2))
    key = turned(attention.k_proj(hidden).view(-1, length, 2, 4).transpose(1, 2)).repeat_interleave(2, dim=1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(4)
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


@torch.no_grad()
def test_the_maps_of_a_language_model_are_those_of_its_projections_and_it_is_left_as_it_was(language_model):
    embedded = torch.randn(2, 6, 16)
    before = language_model.config._attn_implementation
    states = language_model.model(inputs_embeds=embedded).last_hidden_state
    language_model.train()
    for model in (language_model, language_model.model):
        maps = attention_of_language_model(model, embedded, torch.ones(2, 6))
        assert len(maps) == 2
        torch.testing.assert_close(maps[0], by_hand(language_model, embedded), atol=1e-5, rtol=1e-4)
    assert language_model.training
    assert language_model.config._attn_implementation == before != "eager"
    language_model.eval()
    torch.testing.assert_close(language_model.model(inputs_embeds=embedded).last_hidden_state, states)


def test_a_mask_of_who_sees_whom_is_kept_bool_or_added_and_in_half_precision(language_model):
    embedded = torch.randn(1, 6, 16)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    seen[4, 1:3] = False
    (by_bool, _) = attention_of_language_model(language_model, embedded, seen[None, None])
    added = torch.zeros(1, 1, 6, 6).masked_fill(~seen, torch.finfo(torch.float32).min)
    (by_sum, _) = attention_of_language_model(language_model, embedded, added, torch.arange(6)[None])
    torch.testing.assert_close(by_bool, by_sum)
    assert (by_bool[0, :, ~seen] == 0).all()
    torch.testing.assert_close(by_bool.sum(-1), torch.ones(1, 4, 6))
    half = attention_of_language_model(language_model.bfloat16(), embedded.bfloat16(), seen[None, None])
    assert half[0].dtype == torch.float32
    torch.testing.assert_close(half[0], by_bool, atol=0.05, rtol=0.2)
