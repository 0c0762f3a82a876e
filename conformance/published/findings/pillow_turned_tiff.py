"""A TIFF that lies on its side by its tag and is not compressed is torn where Pillow opens it by its path.

pip install Pillow
python pillow_turned_tiff.py
"""

# mypy: ignore-errors
import io
import sys
import tempfile
from pathlib import Path

import PIL
from PIL import Image

ORIENTATION = 0x0112
TURNS = {5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}


def main() -> int:
    wrong = 0
    print(f"Pillow {PIL.__version__}")
    stored = Image.frombytes("L", (4, 3), bytes(range(12)))
    for tag, turn in TURNS.items():
        upright = stored.transpose(Image.Transpose[turn])
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "turned.tiff"
            stored.save(path, exif=exif)
            for name, source in (("bytes", io.BytesIO(path.read_bytes())), ("path", path)):
                with Image.open(source) as image:
                    image.load()
                    same = image.size == upright.size and image.tobytes() == upright.tobytes()
                    found = f"{image.size} {list(image.tobytes())}"
                wrong += not same
                print(f"{'right' if same else 'WRONG'}  orientation {tag}, by {name}: {found}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
