"""The checks at the model's door: each returns an array of the backend or says what was expected and found."""

from __future__ import annotations

import math
from typing import Any

from t5g2ref.config import Config
from t5g2ref.dtypes import HALF
from t5g2ref.notes import note
from t5g2ref.numerics import Array, Numerics
from t5g2ref.outputs import IGNORED

BEYOND = 8.0  # a picture's numbers lie in [-1, 1]; those of one that was not scaled reach 255


def array(nx: Numerics, name: str, value: Any) -> Array:
    """The value as an array of the backend. ValueError says of rows of several lengths what to do with them."""
    try:
        return nx.xp.asarray(value)
    except ValueError as error:
        rows = value if isinstance(value, list | tuple) else []
        lengths = sorted({len(row) for row in rows if isinstance(row, list | tuple)})
        if len(lengths) < 2:
            raise ValueError(f"{name}: expected an array of numbers, found {type(value).__name__}: {error}") from error
        found = f"{name}: expected rows of one length, found rows of {', '.join(map(str, lengths[:8]))}"
        raise ValueError(f"{found}; pad them, and give a mask that is 0 on the padding") from error


def token_ids(nx: Numerics, config: Config, name: str, value: Any) -> Array:
    """(B, T) integers inside the vocabulary."""
    ids = array(nx, name, value)
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"{name}: expected a non-empty (batch, length) array, found shape {tuple(ids.shape)}")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, found dtype {ids.dtype}")
    wrong = (ids < 0) | (ids >= config.decoder.vocab_size)
    if bool(wrong.any()):  # on a device the only wait of a decoding step
        raise ValueError(f"{name}: ids must lie in [0, {config.decoder.vocab_size}), found {int(ids[wrong][0])}")
    return ids


def embeddings(nx: Numerics, name: str, value: Any, width: int) -> tuple[Array, Array]:
    """(B, T, D) finite numbers, of the type that they were given in and of the model's."""
    given = array(nx, name, value)
    if given.ndim != 3 or 0 in given.shape or given.shape[2] != width:
        raise ValueError(f"{name}: expected a non-empty (batch, length, {width}) array, found {tuple(given.shape)}")
    if given.dtype.kind != "f" and given.dtype not in HALF.values():
        raise ValueError(f"{name}: expected floats, found dtype {given.dtype}; T5Gemma2.embed makes them from ids")
    ours = nx.array(given)
    if not bool(nx.xp.isfinite(ours).all()):
        raise ValueError(f"{name}: found NaN or infinity, expected finite numbers")
    return given, ours


def one_of(first: str, value: Any, second: str, other: Any) -> None:
    """ValueError unless exactly one of two inputs is given."""
    if (value is None) == (other is None):
        found = "neither" if value is None else "both"
        raise ValueError(f"{first}, {second}: expected exactly one of them, found {found}")


def keep_mask(nx: Numerics, name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """bool of the ids' shape from a mask of 1 (keep) and 0 (padding); all True for None."""
    xp = nx.xp
    if value is None:
        return xp.ones(shape, dtype=bool)
    mask = array(nx, name, value)
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)} as the ids, found {tuple(mask.shape)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{name}: expected only 1 (keep) and 0 (padding), found other values")
    return mask.astype(bool)


def positions(nx: Numerics, name: str, value: Any, shape: tuple[int, ...], start: int, longest: int) -> Array:
    """(B, T) positions >= 0; start, start + 1, … for None. Those from `longest` on are computed, and noted."""
    xp = nx.xp
    if value is None:
        _note_beyond(name, start + shape[1] - 1, longest)
        return xp.broadcast_to(xp.arange(start, start + shape[1])[None], shape)
    given = array(nx, name, value)
    if given.ndim != 2 or given.shape[1] != shape[1] or given.shape[0] not in (1, shape[0]):
        raise ValueError(f"{name}: expected shape {tuple(shape)} or (1, {shape[1]}), found {tuple(given.shape)}")
    if given.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers >= 0, found dtype {given.dtype}")
    least, last = (int(i) for i in nx.backend.host(xp.stack([given.min(), given.max()])))
    if least < 0:
        raise ValueError(f"{name}: expected integers >= 0, found dtype {given.dtype}, least {least}")
    _note_beyond(name, last, longest)
    return xp.broadcast_to(given, shape)


def _note_beyond(name: str, last: int, longest: int) -> None:
    if last >= longest:
        note(f"{name}: go beyond max_position_embeddings ({longest}), for which the model was not made")


def pixel_values(nx: Numerics, config: Config, value: Any) -> Array:
    """(I, C, side, side) finite numbers."""
    if not config.has_vision:
        raise ValueError("pixel_values: expected none, since this checkpoint has no vision tower; give one that has")
    pixels, size = nx.array(value), config.vision
    expected = (size.num_channels, size.image_size, size.image_size)
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected or not pixels.shape[0]:
        raise ValueError(
            f"pixel_values: expected (images, {', '.join(map(str, expected))}), found {tuple(pixels.shape)}; "
            "t5g2ref.processor.image.preprocess makes them from a picture"
        )
    largest = float(nx.xp.abs(nx.wide(pixels)).max())  # the one wait of a device
    if not math.isfinite(largest):
        raise ValueError("pixel_values: found NaN or infinity; expected finite numbers in [-1, 1]")
    if largest > BEYOND:
        note(
            f"pixel_values: found numbers beyond {BEYOND:g}, expected [-1, 1]: of bytes, take x / 127.5 - 1, or "
            "t5g2ref.processor.image.preprocess"
        )
    return pixels


def class_labels(nx: Numerics, value: Any, shape: tuple[int, ...], classes: int) -> Array:
    """Integers of `shape` in [0, classes), or −100 where a position does not count."""
    labels = numbers(nx, value, shape)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers, found dtype {labels.dtype}")
    counts = labels != IGNORED
    wrong = counts & ((labels < 0) | (labels >= classes))
    any_wrong, any_counts = nx.backend.host(nx.xp.stack([wrong.any(), counts.any()]))
    if any_wrong:
        raise ValueError(f"labels: expected {IGNORED} or [0, {classes}), found {int(labels[wrong][0])}")
    if not any_counts:
        raise ValueError(f"labels: all are {IGNORED}, expected one that counts: the mean loss of none is no number")
    return labels


def numbers(nx: Numerics, value: Any, shape: tuple[int, ...]) -> Array:
    """Labels of exactly `shape`, all finite."""
    labels = array(nx, "labels", value)
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"labels: expected shape {tuple(shape)}, found {tuple(labels.shape)}")
    if not bool(nx.xp.isfinite(labels).all()):
        raise ValueError("labels: found NaN or infinity, expected finite numbers")
    return labels
