"""What a checkpoint folder says of its pictures: preprocessor_config.json and processor_config.json.

Each file may be missing, and each field null: the released processor's value stands in. A setting that is there and
cannot be followed is refused. processor_config.json may hold all of preprocessor_config.json as `image_processor`; then
that counts, as in transformers.

Source: transformers' `Gemma3Processor`, `Gemma3ImageProcessorPil` and `ImageProcessingMixin`.
One thing differs. Gemma3Processor (5.24) takes no pan-and-scan setting of a file, for its own class says otherwise; its
image processor by itself does, and so does this. The released files leave these settings null: both agree.
"""

from __future__ import annotations

from pathlib import Path

from t5g2ref.config.fields import ConfigError, Section, json_file, refuse
from t5g2ref.processor.rule import RELEASED, Rule, Three

MAX_BYTES = 16 * 2**20  # Gemma 3's tokenizer_config.json has one
_KINDS = ("Gemma3ImageProcessor", "Gemma3ImageProcessorFast", "Gemma3ImageProcessorPil")


def read_pictures(folder: Path) -> tuple[Rule, int | None, int | None]:
    """(how a picture becomes values, its side, its count of tokens); None where no file says."""
    whole, name = section(folder, "processor_config.json"), "processor_config.json.image_processor"
    tokens = whole.integer("image_seq_length") if whole.has("image_seq_length") else None
    if tokens is not None and tokens < 1:
        raise refuse(whole.path("image_seq_length"), tokens, "at least 1", "give the tokens of one picture")
    own = whole.section("image_processor") if whole.has("image_processor") else None
    raw = section(folder, "preprocessor_config.json") if own is None else Section(own.raw, name)
    _refuse_others(raw)
    limits = {"min_crop": _above(raw, "pan_and_scan_min_crop_size", RELEASED.min_crop)}
    limits["max_crops"] = _above(raw, "pan_and_scan_max_num_crops", RELEASED.max_crops, limits["min_crop"])
    rule = Rule(
        mean=_three(raw, "image_mean"),
        std=_three(raw, "image_std", zero=False),
        factor=_number(raw, "rescale_factor", RELEASED.factor),
        rescale=_flag(raw, "do_rescale", True),
        normalize=_flag(raw, "do_normalize", True),
        resample=_above(raw, "resample", RELEASED.resample, 5, least=0),
        crops=_flag(raw, "do_pan_and_scan", False),
        min_ratio=_number(raw, "pan_and_scan_min_ratio_to_activate", RELEASED.min_ratio),
        **limits,
    )
    return rule, _side(raw), tokens


def section(folder: Path, name: str) -> Section:
    """The file's object; an empty one without the file."""
    if not (folder / name).exists():
        return Section({}, name)
    try:
        raw = json_file(folder / name, MAX_BYTES)
    except ValueError as error:
        raise ConfigError(f"{folder / name}: {error}") from error
    if not isinstance(raw, dict):
        raise refuse(name, raw, "a JSON object", "give the file of a Gemma checkpoint")
    return Section(raw, name)


def _refuse_others(raw: Section) -> None:
    """ConfigError for what would make other pixels than `image.py` makes."""
    if raw.has("image_processor_type"):
        raw.choice("image_processor_type", _KINDS)
    for name in ("do_resize", "do_convert_rgb"):
        if not _flag(raw, name, True):
            raise refuse(raw.path(name), False, "true", "the vision tower reads RGB pictures of one size")


def _side(raw: Section) -> int | None:
    if not raw.has("size"):
        return None
    size = raw.raw["size"]
    if isinstance(size, dict) and set(size) == {"height", "width"} and size["height"] == size["width"]:
        size = size["height"]
    if type(size) is not int or not 1 <= size <= 1 << 14:
        expected = "equal height and width from 1 to 16384"
        raise refuse(raw.path("size"), raw.raw["size"], expected, "give the vision tower's image_size")
    return size


def _three(raw: Section, name: str, zero: bool = True) -> Three:
    """A number a channel; one number stands for all."""
    if not raw.has(name):
        return (0.5, 0.5, 0.5)
    given = raw.raw[name]
    parts = given if isinstance(given, list) else [given] * 3
    if len(parts) != 3 or not all(type(one) in (int, float) and abs(one) < 1e30 for one in parts):
        raise refuse(raw.path(name), given, "three numbers below 1e30", "give one a channel")
    if not zero and not all(abs(one) > 1e-30 for one in parts):
        raise refuse(raw.path(name), given, "no zero", "values are divided by it")
    red, green, blue = (float(one) for one in parts)
    return red, green, blue


def _number(raw: Section, name: str, default: float) -> float:
    """A number between 0 and a million, neither included nor NaN."""
    value = raw.number(name) if raw.has(name) else default
    if not 0 < value < 1e6:
        raise refuse(raw.path(name), value, "a number above 0, below 1000000", "give the released processor's")
    return value


def _above(raw: Section, name: str, default: int, most: int = 1 << 20, least: int = 1) -> int:
    value = raw.integer(name) if raw.has(name) else min(default, most)
    if not least <= value <= most:
        raise refuse(raw.path(name), value, f"from {least} to {most}", "give the released processor's")
    return value


def _flag(raw: Section, name: str, default: bool) -> bool:
    value = raw.raw[name] if raw.has(name) else default
    if type(value) is not bool:
        raise refuse(raw.path(name), value, "true, false or null", "write one of these")
    return value
