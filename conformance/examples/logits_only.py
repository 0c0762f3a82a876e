"""A peer in thirty lines that shows logits of text alone, as an engine does whose inside cannot be seen.

`--peer logits_only.py --require text` judges it on every case that it can do. The verdict's line says which. An engine
without masks lacks "padding" as well: to strip padding is no way round, since positions count it.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import torch
from transformers import T5Gemma2ForConditionalGeneration, __version__

INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")


class Engine:
    name, dtype = "engine", "float32"
    taps = ("logits",)
    lacks = ("images", "cache", "positions", "labels", "classes")
    versions = staticmethod(lambda: {"transformers": __version__})

    def open(self, target):  # target.folder has config.json and safetensors
        self.model = T5Gemma2ForConditionalGeneration.from_pretrained(target.folder, dtype=torch.float32).eval()

    def run(self, case, dump):
        for run in case.runs:
            given = {name: getattr(run, name) for name in INPUTS}
            with torch.no_grad():
                out = self.model(**{name: torch.tensor(v) for name, v in given.items() if v is not None})
            dump.new_call()
            dump.put("logits", out.logits[:, -(run.logits_to_keep or 0) :].numpy())

    def close(self):
        del self.model


def create(_argument, _backend):
    return Engine()
