"""config: the scaled RoPE types are read, written back and, where something is odd, refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_files import D, T, old, put, released
from scaled_ropes import peer, scaled

from t5g2ref.config import Config, ConfigError, Dynamic, Llama3, LongRope, Proportional, Rope, Ropes, Yarn
from t5g2ref.config.read_ropes import TYPES
from t5g2ref.notes import noted

FULL = f"{T}.rope_parameters.full_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1, 1.5, 2, 2.5, 3],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0],
}
LLAMA = {"rope_type": "llama3", "factor": 4, "low_freq_factor": 1, "high_freq_factor": 4.0}
LONGEST = released()["encoder"]["text_config"]["max_position_embeddings"]
LISTS = ((1.0, 1.5, 2.0, 2.5, 3.0), (2.0, 3.0, 4.0, 5.0, 6.0))
READ: list[tuple[dict[str, Any], Rope]] = [
    (YARN, Rope(1e6, 4.0, Yarn(64))),
    ({"rope_type": "yarn", "factor": 4}, Rope(1e6, 4.0, Yarn(LONGEST))),  # as transformers fills it in
    (YARN | {"factor": None}, Rope(1e6, LONGEST / 64, Yarn(64))),
    (
        YARN | {"beta_fast": 30, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1, "truncate": True},
        Rope(1e6, 4.0, Yarn(64, 30.0, 2.0, mscale=0.7, mscale_all_dim=1.0)),
    ),
    (YARN | {"attention_factor": 1.2, "mscale": None}, Rope(1e6, 4.0, Yarn(64, attention_factor=1.2))),
    (LONG, Rope(1e6, LONGEST / 64, LongRope(64, *LISTS))),
    (LONG | {"factor": 3, "attention_factor": 2}, Rope(1e6, 3.0, LongRope(64, *LISTS, attention_factor=2.0))),
    (LLAMA, Rope(1e6, 4.0, Llama3(LONGEST, 1.0, 4.0))),
    (LLAMA | {"original_max_position_embeddings": 32}, Rope(1e6, 4.0, Llama3(32, 1.0, 4.0))),
    ({"type": "dynamic", "factor": 2.5}, Rope(1e6, 2.5, Dynamic(LONGEST))),
    ({"rope_type": "proportional", "partial_rotary_factor": 0.5}, Rope(1e6, 1.0, Proportional(0.5))),
    ({"rope_type": "proportional", "factor": 2.0}, Rope(1e6, 2.0, Proportional())),
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [  # what stands there, field, words
    *(
        ({"rope_type": kind, "factor": 2.0}, "rope_type", "expected 'default' or 'linear' or 'dynamic' or 'yarn'")
        for kind in ("axial", "su", "ntk", "mrope", "YARN", 3, None, ["yarn"])
    ),
    ({"rope_type": "yarn"}, "factor", "is missing"),
    (YARN | {"factor": "4"}, "factor", "a finite number"),
    (YARN | {"factor": -4.0}, "factor", "above 0"),
    (YARN | {"truncate": False}, "truncate", "expected true; transformers 5.24 looks for it outside"),
    (YARN | {"beta_fast": 0.5}, "beta_fast", "at least beta_slow (1.0)"),
    (YARN | {"beta_slow": 0}, "beta_slow", "above 0"),
    (YARN | {"attention_factor": 0.0}, "attention_factor", "above 0"),
    (YARN | {"mscale": True}, "mscale", "a finite number"),
    (YARN | {"rope_theta": 1.0}, "rope_theta", "above 1 for yarn"),
    (YARN | {"original_max_position_embeddings": 64.5}, "original_max_position_embeddings", "an integer"),
    (YARN | {"original_max_position_embeddings": 0}, "original_max_position_embeddings", "from 1 to"),
    (YARN | {"short_factor": [1.0]}, "short_factor", "no such field; yarn RoPE does not read it"),
    (YARN | {"partial_rotary_factor": 0.5}, "partial_rotary_factor", "1.0"),
    (LONG | {"long_factor": [1.0] * 4}, "long_factor", "5 numbers, found 4"),
    (LONG | {"short_factor": 2.0}, "short_factor", "a list of numbers"),
    (LONG | {"short_factor": [1.0, 1.0, "1", 1.0, 1.0]}, "short_factor[2]", "a finite number"),
    (LONG | {"short_factor": [1.0, 1.0, 0, 1.0, 1.0]}, "short_factor", "above 0"),
    (LONG | {"original_max_position_embeddings": 1}, "original_max_position_embeddings", "above 1"),
    (LLAMA | {"high_freq_factor": 1}, "high_freq_factor", "above low_freq_factor (1.0)"),
    ({"rope_type": "llama3", "factor": 4, "low_freq_factor": 1}, "high_freq_factor", "is missing"),
    (LLAMA | {"beta_fast": 32}, "beta_fast", "no such field; llama3 RoPE does not read it"),
    ({"rope_type": "dynamic"}, "factor", "is missing"),
    ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64},
     "original_max_position_embeddings", "no such field; dynamic RoPE does not read it"),
    ({"rope_type": "proportional", "partial_rotary_factor": 1.5}, "partial_rotary_factor", "from 0 to 1"),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor", "'proportional'"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), READ, ids=[json.dumps(given) for given, _ in READ])
def test_read_in_both_spellings(given: dict[str, Any], expected: Rope) -> None:
    config = Config.from_dict(put(released(), FULL, given))
    assert config.encoder.rope_parameters["full_attention"] == expected
    theta = expected.theta
    raw = old()
    raw["encoder"]["text_config"] |= {"rope_scaling": given, "rope_theta": theta}
    assert Config.from_dict(raw) == config


@pytest.mark.parametrize(("given", "field", "words"), REFUSED, ids=[f"{g} {f}" for g, f, _ in REFUSED])
def test_refused_in_one_line(given: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict(put(released(), FULL, given))
    text = str(error.value)
    assert text.startswith(f"{FULL}.{field} ")
    assert words in text
    assert "\n" not in text
    assert len(text) < 300


def with_ropes(full: Rope, sliding: Rope | None = None) -> Config:
    config = Config.from_dict(released())
    ropes = Ropes(config.encoder.rope_parameters["sliding_attention"] if sliding is None else sliding, full)
    return replace(config, encoder=replace(config.encoder, rope_parameters=ropes))


def of_the_released(name: str) -> Rope:
    return scaled(10, LONGEST, 64)[name]


@pytest.mark.parametrize("name", scaled(10))
def test_written_and_read_back(name: str) -> None:
    config = with_ropes(of_the_released(name))
    for spelling in ("released", "old"):
        written = json.loads(json.dumps(config.to_dict(spelling)))  # type: ignore[arg-type]
        assert Config.from_dict(written) == config
    both = with_ropes(of_the_released(name), of_the_released(name))
    assert Config.from_dict(both.to_dict()) == both
    with pytest.raises(ConfigError, match=r"sliding_attention\.rope_type is .* expected 'default'"):
        replace(both, decoder=both.encoder).to_dict("old")


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (Rope(1e4, 2.0, Dynamic(63)), f"max_position_embeddings is 63, expected {LONGEST}, as the stack's"),
        (Rope(1e4, 2.0, Yarn(True)), "original_max_position_embeddings is True"),
        (Rope(1e4, 2.0, Yarn(64, float("nan"))), "beta_fast is nan"),
        (Rope(1e4, 2.0, LongRope(64, [1.0] * 5, (1.0,) * 5)), "short_factor is"),  # type: ignore[arg-type]
        (Rope(1e4, 2.0, Proportional(-0.1)), "partial_rotary_factor is -0.1"),
        (Rope(1e4, 2.0, Llama3(64, 2.0, 1.0)), "high_freq_factor is 1.0"),
    ],
)
def test_made_by_hand(rope: Rope, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_ropes(rope)
    assert f"{T}.rope_parameters.full_attention.{words}" in str(error.value)


def test_dynamic_needs_a_head_of_four() -> None:
    config = with_ropes(Rope(1e4, 2.0, Dynamic(LONGEST)))
    with pytest.raises(ConfigError, match="a head_dim above 2"):
        replace(config, encoder=replace(config.encoder, head_dim=2))


def test_sliding_layers_may_have_them_too() -> None:
    raw = put(released(), f"{D}.rope_parameters.sliding_attention", YARN | {"rope_theta": 5000.0})
    assert Config.from_dict(raw).decoder.rope_parameters["sliding_attention"] == Rope(5000.0, 4.0, Yarn(64))


@pytest.mark.parametrize("name", ["dynamic", "llama3"])
def test_what_dynamic_does_otherwise_in_transformers_is_noted(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(with_ropes(of_the_released(name)).to_dict()))
    notes: list[str] = []
    with noted(notes):
        Config.load(tmp_path)
    where = f"{T}.rope_parameters.full_attention: dynamic RoPE goes by each call's length"
    assert [where in text for text in notes] == [True] * (name == "dynamic")


@pytest.mark.peer
def test_transformers_computes_these_types_and_no_other() -> None:
    peer()
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert {"default", *ROPE_INIT_FUNCTIONS} == set(TYPES)
