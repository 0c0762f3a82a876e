"""From the names in a file to the model's: wrappers' prefixes, buffers that were saved along, tables under other names.

What is no plain checkpoint is refused by the name of what it is: quantised weights, and LoRA that is not merged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from t5g2ref.checkpoint.file import SafetensorsFile
from t5g2ref.checkpoint.header import CODES, FLOATS
from t5g2ref.checkpoint.tensor import WeightsError
from t5g2ref.config.fields import short
from t5g2ref.notes import note
from t5g2ref.params import TIED, canonical

Place = tuple[SafetensorsFile, str]
"""The file that a tensor is in, and its name there."""

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")  # of DataParallel, torch.compile and PEFT
BUFFERS = re.compile(r"(^|[._])(inv_freq|original_inv_freq|embed_scale|position_ids)$")  # follow from config.json
_ORIGINAL = "give the checkpoint that it was made from, or save it dequantised (transformers: model.dequantize())"
_MERGE = "merge it into its base (PEFT: merge_and_unload()) and save that"
_FOREIGN = (  # what the name of a tensor is a sign of, and the remedy
    (r"\.lora_\w+(\.|$)|\.base_layer\.|\.modules_to_save\.", "LoRA not merged", _MERGE),
    (r"\.quant_state\.bitsandbytes__nf4$", "quantised: bitsandbytes NF4", _ORIGINAL),
    (r"\.quant_state\.bitsandbytes__fp4$", "quantised: bitsandbytes FP4", _ORIGINAL),
    (r"\.(SCB|weight_format)$", "quantised: bitsandbytes INT8", _ORIGINAL),
    (r"\.g_idx$", "quantised: GPTQ", _ORIGINAL),
    (r"\.(qweight|qzeros)$", "quantised: GPTQ or AWQ", _ORIGINAL),
    (r"\.(weight_packed|weight_scale|weight_scale_inv|weight_zero_point)$", "quantised: FP8 or integers", _ORIGINAL),
    (r"_blocks$", "quantised: MXFP4", _ORIGINAL),
)


def canonical_places(found: Iterable[Place]) -> dict[str, Place]:
    """{canonical name: where it is} of everything but buffers. WeightsError for what is no plain checkpoint."""
    places = list(found)
    keys = [key for _, key in places]
    _refuse_foreign(places)
    prefix = _wrapper(keys)
    if prefix:
        note(f"all {len(keys)} names begin with {prefix!r}, which a wrapper put there: read without it")
    out: dict[str, Place] = {}
    for file, key in places:
        plain = key.removeprefix(prefix)
        if BUFFERS.search(plain):
            continue
        name = canonical(plain)
        if name in out:
            first, spelled = out[name]
            both = f"{short(spelled)} in {first.path.name} and {short(key)} in {file.path.name}"
            raise WeightsError(f"{short(name)} is there twice: {both}; keep one of them")
        out[name] = file, key
    _check_types(out)
    return _with_tables(out)


def _wrapper(keys: list[str]) -> str:
    """The prefix of wrappers that every name has, "" for none."""
    prefix = ""
    while keys and (more := next((w for w in WRAPPERS if all(key.startswith(prefix + w) for key in keys)), "")):
        prefix += more
    return prefix


def _with_tables(places: dict[str, Place]) -> dict[str, Place]:
    """With the encoder's table read from where it is: some files have it under one of its tied names alone."""
    for alias, source in TIED.items():
        if source not in places and alias in places:
            places[source] = places[alias]
    return places


def _refuse_foreign(places: list[Place]) -> None:
    for pattern, kind, remedy in _FOREIGN:
        sign = re.compile(pattern)
        for file, key in places:
            if sign.search(key):
                raise WeightsError(f"{file.path}: {kind}, as {short(key)} shows, expected plain weights; {remedy}")


def _check_types(places: dict[str, Place]) -> None:
    """WeightsError for a parameter that is no number of the four types that are read."""
    known = set(FLOATS.values())
    for file, key in places.values():
        found = file.entries[key].dtype
        if found in known:
            continue
        if found.name.startswith("float8"):
            kind = f"quantised: FP8, as {short(key)} shows"
            raise WeightsError(f"{file.path}: {kind}, expected plain weights; {_ORIGINAL}")
        raise WeightsError(
            f"{file.path}: {short(key)} has dtype {CODES[found]!r}, expected one of {', '.join(FLOATS)}; convert it"
        )
