"""Whether a checkpoint's tensors are those that its configuration asks for: counts first, then names, shapes and ties.

Nothing is made that config.json alone asks for: how many layers there are is read off the tensors.
"""

from __future__ import annotations

from dataclasses import replace

from t5g2ref.checkpoint.opened import Checkpoint
from t5g2ref.checkpoint.tensor import WeightsError
from t5g2ref.config import Config
from t5g2ref.config.fields import short
from t5g2ref.notes import note
from t5g2ref.params import EYES, TIED, Head, Shape, shapes

_MAX_LINES = 12


def head_of(checkpoint: Checkpoint) -> Head:
    """Return "classification" where the checkpoint has a score head, else "lm"."""
    return "classification" if any(key.startswith("score.") for key in checkpoint.tensors) else "lm"


def fitted(checkpoint: Checkpoint, config: Config) -> Config:
    """The configuration without a vision tower where the tensors have none, whatever config.json says; and noted."""
    if not config.has_vision or any(name.startswith(EYES) for name in checkpoint.tensors):
        return config
    note(f"{checkpoint.folder}: no tensor of the vision tower is there: a model of text alone, which takes no pictures")
    return replace(config, has_vision=False)


def check(checkpoint: Checkpoint, config: Config) -> dict[str, Shape]:
    """Return the shapes to read, or raise one WeightsError that lists all gaps, leftovers and mismatches."""
    _check_layers(checkpoint, config)
    expected = shapes(config, head_of(checkpoint))
    known = expected | {alias: expected[source] for alias, source in TIED.items()}
    found = checkpoint.tensors
    gaps = [f"{name}: expected {shape}, found nothing" for name, shape in expected.items() if name not in found]
    extra = [f"{short(name)}: expected nothing, found {checkpoint.shape(name)}" for name in found if name not in known]
    wrong = [
        f"{name}: expected {known[name]}, found {checkpoint.shape(name)}"
        for name in found
        if name in known and known[name] != checkpoint.shape(name)
    ]
    lines = [
        *_listed("missing", gaps, "download the checkpoint again, or correct config.json"),
        *_listed("unexpected", extra, "is this a T5Gemma 2, and config.json its own?"),
        *_listed("of another shape", wrong, "config.json is of another size than the weights"),
    ]
    if lines:
        raise WeightsError("\n".join([f"{checkpoint.folder}: the tensors do not fit config.json", *lines]))
    for alias, source in TIED.items():
        if alias in found and not checkpoint.same(alias, source):
            expectation = f"the values of {source} (tied), found others"
            raise WeightsError(f"{alias}: expected {expectation}; untied embeddings are not implemented")
    return expected


def _check_layers(checkpoint: Checkpoint, config: Config) -> None:
    """WeightsError unless each stack has as many layers as config.json says: one line, and not one for each tensor."""
    eyes, stack = config.vision.num_hidden_layers * config.has_vision, config.decoder.num_hidden_layers
    for path, field, layers in (
        ("encoder.text_model.layers", "encoder.text_config", config.encoder.num_hidden_layers),
        ("encoder.vision_tower.encoder.layers", "encoder.vision_config", eyes),
        ("decoder.layers", "decoder", stack * config.has_decoder),
    ):
        start = len(path) + 1
        there = len({name[start:].partition(".")[0] for name in checkpoint.tensors if name.startswith(f"{path}.")})
        if there != layers:
            raise WeightsError(
                f"{checkpoint.folder}: {field}.num_hidden_layers is {layers}, the tensors have {there} layers under "
                f"{path}; give the weights their own config.json, or download both again"
            )


def _listed(kind: str, lines: list[str], remedy: str) -> list[str]:
    if not lines:
        return []
    more = [f"  ... and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return [f"{len(lines)} {kind} ({remedy})", *(f"  {line}" for line in lines[:_MAX_LINES]), *more]
