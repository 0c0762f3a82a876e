"""A dump by a program of its own: torch, transformers and plain hooks, nothing of t5g2ref or conformance.

    python -m conformance export cases --ckpt tiny
    python hooks_dump.py cases CHECKPOINT_FOLDER dump
    python -m conformance check dump --ckpt tiny

It shows the least that `check` asks for: ids, embeddings, the residual after each layer, the encoder's output, logits.
For a port in another language, read it from the bottom up: what is read, what is run, what is written.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import argparse
import inspect
import json
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import BaseModelOutput

CLASSES = {
    "lm": transformers.T5Gemma2ForConditionalGeneration,
    "sequence": transformers.T5Gemma2ForSequenceClassification,
    "token": transformers.T5Gemma2ForTokenClassification,
}
# transformers 5.24 renamed the argument, and the field of what comes back.
CACHE = "cache" if "cache" in inspect.signature(CLASSES["lm"].forward).parameters else "past_key_values"


def load(checkpoint, case, inputs):
    """The model for the case's task, in float32; a classifier gets the head that comes with the case."""
    config = transformers.T5Gemma2Config.from_pretrained(checkpoint)
    for part in (config, config.encoder, config.encoder.text_config, config.encoder.vision_config, config.decoder):
        part.dtype = "float32"  # a released config.json names bfloat16 inside its parts
    if case["task"] != "lm":
        config.num_labels = case["num_labels"]
    model = CLASSES[case["task"]].from_pretrained(checkpoint, config=config, dtype=torch.float32).eval()
    for name in case["head"]:
        model.get_parameter(name.removeprefix("head.")).data = inputs[name]
    return model


def watch(model, seen):
    """Hooks that put a call's activations into `seen`, under the names that the manifest has for them."""

    def goes_in(name, _module, args, kwargs):
        seen[name] = (args[0] if args else kwargs["input_ids" if name.endswith("ids") else "hidden_states"]).clone()

    def comes_out(name, _module, _args, output):
        seen[name] = (output[0] if isinstance(output, tuple) else output).clone()

    encoder, decoder = model.model.encoder.text_model, model.model.decoder
    for module, name in (
        (encoder.embed_tokens, "input_ids"),
        (encoder.layers[0], "encoder.text_model.inputs_embeds"),
        (decoder.embed_tokens, "decoder_input_ids"),
    ):
        module.register_forward_pre_hook(partial(goes_in, name), with_kwargs=True)
    for i, layer in enumerate(encoder.layers):
        layer.register_forward_hook(partial(comes_out, f"encoder.text_model.layers.{i}"))
    encoder.norm.register_forward_hook(partial(comes_out, "encoder.text_model.norm"))
    decoder.embed_tokens.register_forward_hook(partial(comes_out, "decoder.embed_tokens"))
    for i, layer in enumerate(decoder.layers):
        layer.register_forward_hook(partial(comes_out, f"decoder.layers.{i}"))


def arguments(case, run, inputs, first, last, cache, encoded):
    """What the model is given for the decoder positions first … last - 1."""
    given = {field: inputs[name] for field, name in run["inputs"].items()}
    ids, mask, positions = (given.pop(f"decoder_{f}", None) for f in ("input_ids", "attention_mask", "position_ids"))
    if not run["derived"]:
        given["decoder_input_ids"] = ids[:, first:last]
    if mask is not None:
        given["decoder_attention_mask"] = mask[:, :last]
    if positions is not None:
        given["decoder_position_ids"] = positions[:, first:last]
    if "labels" in given and given["labels"].is_floating_point():
        given["labels"] = given["labels"].float()
    if encoded is not None:  # the source has been encoded in the first call
        given = {k: v for k, v in given.items() if k not in ("input_ids", "position_ids", "pixel_values")}
        given["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
    if case["task"] == "lm":
        given |= {CACHE: cache, "use_cache": run["cached"], "logits_to_keep": run["logits_to_keep"] or 0}
    return given


def dump(case, cases, checkpoint, folder):
    """Run one case, write a file a call into `folder`; returns what the manifest says of it."""
    inputs = load_file(cases / case["inputs"])
    folder.mkdir(parents=True, exist_ok=True)
    model = load(checkpoint, case, inputs)
    seen: dict[str, torch.Tensor] = {}
    files = []
    watch(model, seen)
    cache = encoded = None
    for number, call in enumerate(case["calls"]):
        run, (first, last) = case["runs"][call["run"]], call["decoder"]
        if first == 0:  # another source
            cache = encoded = None
        seen.clear()
        with torch.no_grad():
            out = model(**arguments(case, run, inputs, first, last, cache, encoded))
        if run["cached"]:
            cache, encoded = getattr(out, CACHE), out.encoder_last_hidden_state
        seen["logits"] = out.logits
        save_file({name: value.contiguous() for name, value in seen.items()}, folder / f"{number}.safetensors")
        files.append({"file": f"{folder.name}/{number}.safetensors"})
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="a folder that `export` wrote")
    parser.add_argument("checkpoint", type=Path, help="the checkpoint's folder")
    parser.add_argument("dump", type=Path, help="the folder to write")
    options = parser.parse_args()
    exported = json.loads((options.cases / "manifest.json").read_text())
    manifest = options.dump / "manifest.json"
    manifest.unlink(missing_ok=True)  # a run that is cut short leaves no manifest, so nothing to be judged
    document = {
        "format": "t5g2ref-dump",
        "version": 1,
        "peer": {
            "name": "hooks on transformers",
            "dtype": "float32",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
        "checkpoint": exported["checkpoint"],
        "cases": {
            name: dump(case, options.cases, options.checkpoint, options.dump / name)
            for name, case in exported["cases"].items()
        },
    }
    manifest.with_suffix(".part").write_text(json.dumps(document, indent=1))
    manifest.with_suffix(".part").replace(manifest)


if __name__ == "__main__":
    main()
