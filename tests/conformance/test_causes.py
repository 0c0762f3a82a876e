"""Causes: failing taps by kind of operation and layers, and the cards that are made of them."""

from __future__ import annotations

import pytest

from conformance.measure.causes import Row, causes
from conformance.report.cards import Failure, cards, tabled

E, D = "encoder.text_model", "decoder"
S, F = "sliding_attention", "full_attention"
TYPES = {E: (S, S, F, S, F), D: (S, F, S)}
NORMS = ("pre_self_attn_layernorm", "post_self_attn_layernorm", "pre_feedforward_layernorm")


def failing(*taps: str, call: int = 0, status: str = "values") -> list[Row]:
    return [(tap, call, status) for tap in taps]


def in_layers(stack: str, last: str, *layers: int) -> list[str]:
    return [f"{stack}.layers.{i}{'.' * bool(last)}{last}" for i in layers]


@pytest.mark.parametrize(
    ("taps", "titles"),
    [
        (in_layers(E, "self_attn.q_rope", 2, 4), ["RoPE of the encoder, full layers only"]),
        (in_layers(E, "self_attn.mask", 0, 1, 3), ["mask of the encoder, sliding layers only"]),
        (in_layers(E, "mlp.act_fn", 0, 1, 2, 3, 4), ["activation of the encoder, all layers"]),
        (in_layers(D, "mlp.act_fn", 1), ["activation of the decoder, layer 1"]),
        (in_layers(E, "", 0, 3), ["residual of the encoder, layers 0, 3"]),
        (["logits"], ["logits"]),
        ([f"{E}.embed_tokens", f"{D}.embed_tokens"], ["embedding of the encoder and the decoder"]),
        (
            [f"{E}.rotary_emb.full_attention.cos", f"{E}.rotary_emb.full_attention.sin"],
            ["RoPE table of the encoder, full layers only"],
        ),
        ([f"{E}.rotary_emb.{kind}.cos" for kind in (S, F)], ["RoPE table of the encoder, all layers"]),
    ],
)
def test_the_title_says_kind_stack_and_layers(taps: list[str], titles: list[str]) -> None:
    found = causes(failing(*taps), TYPES)
    assert [cause.title for cause in found] == titles
    assert [tap for cause in found for tap, _, _ in cause.rows] == taps


def test_one_mistake_in_all_norms_is_one_cause() -> None:
    taps = [tap for i in range(5) for norm in NORMS for tap in in_layers(E, norm, i)]
    (cause,) = causes(failing(*taps, f"{E}.norm"), TYPES)
    assert cause.title == "norm of the encoder, all layers"
    assert cause.taps == (*NORMS, "norm")


def test_both_stacks_alike_are_one_cause() -> None:
    taps = [*in_layers(E, "mlp.act_fn", *range(5)), *in_layers(D, "mlp.act_fn", *range(3))]
    (cause,) = causes(failing(*taps), TYPES)
    assert cause.title == "activation of the encoder and the decoder, all layers"


def test_other_layers_are_another_cause() -> None:
    """A norm in every layer, and another one in one layer alone; the same numbers in the other stack are no link."""
    taps = [*in_layers(E, NORMS[0], *range(5)), *in_layers(E, NORMS[2], 3), *in_layers(D, NORMS[2], 1)]
    titles = [cause.title for cause in causes(failing(*taps), TYPES)]
    assert titles == [
        "norm of the encoder, all layers",
        "norm of the encoder, layer 3",
        "norm of the decoder, layer 1",
    ]


def test_rounding_may_hide_a_layer() -> None:
    taps = [*in_layers(E, NORMS[0], *range(5)), *in_layers(E, NORMS[1], 0, 1, 2, 4)]
    assert [cause.title for cause in causes(failing(*taps), TYPES)] == ["norm of the encoder, all layers"]


def test_attention_behind_a_wrong_mask_is_no_cause() -> None:
    at = f"{E}.layers.0.self_attn"
    found = [*failing(f"{at}.mask", status="mask"), *failing(f"{at}.attention", f"{E}.layers.1.self_attn.attention")]
    titles = [cause.title for cause in causes(found, TYPES)]
    assert titles == ["mask of the encoder, layer 0", "attention of the encoder, layer 1"]


@pytest.mark.parametrize("status", ["nan", "shape"])
def test_what_spreads_is_one_cause(status: str) -> None:
    """A NaN, or a key too few, is in every tap behind it; what is wrong otherwise there is a cause of its own."""
    at = f"{E}.layers.1"
    spread = failing(f"{at}.self_attn.q_norm", f"{at}.self_attn.attention", at, "logits", status=status)
    found = [*spread, *failing(f"{at}.mlp.act_fn")]
    titles = [cause.title for cause in causes(found, TYPES)]
    assert titles == ["norm of the encoder, layer 1", "activation of the encoder, layer 1"]


def test_another_type_is_one_cause_at_all_taps() -> None:
    taps = [f"{E}.layers.{i}.{part}" for i in range(5) for part in ("mlp.act_fn", "self_attn.q_norm")]
    assert [c.title for c in causes(failing(*taps, status="dtype"), TYPES)] == [
        "number type of the encoder, all layers"
    ]


def test_a_wrong_mask_in_one_case_excuses_no_other() -> None:
    """Attention fails by itself in the second case, where the mask is right."""
    at = f"{E}.layers.0.self_attn"
    masked = [(f"{at}.mask", 0, "mask"), (f"{at}.attention", 0, "values")]
    made = cards([failure(0, more=masked), failure(1, f"{at}.attention")], {"tiny": TYPES})
    assert [[f.index for f, _ in card.members] for card in made] == [[0], [1]]


def test_what_passes_is_no_cause() -> None:
    assert causes([("logits", 0, "pass")], TYPES) == []


def failure(index: int, *taps: str, peer: str = "port", error: str = "", more: list[Row] | None = None) -> Failure:
    local = [*failing(*taps), *(more or [])]
    return Failure(index, (peer, "tiny"), f"case {index}", local[0], local, error)


ROPE, NORM = in_layers(E, "self_attn.q_rope", 2, 4), in_layers(E, NORMS[0], *range(5))


def test_a_card_for_each_cause_over_all_cases() -> None:
    """The first case shows one layer of a mistake alone, the second both mistakes."""
    made = cards([failure(0, NORM[0]), failure(1, *NORM, *ROPE), failure(2, *ROPE, peer="other")], {"tiny": TYPES})
    titles = [card.cause.title for card in made if card.cause]
    assert titles == ["norm of the encoder, all layers", "RoPE of the encoder, full layers only"]
    assert [[f.index for f, _ in card.members] for card in made] == [[0, 1], [1, 2]]
    assert made[1].members[0][1] == (ROPE[0], 0, "values")
    assert list(tabled(made)) == [("port", "tiny")], "the other peer has one cause"


def test_what_is_missing_behind_an_error_is_no_cause() -> None:
    missing = failing("logits", status="missing")
    (card,) = cards([failure(0, NORM[0], error="it raised", more=missing)], {})
    assert card.cause is not None
    assert card.cause.kind == "norm"
    assert [c.cause.title for c in cards([failure(0, NORM[0], more=missing)], {}) if c.cause][1:] == ["not shown"]


def test_a_culprit_of_another_lane_is_a_card_of_its_own() -> None:
    exact = Failure(0, ("port", "tiny"), "exact", ("weights.a", 0, "exact"), ())
    (card,) = cards([exact], {})
    assert card.cause is None
    assert card.members == [(exact, exact.culprit)]
    assert tabled([card]) == {}
