"""t5g2ref: every component of T5Gemma 2 from scratch, in NumPy.

    import t5g2ref
    model = t5g2ref.load(t5g2ref.bundled("tiny"))
    output = model([[5, 17, 42]], [[5, 8]])
    output.logits  # (1, 2, vocabulary), float64

This is a reference: it is written to be read and to be right. Shapes are given in letters, everywhere the same:

    B batch          D hidden width        N query heads     I images
    S keys           H head dimension      K kv heads        P patches of an image
    T queries        F feed-forward width  G = N / K         M tokens of an image
    V vocabulary     C classes             W sliding window

Lengths that differ between the stacks are S_enc (encoder) and T (decoder). `conformance`, beside this package, holds
other implementations against it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` has it, which takes a while to import
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from t5g2ref.backend import Backend, BackendError
    from t5g2ref.checkpoint.folder import WeightsError
    from t5g2ref.config import Config, ConfigError, preset
    from t5g2ref.dtypes import DType
    from t5g2ref.model import Encoded, Output, T5Gemma2
    from t5g2ref.numerics import Numerics

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Config",
    "ConfigError",
    "Encoded",
    "Numerics",
    "Output",
    "T5Gemma2",
    "WeightsError",
    "bundled",
    "load",
    "preset",
]
_HOMES = {
    "backend": ("BackendError",),
    "checkpoint.folder": ("WeightsError",),
    "config": ("Config", "ConfigError", "preset"),
    "model": ("Encoded", "Output", "T5Gemma2"),
    "numerics": ("Numerics",),
}


def __getattr__(name: str) -> Any:
    """What others define, imported when it is asked for: a command minds Ctrl-C before NumPy has been loaded."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(
    folder: str | Path,
    dtype: DType = "float64",
    embed_dtype: DType | None = None,
    backend: str | Backend = "numpy",
    stream: bool = False,
) -> T5Gemma2:
    """The model of a checkpoint folder (config.json and safetensors, in either layout).

    Args:
        folder: see `weights.load`; nothing is downloaded and no code of the folder is run.
        dtype: "float64" is the oracle; "float32" does what an implementation in float32 does.
        embed_dtype: the type that √hidden is rounded to, which is that of the embedding table in the running model
            (see `Numerics`): `dtype` when None. The truth for a peer in bfloat16 is float64 with "bfloat16" here.
        backend: where the weights are put and the model runs: "numpy", "cupy" (the first CUDA device), "cupy:1" (the
            second), "cupy-fast" (with faster kernels), or a Backend. Results are its arrays;
            `model.nx.backend.host(x)` brings one to NumPy.
        stream: read each layer's weights from the file whenever it is entered: two layers are in memory at a time. For
            a model that is larger than memory; every call then reads the file once more.

    Raises:
        ConfigError, WeightsError: naming the field or the tensor, what was expected and found, and what to do.
        BackendError: the backend cannot be used here, or has no room for the weights.
    """
    from t5g2ref.backend import find
    from t5g2ref.checkpoint.folder import load as load_weights
    from t5g2ref.model import T5Gemma2
    from t5g2ref.numerics import EXACT, SDPA, Numerics

    place = find(backend) if isinstance(backend, str) else backend
    config, weights = load_weights(folder, dtype, backend=place, stream=stream)
    profile = EXACT if dtype == "float64" else SDPA
    return T5Gemma2(config, weights, Numerics(dtype, profile, place, embed_dtype))


def bundled(name: str = "tiny") -> Path:
    """Folder of a checkpoint that comes with the package: "demo", which was trained, or "tiny", "tiny-even",
    "tiny-released" or "tiny-encoder", whose weights are random."""
    from pathlib import Path

    home = Path(__file__).parent / "checkpoint" / "bundled"
    there = sorted(path.name for path in home.iterdir() if path.is_dir())
    if name not in there:
        raise ValueError(f"no bundled checkpoint is called {name!r}; there are: {', '.join(there)}")
    return home / name
