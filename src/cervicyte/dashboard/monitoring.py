"""What the server counts, in the text format of Prometheus: numbers only, nothing of any image or person."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32)


class Monitor:
    """Counters of one server.

    Attributes:
        requests: to the API, by route and status.
        seconds: from a request's first byte to its answer's last, by route.
        images: by what became of them: a verdict, `refused` or `failed`.
        batches: how many images went through the network together.
    """

    def __init__(self) -> None:
        """Count from zero."""
        self._registry = CollectorRegistry()
        registry = self._registry
        ProcessCollector(registry=registry)  # memory, processor time, open files; on Linux
        self.requests = Counter(
            "cervicyte_requests", "Requests to the API.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "cervicyte_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self.images = Counter(
            "cervicyte_images", "Images by what became of them.", ["outcome"], registry=registry
        )
        self.batches = Histogram(
            "cervicyte_batch_images",
            "Images that were classified together.",
            buckets=SIZES,
            registry=registry,
        )
        self._waiting = Gauge("cervicyte_waiting_images", "Images that wait.", registry=registry)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Tell from now on how many images wait."""
        self._waiting.set_function(waiting)

    def text(self) -> str:
        """Return all counters."""
        return generate_latest(self._registry).decode()
