"""Answers for many who ask at once: their images go through the network together, one queue for all.

The queue is bounded: when it is full, whoever comes next is sent away (`Busy`), the API's clients at once,
the pages after a few seconds. One thread takes what has gathered while it was at work, so that images wait
for each other no longer than the network is busy anyway. The API's images wait as files, not decoded; the
pages ask through a `QueuedClassifier`. What takes long, the test of a map, the API's too, has a place in the
queue and a thread of its own, so that the next cell does not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cervicyte.dashboard.limits import (
    MAX_EXPLAINED_PIXELS,
    MAX_PIXELS,
    MAX_WAITING,
    SECONDS_OF_PATIENCE,
)
from cervicyte.dashboard.markup import onto, smaller
from cervicyte.errors import CervicyteError
from cervicyte.evaluation.answers import Prediction
from cervicyte.evaluation.predictions import BATCH
from cervicyte.explanation import cam
from cervicyte.explanation.verdict import Verdict
from cervicyte.images.reader import read_image
from cervicyte.images.threads import one_thread_beside_a_network
from cervicyte.inference.classifier import Classifier

if TYPE_CHECKING:
    from cervicyte.network.model_file import ModelFile

Result = TypeVar("Result")
# A processor is busy with a few images already: with more at once all would wait for the last one's answer.
IMAGES_AT_ONCE = {"cpu": 8}
PIXELS_AT_ONCE = 2 * MAX_PIXELS  # decoded, in memory
LOGGER = logging.getLogger("cervicyte")
SECONDS_BETWEEN_LOOKS = 0.05


class Busy(Exception):
    """The queue is full."""


@dataclass(frozen=True)
class Wanted:
    """Which maps are asked for.

    Attributes:
        classes: by name.
        layer, method: see `Classifier.explain`.
        with_verdict: whether the map of the predicted class is held against controls.
    """

    classes: tuple[str, ...]
    layer: str
    method: str
    with_verdict: bool = False


@dataclass(frozen=True)
class Found:
    """What was found for one image.

    Attributes:
        image: uint8 [h, w, 3], RGB, in the size in which it is shown, if maps were asked for.
        height, width: of the image as it was read, in pixels.
        prediction: what the network says.
        maps: class -> float32 [h, w], over `image`, of the classes that were asked for.
        highest: class -> the highest value of its map on the pixels that were read.
        verdict: on the map of the predicted class, if it was asked for.
    """

    image: np.ndarray | None
    height: int
    width: int
    prediction: Prediction
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Asked:
    """One image whose answer is awaited.

    Attributes:
        content: the file's bytes.
        name: what errors call it.
        wanted: maps, or None if a prediction is enough.
        answer: will hold a `Found`, or the error.
    """

    content: bytes
    name: str
    wanted: Wanted | None = None
    answer: Future[Found] = field(default_factory=Future)

    @property
    def with_verdict(self) -> bool:
        """Whether it waits once more, aside, for its map to be held against controls."""
        return self.wanted is not None and self.wanted.with_verdict


@dataclass(frozen=True)
class Work:
    """What is wanted of the network, to be done by itself when its turn comes.

    Attributes:
        do: asks the network.
        images: for how many it counts.
        aside: whether it takes long and nobody looks at a bare page for it: others overtake it.
        answer: will hold what `do` returns, or its error.
    """

    do: Callable[[], Any]
    images: int = 1
    aside: bool = False
    answer: Future[Any] = field(default_factory=Future)


class Batcher:
    """Sends the images of all who ask through one classifier, together where they wait together.

    Attributes:
        ready: set once a first image has gone through the network, which is slower than all later ones.
        tried: set once it has gone through or failed; only if it failed, `ready` is not set then.
    """

    def __init__(
        self,
        classifier: Classifier,
        most_waiting: int = MAX_WAITING,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Start the thread.

        Args:
            classifier: answers.
            most_waiting: images, beside those at work.
            on_batch: is told how many images went through the network together.
        """
        self.classifier = classifier
        self.ready = threading.Event()
        self.tried = threading.Event()
        self._most_waiting = most_waiting
        self._at_once = IMAGES_AT_ONCE.get(classifier.device.split(":")[0], BATCH)
        self._on_batch = on_batch
        self._waiting: deque[Asked | Work] = deque()
        self._aside: deque[Work] = deque()  # has a thread of its own, one at a time
        self._to_judge = 0  # images of the batch at work that will go aside for their verdicts
        self._verdicts: list[Work] = []  # theirs
        self._at_work: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name="cervicyte-batches", daemon=True),
            threading.Thread(target=self._work_aside, name="cervicyte-aside", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many images wait."""
        with self._changed:
            return _images(self._waiting) + _images(self._aside)

    def submit(self, asked: Sequence[Asked | Work]) -> None:
        """Take images in, all or none; their `answer` comes later. A cancelled one is not worked on.

        Raises:
            Busy: there is no room for all of them, or the batcher was closed.
        """
        with self._changed:
            if not self._has_room(asked):
                self._forget_cancelled()
            if self._closed or not self._has_room(asked):
                raise Busy
            for one in asked:
                if isinstance(one, Work) and one.aside:
                    self._aside.append(one)
                else:
                    self._waiting.append(one)
            self._changed.notify_all()

    def in_turn(
        self,
        do: Callable[[], Result],
        images: int = 1,
        *,
        aside: bool = False,
        patience: float = SECONDS_OF_PATIENCE,
    ) -> Result:
        """Return what `do` returns, which is called when its turn comes.

        Args:
            do: asks the network.
            images: for how many it counts.
            aside: see `Work`.
            patience: seconds to wait for a place in the queue.

        Raises:
            Busy: there was no place in that time, or the batcher was closed.
        """
        work = Work(do, images, aside)
        end = time.monotonic() + patience
        while True:
            try:
                self.submit([work])
            except Busy:
                left = end - time.monotonic()
                if left <= 0 or self._closed:
                    raise
                with self._changed:
                    self._changed.wait(min(left, SECONDS_BETWEEN_LOOKS))
            else:
                break
        try:
            result: Result = work.answer.result()
        except CancelledError:
            raise Busy from None
        return result

    def until_idle(self, longest: float) -> None:
        """Wait until nobody waits and nothing is at work, but not for longer than so many seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not (self._waiting or self._aside or self._at_work), timeout=longest
            )

    def _has_room(self, asked: Sequence[Asked | Work]) -> bool:
        return self.waiting + self._to_judge + _images(asked) <= self._most_waiting

    def _forget_cancelled(self) -> None:
        self._waiting = deque(one for one in self._waiting if not one.answer.cancelled())
        self._aside = deque(one for one in self._aside if not one.answer.cancelled())

    def close(self) -> None:
        """End the thread; what still waits is cancelled."""
        with self._changed:
            self._closed = True
            self._cancel_waiting()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._cancel_waiting()  # for their verdicts, those of the last batch

    def _cancel_waiting(self) -> None:
        for one in (*self._waiting, *self._aside):
            one.answer.cancel()
        self._waiting.clear()
        self._aside.clear()

    def _work(self) -> None:
        try:
            self.classifier.predict([np.zeros((64, 64, 3), np.uint8)])
            self.ready.set()
        except Exception as error:
            log_failure(error)
        finally:
            self.tried.set()
        while (batch := self._gathered()) is not None:
            if isinstance(batch, Work):
                _carry_out(batch)
                continue
            try:
                with one_thread_beside_a_network():  # requests are read meanwhile
                    self._answer(batch)
            except Exception as error:  # whatever it was, the next batch is not to suffer from it
                log_failure(error)
                self._verdicts.clear()
                for one in batch:
                    _fail(one, error)

    def _work_aside(self) -> None:
        while True:
            with self._changed:
                self._at_work.discard("aside")
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._aside or self._closed)
                if self._closed:
                    return
                self._at_work.add("aside")
                work = self._aside.popleft()
            _carry_out(work)

    def _gathered(self) -> list[Asked] | Work | None:
        """Wait; return the work whose turn it is, or the images before the next work; None when closed."""
        with self._changed:
            self._at_work.discard("batch")
            self._aside += self._verdicts
            self._verdicts, self._to_judge = [], 0
            self._forget_cancelled()  # maps that wait for a verdict take memory
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._at_work.add("batch")
            batch: list[Asked] = []
            while self._waiting and len(batch) < self._at_once:
                first = self._waiting[0]
                if isinstance(first, Work):
                    if not batch:
                        self._waiting.popleft()
                        return first
                    break
                batch.append(first)
                self._to_judge += first.with_verdict
                self._waiting.popleft()
            return batch

    def _answer(self, batch: Sequence[Asked]) -> None:
        """Read and answer a batch, in parts whose decoded images lie in memory at once."""
        part: list[tuple[Asked, np.ndarray]] = []
        pixels = 0
        for one in batch:
            if not _begun(one):
                continue  # nobody waits for it any more
            try:
                most = MAX_PIXELS if one.wanted is None else MAX_EXPLAINED_PIXELS
                image = read_image(one.content, name=one.name, max_pixels=most)
            except CervicyteError as error:
                _fail(one, error)
                continue
            part.append((one, image))
            pixels += image.shape[0] * image.shape[1]
            if pixels >= PIXELS_AT_ONCE:
                self._answer_decoded(part)
                part, pixels = [], 0
        self._answer_decoded(part)

    def _answer_decoded(self, part: Sequence[tuple[Asked, np.ndarray]]) -> None:
        if not part:
            return
        self._on_batch(len(part))
        try:
            wanted = [asked.wanted for asked, _ in part if asked.wanted is not None]
            # With an engine that gives maps along, there is no second pass for them.
            evidence = any(self.classifier.in_one_pass(one.layer, one.method) for one in wanted)
            predictions = self.classifier.answered([image for _, image in part], evidence)
        except Exception as error:
            if len(part) == 1:
                log_failure(error)
                _fail(part[0][0], error)
                return
            for one in part:  # one image's failure is not to be the others'
                self._answer_decoded([one])
            return
        answered = [(*one, *found) for one, found in zip(part, predictions, strict=True)]
        # Maps take longer: who wants none does not wait for them.
        answered.sort(key=lambda one: one[0].wanted is not None)
        for asked, image, prediction, evidence_of_it in answered:
            try:
                found = self._found(asked.wanted, image, prediction, evidence_of_it)
                if asked.with_verdict:
                    preprocessed = self.classifier.seen_through(prediction)(image)
                    judge = functools.partial(self._judged, asked, found, preprocessed)
                    self._verdicts.append(Work(judge, aside=True, answer=asked.answer))
                else:
                    asked.answer.set_result(found)
            except Exception as error:
                if not isinstance(error, CervicyteError):
                    log_failure(error)
                _fail(asked, error)

    def _found(
        self,
        wanted: Wanted | None,
        image: np.ndarray,
        prediction: Prediction,
        evidence: np.ndarray | None,
    ) -> Found:
        height, width = image.shape[:2]
        if wanted is None:
            return Found(None, height, width, prediction)
        if evidence is not None and self.classifier.in_one_pass(wanted.layer, wanted.method):
            maps = self.classifier.maps_of(image, evidence, prediction, wanted.classes)
        else:
            maps = self.classifier.explain(
                image, wanted.classes, wanted.layer, wanted.method, prediction=prediction
            )
        highest = {name: float(values.max()) for name, values in maps.items()}
        shown = smaller(image)
        return Found(shown, height, width, prediction, onto(shown, maps), highest)

    def _judged(self, asked: Asked, found: Found, preprocessed: np.ndarray) -> Found:
        assert asked.wanted is not None
        class_name, layer, method = found.prediction.class_name, asked.wanted.layer, asked.wanted.method
        try:
            verdict = self.classifier.judge(preprocessed, class_name, layer, method)
        except Exception as error:
            if not isinstance(error, CervicyteError):
                log_failure(error)
            raise
        return replace(found, verdict=verdict)


class QueuedClassifier(Classifier):
    """A classifier for the pages: it asks its network in turn with all others.

    `predict`, `answered`, `explain` and `judge` raise `Busy` where no turn is to be had.
    """

    def __init__(self, classifier: Classifier, batcher: Batcher) -> None:
        """Take the classifier that does the work and the queue that gives the turns."""
        vars(self).update(vars(classifier))  # all is ready there; nothing is to be moved anew
        self._classifier, self._batcher = classifier, batcher

    def answered(
        self, images: Sequence[np.ndarray], evidence: bool
    ) -> list[tuple[Prediction, np.ndarray | None]]:
        """See `Classifier.answered`."""
        if not images:
            return []
        return self._batcher.in_turn(functools.partial(super().answered, images, evidence), len(images))

    def explain(
        self,
        image: np.ndarray,
        classes: Sequence[str] | None = None,
        layer: str | None = None,
        method: str = cam.DEFAULT_METHOD,
        *,
        prediction: Prediction | None = None,
    ) -> dict[str, np.ndarray]:
        """See `Classifier.explain`."""
        # Not `super()`, which may ask for a prediction: a turn within a turn would never come.
        explain = self._classifier.explain
        return self._batcher.in_turn(
            functools.partial(explain, image, classes, layer, method, prediction=prediction)
        )

    def judge(
        self,
        preprocessed: np.ndarray,
        class_name: str,
        layer: str | None = None,
        method: str = cam.DEFAULT_METHOD,
    ) -> Verdict:
        """See `Classifier.judge`."""
        return self._batcher.in_turn(
            functools.partial(super().judge, preprocessed, class_name, layer, method), aside=True
        )

    def aside(self, do: Callable[[Classifier], Result]) -> Result:
        """Return what `do` makes of the classifier itself, once the turn of work that takes long comes."""
        return self._batcher.in_turn(functools.partial(do, self._classifier), aside=True)

    def torch_model(self) -> ModelFile:
        """See `Classifier.torch_model`; loaded once for all."""
        return self._classifier.torch_model()


def _images(waiting: Iterable[Asked | Work]) -> int:
    return sum(one.images if isinstance(one, Work) else 1 for one in waiting)


def _begun(one: Asked) -> bool:
    """Return whether an image is still awaited; one for a verdict can be cancelled until that is begun."""
    return not one.answer.cancelled() if one.with_verdict else one.answer.set_running_or_notify_cancel()


def _carry_out(work: Work) -> None:
    if not work.answer.set_running_or_notify_cancel():
        return
    try:
        result = work.do()
    except BaseException as error:
        work.answer.set_exception(error)
    else:
        work.answer.set_result(result)


def log_failure(error: BaseException) -> None:
    """Log where the program failed and on what kind of error: its text might hold what belongs to a user."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    LOGGER.error("%s%s", type(error).__name__, where)


def _fail(one: Asked, error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # answered, or cancelled, already
        one.answer.set_exception(error)
