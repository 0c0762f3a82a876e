"""Which checkpoint `--ckpt` means, and where it comes from. Nothing is ever put in another's place silently."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

from conformance.arrays import to_backend
from conformance.errors import CheckpointError, UsageError
from conformance.target import Target
from t5g2ref import bundled
from t5g2ref.backend import NUMPY, Backend
from t5g2ref.checkpoint.folder import Checkpoint, WeightsError, check, fitted
from t5g2ref.checkpoint.synthetic import Synthetic
from t5g2ref.config import Config, ConfigError, preset
from t5g2ref.notes import noted
from t5g2ref.params import Shape, shapes

HUB = {size: f"google/t5gemma-2-{size}-{size}" for size in ("270m", "1b", "4b")}
BUNDLED: dict[str, tuple[str, ...]] = {  # name: the checkpoints that it stands for
    "tiny": ("tiny", "tiny-even"),
    "tiny-even": ("tiny-even",),
    "tiny-released": ("tiny-released",),
    "tiny-encoder": ("tiny-encoder",),
    "demo": ("demo",),
}
FILES = ["config.json", "*.safetensors", "model.safetensors.index.json"]

LONGEST_WINDOW = 1 << 14  # of a stack: a case is twice as long, and attention is quadratic
MOST_PIXELS = 1 << 26  # numbers in a picture
LARGEST_VOCABULARY = 1 << 22
WORKERS = 8  # threads that make synthetic tensors; the array library's generators leave the interpreter's lock

Progress = Callable[[str, int, int], None]


def variable(size: str) -> str:
    """Name of the environment variable that points to a size's folder."""
    return f"T5G2REF_{size.upper()}"


def resolve(
    name: str,
    *,
    synthetic: bool,
    calm: bool = False,
    progress: Progress = lambda *_: None,
    backend: Backend = NUMPY,
) -> list[Target]:
    """The targets that `name` stands for, weights in float32.

    Args:
        name: one of BUNDLED, "270m", "1b", "4b", a folder, or an id on the Hugging Face Hub.
        synthetic: seeded weights of trained-like statistics at that geometry, in place of the real ones.
        calm: of the synthetic ones: without the massive activation, which float16 cannot hold.
        progress: called with (what, done, total) while tensors are read or made.
        backend: whose arrays the weights are.

    Raises:
        CheckpointError: it cannot be had or read; with the remedy.
        UsageError: the arguments contradict each other.
        BackendError: no room for it on the device.
    """
    if calm and not synthetic:
        raise UsageError("--calm says how synthetic weights are made: give --synthetic too")
    if synthetic:
        return [_synthetic(name, calm, progress, backend)]
    if name in BUNDLED:
        return [_opened(variant, bundled(variant), progress, backend) for variant in BUNDLED[name]]
    return [_opened(name, _folder(name), progress, backend)]


def _synthetic(name: str, calm: bool, progress: Progress, backend: Backend) -> Target:
    notes: list[str] = []
    if name in HUB:
        config = preset(name)
    elif Path(name, "config.json").is_file():
        with noted(notes):
            config = Config.load(name)
    else:
        raise UsageError(f"--synthetic needs a geometry: one of {', '.join(HUB)} or a folder with config.json")
    judgeable(name, config)
    wanted = shapes(config)
    if (size := 4 * sum(map(prod, wanted.values()))) > (there := _memory()):
        remedy = "give a smaller geometry, or a machine with more memory"
        raise CheckpointError(
            f"--ckpt {name}: {size:,} bytes of synthetic weights, this machine has {there:,}; {remedy}"
        )
    _require(backend, name, wanted)
    tensors = Synthetic(config, massive=not calm)
    weights = {tensor: to_backend(value, backend) for tensor, value in _made(tensors, progress)}
    return Target(
        f"{name} ({'calm ' if calm else ''}synthetic weights)", config, weights, backend=backend, notes=tuple(notes)
    )


def _made(tensors: Mapping[str, Any], progress: Progress) -> Iterator[tuple[str, Any]]:
    """Every (name, tensor) in order, the next few being made while one is taken."""
    names, ahead = list(tensors), deque[Future[Any]]()
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        for done, name in enumerate(names):
            while len(ahead) < WORKERS and done + len(ahead) < len(names):
                ahead.append(pool.submit(tensors.__getitem__, names[done + len(ahead)]))
            progress(name, done, len(names))
            yield name, ahead.popleft().result()


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


def _memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _require(backend: Backend, name: str, tensors: Mapping[str, Shape]) -> None:
    backend.require(4 * sum(map(prod, tensors.values())), f"the weights of {name} in float32")


def _opened(name: str, folder: Path, progress: Progress, backend: Backend) -> Target:
    notes: list[str] = []
    try:
        with noted(notes):
            config = Config.load(folder)
            checkpoint = Checkpoint.open(folder)
            config = fitted(checkpoint, config)
            names = check(checkpoint, config)
        if any(n.startswith("score.") for n in names):
            raise CheckpointError(f"{folder}: this is a classifier's checkpoint; give the language model's")
        judgeable(name, config)
        _require(backend, name, names)
        weights = {}
        for done, tensor in enumerate(names):
            progress(tensor, done, len(names))
            weights[tensor] = checkpoint.read(tensor, "float32", backend)
    except (ConfigError, WeightsError) as error:
        raise CheckpointError(str(error)) from error
    return Target(name, config, weights, folder, backend, tuple(notes))


def _folder(name: str) -> Path:
    """A folder on disk for a path, a size or a Hub id: path, environment variable, cache, then download."""
    if Path(name).is_dir():
        return Path(name)
    given = os.environ.get(variable(name)) if name in HUB else None
    if given:
        if not Path(given, "config.json").is_file():
            raise CheckpointError(f"{variable(name)} is {given!r}, where there is no config.json; set it to a folder")
        return Path(given)
    repo = HUB.get(name, name)
    owner, _, model = repo.partition("/")
    if not owner or not model or "/" in model or repo.startswith("."):
        raise CheckpointError(
            f"--ckpt {name}: no such folder, and not a name I know; give tiny, {', '.join(HUB)}, a folder or OWNER/REPO"
        )
    return _from_hub(name, repo)


def _from_hub(name: str, repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(_remedies(name, repo, "huggingface_hub is not installed")) from None
    reason = "not in the cache"
    for local in (True, False):
        try:
            folder = Path(snapshot_download(repo, allow_patterns=FILES, local_files_only=local))
            if not local or any(folder.glob("*.safetensors")):  # a cache may hold the config.json alone
                return folder
        except Exception as error:  # the library's errors are many; each means: not to be had this way
            if not local:
                reason = f"{type(error).__name__}: {str(error).split('. ')[0].splitlines()[0] if str(error) else ''}"
    raise CheckpointError(_remedies(name, repo, reason))


def _remedies(name: str, repo: str, reason: str) -> str:
    lines = [f"--ckpt {name}: the weights of {repo} are not here ({reason}). Any of these helps:"]
    if name in HUB:
        lines.append(f"  - set {variable(name)} to a folder with config.json and model.safetensors")
    lines += [
        "  - give that folder itself: --ckpt /path/to/folder",
        f"  - accept the licence at https://huggingface.co/{repo}, then: hf auth login, and",
        f"      hf download {repo}",
    ]
    if name in HUB:
        lines.append(f"  - or ask for seeded weights at the real geometry: --ckpt {name} --synthetic")
    return "\n".join(lines)
