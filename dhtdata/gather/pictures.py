"""Encoded images as arrays (door of Pillow, an optional package: the extra ``images``).

What comes out has the shape (height, width, channels) and dtype uint8, grayscale ("L") has (height, width); turned
upright if the camera noted how it was held. "stored" leaves samples as they lie in the file: indices of a palette,
16 bits. The first frame of an animation is taken, and transparency is dropped by "RGB" and "L".

Pictures come from strangers. So only formats of pictures are opened, those that Pillow reads by itself (for others it
runs programs), and none with more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million), which a few kilobytes may
claim to have.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dhtdata.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = ("RGB", "L", "RGBA", "stored")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


def require_pillow() -> None:
    """ConfigError that names what to install."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as failure:
        raise ConfigError(f"decode needs Pillow ({failure}): install it, or dhtdata with its extra images") from failure


def decode_picture(encoded: bytes, mode: str) -> NDArray[Any]:
    """The pixels, maybe read only. FormatError if they are broken, too many or of no known format."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded), formats=_known_formats()) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise FormatError(f"{image.width} x {image.height} pixels are more than the {limit} that are allowed")
            return np.asarray(_converted(image, mode))
    except FormatError:
        raise
    except UnidentifiedImageError as failure:
        raise FormatError(f"{len(encoded)} bytes are no picture of a known format") from failure
    except Exception as failure:  # on broken files Pillow's plugins raise whatever went wrong
        raise FormatError(f"{type(failure).__name__}: {failure}") from failure


@cache
def _known_formats() -> tuple[str, ...]:
    """Which of the formats this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _converted(image: Image, mode: str) -> Image:
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if mode in ("stored", image.mode):
        return image
    if image.mode.startswith(("I", "F")):  # Pillow would cut off what passes 255
        raise FormatError(f"its samples have more than 8 bits (mode {image.mode}): decode it as ('image', 'stored')")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)
