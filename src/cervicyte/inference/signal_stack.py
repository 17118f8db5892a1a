"""Keeps a thread's alternate signal stack as it was: OpenVINO's processor plugin leaves one that it frees.

The plugin gives the thread that makes it a stack for signal handlers of its own (for the wide registers of
AMX), and frees it when the plugin ends. If that happens in another thread, where a worker drops an engine,
the first is left with a stack that is gone, and the next Ctrl-C there is a segmentation fault instead of a
KeyboardInterrupt. See sigaltstack(2) and https://github.com/openvinotoolkit/openvino/pull/11894.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

DISABLED = 2  # SS_DISABLE: signals are handled on the thread's ordinary stack


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give this thread back, at the end, the alternate signal stack that it had, or none; only on Linux."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        # What is too small for registers that were allowed meanwhile is refused: then none is better.
        if libc.sigaltstack(ctypes.byref(before), None):
            libc.sigaltstack(ctypes.byref(_Stack(None, DISABLED, 0)), None)
