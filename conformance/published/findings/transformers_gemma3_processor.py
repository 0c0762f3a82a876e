"""Gemma3Processor in transformers reads no pan-and-scan setting of a file, and takes alpha in two ways.

pip install torch transformers Pillow
python transformers_gemma3_processor.py
"""

# mypy: ignore-errors
import sys
import tempfile
from pathlib import Path

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

NAMES = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}, "do_convert_rgb": True}
CROPS = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def told(name: str, found: object, expected: object) -> bool:
    print(f"{'right' if found == expected else 'WRONG'}  {name}: {found}, expected {expected}")
    return found == expected


def crops(folder: Path) -> bool:
    """The image processor's file says do_pan_and_scan; a picture of 700 × 300 has two crops."""
    Gemma3ImageProcessorPil(**HALF, **CROPS).save_pretrained(folder)
    images = Gemma3ImageProcessorPil.from_pretrained(folder)
    words = Tokenizer(BPE(vocab={"<boi>": 0, "<eoi>": 1, "<image>": 2, "<unk>": 3}, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=NAMES, unk_token="<unk>")
    processor = Gemma3Processor(images, tokenizer, image_seq_length=4)
    picture = Image.new("RGB", (700, 300))
    alone = told("pictures of the image processor by itself", len(images(picture)["pixel_values"]), 3)
    return (
        told("pictures of Gemma3Processor", len(processor(text="<boi>", images=picture)["pixel_values"]), 3) and alone
    )


def alpha(folder: Path) -> bool:
    """One picture, clear red, by its path and as Pillow has it."""
    path = folder / "clear.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(path)
    images = Gemma3ImageProcessorPil(**HALF)
    by_path, by_pillow = images([str(path)]), images([Image.open(path)])
    values = [np.stack(one["pixel_values"])[0, :, 0, 0].tolist() for one in (by_path, by_pillow)]
    return told("a clear pixel by its path", values[0], values[1])


def main() -> int:
    print(f"transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        return int(not all([crops(Path(folder)), alpha(Path(folder))]))


if __name__ == "__main__":
    sys.exit(main())
