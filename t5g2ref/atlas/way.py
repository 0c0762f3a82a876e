"""The data's way: taps in the order in which they came to be, by stage and by layer, each with its line of code."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from t5g2ref.atlas import pictures
from t5g2ref.atlas.gather import Gathered
from t5g2ref.atlas.places import Place
from t5g2ref.atlas.seen import Seen
from t5g2ref.config import Config
from t5g2ref.tap_words import MEANINGS, kind
from t5g2ref.taps import Tap

STAGES = {
    "encoder.vision_tower": "Picture tower",
    "encoder.multi_modal_projector": "Projector",
    "encoder.text_model": "Encoder",
    "decoder": "Decoder",
    "": "Head",
}
COLUMNS = {"Picture": STAGES.keys() & {"encoder.vision_tower", "encoder.multi_modal_projector"}}
COLUMNS |= {"Source": {"encoder.text_model"}, "Answer": {"decoder", ""}}


@dataclass(frozen=True)
class Row:
    """A tap as the page shows it."""

    name: str
    short: str
    letters: str
    shape: str
    numbers: tuple[str, str, str, str]
    address: str
    place: Place
    words: str
    stage: str


@dataclass(frozen=True)
class Group:
    """The taps of a layer, or those around the layers."""

    title: str
    rows: list[Row] = field(default_factory=list)


def groups(found: Gathered) -> list[Group]:
    """All taps that are shown, by layer."""
    made: list[Group] = []
    for tap in found.taps:
        title = _title(tap.name, found.model.config)
        if not made or made[-1].title != title:
            made.append(Group(title))
        made[-1].rows.append(row(tap))
    return made


def columns(found: Gathered) -> list[Group]:
    """The residual stream from the input to the choice: pictures, source, answer."""
    spine = [row(tap) for tap in found.taps if tap.name in found.sizes or tap.name == "logits"]
    made = [Group(title, [one for one in spine if one.stage in stages]) for title, stages in COLUMNS.items()]
    return [group for group in made if group.rows]


def row(tap: Seen) -> Row:
    """A tap in words and a picture."""
    stage = _stage(tap.name)
    short = tap.name.removeprefix(f"{stage}.").removeprefix("encoder.")
    first = ", ".join(f"{x:.3g}" for x in tap.first) + (", …" if tap.small.size > len(tap.first) else "")
    size = f"{100 * tap.rms:.0f} %" if tap.exact else f"{tap.rms:.3g}"
    numbers = (size, f"{tap.least:.3g}", f"{tap.most:.3g}", first)
    words = MEANINGS.get(kind(Tap(tap.name, tap.letters, "", "")), "")
    shape = " × ".join(map(str, tap.shape))
    return Row(tap.name, short, tap.letters, shape, numbers, pictures.signed(tap.small), tap.place, words, stage)


def _stage(name: str) -> str:
    return next(stage for stage in STAGES if not stage or name.startswith(f"{stage}."))


def _title(name: str, config: Config) -> str:
    """The heading that a tap stands under."""
    stage = _stage(name)
    layer = re.search(r"layers\.(\d+)", name)
    if layer is None:
        return f"{STAGES[stage]}: {'before its layers' if _first(name) else 'its end'}" if stage else STAGES[""]
    if stage == "encoder.vision_tower":
        return f"{STAGES[stage]}: layer {layer[1]}"
    if ".cross_" in name and not name.endswith(("cross_keys", "cross_values")):
        return "Decoder: keys and values of the encoder's output, once a source"
    text = config.decoder if stage == "decoder" else config.encoder
    return f"{STAGES[stage]}: layer {layer[1]}, {text.layer_types[int(layer[1])].removesuffix('_attention')}"


def _first(name: str) -> bool:
    return "embed" in name or "rotary" in name
