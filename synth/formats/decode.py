"""Bytes or files to pixels and labels through PIL, and pixels to PNG. Nothing is corrected silently."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from synth.core.checks import UserError, check_image

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

MAX_PIXELS = 64 * 1024 * 1024
"""Pixel budget of one image; a larger one is refused before it is unpacked."""

MaskMap = Mapping[int, int]

_BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError, EOFError,
           struct.error, zlib.error)
_REFUSED = {
    "RGBA": "it has an alpha channel (RGBA)", "LA": "it has an alpha channel (LA)",
    "PA": "it has a palette and an alpha channel (PA)", "P": "it is a palette image, its pixels are table indices",
    "1": "it has one bit per pixel", "F": "its pixels are floating point", "CMYK": "its colours are CMYK",
}
_LOSSY = ("JPEG", "MPO")
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns pixels (H, W) uint8 or uint16, or (H, W, 3) uint8, as a lossless PNG at that bit depth.

    Raises:
        UserError: if PNG through PIL cannot hold them.
    """
    if pixels.ndim == 3 and pixels.dtype != np.uint8:
        raise UserError(f"an RGB image of {pixels.dtype}", rule="RGB is written with 8 bits per channel",
                        repair="use 8-bit RGB or 16-bit grey")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_image(source: bytes | Path, name: str, *, channels: int | None = None) -> np.ndarray:
    """Returns pixels (H, W) or (H, W, 3), uint8 or uint16, of a file or its bytes.

    Args:
        source: an encoded image. name: what errors call it.
        channels: 1 or 3 converts between grey and RGB (luma of ITU-R BT.601); None leaves it as it is.

    Raises:
        UserError: if it does not decode, is too large, or is of a kind that would lose or invent information.
    """
    image = _open(source, name)
    if image.mode in ("L", "RGB"):
        pixels = np.array(image)
    elif image.mode == "I" or image.mode.startswith("I;16"):
        pixels = _to_16_bit(np.array(image), name)
    else:
        why = _REFUSED.get(image.mode, f"its mode is {image.mode}")
        raise UserError(name, rule=f"{why}, but images are grey or RGB", repair="export it as grey (8 or 16 bit) or "
                        "8-bit RGB PNG without alpha or palette")
    check_image(pixels, name)
    return pixels if channels is None else _with_channels(pixels, channels, name)


def decode_mask(source: bytes | Path, name: str, *, mask_map: MaskMap | None = None) -> np.ndarray:
    """Returns labels (H, W) uint8 of a label mask; palette indices are class indices; `mask_map` is applied.

    With a `mask_map`, a mask of several equal channels, as some programs save grey, counts as one.

    Raises:
        UserError: if it does not decode, is a JPEG, has several channels, or holds values above 255 or outside
            `mask_map`.
    """
    image = _open(source, name)
    if image.format in _LOSSY:
        raise UserError(name, rule=f"as {image.format} its class indices are not what they were",
                        repair="export it again as PNG")
    if image.mode == "1" and mask_map is None:
        raise UserError(name, rule="a one-bit mask has the values 0 and 255, but foreground is a class index",
                        repair="give the mapping: mask_map='0:0,255:1' (data.mask_map on the command line)")
    if image.mode == "1":
        labels = np.array(image.convert("L"))
    elif image.mode in ("L", "P"):
        labels = np.array(image)
    elif image.mode == "I" or image.mode.startswith("I;16"):
        labels = _to_16_bit(np.array(image), name)
    elif mask_map is not None and _is_grey(image):
        labels = np.array(image)[..., 0]
    else:
        raise UserError(name, rule=f"a label mask has one channel of class indices, this one is {image.mode}",
                        repair="save class indices as an 8-bit single-channel PNG, or, if it is opaque and only grey, "
                        "give a mask_map such as '0:0,255:1' (data.mask_map on the command line)")
    if mask_map is not None:
        return _map_values(labels, name, mask_map)
    if labels.max() > 255:
        raise UserError(name, rule=f"mask values go up to {labels.max()}, but labels are 0..255",
                        repair="save class indices as an 8-bit single-channel PNG")
    return labels.astype(np.uint8)


def _is_grey(image: Image.Image) -> bool:
    """Returns whether an image in colours is opaque and its colours are equal everywhere."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    bands = [np.array(band) for band in image.split()]
    is_opaque = image.mode == "RGB" or bool((bands.pop() == 255).all())
    return is_opaque and all(np.array_equal(band, bands[0]) for band in bands)


def parse_mask_map(mask_map: str | MaskMap | None) -> dict[int, int] | None:
    """Returns a mapping from values on disk to class indices; its text form is '0:0,255:1'.

    Raises:
        UserError: if the text is not of that form, or a class is outside 0..255.
    """
    if mask_map is None:
        return None
    try:
        values = _to_pairs(mask_map)
    except (ValueError, TypeError, AttributeError):
        values = []
    if not values or len(dict(values)) < len(values) or any(old < 0 or not 0 <= new <= 255 for old, new in values):
        raise UserError(f"mask_map {mask_map!r}", rule="a mask map is value:class pairs, each value once, class 0..255",
                        repair="write for example mask_map='0:0,255:1'")
    return dict(values)


def _to_pairs(mask_map: str | MaskMap) -> list[tuple[int, int]]:
    pairs = [part.split(":") for part in mask_map.split(",")] if isinstance(mask_map, str) else mask_map.items()
    return [(int(old), int(new)) for old, new in pairs]


def _map_values(labels: np.ndarray, name: str, mask_map: MaskMap) -> np.ndarray:
    stray = [int(v) for v in np.unique(labels) if int(v) not in mask_map]
    if stray:
        text = ",".join(f"{old}:{new}" for old, new in mask_map.items())
        raise UserError(name, rule=f"mask values {stray[:8]} are not in mask_map '{text}'",
                        repair="add them to the map (class 255 = ignore)")
    table = np.zeros(max(mask_map) + 1, np.uint8)
    table[list(mask_map)] = list(mask_map.values())
    return table[labels]


def _open(source: bytes | Path, name: str) -> Image.Image:
    data = source if isinstance(source, bytes) else _read_bytes(source, name)
    if not data:
        raise UserError(name, rule="the file is empty (0 bytes)", repair="copy or export it again")
    try:
        image = Image.open(io.BytesIO(data))
        _check_header(image, data, name)
        _check_turn(image, name)  # twice: PIL turns a TIFF while it loads, and a PNG's tag may follow its pixels
        image.load()
        _check_turn(image, name)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(name, rule=f"it has more than {MAX_PIXELS} pixels", repair="tile or shrink it") from None
    except UnidentifiedImageError:
        raise UserError(name, rule="it does not decode as an image", repair="export it again as PNG") from None
    except _BROKEN as error:
        raise UserError(name, rule=f"its pixels do not decode, the file is truncated or damaged ({error})",
                        repair="copy or export it again") from None
    return image


def _check_turn(image: Image.Image, name: str) -> None:
    if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
        raise UserError(name, rule="its EXIF tag says that it is to be shown turned, and masks know no such tag",
                        repair="turn the pixels and drop the tag (PIL.ImageOps.exif_transpose)")


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(name, rule=f"it cannot be read ({error.strerror})", repair="check the path and its rights"
                        ) from None


def _check_header(image: Image.Image, data: bytes, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(name, rule=f"it has {width}x{height} pixels, more than the budget of {MAX_PIXELS}",
                        repair="tile or shrink it")
    # MPO is a phone's JPEG with a preview behind the picture: its first frame is the picture.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise UserError(name, rule=f"it holds {image.n_frames} pages or frames, but a file is one image",
                        repair="write each page to its own file")
    bits = _native_bits(image, data)
    if bits in (2, 4) and image.mode == "L":
        raise UserError(name, rule=f"it is grey with {bits} bits per pixel, which readers scale to 0..255",
                        repair="export it with 8 bits per pixel")
    if bits > 8 and image.mode in ("RGB", "RGBA"):
        raise UserError(name, rule=f"it is RGB with {bits} bits per channel, of which 8 would be lost",
                        repair="export it as 8-bit RGB or 16-bit grey PNG")


def _native_bits(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG" and len(data) > 24:
        return data[24]  # IHDR: bit depth follows width and height
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    return 8


def _to_16_bit(values: np.ndarray, name: str) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise UserError(name, rule=f"its values {values.min()}..{values.max()} do not fit 16 bit unsigned",
                        repair="rescale it to 0..65535 and write 16-bit grey PNG")
    return values.astype(np.uint16)


def _with_channels(pixels: np.ndarray, channels: int, name: str) -> np.ndarray:
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if channels == 1 and pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            _say_colour_is_lost(Path(name).parent)
        return np.array(Image.fromarray(pixels).convert("L"))
    return pixels


@lru_cache(maxsize=256)
def _say_colour_is_lost(folder: Path) -> None:
    # Once for each folder: a set of a thousand images would say it a thousand times.
    log.warning("%s: colour images are read as grey there, for grey is what is asked for or was trained on", folder)
