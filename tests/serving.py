"""What the tests of the server share: a small model, images, and the API without its pages."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from cervicyte.dashboard import server
from cervicyte.dashboard.api import PREFIX, build_api
from cervicyte.dashboard.batching import Batcher
from cervicyte.dashboard.events import Events
from cervicyte.dashboard.monitoring import Monitor
from cervicyte.images.preprocessing import Preprocessing
from cervicyte.inference.classifier import Classifier
from cervicyte.network.model_file import ModelFile, save_model
from cervicyte.network.resnet import CBAMResNet50

CLASSES = ("Dyskeratotic", "Koilocytotic", "Parabasal")


def small_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ModelFile(CBAMResNet50(3), CLASSES, Preprocessing(image_size=32)), device="cpu")


@contextlib.contextmanager
def api_of(classifier: Classifier, most_waiting: int = 96) -> Iterator[FastAPI]:
    """Yield an application with the API alone; `app.state` has its batcher and monitor."""
    monitor = Monitor()
    app = FastAPI()
    with contextlib.closing(Batcher(classifier, most_waiting, monitor.batches.observe)) as batcher:
        monitor.watch(lambda: batcher.waiting)
        app.state.batcher, app.state.monitor = batcher, monitor
        app.mount(PREFIX, build_api(classifier, "run/best_model.pth", batcher, monitor))
        batcher.ready.wait(60)
        yield app


@contextlib.contextmanager
def whole_server(
    classifier: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[TestClient, Events]]:
    """Yield a client of pages and API, and what answers the pages' questions; the model lies in a folder."""
    made: list[Events] = []

    def noted(*arguments: object, **settings: object) -> Events:
        made.append(Events(*arguments, **settings))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(server, "Events", noted)
    path = folder / "best_model.pth"
    save_model(path, classifier.torch_model())
    with TestClient(server.build_app(path), base_url="http://127.0.0.1") as client:
        yield client, made[0]


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application in a thread; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def png_of(seed: int, height: int = 30, width: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png_that_states(width: int, height: int) -> bytes:
    """Return a small PNG file whose header states any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
