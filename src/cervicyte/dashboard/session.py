"""What the server keeps for the pages that are open: in memory alone, bounded, and forgotten in time.

A page names its session by a random key that its browser tab keeps, so that a page that is loaded again finds
its cells. Nobody else can know the key, and the tab forgets it when it is closed.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from cervicyte.dashboard.adaptation import Adaptation, Adapting
from cervicyte.dashboard.cell_view import Looked
from cervicyte.dashboard.limits import (
    MAX_OVERLAYS_MB,
    MAX_SESSIONS,
    MAX_SESSIONS_MB,
    SECONDS_AFTER_LEAVING,
    SECONDS_KEPT,
)
from cervicyte.dashboard.overlays import MakingOverlays, Overlays
from cervicyte.dashboard.reading import Reading
from cervicyte.dashboard.worklist import Worklist

SECONDS_UNTIL_IDLE = 5 * 60
"""After the last thing that was asked, when memory that others need is taken from a session."""
MOST_REMEMBERED = 10_000  # keys of sessions that are gone, with why; open pages, with their keys
KEY = re.compile(r"[0-9a-f]{32,64}")

AGAIN = "Choose their files again."
LONG_AGO = f"Nothing was asked here for {SECONDS_KEPT // 3600} hours, so the cells were removed. {AGAIN}"
LEFT = f"This page was left for {SECONDS_AFTER_LEAVING // 60} minutes, so its cells were removed. {AGAIN}"
NEEDED = (
    "The server's memory was needed for others, so the cells of this page, which nobody had looked at for a "
    f"while, were removed. {AGAIN}"
)
RESTARTED = f"The server was started anew and has no cells of this page any more. {AGAIN}"
NO_MEMORY = "were left out, as the server's memory for open pages is full; send them again later."
MEMORY_FULL = "The server's memory for open pages is full, so"
NOT_OPENED = f"{MEMORY_FULL} the cell was not opened. Try again in a few minutes."
NOT_KEPT = f"{MEMORY_FULL} the adapted model was not kept. Try again in a few minutes."
NO_DISK = "There is no room for more overlays on the server, so they were not made. Try again later."


class Gone(Exception):
    """The session was forgotten; the text says why, for the page."""


class Full(Exception):
    """The room for all pages is full; the text says what came of it, for the page."""


@dataclass
class Session:
    """One page's cells.

    Attributes:
        worklist: the cells that were given to it.
        reading: those that are read blind.
        looked: the one that is looked at.
        adaptation: what came of adapting a model to the worklist.
        adapting: how far that is, while it is at work.
        overlays: those of the worklist that were made last.
        making: how far that is, while it is at work.
        seen: hashes of the files whose answers were listed; clearing the list takes none away.
        pages: that are open with it.
        used: when it was last asked for, in seconds of the store's clock.
        left: when its last page was left, or a page asked that was left already; None while one is open.
    """

    worklist: Worklist
    reading: Reading
    looked: Looked | None = None
    adaptation: Adaptation | None = None
    adapting: Adapting | None = None
    overlays: Overlays | None = None
    making: MakingOverlays | None = None
    seen: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    used: float = 0.0
    left: float | None = None

    @classmethod
    def of(cls, class_names: tuple[str, ...]) -> Self:
        """Return an empty one for a model's classes."""
        return cls(Worklist(class_names), Reading(Worklist(class_names)))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it that could be lost."""
        return not self.worklist.entries and not self.reading.cells.entries

    @property
    def held_bytes(self) -> int:
        """What it takes of the memory, about."""
        held = self.worklist.held_bytes + self.reading.cells.held_bytes
        held += self.looked.held_bytes if self.looked is not None else 0
        return held + (self.adaptation.held_bytes if self.adaptation is not None else 0)

    @property
    def disk_bytes(self) -> int:
        """What its overlays take of the disk."""
        made = self.overlays.bytes if self.overlays is not None else 0
        return made + (self.making.bytes if self.making is not None else 0)

    def note_seen(self) -> None:
        """Note which answers have been listed."""
        self.seen |= {entry.sha256 for entry in self.worklist.entries if entry.prediction is not None}

    def forget_adaptation(self) -> None:
        """Remove the adapted model, file and all."""
        adaptation, self.adaptation = self.adaptation, None
        if adaptation is not None:
            adaptation.remove()

    def forget_overlays(self) -> None:
        """Remove the overlays' file, and stop making others."""
        if self.making is not None:
            self.making.stop()
        made, self.overlays = self.overlays, None
        if made is not None:
            made.remove()


class Sessions:
    """The sessions of all pages by their keys."""

    def __init__(self, class_names: tuple[str, ...], clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none, for a model's classes; `clock` gives seconds."""
        self._class_names = class_names
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._key_of_page: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        self._changing = threading.RLock()

    @property
    def held_bytes(self) -> int:
        """What all take of the memory, about."""
        with self._changing:
            return sum(one.held_bytes for one in self._sessions.values())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._sessions)

    def open(self, key: str, page: str, resumed: bool) -> Session:
        """Return the session of a page that was just loaded.

        Args:
            key: of the browser's tab.
            page: as the server tells one open page from another.
            resumed: whether the tab had the key before.

        Raises:
            Gone: the tab had a session that is no more; the next question begins a new one.
        """
        with self._changing:
            self.sweep()
            is_new = key not in self._sessions
            reason = self._gone.pop(key, RESTARTED)
            session = self.of(key)
            session.pages.add(page)
            self._key_of_page[page] = key
            _drop_oldest(self._key_of_page)
            session.left = None
        if is_new and resumed:
            raise Gone(reason)
        return session

    def of(self, key: str) -> Session:
        """Return the session of a key, a new one if there is none.

        Raises:
            Gone: it was forgotten; the next call begins a new one. Or this is no key.
        """
        if not KEY.fullmatch(key):
            raise Gone(RESTARTED)
        with self._changing:
            self.sweep()
            if (reason := self._gone.pop(key, None)) is not None:
                raise Gone(reason)
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = Session.of(self._class_names)
                # Its page may be open still, and was only told that its cells are gone.
                session.pages = {page for page, one in self._key_of_page.items() if one == key}
            session.used = self._clock()
            # What a page asked for may come to its turn after it was left.
            session.left = None if session.pages else session.used
            if len(self._sessions) > MAX_SESSIONS:
                others = [one for one in self._by_use() if one != key]
                # Those first that lose nothing: a page that was only loaded takes no cells from others.
                self._forget(min(others, key=lambda one: not self._sessions[one].is_empty), NEEDED)
            return session

    def there(self, key: str) -> Session | None:
        """Return the session of a key if there is one; begins none, and says nobody's reason."""
        with self._changing:
            return self._sessions.get(key)

    def leave(self, page: str) -> None:
        """Note that a page was left; its session is kept for a while."""
        with self._changing:
            session = self._sessions.get(self._key_of_page.pop(page, ""))
            if session is None:
                return
            session.pages.discard(page)
            if not session.pages:
                session.left = self._clock()

    def make_room(self, count: int, session: Session) -> bool:
        """Return whether a session may take up so many more bytes, once idle ones were forgotten for it.

        What takes up none, or gives some back, may always.
        """
        with self._changing:
            for key in self._by_use():
                if self.held_bytes + count <= MAX_SESSIONS_MB << 20:
                    break
                other = self._sessions[key]
                if other is not session and self._clock() - other.used >= SECONDS_UNTIL_IDLE:
                    self._forget(key, NEEDED)
            return count <= 0 or self.held_bytes + count <= MAX_SESSIONS_MB << 20

    def go_on(self, session: Session) -> None:
        """Note that a session is at work, which keeps its cells as a question does while its page is open.

        Raises:
            Full: what it writes finds no room on the disk.
        """
        with self._changing:
            if session.pages:
                session.used = self._clock()
            if sum(one.disk_bytes for one in self._sessions.values()) >= MAX_OVERLAYS_MB << 20:
                raise Full(NO_DISK)

    def sweep(self) -> None:
        """Forget what nobody asked for in a long time, or whose page was left."""
        with self._changing:
            now = self._clock()
            for key, session in list(self._sessions.items()):
                if now - session.used >= SECONDS_KEPT:
                    self._forget(key, LONG_AGO)
                elif session.left is not None and now - session.left >= SECONDS_AFTER_LEAVING:
                    self._forget(key, LEFT)

    def close(self) -> None:
        """Forget all."""
        with self._changing:
            for key in list(self._sessions):
                self._forget(key, RESTARTED)

    def _by_use(self) -> list[str]:
        return sorted(self._sessions, key=lambda key: self._sessions[key].used)

    def _forget(self, key: str, reason: str) -> None:
        session = self._sessions.pop(key)
        if not session.is_empty:
            self._gone[key] = reason
            _drop_oldest(self._gone)
        # A page that is at work with it right now keeps nothing more in it.
        session.worklist, session.looked = Worklist(self._class_names), None
        session.reading = Reading(Worklist(self._class_names))
        session.forget_overlays()
        session.forget_adaptation()  # last: who adapts to the old list sees that it is gone


def _drop_oldest(remembered: dict[str, str]) -> None:
    if len(remembered) > MOST_REMEMBERED:
        del remembered[next(iter(remembered))]
