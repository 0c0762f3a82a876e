"""The exact lane: weights after a peer's loader, embedding rows, and the whole lane on the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exact_findings import DEC, ENC, IDS, failed
from helpers import HALF, Array, same_bits

from conformance.checkpoints import resolve
from conformance.judge.exact.lane import exact_rows, examine_exact, weight_findings
from conformance.judge.exact.probes import probes
from conformance.peers.find import create
from conformance.peers.protocol import Skip
from conformance.target import Target
from t5g2ref.params import TIED

pytestmark = pytest.mark.slow  # minutes in all


TABLE = f"{ENC}.embed_tokens.weight"
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def target() -> Target:
    return resolve("tiny", synthetic=False)[0]


def held(target: Target, dtype: str) -> dict[str, Array]:
    """What a peer in this type holds, in its own arrays."""
    kind = HALF.get(dtype, np.float32)
    return {name: np.array(value).astype(kind) for name, value in target.weights.items()}


# Weights


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_weights_are_one_pass(dtype: Any, target: Target) -> None:
    (found,) = weight_findings(held(target, dtype).items(), target, dtype)
    assert (found.tap, found.status, found.tokens) == ("weights", "pass", len(target.weights))
    assert found.tokens > 200


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [TABLE, f"{DEC}.layers.4.self_attn.o_proj.weight", f"{ENC}.norm.weight"])
def test_one_bit_of_one_element(name: str, dtype: Any, target: Target) -> None:
    weights = held(target, dtype)
    bits = weights[name].view(f"u{weights[name].itemsize}")
    at = tuple(n - 1 for n in bits.shape)
    bits[at] ^= 1
    (found,) = weight_findings(weights.items(), target, dtype)
    assert (found.tap, found.status, found.token) == (f"weights.{name}", "exact", at)
    assert found.detail.startswith(f"1 of {bits.size} elements differ, first {at}: expected ")
    right, wrong = (float(array[at]) for array in (held(target, dtype)[name], weights[name]))
    assert f"expected {right!r} (0x" in found.detail
    assert f"found {wrong!r} (0x" in found.detail


@pytest.mark.parametrize(
    ("status", "change"),
    [
        ("shape", lambda w: w.T if w.ndim > 1 else w[:-1]),
        ("shape", lambda w: w[None]),
        ("dtype", lambda w: w.astype(np.float64)),
        ("exact", lambda w: np.full_like(w, np.nan)),
        ("exact", lambda w: w[::-1].copy()),
        ("exact", lambda w: w + 1),  # a converter that folds the norms' 1
    ],
)
@pytest.mark.parametrize("name", [f"{DEC}.layers.1.mlp.up_proj.weight", f"{ENC}.layers.0.self_attn.q_norm.weight"])
def test_weights_that_are_others(name: str, status: str, change: Any, target: Target) -> None:
    weights = held(target, "float32")
    weights[name] = change(weights[name])
    assert failed(weight_findings(weights.items(), target, "float32")) == [(f"weights.{name}", status)]


def test_missing_extra_and_twice(target: Target) -> None:
    weights = held(target, "float32")
    last = [*weights][-1]
    del weights[last]
    pairs = [("decoder.relative_bias", np.ones(3)), *weights.items(), *list(weights.items())[:1]]
    assert failed(weight_findings(iter(pairs), target, "float32")) == [
        ("weights.decoder.relative_bias", "missing"),
        (f"weights.{next(iter(weights))}", "exact"),
        (f"weights.{last}", "missing"),
    ]
    assert len(failed(weight_findings([], target, "float32"))) == len(target.weights), "nothing at all is no pass"


def test_negative_zero_is_another_bit(target: Target) -> None:
    weights = held(target, "bfloat16")
    name = f"{DEC}.norm.weight"
    zero = replace(target, weights={**target.weights, name: np.zeros_like(target.weights[name])})
    weights[name] = -np.zeros_like(weights[name])
    (found,) = weight_findings(weights.items(), zero, "bfloat16")
    assert "expected 0.0 (0x0000), found -0.0 (0x8000)" in found.detail


def test_tied_tables_once_or_by_each_name(target: Target) -> None:
    """A copy that is equal does no harm, and one that is not is named."""
    weights = held(target, "float32")
    assert not set(weights) & set(TIED), "once"
    tied = {alias: weights[source].copy() for alias, source in TIED.items()}
    assert failed(weight_findings({**weights, **tied}.items(), target, "float32")) == []
    tied["lm_head.out_proj.weight"][3, 2] += 0.01
    (found,) = weight_findings({**weights, **tied}.items(), target, "float32")
    assert (found.tap, found.status, found.token) == ("weights.lm_head.out_proj.weight", "exact", (3, 2))


# Embedding rows


def rows(target: Target, ids: Array, dtype: str) -> Array:
    """By definition, one number at a time, in float64 and rounded once: the products are exact there."""
    kind = HALF.get(dtype, np.float32)
    table, special = (np.asarray(held(target, dtype)[f"{ENC}.embed_tokens.{n}"]) for n in ("weight", "eoi_embedding"))
    scale = float(np.asarray(np.sqrt(table.shape[1])).astype(kind))
    out = np.empty((*ids.shape, table.shape[1]), kind)
    for at in np.ndindex(*ids.shape):
        row = [float(v) * scale for v in table[ids[at]]]
        # float64 to bfloat16 by way of float32 is one rounding here: 8 + 8 bits fit in float32
        out[at] = special if ids[at] == target.config.eoi_token_index else np.float32(row).astype(kind)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_rows(dtype: Any, target: Target) -> None:
    assert target.config.eoi_token_index == 301
    right = rows(target, IDS, dtype)
    assert exact_rows(right, target, IDS, dtype).passed
    assert exact_rows(right, target, IDS, dtype).tokens == right.size
    wrong = right.copy()
    wrong[1, 3, 5] = np.nextafter(wrong[1, 3, 5], wrong.dtype.type(9))
    found = exact_rows(wrong, target, IDS, dtype, tap="decoder.embed_tokens")
    assert (found.tap, found.status, found.token) == ("decoder.embed_tokens", "exact", (1, 3, 5))
    assert exact_rows(wrong, target, IDS, dtype, valid=np.arange(8).reshape(2, 4) < 7).passed
    for status, value in (
        ("missing", None),
        ("shape", right[:, :-1]),
        ("shape", right[..., :-1]),
        ("dtype", right.astype(np.float64)),
        ("exact", np.full_like(right, np.nan)),
    ):
        assert exact_rows(value, target, IDS, dtype).status == status


@pytest.mark.parametrize(
    "wrong",
    [
        lambda table, special, ids: table[ids],  # no scale (D01)
        lambda table, special, ids: table[ids] * np.float32(48**0.5),  # not rounded to the table's type (D02)
        lambda table, special, ids: table[ids] * np.float32(6.9375) * np.float32(6.9375),  # twice (D03)
        lambda table, special, ids: np.where((ids == 301)[..., None], special, table[ids]) * np.float32(6.9375),  # D05
    ],
)
def test_embedding_rows_that_ports_have(wrong: Any, target: Target) -> None:
    weights = {name: value.astype(np.float32) for name, value in held(target, "bfloat16").items()}
    table, special = weights[TABLE], weights[f"{ENC}.embed_tokens.eoi_embedding"]
    found = exact_rows(wrong(table, special, IDS).astype(HALF["bfloat16"]), target, IDS, "bfloat16")
    assert found.status == "exact"
    right = np.where((IDS == 301)[..., None], special, table[IDS] * np.float32(6.9375))  # √48 = 6.928… in bfloat16
    assert exact_rows(right.astype(HALF["bfloat16"]), target, IDS, "bfloat16").passed


# The whole lane


class Wrapped:
    """A peer whose `run` or `weights` is another."""

    def __init__(self, peer: Any, **others: Any) -> None:
        self._peer = peer
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_passes(dtype: Any, target: Target) -> None:
    peer, said = create(f"t5g2ref:numpy:{dtype}"), []
    peer.open(target)
    found = examine_exact(Wrapped(peer, weights=lambda: held(target, dtype).items()), target, dtype, said.append)
    assert failed(found) == []
    assert found[0].tap == "weights"
    assert [line.split(":")[0] for line in said[1:]] == [p.case.name for p in probes(target.config)]
    assert [f.tap for f in found if f.passed and not f.detail] == [f"{ENC}.embed_tokens", f"{DEC}.embed_tokens"]


def test_a_peer_that_shows_few_taps(target: Target) -> None:
    peer = create("t5g2ref:numpy:float32")
    peer.open(target)
    shown = ("encoder.text_model.norm", "decoder.layers.?", "logits")
    found = examine_exact(Wrapped(peer, taps=shown), target, "float32")
    assert failed(found) == []
    names = {f.tap for f in found} - {"weights"}
    assert names == {f"{ENC}.norm", "logits", *(f"{DEC}.layers.{i}" for i in range(7))}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Skip("no pictures", "https://example.org/7"), "skipped by the peer: no pictures (https://example.org/7)"),
        (RuntimeError("out of cheese"), "the peer raised RuntimeError: out of cheese"),
    ],
)
def test_a_probe_that_the_peer_does_not_do_is_no_pass(error: Exception, words: str, target: Target) -> None:
    peer = create("t5g2ref:numpy:float32")
    peer.open(target)

    def run(case: Any, dump: Any) -> None:
        if case.name == "probe-images":
            raise error
        peer.run(case, dump)

    found = examine_exact(Wrapped(peer, run=run), target, "float32")
    assert failed(found) == [("probe-images", "missing")]
    assert found[-1].detail == words


def test_the_expectation_is_that_of_the_rounded_weights(target: Target) -> None:
    """`Target.rounded` in a half type is float32 on its grid on NumPy: the same numbers as the peer's own type."""
    for dtype in ("bfloat16", "float16"):
        for name, value in target.rounded(dtype).items():  # type: ignore[arg-type]
            same_bits(np.asarray(value), held(target, dtype)[name].astype(np.float32))
