"""Hugging Face transformers as a peer: its own loader and attention paths, seen from outside."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import T5Gemma2Config
from transformers.initialization import no_init_weights
from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling
from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig

from conformance.activations import Dump
from conformance.cases.case import Case, Run
from conformance.cases.prompt import Answer, Prompt
from conformance.errors import PeerUnavailable
from conformance.peers.protocol import OptionalMembers
from conformance.peers.torch import generating, long_rows, pictures, static_cache, streamed
from conformance.peers.torch.hooks import Capture
from conformance.peers.torch.releases import cache_name, named, untested
from conformance.peers.torch.tensors import from_array, to_array, without_tf32
from conformance.target import Target
from t5g2ref import taps
from t5g2ref.dtypes import DType
from t5g2ref.on_demand import extended
from t5g2ref.params import EYES, TIED, canonical

_CLASSES = {
    "lm": modeling.T5Gemma2ForConditionalGeneration,
    "encoder": modeling.T5Gemma2Encoder,
    "sequence": modeling.T5Gemma2ForSequenceClassification,
    "token": modeling.T5Gemma2ForTokenClassification,
}


class TransformersPeer(OptionalMembers):
    """transformers with its eager or its sdpa attention.

    Args:
        attention: "eager" or "sdpa".
        dtype: of weights, activations and pictures; float32 is without TF32, see `without_tf32`.
        device: as torch names it: "cpu", "cuda", "cuda:1".
        static: whether cached calls are given a preallocated cache, as `generate` makes it; see `static_cache`.
    """

    picks = True

    def __init__(self, attention: str, dtype: DType = "float32", device: str = "cpu", static: bool = False) -> None:
        self.name = named(attention, "-static" * static, dtype, device)
        self._static = self.preallocated = static
        self.dtype: DType = dtype
        self.notes = [note] if (note := untested(transformers.__version__)) else []
        self._attention, self._device = attention, device
        self._target: Target | None = None
        self._models: dict[tuple[str, int], Any] = {}
        self._switches = ExitStack()

    def versions(self) -> dict[str, str]:
        found = {"transformers": transformers.__version__, "torch": torch.__version__}
        return found if self._device == "cpu" else found | {"tf32 in torch": "off"}

    def open(self, target: Target) -> None:
        self.close()
        self._target = target
        vars(self).pop("weights", None)
        if target.streamed:
            self.weights = None  # type: ignore[method-assign, assignment] # no loader of its own made them
        if self._static:
            self.taps = static_cache.shown(target.config)
        if self._device != "cpu":
            self._switches.enter_context(without_tf32())

    def weights(self) -> Iterator[tuple[str, Any]]:
        """Every tensor of the language model after its own loader; a tied one comes under each of its names."""
        assert self._target is not None, "open() comes first"
        config, backend = self._target.config, self._target.backend
        model = self.model(Case("weights", "", (), task="lm" if config.has_decoder else "encoder"))
        for name, tensor in model.state_dict().items():
            if config.has_vision or not canonical(name).startswith(EYES):  # it makes a tower where there is none
                yield canonical(name), to_array(tensor, backend)

    def close(self) -> None:
        self._switches.close()
        self._models.clear()
        self._target = None
        self.give_back()

    def give_back(self) -> None:
        """See `OptionalMembers`: torch keeps freed device memory, which the judge and others may need."""
        if self._device != "cpu":
            gc.collect()  # modules and their hooks refer to each other
            torch.cuda.empty_cache()

    def model(self, case: Case) -> Any:
        """The model for the case's task, made once; classifiers are made anew for each number of labels."""
        labelled = case.task in ("sequence", "token")
        key = (case.task, case.num_labels if labelled else 0)
        if key not in self._models:
            if labelled:
                self._models = {k: m for k, m in self._models.items() if k[0] == "lm"}
                self.give_back()
            self._models[key] = self._build(case)
        return self._models[key]

    def run(self, case: Case, dump: Dump) -> None:
        assert self._target is not None, "open() comes first"
        for run in case.runs:
            long_rows.refuse(self._target.config, run, self._attention, self.dtype, self._device)
        model = self.model(case)
        with torch.no_grad():
            for run in case.runs:
                self._run(model, case, run, dump)

    def generate(self, prompt: Prompt) -> Answer:
        """Its own generation, with the cache that it makes itself; a preallocated one where it is asked for that."""
        model = self.model(Case("generate", "", ()))
        return generating.answered(model, prompt, self._device, self._torch_dtype, static=self._static)

    def preprocess(self, file: Path) -> Any:
        """What its Pillow processor makes of a picture file."""
        assert self._target is not None, "open() comes first"
        return pictures.prepared(self._target, file)

    def _run(self, model: Any, case: Case, run: Run, dump: Dump) -> None:
        assert self._target is not None
        config, images = self._target.config, run.pixel_values is not None
        plan = taps.table(config, images=images, task=case.task, loss=run.labels is not None)
        batch, length = run.input_ids.shape
        capture = Capture(model, plan, batch, length, run.picked)
        held = cache_name(type(model).forward)
        cache = encoded = None  # the model makes its own cache on the first call: that, too, is under test
        if self._static and run.splits is not None:
            cache = static_cache.made(model.config, run.decoder_input_ids.shape[1], run.input_ids.shape[1])
        for first, last in run.bounds:
            inputs = self._inputs(case, run, first, last, {held: cache}, encoded)
            wanted = [tap for tap in plan if encoded is None or not tap.first_call]
            returned: dict[str, Any] = {}
            dump.new_call()
            try:
                with nullcontext() if dump.unseen else capture.recording(dump, wanted):
                    out = model(**inputs)
                returned = {name: getattr(out, name, None) for name in ("logits", "loss")}
            finally:  # what was seen before it raised is evidence
                capture.returned(dump, wanted, returned)
            if run.splits is not None:
                cache, encoded = getattr(out, held), encoded or (out.encoder_last_hidden_state,)

    def _inputs(
        self, case: Case, run: Run, first: int, last: int, cache: dict[str, Any], encoded: Any
    ) -> dict[str, Any]:
        """Keyword arguments of one forward; what the case does not give is left out."""
        given: dict[str, Any] = {
            "attention_mask": run.attention_mask,
            "decoder_input_ids": None if run.derived else run.decoder_input_ids[:, first:last],
            "decoder_attention_mask": None
            if run.decoder_attention_mask is None
            else run.decoder_attention_mask[:, :last],
            "decoder_position_ids": None
            if run.decoder_position_ids is None
            else run.decoder_position_ids[:, first:last],
            "labels": run.labels,
        }
        if case.task == "encoder":
            given = {"attention_mask": run.attention_mask}
        if encoded is None:
            given |= {
                "input_ids": run.input_ids,
                "position_ids": run.position_ids,
                "pixel_values": run.pixel_values,
            }
        inputs = {name: torch.tensor(value, device=self._device) for name, value in given.items() if value is not None}
        if "labels" in inputs and inputs["labels"].is_floating_point():
            inputs["labels"] = inputs["labels"].float()
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._torch_dtype)
        if case.task == "lm":
            inputs |= cache | {"use_cache": run.splits is not None}
            inputs["logits_to_keep"] = run.logits_to_keep or 0
        if encoded is not None:
            inputs["encoder_outputs"] = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=encoded[0])
        return inputs

    @property
    def _torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def _kind(self) -> Any:
        assert self._target is not None
        return T5Gemma2Config if self._target.config.has_decoder else T5Gemma2EncoderConfig

    def _build(self, case: Case) -> Any:
        assert self._target is not None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if self._target.streamed:
            model = self._streamed(case)
        else:
            model = self._from_arrays(case) if self._target.folder is None else self._from_folder(case)
        for name, value in case.head(self._target.config.decoder.hidden_size).items():
            model.get_parameter(name).data = from_array(value, self._torch_dtype, self._device)
        if self._target.streamed:
            return model.eval()
        return model.to(self._device).eval()  # not the type: what is kept in float32 (RoPE) must stay there

    def _config(self, config: Any, case: Case) -> Any:
        """The config with one type in all five parts.

        A released config.json names bfloat16 inside the nested parts, which would leave encoder and tower in it.
        """
        encoder = getattr(config, "encoder", config)  # of an encoder alone it is the whole
        decoder = getattr(config, "decoder", encoder)
        for part in (config, encoder, encoder.text_config, encoder.vision_config, decoder):
            part.dtype = self.dtype
        if case.task in ("sequence", "token"):
            config.num_labels = case.num_labels
        return config

    def _from_folder(self, case: Case) -> Any:
        assert self._target is not None
        config = self._config(self._kind.from_pretrained(self._target.folder), case)
        return _CLASSES[case.task].from_pretrained(
            self._target.folder, config=config, dtype=self._torch_dtype, attn_implementation=self._attention
        )

    def _from_arrays(self, case: Case) -> Any:
        """Synthetic weights: the arrays themselves become the parameters, without a copy where type and place fit."""
        assert self._target is not None
        config = self._config(self._kind(**self._target.config.to_dict()), case)
        with no_init_weights():  # every parameter is replaced below
            model = _CLASSES[case.task]._from_config(
                config, dtype=self._torch_dtype, attn_implementation=self._attention
            )
        arrays = {**self._target.rounded(self.dtype), **case.head(self._target.config.decoder.hidden_size)}
        tensors = {name: from_array(value, self._torch_dtype, self._device) for name, value in arrays.items()}
        state = {key: tensors[name] for key, name in _names(model, tensors).items()}
        model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        return model

    def _streamed(self, case: Case) -> Any:
        """Weights that are put in place layer by layer as the model runs; what its own loader does is not seen."""
        assert self._target is not None
        config = self._config(self._kind(**self._target.config.to_dict()), case)
        with no_init_weights(), streamed.without_memory():
            model = _CLASSES[case.task]._from_config(
                config, dtype=self._torch_dtype, attn_implementation=self._attention
            )
        arrays = extended(self._target.rounded(self.dtype), case.head(self._target.config.decoder.hidden_size))

        def read(name: str) -> torch.Tensor:
            return from_array(arrays[name], self._torch_dtype, self._device)

        streamed.stream(model, _names(model, arrays), read, self._device)
        model.tie_weights()
        return model


def _names(model: Any, tensors: Collection[str]) -> dict[str, str]:
    """The model's name of each parameter → the canonical one, by the names that this release has: earlier ones write
    vision_tower.vision_model."""
    names = {key: TIED.get(name, name) for key in model.state_dict() if (name := canonical(key))}
    if strange := sorted(set(names.values()) ^ set(tensors)):
        raise PeerUnavailable(
            f"transformers {transformers.__version__} expects other weights: {', '.join(strange[:8])}"
        )
    return names
