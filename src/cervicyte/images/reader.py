"""Reads BMP, PNG, JPEG and TIFF files to RGB, or says in one sentence why a file cannot be used.

What a file is, is told by its first bytes, never by its name. Its size is read from the header and
held against a bound before a pixel is decoded. What the reader does where formats leave a choice:

- Transparency is laid on white: the background of a slide in bright field is unobstructed light.
- 16-bit grey is scaled over the full range, round(v / 257). Of 16-bit colour, Pillow's decoder keeps
  the upper byte, floor(v / 256), which differs from that by at most one step.
- Colour profiles are not applied; CMYK is converted by Pillow's plain formula.
- The EXIF orientation is applied.
- Several pages or frames in a TIFF or PNG are refused: which one is meant would be a guess. Preview
  pictures that cameras append to a JPEG (MPO) are not pages; the JPEG's main picture is read.
- A PNG's checksums are held against its data. JPEG has none, so a changed byte amid a JPEG's data
  that still decodes goes unnoticed, as in every JPEG reader.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cervicyte.errors import ImageError, ImageNotFound, NotAnImage, OversizedImage, TruncatedImage

MAX_PIXELS = 100_000_000
"""Bound on height times width, checked before decoding; a SIPaKMeD field has 3.1 million."""

FORMAT_OF_SUFFIX = {
    ".bmp": "BMP",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
IMAGE_SUFFIXES = frozenset(FORMAT_OF_SUFFIX)

# Pillow's file classes are called directly: `Image.open` would hold the size against a bound that is
# one for the whole process, and would answer with a warning where an error is due.
DECODERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "BMP": BmpImageFile,
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "TIFF": TiffImageFile,
}

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# (offset, bytes there, format). The formats that are not read serve to name what was met.
SIGNATURES = (
    (0, PNG_SIGNATURE, "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyp", "HEIF or video"),
    (4, b"jP  ", "JPEG 2000"),
    (128, b"DICM", "DICOM"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
)
SIGNATURE_LENGTH = 132  # bytes

# Of a PNG with one transparent colour, Pillow compares that colour with samples already scaled to 8
# bits: at these depths it would miss them.
MISSED_TRANSPARENCY = ("L;2", "L;4", "RGB;16B")
DEEP_GREY_MODES = ("I;16", "I;16B", "I;16L")
COLOUR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
BYTE_OF_16_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # round(v / 257)

# Tags of TIFF 6.0 and EXIF 2.3.
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, TILE_WIDTH, TILE_LENGTH = 258, 262, 274, 322, 323
WHITE_IS_ZERO = 0
UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: Path | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file to uint8 [H, W, 3], RGB. May be called from several threads at once.

    Args:
        source: the file's path, or the bytes of a file.
        name: what errors call the image; the path unless given.
        max_pixels: bound on height times width.

    Raises:
        ImageNotFound: no file lies at the path.
        NotAnImage: a folder, an empty file, another format, several pages, or samples of a depth
            that is not read here.
        TruncatedImage: the data end early or are damaged.
        OversizedImage: the image is over the bound, or does not fit into memory.
        ImageError: the file may not be opened.
    """
    name = name if name is not None else _name_of(source)
    with _opened(source, name) as stream:
        kind = _sniffed(stream, name)
        if kind not in DECODERS:
            what = "is not an image in a known format" if kind == "unknown" else f"is a {kind} file"
            raise NotAnImage(f"{name}: {what}; give a BMP, PNG, JPEG or TIFF file.")
        try:
            image = DECODERS[kind](stream)
            _check_header(image, name, max_pixels)
            if kind == "PNG":
                _check_png_sums(stream)
            image.load()
            return _rgb(image)
        except ImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
            raise OversizedImage(
                f"{name}: decoding it needs more memory than there is; crop it or scale it down."
            ) from error
        # Pillow's parsers let through whatever a damaged file makes them stumble over: OSError,
        # SyntaxError, ValueError, struct.error, zlib.error, OverflowError and more.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TruncatedImage(
                f"{name}: is truncated, damaged or of a rare kind of {kind} ({reason}); "
                "get an intact copy, or save it anew as PNG."
            ) from error


def sniff_format(source: Path | bytes) -> str:
    """Return what a file is by its first bytes: "BMP", "PNG", "JPEG", "TIFF", another kind's name
    such as "GIF", or "unknown". `FORMAT_OF_SUFFIX` tells what the file's name says it is.

    Raises:
        ImageNotFound: no file lies at the path.
        NotAnImage: a folder or an empty file.
        ImageError: the file may not be opened.
    """
    name = _name_of(source)
    with _opened(source, name) as stream:
        return _sniffed(stream, name)


def _name_of(source: Path | bytes) -> str:
    return "image" if isinstance(source, bytes) else str(source)


def _opened(source: Path | bytes, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    try:
        if path.is_file():
            return open(path, "rb")
        if path.is_dir():
            raise NotAnImage(f"{name}: is a folder; give an image file.")
        if path.exists():  # a pipe or a device: opening it could wait for ever
            raise NotAnImage(f"{name}: is not a regular file; give an image file.")
    except OSError as error:
        raise ImageError(
            f"{name}: cannot be opened ({error.strerror}); check the path and the permissions."
        ) from error
    raise ImageNotFound(f"{name}: there is no such file; check the path.")


def _sniffed(stream: BinaryIO, name: str) -> str:
    """Name the format by its signature; leave the stream at its beginning."""
    try:
        head = stream.read(SIGNATURE_LENGTH)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror}); check the disk.") from error
    stream.seek(0)
    if not head:
        raise NotAnImage(f"{name}: is empty; get an intact copy.")
    return next((kind for offset, sign, kind in SIGNATURES if head.startswith(sign, offset)), "unknown")


def _check_header(image: ImageFile.ImageFile, name: str, max_pixels: int) -> None:
    """Refuse, before any pixel is decoded, what is too large or has no single plain reading."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    width, height = image.size
    # A tile is decoded whole, however little of it the image needs.
    tile = int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))
    if max(width * height, tile) > max_pixels:
        raise OversizedImage(
            f"{name}: has {width}x{height} pixels, more than the {max_pixels:,} that are read; "
            "crop it or scale it down."
        )
    if getattr(image, "is_animated", False):
        raise NotAnImage(f"{name}: holds several pages or frames; save the one that is meant by itself.")
    if "transparency" in image.info and image.tile[0].args in MISSED_TRANSPARENCY:
        raise NotAnImage(f"{name}: marks a colour as transparent at a rare depth; save it anew as RGB.")
    bits = max(tags.get(BITS_PER_SAMPLE, (8,)))
    if image.mode not in DEEP_GREY_MODES + COLOUR_MODES or bits not in (1, 2, 4, 8, 16):
        raise NotAnImage(
            f"{name}: stores its pixels as {image.mode} with {bits} bits, which is not read here; "
            "save it as 8- or 16-bit grey or RGB."
        )


def _check_png_sums(stream: BinaryIO) -> None:
    """Hold every chunk against its checksum: Pillow leaves out those of the pixel data."""
    place = stream.tell()
    stream.seek(len(PNG_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        body = stream.read(length)
        if len(body) < length or len(head) < 8:
            raise OSError("image file is truncated")
        if zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big") != stream.read(4):
            raise OSError(f"checksum of {kind!r} does not fit")
    stream.seek(place)


def _rgb(image: ImageFile.ImageFile) -> np.ndarray:
    """Return a decoded image upright as uint8 [H, W, 3]."""
    # BMP has no such tag, and Pillow has already turned a TIFF.
    turn = None
    if isinstance(image, PngImageFile | JpegImageFile):
        turn = UPRIGHT_BY.get(image.getexif().get(ORIENTATION, 1))
    upright: Image.Image = image if turn is None else image.transpose(turn)
    if upright.mode in DEEP_GREY_MODES:
        values = np.asarray(upright)
        # Pillow turns white-is-zero samples round at 8 bits, but not at 16.
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = 65535 - values
        if "transparency" in image.info:  # one grey stands for transparent
            values = np.where(values == image.info["transparency"], 65535, values)
        return np.repeat(BYTE_OF_16_BIT[values][:, :, np.newaxis], 3, axis=2)
    if upright.has_transparency_data:
        coloured = upright.convert("RGBA")
        upright = Image.new("RGB", coloured.size, "white")
        upright.paste(coloured, mask=coloured.getchannel("A"))
    return np.array(upright.convert("RGB"))
