"""How long work shows that it goes on, and how long it still takes.

Rooms report to a `Progress`; the command line hands them a `TerminalProgress`, a library user nothing.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 15


class Progress:
    """Takes reports of work and shows nothing: the default, and the base of those that show it."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin a piece of work of `total` steps; a piece before it has ended.

        `done` of them were done by an earlier run: they count, but not towards the time left.
        """

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more steps are done; `note` is a short remark such as the loss."""

    def say(self, text: str) -> None:
        """Say one line that stays."""

    def close(self) -> None:
        """End the last piece of work."""


SILENT = Progress()


class TerminalProgress(Progress):
    """A bar with time left on a terminal; elsewhere a line every few seconds."""

    def __init__(self) -> None:
        """Write to standard error, so that standard output stays free for results."""
        self._bar: RichProgress | None = None
        self._live = sys.stderr.isatty()

    def start(self, title: str, total: int, done: int = 0) -> None:
        """See `Progress.start`."""
        self.close()
        self._title, self._total, self._done, self._before = title, total, done, done
        self._began = self._last_line = time.monotonic()
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        """See `Progress.advance`."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES and self._done < self._total:
            self._last_line = now
            left = (now - self._began) / (self._done - self._before) * (self._total - self._done)
            print(
                f"{self._title}: {self._done} of {self._total}"
                f"{', ' + note if note else ''}, {duration(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """See `Progress.say`."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Progress.close`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Return a time in words: `2 min 05 s`, or `7 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
