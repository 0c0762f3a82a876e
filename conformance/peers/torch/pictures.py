"""transformers' own processor of pictures: Gemma 3's, which this model has, in its form without torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conformance.peers.protocol import Skip
from conformance.target import Target

Array = np.ndarray[Any, Any]
FILES = ("preprocessor_config.json", "processor_config.json")


def prepared(target: Target, file: Path) -> Array:
    """Values (3, side, side) of a picture file, as the checkpoint's files say; as the released one's do without any.

    Raises Skip where the installed release has no such processor, or Pillow is not there.
    """
    kind, folder = _kind(), target.folder
    if folder is not None and any((folder / name).is_file() for name in FILES):
        processor = kind.from_pretrained(folder, local_files_only=True)
    else:
        side = target.config.vision.image_size
        half = [0.5, 0.5, 0.5]
        processor = kind(size={"height": side, "width": side}, image_mean=half, image_std=half, do_convert_rgb=True)
    return np.asarray(processor([str(file)])["pixel_values"][0])


def _kind() -> Any:
    """The class that resizes with Pillow: it has had another name since a faster one took the first."""
    try:
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        return Gemma3ImageProcessorPil
    except ImportError:
        pass
    try:
        from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

        return Gemma3ImageProcessor
    except ImportError as error:
        raise Skip(f"transformers has no Pillow processor here: {error}") from error
