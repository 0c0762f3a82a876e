"""What a CPU can prove about running on CuPy: the model on the library of `strict.py`, which has CuPy's rules.

It gives NumPy's bits at every tap, no host array gets among the device's, and the host waits for the device at the
places listed here and at no other. That CuPy's own numbers are right is for test_gpu.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import strict_arrays as strict
from helpers import same_bits
from strict_arrays import Strict, StrictArray, StrictBackend, Waited

from conformance.cases.case import Case
from conformance.cases.catalogue import build
from conformance.checkpoints import resolve
from conformance.oracle.run_case import program
from t5g2ref import decoder, encoder, mlp, outputs, vision
from t5g2ref.dtypes import DType
from t5g2ref.embedding import embed
from t5g2ref.generate.greedy import Generated, greedy
from t5g2ref.model import Output, T5Gemma2
from t5g2ref.numerics import EAGER, EXACT, RUNNING, SDPA, Numerics, Profile
from t5g2ref.params import tree
from t5g2ref.trace import OFF, recorder

TARGET = resolve("tiny", synthetic=False)[0]
CASES = {case.name: case for case in build(TARGET.config)}
LABELLED = [name for name, case in CASES.items() if case.runs[0].labels is not None]

IDS, MASK, POSITIONS = "inputs.token_ids", "inputs.keep_mask", "inputs.positions"
PIXELS, NUMBERS, CLASSES = "inputs.pixel_values", "inputs.numbers", "inputs.class_labels"
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
    # Two waits a token: are the new ids inside the vocabulary and, where a row can end, is any still running.
    once = {MASK: 1, UNSEEN: 1} if name == "padded-left" else {PIXELS: 1, PLACE: 2}
    assert waits == {IDS: 1 + steps, **({"greedy._steps": steps} if stopping else {}), **once}


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
    intact = mlp.gated_gelu
    monkeypatch.setattr(mlp, "gated_gelu", lambda nx, gate, *rest: (fault(gate), intact(nx, gate, *rest))[1])
    with pytest.raises(error):
        through_the_layers(pair("image")[1])


# The rules themselves, and that CuPy has them


@pytest.fixture(params=["strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    return Strict() if request.param == "strict" else pytest.importorskip("cupy", reason="needs CuPy")


HOST = np.array([1.0, -2.0, 3.0], np.float32)
MIXES: dict[str, Callable[[Any, Any], Any]] = {
    "device + host": lambda xp, x: x + HOST,
    "host + device": lambda xp, x: HOST + x,
    "device += host": lambda xp, x: operator.iadd(x.copy(), HOST),
    "device == host": lambda xp, x: x == HOST,
    "elementwise": lambda xp, x: xp.maximum(x, HOST),
    "host alone": lambda xp, x: xp.sqrt(HOST),
    "where": lambda xp, x: xp.where(x > 0, HOST, 0.0),
    "matmul": lambda xp, x: xp.matmul(x, HOST),
    "concatenate": lambda xp, x: xp.concatenate([x, HOST]),
    "list": lambda xp, x: xp.maximum(x, [1.0, 2.0, 3.0]),
    "to NumPy": lambda xp, x: np.asarray(x),
    "index from the device": lambda xp, x: HOST[operator.index((x > 0).sum())],
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_mixing_raises(mix: Callable[[Any, Any], Any], xp: Any) -> None:
    with pytest.raises(TypeError):
        mix(xp, xp.asarray(HOST))


SCALARS: dict[str, Callable[[Any, Any], Any]] = {
    "Python, right": lambda xp, x: x * 2.5,
    "Python, left": lambda xp, x: 2 - x,
    "NumPy, right": lambda xp, x: x / np.float32(3),
    "NumPy, left": lambda xp, x: np.float64(3) ** x,
    "where": lambda xp, x: xp.where(x > 0, x, 0.0),
    "maximum": lambda xp, x: xp.maximum(x, 0),
    "reduced": lambda xp, x: (x * x).sum() / 3,
}


@pytest.mark.parametrize("form", SCALARS.values(), ids=SCALARS)
def test_scalars_mix_with_numpys_types(form: Callable[[Any, Any], Any], xp: Any) -> None:
    actual, expected = form(xp, xp.asarray(HOST)), np.asarray(form(np, HOST))
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(xp.asnumpy(actual), expected, rtol=1e-6)  # a GPU's pow is not NumPy's to the last bit


REFUSED: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "host without axes": (TypeError, lambda xp, x: x * np.asarray(2.0)),
    "host as index": (TypeError, lambda xp, x: x[np.array([0, 1])]),
    "list as index": (TypeError, lambda xp, x: x[[0, 1]]),
    "host assigned": (TypeError, lambda xp, x: operator.setitem(x.copy(), slice(None), HOST)),
    "NumPy's function": (TypeError, lambda xp, x: np.sqrt(x)),
    "a device array as a shape": (TypeError, lambda xp, x: xp.ones(x)),
    "a list of device arrays": (TypeError, lambda xp, x: xp.asarray([x])),
    "text": (ValueError, lambda xp, x: xp.asarray(["a"])),
    "unknown function": (AttributeError, lambda xp, x: xp.einsum("i->", x)),
    "unknown method": (AttributeError, lambda xp, x: x.clip(0, 1)),
    "unknown keyword of a function": (TypeError, lambda xp, x: xp.exp(x, out=x)),
    "unknown keyword of a method": (TypeError, lambda xp, x: x.sum(where=x > 0)),
    "write into an input": (ValueError, lambda xp, x: operator.iadd(x, 1)),
    "assignment into an input": (ValueError, lambda xp, x: operator.setitem(x[1:], 0, 1.0)),
}


@pytest.mark.parametrize(("error", "call"), REFUSED.values(), ids=REFUSED)
def test_what_else_is_refused(error: Any, call: Callable[[Any, Any], Any]) -> None:
    library = Strict()
    with pytest.raises(error):
        call(library, library.asarray(HOST))
    assert not library.waits


WAITS: dict[str, Callable[[Any], Any]] = {
    "bool": lambda x: bool(x.any()),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x.max()),
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "iteration": lambda x: list(x),
    "text": lambda x: f"{x.min()}",
    "to the host": lambda x: x._library.asnumpy(x),
    "mask": lambda x: x[x > 0],
    "mask assigned": lambda x: operator.setitem(x.copy(), x > 0, 0.0),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waits_are_counted_and_can_be_forbidden(wait: Callable[[Any], Any]) -> None:
    library = Strict()
    x = library.asarray(HOST)
    wait(x)
    assert library.waits == ["test_backends.<lambda>"]
    with library.without_waits(), pytest.raises(Waited, match=r"test_backends\.<lambda>"):
        wait(x)
    wait(x)
    assert len(library.waits) == 2


def test_the_strict_library_has_only_what_cupy_has() -> None:
    """Names alone: no device is needed, so that this runs wherever CuPy is installed."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy, though no device")
    absent = [name for name in (*strict.FUNCTIONS, *strict.CONSTANTS) if not hasattr(cupy, name)]
    members = (*strict.METHODS, *strict.ATTRIBUTES, *strict.COPYING, *strict.OPERATORS, "__iter__", "__len__")
    absent += [name for name in members if not hasattr(cupy.ndarray, name)]
    assert not absent
    assert not hasattr(cupy.ndarray, "__index__")
    assert not list(foreign_keywords(cupy))


def foreign_keywords(cupy: Any) -> Iterator[str]:
    for owner, table in ((cupy, strict.FUNCTIONS), (cupy.ndarray, strict.METHODS)):
        for name, keywords in table.items():
            known = parameters(getattr(owner, name)) if keywords else set()
            yield from (f"{name}({keyword}=)" for keyword in keywords if keyword not in known)


def parameters(function: Any) -> set[str]:
    """Names of the parameters; of a compiled method, from the signature that its docstring begins with."""
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        return set(re.findall(r"\w+", function.__doc__.splitlines()[0]))
