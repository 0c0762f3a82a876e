"""transformers judged on RoPE types that no release has, and one wrong variant of each found where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from dumping import case_of
from geometry import seeded_weights
from judging import judged
from scaled_ropes import peer as of_release
from scaled_ropes import scaled

from conformance.judge.judge import judge
from conformance.peers.find import create
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.config import Config, Llama3, Rope, Ropes
from t5g2ref.notes import noted

pytestmark = pytest.mark.peer

TYPES = ("dynamic", "yarn", "yarn, mscale", "yarn, given", "longrope", "longrope, given", "llama3", "proportional")
EVERY = pytest.mark.parametrize("name", TYPES)
CASES = ("short", "padded-left-cached", "far-positions")
LENGTH = {"dynamic": 4, "longrope": 4, "longrope, given": 4}  # reached within the short cases; the others' is 64
"""Original lengths. dynamic's is max_position_embeddings too, beyond which a case has no far positions."""


@pytest.fixture
def recent() -> None:
    of_release()


def target_of(name: str, change: Any = lambda rope: rope) -> Target:
    """tiny with this RoPE on the full layers of both stacks, which have heads of 14 and of 10."""
    config = Config.load(bundled("tiny"))
    stacks = {}
    for part in ("encoder", "decoder"):
        stack = getattr(config, part)
        longest = 4 if name == "dynamic" else stack.max_position_embeddings
        rope = change(scaled(stack.head_dim, longest, LENGTH.get(name, 64))[name])
        ropes = Ropes(stack.rope_parameters["sliding_attention"], rope)
        stacks[part] = replace(stack, rope_parameters=ropes, max_position_embeddings=longest)
    config = replace(config, **stacks)
    weights = {n: w for n, w in seeded_weights(config).items() if not n.startswith("score.")}
    return Target("legal", config, weights)


def cases_of(name: str) -> tuple[str, ...]:
    return CASES[:2] if name == "dynamic" else CASES


@pytest.mark.usefixtures("peer_installed", "recent")
@pytest.mark.parametrize("kind", ["eager", "sdpa", "eager:bfloat16", "sdpa:bfloat16"])
@EVERY
def test_transformers_conforms(name: str, kind: str) -> None:
    target = target_of(name)
    for case in cases_of(name):
        with noted([]):  # that positions are beyond max_position_embeddings
            found = judged(create(f"transformers:{kind}"), target, case)
        assert found.passed, (case, found.culprit)


WRONG: dict[str, Any] = {  # another Rope in the place of the right one
    "dynamic": lambda rope: replace(rope, factor=1.0),  # never grows
    "yarn": lambda rope: replace(rope, scaling=replace(rope.scaling, attention_factor=1.0)),
    "yarn, mscale": lambda rope: replace(rope, scaling=replace(rope.scaling, mscale=None)),
    "yarn, given": lambda rope: replace(rope, scaling=replace(rope.scaling, attention_factor=None)),
    "longrope": lambda rope: replace(rope, scaling=replace(rope.scaling, long_factor=rope.scaling.short_factor)),
    "longrope, given": lambda rope: replace(rope, scaling=replace(rope.scaling, attention_factor=None)),
    "llama3": lambda rope: replace(rope, scaling=Llama3(64, 3.0, 3.0001)),  # no smooth middle
    "proportional": lambda rope: Rope(rope.theta, rope.factor),  # all planes turn
}


@pytest.mark.usefixtures("peer_installed", "recent")
@EVERY
def test_a_wrong_one_is_found_at_the_table(name: str) -> None:
    """transformers, given the wrong numbers."""
    target, peer = target_of(name), create("transformers:sdpa")
    peer.open(target_of(name, WRONG[name]))
    with noted([]):
        found = judge(peer, target, case_of(target, "short"))
    peer.close()
    assert found.culprit is not None
    assert found.culprit.tap == "encoder.text_model.rotary_emb.full_attention.cos"


@pytest.mark.usefixtures("peer_installed", "recent")
def test_what_an_earlier_case_left_in_transformers_is_found() -> None:
    """Its dynamic frequencies are those of the longest call so far. So the same case conforms first and deviates behind
    a longer one. longrope has no such memory."""
    for name, keeps in (("dynamic", True), ("longrope", False)):
        target, peer, passed = target_of(name), create("transformers:sdpa"), []
        peer.open(target)
        with noted([]):
            for case in ("short", "window", "short"):
                found = judge(peer, target, case_of(target, case), repeat=False)
                passed.append(found.passed)
        peer.close()
        assert passed == [True, True, not keeps]
        assert (
            found.culprit.tap if found.culprit else ""
        ) == keeps * "encoder.text_model.rotary_emb.full_attention.cos"
