"""Whatever is sent: an answer or one clear sentence, never a failure of the program."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import NoSuchExample, Unsatisfiable
from PIL import Image
from serving import api_of, encoded, png_of, png_that_states, small_classifier

from cervicyte.dashboard.api import Answers
from cervicyte.dashboard.limits import MAX_IMAGES
from cervicyte.dashboard.problems import Problem

pytestmark = pytest.mark.full

schemathesis = pytest.importorskip("schemathesis", reason="needs Schemathesis: pip install schemathesis")
MUTATED = 5000
EXAMPLES = 40  # of each address
QUIET = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
EXPLAINED = 100  # of them, also asked for maps
SENTENCE = re.compile(r"\S[^\n]*: [^\n]+\.")  # names the image, and is one


@pytest.fixture(scope="module")
def app() -> Iterator[object]:
    with api_of(small_classifier()) as app:
        yield app


@pytest.fixture
def client(app) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


# --- mutated images ------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Return small files of every kind that is read, and of kinds that are not."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 31, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (24, 31)).astype(np.uint16))
    tall = Image.fromarray(rng.integers(0, 256, (9, 5, 4), np.uint8))
    frames = [rgb, rgb.transpose(Image.Transpose.ROTATE_180)]
    exif = Image.Exif()
    exif[274] = 6
    return [
        encoded(rgb),
        encoded(tall),
        encoded(rgb.convert("P")),
        encoded(rgb.convert("1")),
        encoded(rgb.convert("L"), transparency=7),
        encoded(deep),
        encoded(Image.new("RGB", (1, 1))),
        encoded(rgb, "JPEG", quality=80),
        encoded(rgb, "JPEG", progressive=True, exif=exif),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(Image.new("L", (1, 1)), "JPEG"),
        encoded(rgb, "BMP"),
        encoded(rgb.convert("P"), "BMP"),
        encoded(rgb, "TIFF"),
        encoded(rgb, "TIFF", compression="tiff_lzw"),
        encoded(rgb, "TIFF", compression="jpeg"),
        encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        encoded(rgb.convert("CMYK"), "TIFF"),
        encoded(rgb.convert("1"), "TIFF", compression="group4"),
        encoded(deep, "TIFF"),
        encoded(rgb.convert("F"), "TIFF"),
        _animated(frames, "TIFF"),
        _animated(frames, "PNG"),
        _animated(frames, "GIF"),
        encoded(rgb, "WEBP"),
        encoded(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"),
        png_that_states(20_000, 20_000),
        png_that_states(0, 5),
        png_that_states(2**31 - 1, 2**31 - 1),
        b"this is text and no picture at all",
        b"%PDF-1.7 a report",
        b"PK\x03\x04 an archive",
    ]


def _animated(frames: list[Image.Image], kind: str) -> bytes:
    data = io.BytesIO()
    frames[0].save(data, kind, save_all=True, append_images=frames[1:])
    return data.getvalue()


def mutated(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Return a file that was damaged in one of several ways, or in two."""
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 3))):
        kind = int(rng.integers(8))
        at = int(rng.integers(max(1, len(damaged))))
        if kind == 0:
            del damaged[at:]  # truncated
        elif kind == 1:
            for place in rng.integers(0, max(1, len(damaged)), int(rng.integers(1, 33))):
                if place < len(damaged):
                    damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:  # a number of a header becomes an extreme one
            near = int(rng.integers(max(1, min(len(damaged), 200))))
            extreme = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 20_000, 65_535]))
            damaged[near : near + 4] = struct.pack("<I" if rng.random() < 0.5 else ">I", extreme)
        elif kind == 3:
            damaged[at : at + int(rng.integers(1, 65))] = bytes(64)
        elif kind == 4:
            damaged[at:at] = rng.bytes(int(rng.integers(1, 65)))
        elif kind == 5:
            del damaged[at : at + int(rng.integers(1, 65))]
        elif kind == 6:  # begins as one kind, goes on as another
            other = others[int(rng.integers(len(others)))]
            damaged[at:] = other[min(at, len(other)) :]
        else:
            damaged = bytearray(with_right_sums(bytes(damaged), rng))
    return bytes(damaged[:200_000])


def with_right_sums(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage the chunks of a PNG and put their checksums right, so that the decoder meets the damage."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    made, at = content[:8], 8
    while at + 12 <= len(content):
        length = min(int.from_bytes(content[at : at + 4], "big"), len(content) - at - 12)
        kind, body = content[at + 4 : at + 8], bytearray(content[at + 8 : at + 8 + length])
        if body and rng.random() < 0.5:
            body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
        summed = kind + bytes(body)
        made += struct.pack(">I", length) + summed + struct.pack(">I", zlib.crc32(summed))
        at += 12 + length
    return made


def test_mutated_images_are_answered_or_refused_in_one_sentence(client):
    rng = np.random.default_rng(1)
    whole = seeds()
    files = whole + [mutated(whole[at % len(whole)], rng, whole) for at in range(MUTATED)]
    outcomes: Counter[str] = Counter()
    for start in range(0, len(files), MAX_IMAGES):
        group = files[start : start + MAX_IMAGES]
        form = [("images", (f"{start + at}.png", content)) for at, content in enumerate(group)]
        response = client.post("/api/v1/predict", files=form)
        assert response.status_code in (200, 422), (start, response.text)
        if response.status_code == 422:
            errors = Problem.model_validate(response.json()).errors
        else:
            results = Answers.model_validate(response.json()).results
            assert len(results) == len(group)
            outcomes["answered"] += sum(one.status == "answered" for one in results)
            errors = [one.error for one in results if one.status == "refused"]
        for error in errors:
            assert SENTENCE.fullmatch(error), error
            assert not re.search(r"Traceback|/tmp|object at 0x", error), error
        outcomes["refused"] += len(errors)
    print(f"{dict(outcomes)} of {len(files)}")
    assert outcomes.total() == len(files)
    assert min(outcomes.values()) > 300  # neither is all
    for content in files[:: len(files) // EXPLAINED]:
        response = client.post("/api/v1/explain", files={"images": ("cell.png", content)})
        assert response.status_code in (200, 422), response.text
        if response.status_code == 422:
            assert SENTENCE.fullmatch(Problem.model_validate(response.json()).detail)
    assert client.post("/api/v1/predict", files={"images": png_of(0)}).status_code == 200


# --- whatever the description allows -------------------------------------------------------------


def asked_of(cases, excluded) -> int:
    """Send what is drawn, hold every answer against the description, and return how many there were."""
    count = 0

    @settings(QUIET, max_examples=EXAMPLES)
    @given(case=cases)
    def ask(case):
        nonlocal count
        case.call_and_validate(excluded_checks=excluded)
        count += 1

    ask()
    return count


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_whatever_the_description_allows_or_forbids_is_answered_as_it_says(app, mode):
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    # What is base64 by its description is rarely an image: such data are refused, rightly.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    asked: Counter[str] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        try:
            cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
            find(cases, lambda case: True, settings=QUIET)
        except (NoSuchExample, Unsatisfiable):  # nothing is forbidden where nothing can be said
            continue

        asked[operation.label] = asked_of(cases, excluded)
    print(dict(asked))
    assert {"POST /predict", "POST /explain"} <= set(asked)
    assert min(asked["POST /predict"], asked["POST /explain"]) > EXAMPLES // 2
