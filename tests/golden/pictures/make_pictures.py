"""Reference pictures by Pillow 10.4.0, which the goldens of LLaVA's image processor were made with.

    pip download pillow==10.4.0 --no-deps -d OLD && (cd OLD && unzip -q pillow-*.whl)
    cd tests/golden/pictures && PYTHONPATH=OLD python make_pictures.py pillow_10_4.json

Needs a Python for which that wheel exists (3.11), numpy, and nothing of Storyline.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

GREY = (122, 116, 104)
SIZES = (
    *((320, 180), (180, 320), (641, 359), (359, 641), (5, 3), (3, 5), (1, 1), (336, 336)),
    *((427, 240), (240, 427), (640, 480), (90, 160), (1280, 720), (720, 1280)),
)


def padded(image: Any, side: int) -> Any:
    """`expand2square` of LLaVA, and the resize of CLIPImageProcessor."""
    width, height = image.size
    long = max(width, height)
    square = Image.new("RGB", (long, long), GREY)
    square.paste(image, ((long - width) // 2, (long - height) // 2))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def cropped(image: Any, side: int) -> Any:
    """torchvision 0.28, transforms/functional.py: `resize` and `center_crop` of a PIL picture."""
    width, height = image.size
    if width <= height:
        size = side, int(side * height / width)
    else:
        size = int(side * width / height), side
    resized = image.resize(size, Image.Resampling.BICUBIC)
    top, left = round((size[1] - side) / 2.0), round((size[0] - side) / 2.0)
    return resized.crop((left, top, left + side, top + side))


def stretched(image: Any, side: int) -> Any:
    """`Resize((side, side))` of a PIL picture; BLIP-2, and VideoChat's single pictures."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def within(image: Any, side: int) -> Any:
    """The long side at most `side`: Storyline's own rule."""
    width, height = image.size
    long = max(width, height)
    if long <= side:
        return image
    size = max(1, round(width * side / long)), max(1, round(height * side / long))
    return image.resize(size, Image.Resampling.BICUBIC)


FITS: dict[str, Callable[[Any, int], Any]] = {
    "padded": padded,
    "cropped": cropped,
    "stretched": stretched,
    "within": within,
}


def main(out: Path) -> None:
    """Write the hashes."""
    if PIL.__version__ != "10.4.0":
        sys.exit(f"this is Pillow {PIL.__version__}, the goldens are of 10.4.0")
    rows = []
    for width, height in SIZES:
        rng = np.random.default_rng([width, height])
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for fit, make in FITS.items():
            for side in (56, 224, 336):
                pixels = np.asarray(make(image, side))
                sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
                rows.append([width, height, fit, side, list(pixels.shape), sha256])
    about = {
        "made_with": f"Pillow {PIL.__version__}, numpy {np.__version__}",
        "frame": "numpy.random.default_rng([width, height])"
        ".integers(0, 256, (height, width, 3), dtype=uint8)",
        "background": GREY,
        "columns": ["width", "height", "fit", "side", "shape", "sha256"],
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items()]
    table = ",\n".join("  " + json.dumps(row) for row in rows)
    out.write_text("{\n" + "".join(lines) + ' "pictures": [\n' + table + "\n ]\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
