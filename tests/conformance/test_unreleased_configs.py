"""transformers judged on configurations that no release has: attention biases, other activations, plain RoPE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from dumping import case_of
from geometry import seeded_weights
from judging import judged

from conformance.defects.exposure import hidden
from conformance.judge.judge import judge
from conformance.peers.find import create
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.config import Config, Rope, Ropes

pytestmark = pytest.mark.peer

CASES = ("short", "padded-left-cached", "images")
LEGAL: dict[str, dict[str, Any]] = {
    "bias": {"attention_bias": True},
    "gelu": {"hidden_activation": "gelu"},
    "silu": {"hidden_activation": "silu"},
    "relu": {"hidden_activation": "relu"},
    "default RoPE on full layers": {"rope_parameters": Ropes(Rope(900.0, 2.0), Rope(40_000.0))},
}


def target_of(**fields: Any) -> Target:
    config = Config.load(bundled("tiny"))
    config = replace(config, encoder=replace(config.encoder, **fields), decoder=replace(config.decoder, **fields))
    weights = {n: w for n, w in seeded_weights(config).items() if not n.startswith("score.")}
    return Target("legal", config, weights)


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", LEGAL)
def test_transformers_conforms(name: str, attention: str) -> None:
    target = target_of(**LEGAL[name])
    for case in CASES:
        found = judged(create(f"transformers:{attention}"), target, case)
        assert found.passed, (case, found.culprit)


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize("name", LEGAL)
def test_it_conforms_in_bfloat16_too(name: str) -> None:
    """What transformers rounds there, the controls round; no pattern of a defect is in it."""
    found = judged(create("transformers:sdpa:bfloat16"), target_of(**LEGAL[name]), "short")
    assert found.passed, found.culprit


@pytest.mark.usefixtures("peer_installed")
@pytest.mark.parametrize(
    ("name", "tap"), [("bias", "q_proj"), ("gelu", "mlp.act_fn"), ("relu", "mlp.act_fn"), ("silu", "mlp.act_fn")]
)
def test_one_that_ignores_it_deviates(name: str, tap: str) -> None:
    """A peer that was given the released setting."""
    target = target_of(**LEGAL[name])
    peer = create("transformers:sdpa")
    peer.open(target_of())
    found = judge(peer, target, case_of(target, "short"))
    peer.close()
    assert found.culprit is not None
    assert found.culprit.tap == f"encoder.text_model.layers.0.{'self_attn.' if name == 'bias' else ''}{tap}"


def test_erf_is_no_mistake_where_it_is_asked_for() -> None:
    target = target_of(hidden_activation="gelu")
    case = case_of(target, "short")
    assert hidden([target.config], [case])["D52"] == "hidden_activation is another one than tanh GELU"
    assert "D52" not in hidden([target_of().config], [case])
