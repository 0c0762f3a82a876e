"""KerasHub, asked through its T5Gemma2Seq2SeqLM. Weights go through its own converter of Hugging Face's files.

An uncached case is one call of the model. A cached one calls `call_encoder`, then `call_decoder_with_cache`, as its
`generate` does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import wire
from .keras_cases import arranged, inputs
from .keras_places import LAYOUTS, places, settings
from .keras_watch import Watch

Array = Any
LACKS = ["positions", "labels", "classes"]
HALF = ("bfloat16", "float16")


class Weights:
    """The checkpoint's tensors behind the one method of a loader that KerasHub's converter calls."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self._weights = weights

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        array = self._weights[wire.canonical(hf_weight_key)]
        keras_variable.assign(hook_fn(array, list(keras_variable.shape)) if hook_fn else array)


class Engine:
    """KerasHub on one backend of Keras.

    Args:
        backend: "torch", "jax", "numpy" or "tensorflow".
        dtype: of weights and activations.
    """

    def __init__(self, backend: str, dtype: str) -> None:
        os.environ["KERAS_BACKEND"] = backend
        self._dtype = dtype
        self._config: dict[str, Any] = {}
        self._lm: Any = None
        self._watch: Any = None

    def open(self, config: dict[str, Any], weights: dict[str, Array], folder: Path) -> dict[str, Any]:
        import keras
        import keras_hub
        from keras_hub.src.utils.transformers import convert_t5gemma2 as converter

        keras.config.set_dtype_policy(self._dtype)  # the converter gives its tower no type
        backbone = keras_hub.models.T5Gemma2Backbone(**converter.convert_backbone_config(config), dtype=self._dtype)
        wire.refuse("keras_hub", list(settings(config, backbone)))
        converter.convert_weights(backbone, Weights(weights), config)
        self._lm = keras_hub.models.T5Gemma2Seq2SeqLM(backbone=backbone)
        self._config, self._watch = config, Watch(places(backbone))
        ran = keras.backend.backend()
        under = f"{ran} {__import__(ran).__version__}"
        versions = {"keras_hub": keras_hub.__version__, "keras": keras.__version__, "keras runs on": under}
        greeting = {"name": "keras_hub", "dtype": self._dtype, "versions": versions, "lacks": LACKS}
        stored = {"*": "float32"} if self._dtype in HALF else {}
        return greeting | {"taps": [*self._watch.names, "logits"], "layouts": LAYOUTS, "stored": stored}

    def run(self, case: wire.Case) -> list[dict[str, Array]]:
        calls: list[dict[str, Array]] = []
        for number, run in enumerate(case.runs):
            bounds = [(first, last) for of, first, last in case.calls if of == number]
            given = inputs(run, self._config)
            with wire.ungraded():
                made = self._steps(given, bounds) if run["cached"] else [self._whole(given)]
            for taken, (first, last) in zip(made, bounds, strict=True):
                shown = arranged(taken, given, (first, last), run["cached"], self._config)
                calls.append(shown | {"logits": wire.kept(shown["logits"], case, number)})
        return calls

    def _whole(self, given: dict[str, Array]) -> dict[str, Array]:
        """Encoder and decoder in one call, without a cache."""
        with self._watch.watching() as taken:
            self._watch.keep("logits", self._lm({name: value for name, value in given.items() if name != "real"}))
        return taken  # type: ignore[no-any-return]

    def _steps(self, given: dict[str, Array], bounds: list[tuple[int, int]]) -> list[dict[str, Array]]:
        """The encoder, then the decoder call by call with the model's own preallocated caches."""
        from keras import ops

        lm, made = self._lm, []
        t = {name: ops.convert_to_tensor(value) for name, value in given.items() if name != "real"}
        ids, valid = t["decoder_token_ids"], t["decoder_padding_mask"]
        b, (rows, length) = lm.backbone, given["decoder_token_ids"].shape
        shape = (rows, b.decoder_num_layers, 2, length, b.decoder_num_key_value_heads, b.decoder_head_dim)
        cache: Any = (ops.zeros(shape, dtype=lm.compute_dtype), None)
        decoder_mask = None if given["decoder_padding_mask"].all() else valid
        names = ("encoder_token_ids", "encoder_padding_mask", "images", "vision_indices")
        for number, (first, last) in enumerate(bounds):
            with self._watch.watching() as taken:
                if number == 0:
                    encoded, mask = lm.call_encoder(*(t[name] for name in names))
                part = ids[:, first:last]
                logits, _, cache = lm.call_decoder_with_cache(part, decoder_mask, cache, first, encoded, mask)
                self._watch.keep("logits", logits)
            made.append(taken)
        return made


def main(arguments: list[str]) -> None:
    """Serve, with the backend and the type that are named."""
    types = [word for word in arguments if word in ("float32", *HALF)]
    backends = [word for word in arguments if word not in types]
    wire.serve(Engine(*(backends or ["torch"]), *(types or ["float32"])))
