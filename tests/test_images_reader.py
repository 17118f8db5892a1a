"""Claims about the image reader: every format to RGB, and every file that cannot be used named."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cervicyte.errors import ImageError, ImageNotFound, NotAnImage, OversizedImage, TruncatedImage
from cervicyte.images.reader import FORMAT_OF_SUFFIX, IMAGE_SUFFIXES, MAX_PIXELS, read_image, sniff_format

REPOSITORY = Path(__file__).resolve().parents[1]
CELLS = REPOSITORY.parent / "shared" / "data" / "sipakmed_original_sample"

HEIGHT, WIDTH = 22, 35
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
# Smooth, so that JPEG keeps it nearly as it is, and without any symmetry.
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.stack([ROWS * 8, COLUMNS * 6, 255 - ROWS * 4 - COLUMNS * 3], axis=2).astype(np.uint8)

# What a viewer shows for each EXIF orientation of a stored array (EXIF 2.3, section 4.6.4).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def encoded(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def handmade_png(colour_type: int, depth: int, width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + png_chunk(b"IEND", b"")


def handmade_tiff(tags: dict[int, int], pixels: bytes) -> bytes:
    """Little-endian, uncompressed; the pixels, one strip, stand before the directory."""
    tags = {**tags, 273: 8, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


DEEP = NOISE[..., 0].astype(np.uint16) * 256 + NOISE[..., 1]
PALETTE = Image.fromarray(NOISE).quantize(16)
SOURCES = {
    "BMP": encoded(NOISE, "BMP"),
    "BMP grey": encoded(NOISE[..., 0], "BMP"),
    "BMP palette": encoded(PALETTE, "BMP"),
    "PNG": encoded(NOISE, "PNG", exif=exif(6)),
    "PNG palette": encoded(PALETTE, "PNG", transparency=3),
    "PNG RGBA": encoded(np.dstack([NOISE, NOISE[..., 0]]), "PNG"),
    "PNG 16 bit": encoded(DEEP, "PNG"),
    "JPEG": encoded(SMOOTH, "JPEG", exif=exif(6)),
    "JPEG progressive": encoded(SMOOTH, "JPEG", progressive=True),
    "JPEG CMYK": encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG"),
    "TIFF": encoded(NOISE, "TIFF"),
    "TIFF 16 bit": encoded(DEEP, "TIFF"),
    "TIFF LZW": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "TIFF deflate": encoded(NOISE, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF JPEG": encoded(NOISE, "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
@pytest.mark.parametrize("channels", ["RGB", "grey"])
def test_lossless_formats_give_every_pixel_back(kind, channels, tmp_path):
    image = NOISE if channels == "RGB" else NOISE[..., 0]
    path = tmp_path / "cell"
    path.write_bytes(encoded(image, kind))
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert read.flags.writeable
    np.testing.assert_array_equal(read, image if channels == "RGB" else np.dstack([image] * 3))
    np.testing.assert_array_equal(read, read_image(path.read_bytes()))


def test_jpeg_is_read_as_opencv_reads_it():
    data = encoded(SMOOTH, "JPEG", quality=95)
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert other is not None
    np.testing.assert_allclose(read_image(data), other[..., ::-1], atol=2)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_gives_every_pixel_back(compression):
    np.testing.assert_array_equal(read_image(encoded(NOISE, "TIFF", compression=compression)), NOISE)


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
def test_palette_is_resolved_to_its_colours(kind):
    np.testing.assert_array_equal(read_image(encoded(PALETTE, kind)), np.array(PALETTE.convert("RGB")))


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
def test_bilevel_is_black_and_white(kind):
    bits = NOISE[..., 0] > 127
    np.testing.assert_array_equal(read_image(encoded(bits, kind))[..., 1], np.where(bits, 255, 0))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_comes_out_in_its_visible_colour(kind):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(read_image(encoded(red, kind))[8, 8], (255, 0, 0), atol=8)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_turns_the_image_upright(orientation, kind):
    read = read_image(encoded(SMOOTH, kind, exif=exif(orientation)))
    expected = UPRIGHT[orientation](SMOOTH)
    assert read.shape == expected.shape
    np.testing.assert_allclose(read, expected, atol=12 if kind == "JPEG" else 0)
    # A wrong turn would be far outside that tolerance.
    others = (turn(SMOOTH) for number, turn in UPRIGHT.items() if number != orientation)
    assert all(o.shape != read.shape or np.abs(o.astype(int) - read).max() > 50 for o in others)


def test_deep_grey_png_is_turned_upright_too():
    read = read_image(encoded(DEEP, "PNG", exif=exif(6)))
    np.testing.assert_array_equal(read[..., 0], np.rot90(np.rint(DEEP / 257), -1))


@pytest.mark.parametrize("kind", [".png", ".tif"])
def test_16_bit_grey_uses_the_full_range(kind):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    read = read_image(cv2.imencode(kind, values)[1].tobytes())
    np.testing.assert_array_equal(read, np.dstack([np.rint(values / 257)] * 3))


def test_big_endian_and_inverted_16_bit_tiff_mean_the_same_brightness():
    big = Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP.astype(">u2").tobytes())
    inverted = {256: WIDTH, 257: HEIGHT, 258: 16, 259: 1, 262: 0, 277: 1, 278: HEIGHT}
    expected = np.rint(DEEP / 257)
    np.testing.assert_array_equal(read_image(encoded(big, "TIFF"))[..., 0], expected)
    inverted_tiff = handmade_tiff(inverted, (65535 - DEEP).astype("<u2").tobytes())
    np.testing.assert_array_equal(read_image(inverted_tiff)[..., 0], expected)


@pytest.mark.parametrize("kind", [".png", ".tif"])
def test_16_bit_colour_is_within_one_step_of_the_full_range(kind):
    values = np.random.default_rng(1).integers(0, 65536, (40, 40, 3), dtype=np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    read = read_image(cv2.imencode(kind, values[..., ::-1])[1].tobytes())
    assert np.abs(read - values / 257).max() < 1
    assert read[0, 0].tolist() == [0, 0, 0]
    assert read[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_is_laid_on_white(kind):
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH, 1)
    read = read_image(encoded(np.dstack([NOISE, alpha]), kind))
    expected = NOISE * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(read, expected, atol=1)


def test_transparent_palette_entry_and_transparent_colour_become_white():
    read = read_image(encoded(PALETTE, "PNG", transparency=3))
    transparent = np.array(PALETTE) == 3
    assert (read[transparent] == 255).all()
    np.testing.assert_array_equal(read[~transparent], np.array(PALETTE.convert("RGB"))[~transparent])
    key = png_chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert read_image(handmade_png(2, 8, 2, 1, b"\0\1\2\3\4\5\6", key)).tolist() == [[[255] * 3, [4, 5, 6]]]
    deep_key = png_chunk(b"tRNS", struct.pack(">H", 1000))
    deep = read_image(handmade_png(0, 16, 2, 1, b"\0" + struct.pack(">HH", 1000, 40000), deep_key))
    assert deep[..., 0].tolist() == [[255, 156]]


def test_transparent_colour_that_pillow_would_miss_is_refused():
    key = png_chunk(b"tRNS", struct.pack(">H", 3))
    with pytest.raises(NotAnImage, match="transparent"):
        read_image(handmade_png(0, 4, 2, 1, b"\0\x3a", key))


def test_format_is_told_by_content_and_not_by_name(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(NOISE, "PNG"))
    np.testing.assert_array_equal(read_image(path), NOISE)
    assert sniff_format(path) == "PNG"
    assert FORMAT_OF_SUFFIX[path.suffix] == "JPEG"


@pytest.mark.parametrize("source", SOURCES)
def test_sniffing_names_each_format(source):
    assert sniff_format(SOURCES[source]) == source.split()[0]


def test_suffixes_are_the_agreed_ones():
    assert {".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff"} == IMAGE_SUFFIXES


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("GIF", encoded(PALETTE, "GIF")),
        ("WebP", encoded(NOISE, "WEBP")),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50)),
        ("DICOM", bytes(128) + b"DICM"),
        ("PDF", b"%PDF-1.7"),
        ("ZIP", b"PK\x03\x04"),
    ],
)
def test_other_formats_are_refused_by_name(kind, data, tmp_path):
    path = tmp_path / "cell.png"
    path.write_bytes(data)
    assert sniff_format(path) == kind
    with pytest.raises(NotAnImage, match=f"is a {kind} file; give a BMP, PNG, JPEG or TIFF file") as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def error_of(source: Path | bytes, **options) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    return caught.value


def test_each_unusable_path_has_its_own_error_which_begins_with_the_path(tmp_path):
    empty, text, half = tmp_path / "empty.bmp", tmp_path / "text.png", tmp_path / "half.bmp"
    empty.write_bytes(b"")
    text.write_text("not an image")
    half.write_bytes(SOURCES["BMP"][: len(SOURCES["BMP"]) // 2])
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    expected = {
        tmp_path / "missing.png": ImageNotFound,
        tmp_path / ("a" * 300): ImageError,
        Path("nul\0byte.png"): ImageNotFound,
        tmp_path: NotAnImage,
        empty: NotAnImage,
        text: NotAnImage,
        half: TruncatedImage,
        loop: ImageError,
    }
    for path, kind in expected.items():
        error = error_of(path)
        assert type(error) is kind or (kind is ImageError and isinstance(error, ImageError)), path
        assert str(error).startswith(f"{path}: ")
        assert "; " in str(error), "the remedy follows a semicolon"
        assert str(error).endswith(".")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert type(error_of(pipe)) is NotAnImage


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_file_is_a_named_error(tmp_path):
    path = tmp_path / "cell.png"
    path.write_bytes(SOURCES["PNG"])
    path.chmod(0)
    assert "permissions" in str(error_of(path))


def test_bytes_are_called_by_the_given_name():
    assert str(error_of(b"", name="upload 3")).startswith("upload 3: ")
    assert str(error_of(b"text", name="upload 3")).startswith("upload 3: ")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_files_are_named_as_such(source, share):
    data = SOURCES[source]
    error = error_of(data[: int(len(data) * share)], name="cell")
    assert type(error) is TruncatedImage
    assert str(error).startswith("cell: ")


@pytest.mark.parametrize("source", ["PNG", "PNG palette", "PNG RGBA", "PNG 16 bit"])
def test_no_changed_byte_in_a_png_goes_unnoticed(source):
    data, whole = SOURCES[source], read_image(SOURCES[source])
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 0x10
        with pytest.raises(ImageError):
            read_image(bytes(changed))
    np.testing.assert_array_equal(read_image(data), whole)


def huge_png(width: int, height: int) -> bytes:
    return handmade_png(0, 8, width, height, b"\0" * 100)


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)])
def test_oversized_images_are_refused_by_their_header(size):
    error = error_of(huge_png(*size))
    assert type(error) is OversizedImage
    assert f"{size[0]}x{size[1]}" in str(error)


def test_size_bound_is_exact_and_leaves_pillows_own_setting_alone():
    before = Image.MAX_IMAGE_PIXELS
    for data in (SOURCES["BMP"], SOURCES["TIFF"], SOURCES["JPEG progressive"]):
        assert read_image(data, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
        assert type(error_of(data, max_pixels=HEIGHT * WIDTH - 1)) is OversizedImage
    assert before == Image.MAX_IMAGE_PIXELS


def test_bound_over_pillows_own_is_kept_without_its_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Over twice Pillow's own bound, at which Image.open refuses; these data then end early.
        error = error_of(huge_png(200_000, 1_000), max_pixels=200_000_000)
    assert type(error) is TruncatedImage


def test_small_tiff_with_a_huge_tile_is_refused():
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 64}
    assert type(error_of(handmade_tiff(tags, bytes(64)))) is OversizedImage


def test_several_pages_or_frames_are_refused():
    pages = [Image.fromarray(NOISE), Image.fromarray(SMOOTH)]
    for kind in ("TIFF", "PNG"):
        error = error_of(encoded(pages[0], kind, save_all=True, append_images=pages[1:]))
        assert type(error) is NotAnImage
        assert "several pages or frames" in str(error)


@pytest.mark.parametrize("values", [np.float32(NOISE[..., 0]), np.int32(NOISE[..., 0])])
def test_samples_of_32_bits_are_refused(values):
    error = error_of(encoded(values, "TIFF"))
    assert type(error) is NotAnImage
    assert "32 bits" in str(error)


def test_12_bit_samples_whose_range_is_another_are_refused():
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 277: 1, 278: 2}
    assert "12 bits" in str(error_of(handmade_tiff(tags, bytes(6))))


def test_threads_read_as_one_does():
    jobs = list(SOURCES.values()) * 20
    alone = [read_image(data) for data in jobs[: len(SOURCES)]] * 20
    with ThreadPoolExecutor(8) as threads:
        for one, other in zip(threads.map(read_image, jobs), alone, strict=True):
            np.testing.assert_array_equal(one, other)


def read_or_refuse(data: bytes) -> None:
    """Reading gives an image as promised or an ImageError; anything else fails the test."""
    try:
        image = read_image(data, name="cell", max_pixels=4_000_000)
    except ImageError as error:
        text = str(error)
    else:
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)
        assert image.size
        return
    assert text.startswith("cell: ")
    assert "\n" not in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_mutated_files_raise_nothing_but_image_errors(source, draw):
    data = bytearray(SOURCES[source])
    # Half of the changes fall on the header, where they do most harm.
    place = st.integers(0, min(200, len(data) - 1)) | st.integers(0, len(data) - 1)
    for position, byte in draw.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=6)):
        data[position] = byte
    end = draw.draw(st.just(len(data)) | st.integers(0, len(data)))
    read_or_refuse(bytes(data[:end]))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", SOURCES)
def test_thousands_of_mutated_files_raise_nothing_but_image_errors(source):
    draw = random.Random(source)
    for _ in range(5000):
        data = bytearray(SOURCES[source])
        for _ in range(draw.choice((0, 1, 1, 2, 5))):
            reach = len(data) if draw.random() < 0.5 else min(200, len(data))
            data[draw.randrange(reach)] = draw.randrange(256)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        read_or_refuse(bytes(data))


@settings(max_examples=100, deadline=None)
@given(
    head=st.sampled_from([b"", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0+"]),
    rest=st.binary(),
)
def test_rubbish_behind_a_true_signature_is_a_named_error(head, rest):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_or_refuse(head + rest)


@pytest.mark.shared
def test_real_cells_are_read_as_opencv_reads_them():
    if not CELLS.is_dir():
        pytest.skip("the real cells are missing: ../shared/data/sipakmed_original_sample")
    paths = sorted(CELLS.rglob("*.bmp"))
    assert len(paths) > 90
    for path in paths:
        other = cv2.imread(str(path))
        assert other is not None
        np.testing.assert_array_equal(read_image(path), other[..., ::-1])
