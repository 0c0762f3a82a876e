"""Hugging Face transformers as a peer: its own loader, its own attention paths, seen from outside."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import transformers
from transformers import T5Gemma2Config
from transformers.models.t5gemma2 import modeling_t5gemma2 as modeling

from conformance.cases import Case, Run
from conformance.dump import Dump
from conformance.peers import Target
from conformance.peers.capture import Capture
from t5g2ref import taps
from t5g2ref.params import TIED, hub_name

_CLASSES = {
    "lm": modeling.T5Gemma2ForConditionalGeneration,
    "sequence": modeling.T5Gemma2ForSequenceClassification,
    "token": modeling.T5Gemma2ForTokenClassification,
}


class TransformersPeer:
    """transformers on the CPU in float32, with its eager or its sdpa attention."""

    dtype = "float32"

    def __init__(self, attention: str) -> None:
        self.name = f"transformers:{attention}"
        self._attention = attention
        self._target: Target | None = None
        self._models: dict[tuple[str, int], Any] = {}

    def versions(self) -> dict[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def open(self, target: Target) -> None:
        self._target = target
        self._models.clear()

    def close(self) -> None:
        self._models.clear()
        self._target = None

    def model(self, case: Case) -> Any:
        """The model for the case's task, made once; classifiers are made anew for each number of labels."""
        key = (case.task, case.num_labels if case.task != "lm" else 0)
        if key not in self._models:
            if case.task != "lm":
                self._models = {k: m for k, m in self._models.items() if k[0] == "lm"}
            self._models[key] = self._build(case)
        return self._models[key]

    def run(self, case: Case, dump: Dump) -> None:
        assert self._target is not None, "open() comes first"
        model = self.model(case)
        with torch.no_grad():
            for run in case.runs:
                self._run(model, case, run, dump)

    def _run(self, model: Any, case: Case, run: Run, dump: Dump) -> None:
        assert self._target is not None
        config, images = self._target.config, run.pixel_values is not None
        plan = taps.table(config, images=images, task=case.task, loss=run.labels is not None)
        capture = Capture(model, plan, *run.input_ids.shape)
        cache = encoded = None  # the model makes its own cache on the first call: that, too, is under test
        for first, last in run.bounds:
            inputs = self._inputs(case, run, first, last, cache, encoded)
            wanted = [tap for tap in plan if encoded is None or not tap.first_call]
            returned: dict[str, Any] = {}
            dump.new_call()
            try:
                with capture.recording():
                    out = model(**inputs)
                returned = {"logits": out.logits, "loss": out.loss}
            finally:  # what was seen before it raised is evidence
                capture.into(dump, wanted, returned)
            if run.splits is not None:
                cache, encoded = out.past_key_values, encoded or (out.encoder_last_hidden_state,)

    def _inputs(self, case: Case, run: Run, first: int, last: int, cache: Any, encoded: Any) -> dict[str, Any]:
        """Keyword arguments of one forward, left out where the case gives nothing."""
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
        if encoded is None:
            given |= {
                "input_ids": run.input_ids,
                "position_ids": run.position_ids,
                "pixel_values": run.pixel_values,
            }
        inputs = {name: torch.tensor(value) for name, value in given.items() if value is not None}
        if "labels" in inputs and inputs["labels"].is_floating_point():
            inputs["labels"] = inputs["labels"].float()
        if case.task == "lm":
            inputs |= {"past_key_values": cache, "use_cache": run.splits is not None}
            inputs["logits_to_keep"] = run.logits_to_keep or 0
        if encoded is not None:
            inputs["encoder_outputs"] = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=encoded[0])
        return inputs

    def _build(self, case: Case) -> Any:
        assert self._target is not None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        model = self._from_arrays(case) if self._target.folder is None else self._from_folder(case)
        head = case.head(self._target.config.decoder.hidden_size)
        for name, value in head.items():
            model.get_parameter(name).data = torch.from_numpy(value)
        return model.eval()

    def _config(self, config: Any, case: Case) -> Any:
        """float32 in all five parts: a released config.json names bfloat16 inside the nested ones, which would
        otherwise leave the encoder and the tower there."""
        for part in (
            config,
            config.encoder,
            config.encoder.text_config,
            config.encoder.vision_config,
            config.decoder,
        ):
            part.dtype = "float32"
        if case.task != "lm":
            config.num_labels = case.num_labels
        return config

    def _from_folder(self, case: Case) -> Any:
        assert self._target is not None
        config = self._config(T5Gemma2Config.from_pretrained(self._target.folder), case)
        return _CLASSES[case.task].from_pretrained(
            self._target.folder, config=config, dtype=torch.float32, attn_implementation=self._attention
        )

    def _from_arrays(self, case: Case) -> Any:
        """Synthetic weights: the arrays themselves become the parameters, without a copy."""
        assert self._target is not None
        config = self._config(T5Gemma2Config(**self._target.config.to_dict()), case)
        model = _CLASSES[case.task]._from_config(config, dtype=torch.float32, attn_implementation=self._attention)
        head = case.head(self._target.config.decoder.hidden_size)
        arrays = {hub_name(n, "transformers"): w for n, w in (*self._target.weights.items(), *head.items())}
        with warnings.catch_warnings():  # the arrays are read-only, and nothing here writes to a parameter
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            state = {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}
        for alias, source in TIED.items():
            if case.task == "lm" or not alias.startswith("lm_head"):
                state[hub_name(alias, "transformers")] = state[hub_name(source, "transformers")]
        model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        return model


def create(attention: str) -> TransformersPeer:
    return TransformersPeer(attention)
