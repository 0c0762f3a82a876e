"""A peer in forty lines: a port (here transformers) that is loaded, run, and watched at the least taps that suffice.
`--peer FILE.py` judges it; so does `--peer mine`, by an entry point `mine = "module:create"` of `conformance.peers`."""

# mypy: allow-untyped-defs, allow-untyped-calls
import torch
from transformers import T5Gemma2ForConditionalGeneration, __version__

from conformance.peers.protocol import Skip

INPUTS = ("input_ids", "attention_mask", "position_ids", "pixel_values", "labels")
DECODER = ("decoder_input_ids", "decoder_attention_mask", "decoder_position_ids")


class Mine:
    name, dtype = "mine", "float32"
    versions = staticmethod(lambda: {"transformers": __version__})

    def open(self, target):  # target.folder has config.json and safetensors
        self.model = T5Gemma2ForConditionalGeneration.from_pretrained(target.folder, dtype=torch.float32).eval()
        encoder, decoder = self.model.model.encoder.text_model, self.model.model.decoder
        places = {"encoder.text_model.norm": encoder.norm, "decoder.embed_tokens": decoder.embed_tokens}
        places |= {f"encoder.text_model.layers.{i}": layer for i, layer in enumerate(encoder.layers)}
        places |= {f"decoder.layers.{i}": layer for i, layer in enumerate(decoder.layers)}
        for name, module in places.items():
            module.register_forward_hook(lambda _, _args, out, name=name: self.show(name, out))
        first = "encoder.text_model.inputs_embeds"
        encoder.layers[0].register_forward_pre_hook(lambda _, args: self.show(first, args[0]))
        self.taps = (*places, first, "logits")

    def run(self, case, dump):  # for every call: dump.new_call(), then dump.put(tap, array) for each of self.taps
        if case.task != "lm" or any(run.splits for run in case.runs):
            raise Skip("classifiers and cached decoding are not watched here", "https://example.org/mine/issues/1")
        self.show = lambda name, value: dump.put(name, (value[0] if isinstance(value, tuple) else value).numpy().copy())
        for run in case.runs:
            given = {n: getattr(run, n) for n in INPUTS + DECODER[run.derived * len(DECODER) :]}
            dump.new_call()
            with torch.no_grad():
                out = self.model(**{n: torch.tensor(v) for n, v in given.items() if v is not None})
            self.show("logits", out.logits[:, -(run.logits_to_keep or 0) :])

    def close(self):
        del self.model


def create(_argument, _backend):
    return Mine()
