"""What a checkpoint says of its pictures: how levels become values, and when a long picture is cut.

The fields are those of preprocessor_config.json under shorter names; the defaults are the released processor's.
"""

from __future__ import annotations

from dataclasses import dataclass

Three = tuple[float, float, float]


@dataclass(frozen=True)
class Rule:
    """How one picture becomes pixel values.

    Args:
        mean, std: `image_mean` and `image_std`, one a channel.
        factor: `rescale_factor`.
        rescale, normalize: `do_rescale` and `do_normalize`.
        resample: the number of Pillow's filter; 2 is bilinear.
        crops: `do_pan_and_scan`; the next three are its limits.
        min_crop, max_crops, min_ratio: as `pan_and_scan` takes them.
    """

    mean: Three = (0.5, 0.5, 0.5)
    std: Three = (0.5, 0.5, 0.5)
    factor: float = 1 / 255
    rescale: bool = True
    normalize: bool = True
    resample: int = 2
    crops: bool = False
    min_crop: int = 256
    max_crops: int = 4
    min_ratio: float = 1.2


RELEASED = Rule()
