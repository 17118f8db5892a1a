"""The threads that libraries begin of themselves: one a call, where the program's own have the processors.

They wait for each other at the end of each call, and spin while they wait: where other threads have the
processors, a matrix product of a millisecond takes twenty of them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import cv2
import numpy  # noqa: F401  # with its products loaded, they are found
from threadpoolctl import ThreadpoolController, threadpool_limits

OF_NUMPY = "libscipy_openblas"  # begins the name of the library that NumPy's wheels bring


class _OneThread:
    """A context in which libraries keep to one thread a call; any threads may be inside at once.

    The first that enters keeps what there was, and the last that leaves gives it back: what each found for
    itself may be what another had set.
    """

    def __init__(self, limited: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._limited = limited
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._kept.callback(cv2.setNumThreads, cv2.getNumThreads())
                cv2.setNumThreads(1)
                self._kept.enter_context(self._limited())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._kept.close()


@functools.cache
def _products() -> ThreadpoolController:
    # By their names: torch may bring a library of the same kind, which its network needs.
    return ThreadpoolController().select(prefix=[OF_NUMPY])


one_thread_a_call = _OneThread(lambda: threadpool_limits(1))
"""Keeps OpenCV, all matrix products and OpenMP to one thread a call."""

one_thread_beside_a_network = _OneThread(lambda: _products().limit(limits=1))
"""Keeps OpenCV and NumPy's products to one thread a call; a network keeps its threads."""
