"""What students compute, and that what only training needs is not in what is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from embedders.mkd import InteractionStudent, RepresentationStudent, Student, alignment
from embedders.mkd_losses import UNKNOWN
from embedders.mkd_model import MkdModel
from embedders.student_encoder import CitedSpans, TextReader, load_encoder
from embedders.teacher_signal import MATCH, TeacherSignal

WORDS = ["red", "blue", "drill", "saw", "makita", "cordless"]
PAIRS = [("red drill", "makita drill red"), ("saw", "blue saw"), ("red drill", "blue cordless saw"), ("saw", "saw")]


@pytest.fixture(scope="module")
def folder(save_word_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


def with_heads(kind: str, folder: Path) -> Student:
    if kind == "interaction":
        return InteractionStudent.pretrained(str(folder), max_tokens=16).eval()
    return RepresentationStudent.pretrained(str(folder), num_classes=(3, 2), max_tokens=16).eval()


def never_had_heads(kind: str, folder: Path) -> Student:
    if kind == "interaction":
        return InteractionStudent.pretrained(str(folder), num_steps=0, max_tokens=16).eval()
    return RepresentationStudent.pretrained(str(folder), max_tokens=16).eval()


def inputs(student: Student) -> tuple[torch.Tensor, ...]:
    if isinstance(student, InteractionStudent):
        tokens = student.reader.padded(student.reader.pairs(PAIRS), range(4))
        assert tokens.segment_NL is not None
        return tokens.ids_NL, tokens.mask_NL, tokens.segment_NL
    tokens = student.reader.padded(student.reader.texts([item for _, item in PAIRS]), range(4))
    return tokens.ids_NL, tokens.mask_NL


class BertTokenizerLegacy:
    """A tokenizer that tells ids alone, as those written in Python do."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.pad_token_id = tokenizer, tokenizer.pad_token_id

    def __call__(self, *texts: Any, **how: Any) -> Any:
        return self._tokenizer(*texts, **how)


BOTH = pytest.mark.parametrize("kind", ["interaction", "representation"])


@BOTH
def test_the_exported_graph_has_no_parameter_that_only_training_needs(kind: str, folder: Path) -> None:
    student = with_heads(kind, folder)
    assert any("reasoning_heads" in name for name, _ in student.named_parameters()), "there is something to leave out"
    served = student.for_serving()
    exported = torch.export.export(served, inputs(served))
    assert not [name for name in exported.state_dict if "reasoning" in name]
    parameters = {name for name, _ in student.named_parameters() if not name.startswith("reasoning_heads.")}
    assert set(exported.graph_signature.parameters) == parameters
    found = exported.module()(*inputs(served))
    assert torch.allclose(found, served(*inputs(served)), atol=1e-6)


@BOTH
def test_serving_costs_the_same_as_if_there_never_had_been_heads(kind: str, folder: Path) -> None:
    """The same operations in the same order, and the same number of multiplications."""
    graphs, flops = [], []
    for student in (with_heads(kind, folder).for_serving(), never_had_heads(kind, folder)):
        exported = torch.export.export(student, inputs(student))
        graphs.append([(str(node.op), str(node.target)) for node in exported.graph.nodes])
        with FlopCounterMode(display=False) as counter:
            student(*inputs(student))
        flops.append(counter.get_total_flops())
    assert graphs[0] == graphs[1]
    assert flops[0] == flops[1] > 0


@BOTH
def test_forward_does_not_read_the_heads(kind: str, folder: Path) -> None:
    student = with_heads(kind, folder)
    before = student(*inputs(student))
    assert student.reasoning_heads is not None
    with torch.no_grad():
        for weight in student.reasoning_heads.parameters():
            weight.fill_(float("nan"))
    assert torch.equal(student(*inputs(student)), before)
    assert torch.equal(student.for_serving()(*inputs(student)), before)


@BOTH
def test_saved_files_hold_nothing_that_only_training_needs(kind: str, folder: Path, tmp_path: Path) -> None:
    student = with_heads(kind, folder)
    MkdModel(student).save(tmp_path / "saved")
    numbers = 0
    for path in sorted((tmp_path / "saved").rglob("*")):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                numbers += sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
        elif path.suffix == ".pt":
            numbers += sum(weight.numel() for weight in torch.load(path, weights_only=True).values())
        if path.is_file():
            assert b"reasoning" not in path.read_bytes()
    scalars = 2 if kind == "representation" else 0  # kappa and b are in mkd.json
    assert numbers + scalars == sum(weight.numel() for weight in never_had_heads(kind, folder).parameters())


@BOTH
def test_for_serving_shares_weights_and_leaves_the_student_as_it_was(kind: str, folder: Path) -> None:
    student = with_heads(kind, folder)
    served = student.for_serving()
    assert student.reasoning_heads is not None
    assert served.reasoning_heads is None
    assert served.encoder is student.encoder
    state = torch.get_rng_state()
    student.for_serving()
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_and_company_do_not_change_what_a_text_gives(folder: Path) -> None:
    for kind in ("interaction", "representation"):
        student = with_heads(kind, folder)
        together = student(*inputs(student))
        alone = MkdModel(student)
        for row, (query, item) in enumerate(PAIRS):
            single = alone._logits([(query, item)], None) if kind == "interaction" else alone.embed_items([item])
            assert np.allclose(single[0], together[row].detach().numpy(), atol=1e-5)


def test_training_outputs_and_forward_agree(folder: Path) -> None:
    student = with_heads("interaction", folder)
    assert isinstance(student, InteractionStudent)
    tokens = student.reader.padded(student.reader.pairs(PAIRS), range(4))
    outputs = student.training_outputs(tokens)
    assert torch.equal(outputs.logit_NK, student(*inputs(student)))
    assert outputs.match_NA2.shape == (4, 4, 2)
    assert outputs.highlight_NL.shape == tokens.ids_NL.shape
    with pytest.raises(ValueError, match="no reasoning heads"):
        student.for_serving().training_outputs(tokens)


def test_heads_have_a_seed_and_leave_the_callers_generator_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    one, same, other = (
        torch.cat([weight.flatten() for weight in InteractionStudent.pretrained(str(folder), seed=seed).parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_pooling_by_the_mean_reads_all_tokens(folder: Path) -> None:
    first, mean = (InteractionStudent.pretrained(str(folder), pooling=way).eval() for way in ("first", "mean"))  # type: ignore[arg-type]
    assert not torch.equal(first(*inputs(first)), mean(*inputs(mean)))


@pytest.mark.parametrize("num_labels", [2, 3])
@torch.no_grad()
def test_an_untrained_student_goes_by_the_alignment_alone(num_labels: int, folder: Path) -> None:
    student = InteractionStudent.pretrained(str(folder), num_labels=num_labels).eval()
    ids_NL, mask_NL, segment_NL = inputs(student)
    states_NLD = student.encoder(input_ids=ids_NL, attention_mask=mask_NL.long(), token_type_ids=segment_NL)[0]
    by_hand = []
    for states_LD, is_there, of_item in zip(states_NLD, mask_NL.bool(), segment_NL.bool(), strict=True):
        query, item = states_LD[1:][(is_there & ~of_item)[1:]], states_LD[is_there & of_item]
        best = [max(float(torch.cosine_similarity(one, other, dim=0)) for other in item) for one in query]
        by_hand.append(sum(best) / len(best))
    assert len({round(one, 4) for one in by_hand}) == len(PAIRS)
    found_N = alignment(states_NLD, mask_NL.bool(), segment_NL.bool())
    assert found_N.tolist() == pytest.approx(by_hand, abs=1e-5)
    logit_NK = student(ids_NL, mask_NL, segment_NL)
    log_odds_N = logit_NK[:, -1] - logit_NK[:, 0]
    assert log_odds_N.tolist() == pytest.approx([8 * one - 5.6 for one in by_hand], abs=1e-4)
    assert torch.equal(log_odds_N.argsort(), found_N.argsort())


def test_an_alignment_learns(folder: Path) -> None:
    student = with_heads("interaction", folder)
    student(*inputs(student))[:, 1].sum().backward()
    assert student.label_head.weight.grad is not None  # type: ignore[union-attr]
    assert student.label_head.weight.grad[1].abs().min() > 0  # type: ignore[union-attr]
    assert all(
        weight.grad is not None and weight.grad.abs().sum() > 0
        for name, weight in student.encoder.named_parameters()
        if "word_embeddings" in name
    )


def test_an_encoder_without_segments_is_aligned_by_what_the_tokenizer_tells(folder: Path) -> None:
    encoder, reader = load_encoder(str(folder), max_tokens=16)
    segmented = reader.padded(reader.pairs(PAIRS), range(4))
    reader.has_segments = False
    tokens = reader.padded(reader.pairs(PAIRS), range(4))
    assert tokens.segment_NL is not None
    assert segmented.segment_NL is not None
    assert (segmented.segment_NL - tokens.segment_NL).sum(dim=1).tolist() == [1] * 4  # all but the last [SEP]
    student = InteractionStudent(encoder, reader).eval()
    with torch.no_grad():
        states_NLD = encoder(input_ids=tokens.ids_NL, attention_mask=tokens.mask_NL.long()).last_hidden_state
        found_N = alignment(states_NLD, tokens.mask_NL.bool(), tokens.segment_NL.bool())
        logit_NK = student(*tokens)
    assert torch.allclose(logit_NK[:, 1] - logit_NK[:, 0], 8 * found_N - 5.6, atol=1e-4)


def test_where_nobody_tells_the_items_tokens_there_is_no_alignment(folder: Path) -> None:
    encoder, reader = load_encoder(str(folder), max_tokens=16)
    slow = TextReader(BertTokenizerLegacy(reader.tokenizer), max_tokens=16, has_segments=False)
    with pytest.raises(ValueError, match=r'does not tell which tokens(.|\n)*or pooling = "first"'):
        InteractionStudent(encoder, slow)
    student = InteractionStudent(encoder, slow, pooling="first").eval()
    tokens = slow.padded(slow.pairs(PAIRS), range(4))
    assert tokens.segment_NL is None
    assert student(*tokens).shape == (4, 2)


# the signal -----------------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_unknown() -> None:
    signal = TeacherSignal.of(np.array([0, 0, 1]))
    assert (signal.label_N == UNKNOWN).all()
    assert np.isnan(signal.probabilities_NK).all()
    assert signal.match_NA.shape == (3, 4)
    assert (signal.match_NA == UNKNOWN).all()
    assert signal.query_class_NC.shape == signal.item_class_NC.shape == (3, 0)
    assert signal.num_labels == 2


def test_classes_of_one_side_leave_the_other_unknown() -> None:
    signal = TeacherSignal.of(np.array([0, 1]), item_class_NC=np.array([[4, 5], [UNKNOWN, 0]]))
    assert signal.query_class_NC.tolist() == [[UNKNOWN, UNKNOWN]] * 2


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"label_N": np.array([0, 1, 1])}, r"label_N is \(3,\), expected \(2,\)"),
        ({"label_N": np.array([0, 2])}, "label_N holds 0 to 2, expected -1 to 1"),
        ({"match_NA": np.full((2, 4), 3)}, "match_NA holds 3 to 3, expected -1 to 2"),
        ({"match_NA": np.full((2, 3), MATCH)}, r"match_NA is \(2, 3\), expected \(2, 4\)"),
        (
            {"probabilities_NK": np.array([[0.5, 0.5], [0.9, 0.9]])},
            "1 of 2 rows of probabilities_NK are no distribution",
        ),
        ({"probabilities_NK": np.array([[1.5, -0.5], [np.nan] * 2])}, "are no distribution, e.g. row 0"),
        ({"highlight": [CitedSpans((), ())]}, "highlight is of 1 pairs, expected 2"),
    ],
)
def test_a_signal_that_does_not_fit_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherSignal.of(np.array([0, 1]), **part)
