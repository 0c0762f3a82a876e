"""Which checkpoint `--ckpt` means, and where it comes from. Nothing is ever put in another's place silently."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from conformance.arrays import free_bytes, has_device, to_backend
from conformance.cases import each_kind
from conformance.errors import CheckpointError, UsageError
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.checkpoint.find import SIZES, Found, find
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError, check, fitted
from t5g2ref.checkpoint.refusal import NotFound
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import Config, ConfigError, preset
from t5g2ref.notes import noted
from t5g2ref.on_demand import HELD, OnDemand, layer_of
from t5g2ref.params import Shape, shapes

HUB = SIZES
BUNDLED: dict[str, tuple[str, ...]] = {  # name: the checkpoints that it stands for
    "tiny": ("tiny", "tiny-even"),
    "tiny-even": ("tiny-even",),
    "tiny-released": ("tiny-released",),
    "tiny-encoder": ("tiny-encoder",),
    "demo": ("demo",),
}

LONGEST_WINDOW = 1 << 14  # of a stack: a case is twice as long, and attention is quadratic
MOST_PIXELS = 1 << 26  # numbers in a picture
LARGEST_VOCABULARY = 1 << 22
WORKERS = min(16, max(2, os.cpu_count() or 1))
"""Threads that make synthetic tensors; the array library's generators leave the interpreter's lock."""

GIB = 1 << 30
SINGLE = 4  # bytes of a number in float32
SMALL = GIB  # bytes of weights that always fit
BESIDE = 2 << 30  # libraries, a case's values and what is in between

Progress = Callable[[str, int, int], None]


def resolve(
    name: str,
    *,
    synthetic: bool,
    calm: bool = False,
    stream: bool | None = None,
    layers: str = each_kind.ALL,
    progress: Progress = lambda *_: None,
    backend: Backend = NUMPY,
) -> list[Target]:
    """The targets that `name` stands for, weights in float32.

    Args:
        name: one of BUNDLED, or what `t5g2ref.checkpoint.find` finds: "270m", "1b", "4b", a folder, a file, an id on
            the Hugging Face Hub.
        synthetic: seeded weights of trained-like statistics at that geometry, in place of the real ones.
        calm: of the synthetic ones: without the massive activation, which float16 cannot hold.
        stream: whether weights are read, or made, as a layer is entered; None for where memory would not do otherwise.
        layers: "all", or "each-kind" for a model that is cut, see `cases.each_kind`; no peer's own loader reads that.
        progress: called with (what, done, total) while files are downloaded and tensors are read or made.
        backend: whose arrays the weights are.

    Raises:
        CheckpointError: it cannot be had or read; with the remedy.
        UsageError: the arguments contradict each other.
        BackendError: no room for it on the device.
    """
    if calm and not synthetic:
        raise UsageError("--calm says how synthetic weights are made: give --synthetic too")
    if layers not in (each_kind.ALL, each_kind.EACH_KIND):
        raise UsageError(f"--layers {layers}: expected {each_kind.ALL} or {each_kind.EACH_KIND}")
    if synthetic:
        return [_synthetic(name, calm, stream, layers, progress, backend)]
    if name in BUNDLED:
        places = {variant: Found(bundled(variant)) for variant in BUNDLED[name]}
    else:
        places = {name: _found(name, progress)}
    return [_opened(each, place, stream, layers, progress, backend) for each, place in places.items()]


def _synthetic(name: str, calm: bool, stream: bool | None, layers: str, progress: Progress, backend: Backend) -> Target:
    notes: list[str] = []
    if name in HUB:
        config = preset(name)
    elif Path(name, "config.json").is_file():
        with noted(notes):
            config = Config.load(name)
    else:
        raise UsageError(f"--synthetic needs a geometry: one of {', '.join(HUB)} or a folder with config.json")
    judgeable(name, config)
    tensors = Synthetic(config, massive=not calm)
    shown, config, names = _kept(f"{name} ({'calm ' if calm else ''}synthetic weights)", config, tensors, layers, notes)
    weights: Mapping[str, Any]
    if _is_streamed(name, config, stream, backend, notes):
        weights = OnDemand(names, lambda tensor: to_backend(tensors.narrow(names[tensor]), backend))
    else:
        _require(backend, name, shapes(config))
        make = tensors.narrow if has_device(backend) else tensors.__getitem__  # half the bytes go to a device
        made = {tensor: _placed(value, backend) for tensor, value in _made(make, names, progress)}
        weights = {tensor: made[tensor] for tensor in names}
    return Target(shown, config, weights, backend=backend, notes=tuple(notes))


def _kept(
    name: str, config: Config, tensors: Iterable[str], layers: str, notes: list[str]
) -> tuple[str, Config, Mapping[str, str]]:
    """What is judged of a checkpoint: its name, its geometry, and each tensor's name → the one in the checkpoint."""
    if layers == each_kind.ALL:
        return name, config, {tensor: tensor for tensor in tensors}
    notes.append(f"{name}: {each_kind.told(config)}; no peer's own loader was judged")
    return name + each_kind.CUT, *each_kind.cut(config)


def _is_streamed(name: str, config: Config, stream: bool | None, backend: Backend, notes: list[str]) -> bool:
    """Whether a layer's weights are to be in memory only while it is entered; a note says so.

    Raises CheckpointError where memory would not do either way.
    """
    there, least, all_of_it = free_bytes(backend), bytes_streamed(config), bytes_whole(config)
    is_large = all_of_it - BESIDE > SMALL and not has_device(backend)
    wanted = stream if stream is not None else is_large and all_of_it > there
    if wanted and is_large and least > there:
        found = f"{least / GIB:.1f} GiB of memory even layer by layer, found {there / GIB:.1f}"
        raise CheckpointError(f"--ckpt {name}: needs {found}; give a smaller geometry, or a machine with more memory")
    if wanted:
        why = "as asked" if stream else f"all at once would take {all_of_it / GIB:.1f} GiB of {there / GIB:.1f}"
        notes.append(f"{name}: weights were read layer by layer ({why}); no peer's own loader was judged")
    return wanted


def bytes_whole(config: Config) -> int:
    """Memory for a run with all weights in it: ours in float32, and a peer's own."""
    return 2 * SINGLE * sum(map(prod, shapes(config).values())) + BESIDE


def bytes_streamed(config: Config) -> int:
    """Memory for a run that streams, in any type: what is in no layer, ours and a peer's, and a few layers."""
    return 2 * SINGLE * numbers_in_no_layer(config) + bytes_of_layers(config) + BESIDE


def numbers_in_no_layer(config: Config) -> int:
    """Of the weights: those that a run which streams keeps."""
    return _numbers(config).get("", 0)


def bytes_of_layers(config: Config) -> int:
    """Of the few layers that a run which streams is in, the largest of all, in float32."""
    return (HELD + 2) * SINGLE * max((count for layer, count in _numbers(config).items() if layer), default=0)


def _numbers(config: Config) -> dict[str, int]:
    """Layer, or "" → how many numbers its weights have."""
    found: dict[str, int] = {}
    for name, shape in shapes(config).items():
        found[layer_of(name)] = found.get(layer_of(name), 0) + prod(shape)
    return found


def _placed(value: Any, backend: Backend) -> Any:
    """As the backend's array; what lies on a device in float32."""
    if not has_device(backend):
        return to_backend(value, backend)
    with backend.scope():
        return to_backend(value, backend).astype(np.float32)


def _made(make: Callable[[str], Any], wanted: Mapping[str, str], progress: Progress) -> Iterator[tuple[str, Any]]:
    """Every (name, tensor) as they are made, a few at a time. `wanted`: name → the one there.

    They come in no order: whatever waits for the largest, which one thread makes alone, would wait for seconds.
    """
    names = iter(wanted.items())
    with ThreadPoolExecutor(WORKERS) as pool:
        made = {pool.submit(make, there): name for name, there in islice(names, WORKERS)}
        for done in range(len(wanted)):
            first = next(iter(wait(made, return_when=FIRST_COMPLETED).done))
            name = made.pop(first)
            for following, there in islice(names, 1):
                made[pool.submit(make, there)] = following
            progress(name, done, len(wanted))
            yield name, first.result()


def judgeable(name: str, config: Config) -> None:
    """Raises CheckpointError for numbers that the cases' lengths follow and that no tensor bears out."""
    vision = config.vision
    for field, found, most in (
        ("encoder.text_config.sliding_window", config.encoder.sliding_window, LONGEST_WINDOW),
        ("decoder.sliding_window", config.decoder.sliding_window, LONGEST_WINDOW),
        ("decoder.vocab_size", config.decoder.vocab_size, LARGEST_VOCABULARY),
        ("numbers in a picture of encoder.vision_config", vision.num_channels * vision.image_size**2, MOST_PIXELS),
    ):
        if found > most:
            remedy = "the cases follow it; correct config.json, or judge a smaller geometry"
            raise CheckpointError(f"--ckpt {name}: {field} is {found}, expected at most {most}; {remedy}")


def _require(backend: Backend, name: str, tensors: Mapping[str, Shape]) -> None:
    backend.require(4 * sum(map(prod, tensors.values())), f"the weights of {name} in float32")


def _opened(name: str, found: Found, stream: bool | None, layers: str, progress: Progress, backend: Backend) -> Target:
    place, notes = found.place, [f"weights: {found.origin}"] if found.origin else []
    try:
        with noted(notes):
            config = Config.load(place)
            checkpoint = Checkpoint.open(place)
            config = fitted(checkpoint, config)
            every = check(checkpoint, config)
        if any(n.startswith("score.") for n in every):
            raise CheckpointError(f"{place}: this is a classifier's checkpoint; give the language model's")
        judgeable(name, config)
        shown, config, names = _kept(name, config, every, layers, notes)
        weights: Mapping[str, Any]
        if _is_streamed(name, config, stream, backend, notes):
            types = {n: backend.kept(checkpoint.dtype(names[n]), "float32", narrow=True) for n in names}
            weights = OnDemand(names, lambda tensor: _one(checkpoint, names[tensor], types[tensor], backend))
        else:
            _require(backend, name, shapes(config))
            weights = dict(_read(checkpoint, names, progress, backend))
    except (ConfigError, WeightsError) as error:
        raise CheckpointError(str(error)) from error
    # a peer's loader would take another file of the folder, or all layers
    folder = place if place.is_dir() and layers == each_kind.ALL else None
    return Target(shown, config, weights, folder, backend, tuple(notes))


def _one(checkpoint: Checkpoint, tensor: str, dtype: str, backend: Backend) -> Any:
    """A tensor while a run goes on; CheckpointError where it cannot be read."""
    try:
        return checkpoint.read(tensor, dtype, backend)
    except WeightsError as error:
        raise CheckpointError(str(error)) from error


def _read(checkpoint: Checkpoint, names: Mapping[str, str], progress: Progress, backend: Backend) -> Iterator[Any]:
    """Every (name, tensor in float32). `names`: name → the one in the checkpoint."""
    for done, (name, tensor) in enumerate(names.items()):
        progress(name, done, len(names))
        yield name, checkpoint.read(tensor, "float32", backend)


def _found(name: str, progress: Progress) -> Found:
    """Where it lies on this disk, after a download if need be."""
    try:
        return find(name, progress, names="tiny")
    except NotFound as error:
        more = f"\n  - or ask for seeded weights at the real geometry: --ckpt {name} --synthetic"
        raise CheckpointError(f"--ckpt {error}{more if name in HUB else ''}") from error
