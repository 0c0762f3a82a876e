"""The case of picture files: what a peer's own processor makes of them, before any tower.

A file that has the tower's side already is not resampled: there every legal processor gives the same values, and so the
modes, the turning and the levels are judged on such ones. Larger, smaller and oblong ones show the resampling.
"""

from __future__ import annotations

import numpy as np

from conformance.cases.case import Case
from conformance.cases.picture import Array, Picture, cmyk, png
from t5g2ref.config import Config

NAME = "picture-files"
SEED = 20251113  # of the pictures that are judged
ON_ITS_SIDE, HALF_TURN, OTHER_SIDE = 6, 3, 8  # EXIF orientations


def files(side: int) -> tuple[Picture, ...]:
    """The pictures for a tower of this side: noise, so that no two ways of reading them are alike."""
    rng = np.random.default_rng(SEED)

    def noise(height: int, width: int, channels: int) -> Array:
        return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)

    deep = rng.integers(0, 1 << 16, (side, side, 1), dtype=np.uint16)
    deep[::2] >>= 8  # half of the rows are within eight bits
    return (
        png("rgb", noise(side, side, 3)),
        png("grey", noise(side, side, 1)),
        png("grey-alpha", noise(side, side, 2)),
        png("grey-16-bit", deep),
        png("palette", noise(side, side, 1), palette=noise(256, 1, 3)),
        png("rgb-alpha", noise(side, side, 4)),
        cmyk("cmyk", noise(side, side, 4)),
        png("on-its-side", noise(side, side, 3), orientation=ON_ITS_SIDE),
        png("half-turned", noise(side, side, 3), orientation=HALF_TURN),
        png("wide", noise(side // 2 + 3, 2 * side + 5, 3)),
        png("small", noise(side // 3 + 1, side // 4 + 2, 3)),
        png("tall-on-its-side", noise(side // 2 + 1, side + 9, 3), orientation=OTHER_SIDE),
    )


def build(config: Config) -> list[Case]:
    """The case, for a checkpoint that has a tower."""
    if not config.has_vision:
        return []
    title = "pictures as files, to the peer's own pixel values"
    shown = files(config.vision.image_size)
    return [Case(NAME, title, (), exposes=("D58", "D77"), types=("float32",), pictures=shown)]
