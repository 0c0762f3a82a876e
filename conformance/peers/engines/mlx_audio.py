"""mlx-audio's T5Gemma 2 text encoders: of Irodori TTS and of Breeze TTS. MLX runs on Apple's chips, and on any CPU.

Both are ports of the bidirectional encoder alone. Weights go in by their own names, as their converters keep them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import wire
from .mlx_watch import Watch

Array = Any
LACKS = ["images", "positions"]
STEM = "encoder.text_model."


class Engine:
    """One of the encoders.

    Args:
        port: "irodori" or "breeze".
        dtype: of weights and activations.
    """

    def __init__(self, port: str, dtype: str) -> None:
        self._port, self._dtype = port, dtype
        self._model: Any = None
        self._watch: Any = None

    def open(self, config: dict[str, Any], weights: dict[str, Array], folder: Path) -> dict[str, Any]:
        from importlib.metadata import version

        import mlx.core as mx

        if "text_config" not in config:
            raise wire.Refused("mlx_audio has the text encoder alone: judge it with --ckpt tiny-encoder")
        text = {**config["text_config"], "eoi_token_index": config["eoi_token_index"]}
        self._model = _built(self._port, text)
        wire.refuse("mlx_audio", list(_settings(text, self._model)))
        dtype = getattr(mx, self._dtype)
        own = {name.removeprefix(STEM): value for name, value in weights.items() if name.startswith(STEM)}
        self._model.load_weights([(name, mx.array(value).astype(dtype)) for name, value in own.items()])
        self._watch = Watch(self._model, self._port, text["layer_types"])
        versions = {"mlx_audio": version("mlx-audio"), "mlx": version("mlx"), "mlx runs on": str(mx.default_device())}
        greeting = {"name": f"mlx_audio:{self._port}", "dtype": self._dtype, "versions": versions, "lacks": LACKS}
        stored = {"*": "float32"} if self._dtype != "float32" else {}
        return greeting | {"taps": self._watch.names, "stored": stored}

    def run(self, case: wire.Case) -> list[dict[str, Array]]:
        import mlx.core as mx

        calls = []
        for run in case.runs:
            mask = run.get("attention_mask")
            with self._watch.watching() as taken:
                self._model(mx.array(run["input_ids"]), None if mask is None else mx.array(mask))
            calls.append(taken | {"input_ids": np.asarray(run["input_ids"])})
        return calls


def _built(port: str, text: dict[str, Any]) -> Any:
    if port == "irodori":
        from mlx_audio.tts.models.irodori_tts import t5gemma2

        return t5gemma2.T5Gemma2TextEncoder(t5gemma2.T5Gemma2Config.from_dict(text))
    from mlx_audio.tts.models.breeze_tts import breeze_tts

    return breeze_tts._TextEncoder(text)


def _settings(text: dict[str, Any], model: Any) -> Any:
    """(setting, what was asked for, what the port has) of each that it does not read, or not from there."""
    yield "hidden_activation", text["hidden_activation"], "gelu_pytorch_tanh"
    yield "attention_bias", text["attention_bias"], False
    yield "attn_logit_softcapping", text["attn_logit_softcapping"], None
    for kind, rope in text["rope_parameters"].items():
        yield f"rope type of {kind}", wire.rope_type(rope), "linear"
    yield "layer_types", text["layer_types"], [_kind(layer) for layer in model.layers]


def _kind(layer: Any) -> str:
    """Irodori's layers know whether they are global, by a pattern of its own; Breeze's know their type."""
    return getattr(layer, "layer_type", "") or ("full_attention" if layer.is_global else "sliding_attention")


def main(arguments: list[str]) -> None:
    """Serve the port and the type that are named."""
    wire.serve(Engine(*arguments))
