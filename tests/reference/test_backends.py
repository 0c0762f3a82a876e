"""What a CPU can prove about running on CuPy: the model on `strict_arrays.py`'s library, which has CuPy's rules.

It gives NumPy's bits at every tap, no host array gets among the device's, and the host waits for the device at the
places listed here and at no other. That CuPy's own numbers are right is for test_gpu.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers import same_bits
from strict_arrays import Strict, StrictArray, StrictBackend, Waited

from conformance.cases.case import Case
from conformance.cases.catalogue import build
from conformance.checkpoints import resolve
from conformance.oracle.run_case import program
from t5g2ref import decoder, encoder, mlp, outputs, vision
from t5g2ref.dtypes import DType
from t5g2ref.embedding import embed
from t5g2ref.generate.greedy import greedy
from t5g2ref.generate.steps import Generated
from t5g2ref.model import Output, T5Gemma2
from t5g2ref.numerics import EAGER, EXACT, RUNNING, SDPA, Numerics, Profile
from t5g2ref.params import tree
from t5g2ref.trace import OFF, recorder

TARGET = resolve("tiny", synthetic=False)[0]
CASES = {case.name: case for case in build(TARGET.config)}
LABELLED = [name for name, case in CASES.items() if case.runs[0].labels is not None]

IDS, MASK, POSITIONS = "inputs.token_ids", "inputs.keep_mask", "inputs.positions"
PIXELS, NUMBERS, CLASSES = "inputs.pixel_values", "inputs.numbers", "inputs.class_labels"
FINITE, RUNNING_ROWS = "steps.sound", "steps.generated"
UNSEEN = "model.T5Gemma2.encode"  # image tokens, but no pictures for them?
PLACE = "embedding.place_images"  # as many image tokens as features? Then their rows, picked by a mask
COUNTED = "outputs.cross_entropy"  # any label that counts?


def model_of(case: Case, nx: Numerics) -> T5Gemma2:
    """The tiny checkpoint with the case's head, its weights uploaded to the backend."""
    arrays = {**TARGET.weights, **case.head(TARGET.config.decoder.hidden_size)}
    weights = tree({name: nx.xp.asarray(value) for name, value in arrays.items()})
    return T5Gemma2(replace(TARGET.config, num_labels=case.num_labels), weights, nx)


def pair(name: str, dtype: DType = "float64", profile: Profile = EXACT) -> tuple[T5Gemma2, T5Gemma2, Strict]:
    """The case's model on NumPy and on the strict library, and that library."""
    backend = StrictBackend()
    nx = Numerics(dtype, profile)
    return model_of(CASES[name], nx), model_of(CASES[name], replace(nx, backend=backend)), backend.xp


def taps(model: T5Gemma2, case: Case) -> dict[tuple[int, str], Any]:
    """Every tap of every call, in order."""
    calls: dict[int, dict[str, Any]] = {}
    program(case)(model, lambda call: recorder(calls.setdefault(call, {})))
    return {(call, name): value for call, found in calls.items() for name, value in found.items()}


def same(actual: Any, expected: Any) -> None:
    """A device array and a host array, bit for bit."""
    assert isinstance(actual, StrictArray), f"{type(actual).__name__} is not on the device"
    same_bits(actual._library.asnumpy(actual), expected)


# The same bits


@pytest.mark.parametrize(
    ("dtype", "profile"),
    [("float64", EXACT), ("float32", SDPA), ("float32", RUNNING), ("bfloat16", EAGER), ("float16", SDPA)],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("name", CASES)
def test_same_bits_at_every_tap(name: str, dtype: DType, profile: Profile) -> None:
    """The half types run emulated, as on NumPy. Not under EXACT: angles in float64 go to bfloat16 by way of `to_odd`,
    which is NumPy's; a device with native half types has no need of it."""
    host, device, _ = pair(name, dtype, profile)
    expected, actual = taps(host, CASES[name]), taps(device, CASES[name])
    assert expected
    assert list(actual) == list(expected)
    for key, value in expected.items():
        same(actual[key], value)


@pytest.mark.parametrize("name", LABELLED)
def test_classes_and_losses(name: str) -> None:
    host, device, _ = pair(name)
    expected, actual = labelled(host, CASES[name]), labelled(device, CASES[name])
    same(actual.logits, expected.logits)
    same(actual.loss, expected.loss)
    same(actual.encoded.hidden, expected.encoded.hidden)
    same(actual.cache.own[-1].values, expected.cache.own[-1].values)


def labelled(model: T5Gemma2, case: Case) -> Output:
    (run,) = case.runs
    call = model if case.task == "lm" else partial(model.classify, per_token=case.task == "token")
    ids = None if run.derived else run.decoder_input_ids
    return call(run.input_ids, ids, decoder_attention_mask=run.decoder_attention_mask, labels=run.labels)


def test_inputs_may_be_on_the_device_already() -> None:
    host, device, xp = pair("padded-left")
    run = CASES["padded-left"].runs[0]
    expected = host.encode(run.input_ids, run.attention_mask)
    same(device.encode(xp.asarray(run.input_ids), xp.asarray(run.attention_mask)).hidden, expected.hidden)


@pytest.mark.parametrize("name", ["padded-left", "image"])
@pytest.mark.parametrize("stopping", [False, True])
def test_generation(name: str, stopping: bool) -> None:
    host, device, xp = pair(name)
    stop = [int(generated(host, name, []).ids[0, 3])] if stopping else []  # an id that does come
    expected, actual = generated(host, name, stop), generated(device, name, stop)
    steps, waits = expected.logits.shape[1], Counter(xp.waits)
    assert steps == 6 or stopping
    same(actual.ids, expected.ids)
    same(actual.logits, expected.logits)
    # Waits a token: are the new ids inside the vocabulary, are the logits numbers, and is any row still running.
    once = {MASK: 1, UNSEEN: 1} if name == "padded-left" else {PIXELS: 1, PLACE: 2}
    assert waits == {IDS: 1 + steps, FINITE: steps, **({RUNNING_ROWS: steps} if stopping else {}), **once}


def generated(model: T5Gemma2, name: str, stop: list[int]) -> Generated:
    run = CASES[name].runs[0]
    given: dict[str, Any] = {"attention_mask": run.attention_mask, "pixel_values": run.pixel_values}
    return greedy(model, run.input_ids, max_new_tokens=6, stop=stop, **given)


BAD: dict[str, Callable[[T5Gemma2], Any]] = {
    "id": lambda m: m.encode([[5, 311_000]]),
    "float ids": lambda m: m.encode([[5.0]]),
    "mask": lambda m: m.encode([[5, 6]], [[1, 2]]),
    "position": lambda m: m.encode([[5, 6]], None, [[0, -1]]),
    "no pictures": lambda m: m.encode([[5, TARGET.config.image_token_index]]),
    "no places": lambda m: m.encode([[5, 6]], pixel_values=CASES["image"].runs[0].pixel_values),
    "not finite": lambda m: m.encode([[5, 6]], pixel_values=CASES["image"].runs[0].pixel_values * np.inf),
    "label": lambda m: m([[5, 6]], [[5]], labels=[[311_000]]),
    "starts": lambda m: greedy(m, [[5], [5]], decoder_input_ids=[[m.config.decoder.bos_token_id], [9]]),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_inputs_are_refused_in_the_same_words(bad: Callable[[T5Gemma2], Any]) -> None:
    host, device, _ = pair("image")
    with pytest.raises(ValueError, match=r".") as expected:
        bad(host)
    with pytest.raises(ValueError, match=re.escape(str(expected.value))):
        bad(device)


# Waits


@pytest.mark.parametrize("name", CASES)
def test_nothing_else_waits(name: str) -> None:
    _, device, xp = pair(name)
    program(CASES[name])(device, lambda _: OFF)
    door = {IDS, MASK, POSITIONS, PIXELS, NUMBERS, CLASSES}
    assert xp.waits
    assert set(xp.waits) <= door | {UNSEEN, PLACE, COUNTED}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("short", {IDS: 1, UNSEEN: 1}),
        ("padded-left", {IDS: 1, MASK: 1, UNSEEN: 1}),
        ("far-positions", {IDS: 1, POSITIONS: 1, UNSEEN: 1}),
        ("image", {IDS: 1, PIXELS: 1, PLACE: 2}),
        ("images", {IDS: 1, MASK: 1, PIXELS: 1, PLACE: 2}),
    ],
)
def test_waits_of_the_steps(name: str, expected: dict[str, int]) -> None:
    """A new source waits for its checks, a decoding step for its ids alone, and nothing in between waits at all."""
    _, device, xp = pair(name)
    run = CASES[name].runs[0]
    encoded = device.encode(run.input_ids, run.attention_mask, run.position_ids, run.pixel_values)
    assert Counter(xp.waits) == expected
    with xp.without_waits():
        cache = device.start(encoded)
        cache = cache.reordered(xp.arange(cache.batch))
    for step in range(3):
        xp.waits.clear()
        hidden, cache = device.decode(run.decoder_input_ids[:, step : step + 1], cache)
        assert xp.waits == [IDS]
        with xp.without_waits():
            device.logits(hidden)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", {IDS: 2, UNSEEN: 1, NUMBERS: 1, CLASSES: 1, COUNTED: 1}),
        ("token", {IDS: 2, MASK: 1, UNSEEN: 1, NUMBERS: 1, CLASSES: 1, COUNTED: 1}),
        ("sequence-single", {IDS: 2, MASK: 1, UNSEEN: 1, NUMBERS: 1, CLASSES: 1, COUNTED: 1}),
        ("sequence-multi", {IDS: 2, MASK: 1, UNSEEN: 1, NUMBERS: 1}),
        ("sequence-regression", {IDS: 2, UNSEEN: 1, NUMBERS: 1}),
    ],
)
def test_waits_of_classes_and_losses(name: str, expected: dict[str, int]) -> None:
    _, device, xp = pair(name)
    labelled(device, CASES[name])
    assert Counter(xp.waits) == expected


def through_the_layers(model: T5Gemma2) -> Any:
    """Tower, encoder, decoder and logits without the door, nothing having been asked of the device."""
    nx, w, config, run = model.nx, model.weights, model.config, CASES["image"].runs[0]
    ids, pixels = nx.xp.asarray(run.input_ids), nx.array(run.pixel_values)
    x = embed(nx, w.encoder.text_model.embed_tokens, ids, config.eoi_token_index)
    positions, valid = nx.xp.arange(ids.shape[1])[None], ids != config.decoder.pad_token_id
    with nx.xp.without_waits():
        vision.image_features(nx, w.encoder, config, pixels)
        encoded = encoder.encode(nx, w.encoder.text_model, config.encoder, x, positions, valid)
        cache = decoder.start(nx, w.decoder, config.decoder, encoded, valid)
        hidden, _ = decoder.decode(nx, w.decoder, config.decoder, x, positions, cache, valid)
        return outputs.lm_logits(nx, w.encoder.text_model.embed_tokens.weight, config, hidden)


def test_no_layer_waits() -> None:
    _, device, xp = pair("image", "float32", EAGER)
    assert isinstance(through_the_layers(device), StrictArray)
    assert not xp.waits


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda gate: float(gate.max()), Waited),
        (lambda gate: np.tanh(gate), TypeError),
        (lambda gate: gate + np.ones(gate.shape), TypeError),
        (lambda gate: gate.clip(0, 1), AttributeError),
    ],
)
def test_a_fault_in_a_layer_is_found(fault: Any, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = mlp.gated
    monkeypatch.setattr(mlp, "gated", lambda nx, name, gate, *rest: (fault(gate), intact(nx, name, gate, *rest))[1])
    with pytest.raises(error):
        through_the_layers(pair("image")[1])
