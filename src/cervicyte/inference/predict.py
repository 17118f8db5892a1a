"""Classify images into a table, a few at a time; after an interruption no row is lost or doubled.

While the network has one batch, the next are read and the rows of the last are written: none of them waits
for another for longer than it must.

Rows are appended to a neighbour of the table, `.NAME.partial.csv`, whose last line may be half written when
the machine stops: what follows the last whole batch is thrown away, and the images of the lines before it are
not asked again. Batches so have the same images whatever interrupts, and rows the same last digit.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cervicyte import __version__
from cervicyte.errors import ImageError, NotAnImage, RunFolderError, UsageError
from cervicyte.evaluation.answers import UNLIKE, Prediction
from cervicyte.evaluation.prediction_sets import SEPARATOR
from cervicyte.evaluation.predictions import BATCH
from cervicyte.images.reader import read_image
from cervicyte.images.threads import one_thread_beside_a_network
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.object_store import is_uri, reason_of
from cervicyte.inference.sources import LIST_PREFIX, STANDARD_INPUT, Source, shown, sources_of
from cervicyte.network.frozen import FrozenModel
from cervicyte.network.graph import Output
from cervicyte.progress import SILENT, Progress
from cervicyte.provenance import provenance, refuse_to_replace, sha256_of_json, write_json, written_atomically

try:
    import fcntl
except ImportError:  # Windows: two commands at one table are not kept apart
    fcntl = None  # type: ignore[assignment]

READING_THREADS = 2
AHEAD = 2  # batches that are read while the network has one
SUFFIXES = (".csv", ".parquet")
LIST_SUFFIXES = (*SUFFIXES, ".txt")
FIRST_COLUMNS = ("path", "sha256", "predicted_class", "confidence")
LAST_COLUMNS = ("prediction_set", "unlike_percentile", "verdict", "error")
ERROR = "error"
VERDICT = -2  # its place in a row
READ_ANEW = 500  # images at most of an interrupted table, to see whether they are still the same
MANY_UNLIKE = 0.2  # of the images; of the training laboratory's own, 0.05 are

Rows = Generator[list[list[str]]]  # some of a table's rows at a time; closed, it ends what it began


@dataclass(frozen=True)
class Prepared:
    """An image that was read, ready for the network, or why it could not be.

    Attributes:
        name: in the table.
        digest: SHA-256 of the file; empty if there is none.
        error: why there is no image; else empty.
        inputs: uint8 [1, S, S, 3]; None if there is no image.
        statistics: see `Classifier.statistics`, of this image.
        small: the image as read, uint8 [H, W, 3], if a second look at it is possible.
    """

    name: str
    digest: str
    error: str
    inputs: np.ndarray | None = None
    statistics: np.ndarray | None = None
    small: np.ndarray | None = None


class Workers(Protocol):
    """Whatever makes rows of images elsewhere than in this process, see `on_ray`."""

    def describe(self) -> dict[str, Any]:
        """Return what is recorded of them beside the table."""

    def rows(self, classifier: Classifier, sources: Iterator[Source]) -> Rows:
        """Yield the rows of images, a few at a time: those of `rows_here`, in its order, from its batches."""


@dataclass(frozen=True)
class Outcome:
    """What a table holds.

    Attributes:
        rows: one an image.
        errors: how many of them could not be read.
        notes: what its reader must know, a sentence each.
    """

    rows: int
    errors: int
    notes: tuple[str, ...] = ()


def predict(
    classifier: Classifier,
    names: Sequence[str],
    out: Path,
    *,
    force: bool = False,
    command: str | None = None,
    progress: Progress = SILENT,
    workers: Workers | None = None,
) -> Outcome:
    """Classify images into a table, one row an image, and write beside it where it comes from.

    Args:
        classifier: answers.
        names: see `sources_of`.
        out: ends with `.csv` or `.parquet`; see `origin_path` for what stands beside it. Columns: path,
            sha256, predicted_class, confidence, p_<class> …, abnormal (of a model with several heads),
            prediction_set, unlike_percentile, verdict, error. An image that cannot be read has a row with
            its error.
        force: replace a table that is there.
        command: the command line, recorded beside the table.
        progress: is told of every batch.
        workers: who answer in the classifier's stead, with its model and engine; None is this process.

    Raises:
        UsageError: a name leads to nothing, there is no image at all, `out` ends otherwise, or there is a
            table, or another file called as what is written beside it, and no `force`.
        RunFolderError: an interrupted table there is of other images or of another model.
        WorkersError: the workers are not there, or none is left.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: must end with {' or '.join(SUFFIXES)}; name the file so with --out.")
    refuse_to_replace(out, force)
    origin_file = origin_path(out)
    if not force and origin_file.exists() and not _is_origin(origin_file):
        raise UsageError(
            f"{origin_file}: is there already and not of a table; choose another name with --out, or replace "
            "it with --force."
        )
    partial = _partial(out)
    with _alone_with(partial):
        names = [_kept(partial) if name == STANDARD_INPUT else name for name in names]
        total, lies_in = 0, ""
        for source in sources_of(names):
            total += 1
            if not (lies_in or is_uri(source.location) or Path(source.location).is_absolute()):
                lies_in = shown(str(Path.cwd()))
        if not total:
            _list(partial).unlink(missing_ok=True)
            raise UsageError(
                "There is no image to classify: the list is empty; name an image or a folder, or give a list "
                "with a name a line."
            )
        engine = classifier.engine.describe()
        about = {
            "model": classifier.weights_sha256,
            "answers": _fingerprint(classifier),
            "engine": engine,
            "names": [shown(name) for name in names],
            "folder": lies_in,  # elsewhere, the same relative names are of other images
        }
        done, verdicts = _done(partial, about, header_of(classifier), sources_of(names))
        progress.start("Classifying", total, done=done)
        remaining = itertools.islice(sources_of(names), done, None)
        answers = rows_here(classifier, remaining) if workers is None else workers.rows(classifier, remaining)
        with contextlib.closing(answers), open(partial, "a", encoding="utf-8", newline="") as file:
            for rows in answers:
                _append(file, rows)
                verdicts.update(row[VERDICT] for row in rows)
                progress.advance(len(rows))
        progress.close()
        outcome = Outcome(verdicts.total(), verdicts[ERROR], (*classifier.notes, *_notes_on(verdicts)))
        origin = {
            "rows": outcome.rows,
            "errors": outcome.errors,
            "verdicts": dict(verdicts),
            "weights_sha256": about["model"],
            "engine": engine,
            **({} if workers is None else workers.describe()),
        }
        # Before the table, which so never stands there without it.
        write_json(origin_file, {**origin, **provenance(command), "notes": list(outcome.notes)})
        if out.suffix == ".csv":
            partial.replace(out)
        else:
            _to_parquet(partial, out, header_of(classifier))
            partial.unlink()
        for helper in (_about(partial), _list(partial)):
            helper.unlink(missing_ok=True)
    return outcome


def origin_path(out: Path) -> Path:
    """Return the file beside a table that says where it comes from: `cells.csv.json` of `cells.csv`.

    The ending stays, so that `cells.csv` and `cells.parquet` each have their own.
    """
    return out.with_name(f"{out.name}.json")


def _is_origin(path: Path) -> bool:
    """Return whether a file is what stands beside a table, as one does that was interrupted or moved away."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"verdicts", "weights_sha256"} <= content.keys()


def _fingerprint(classifier: Classifier) -> str:
    """Return a hash of what besides the weights decides what a row says, whatever file holds it."""
    model = classifier.model
    said = ("head", "heads", "calibration", "familiarity", "adaptation")
    return sha256_of_json(
        {
            "cervicyte": __version__,
            "network": model.kind,
            "classes": list(classifier.class_names),
            "preprocessing": model.preprocessing.fingerprint(),
            **({"second_look": again.fingerprint()} if (again := classifier.answerer.second_look) else {}),
            "tensors": model.tensors_sha256,
            # Two graphs in int8 of the same weights answer otherwise.
            "graph": model.files_sha256 if isinstance(model, FrozenModel) else [],
            **{name: model.metadata.get(name) for name in said},
        }
    )


def _notes_on(verdicts: Counter[str]) -> Iterator[str]:
    """Say that a laboratory is another one, where many of its images are unlike the training cells."""
    read = verdicts.total() - verdicts[ERROR]
    unlike = sum(verdicts[name] for name in UNLIKE)
    if read and unlike / read > MANY_UNLIKE:
        yield (
            f"{unlike / read:.0%} of the images are unlike the cells that the model was trained on: its "
            "answers mean little for them. `cervicyte adapt` fits the model to a laboratory's unlabelled "
            "images; see docs/your_own_images.md."
        )


# --- rows ------------------------------------------------------------------------------------------


def header_of(classifier: Classifier) -> list[str]:
    """Return the names of a table's columns."""
    abnormal = [] if classifier.answerer.abnormal_unit is None else ["abnormal"]
    return [*FIRST_COLUMNS, *(f"p_{name}" for name in classifier.class_names), *abnormal, *LAST_COLUMNS]


def rows_here(classifier: Classifier, sources: Iterator[Source]) -> Rows:
    """Yield the rows of images, a batch at a time, in order, made in this process."""
    with (
        one_thread_beside_a_network(),
        ThreadPoolExecutor(READING_THREADS) as threads,
        ThreadPoolExecutor(1) as network,
    ):
        for batch, output in _computed(classifier, _prepared(classifier, sources, threads), network):
            yield list(_rows(classifier, batch, output))


def rows_of_batch(
    classifier: Classifier, sources: Sequence[Source], threads: ThreadPoolExecutor
) -> list[list[str]]:
    """Return the rows of at most `BATCH` images, read in threads."""
    with one_thread_beside_a_network():
        batch = list(threads.map(lambda source: _prepare(classifier, source), sources))
        inputs = [one.inputs for one in batch if one.inputs is not None]
        output = classifier.engine.run(np.concatenate(inputs)) if inputs else None
        return list(_rows(classifier, batch, output))


def _prepared(
    classifier: Classifier, sources: Iterable[Source], threads: ThreadPoolExecutor
) -> Iterator[list[Prepared]]:
    """Yield batches in order, while threads read and prepare the next `AHEAD`, and no more."""
    remaining = iter(sources)
    waiting: collections.deque[list[Future[Prepared]]] = collections.deque()
    try:
        while True:
            while len(waiting) <= AHEAD and (batch := list(itertools.islice(remaining, BATCH))):
                waiting.append([threads.submit(_prepare, classifier, source) for source in batch])
            if not waiting:
                return
            yield [future.result() for future in waiting.popleft()]
    finally:
        for future in itertools.chain.from_iterable(waiting):
            future.cancel()


def _prepare(classifier: Classifier, source: Source) -> Prepared:
    digest, image, error = image_of(source)
    if image is None:
        return Prepared(source.name, digest, error)
    inputs, statistics = classifier.preprocessed([image]), classifier.statistics([image])
    small = image if classifier.answerer.has_second_look(image) else None
    return Prepared(source.name, digest, "", inputs, statistics, small)


def _computed(
    classifier: Classifier, batches: Iterable[list[Prepared]], network: ThreadPoolExecutor
) -> Iterator[tuple[list[Prepared], Output | None]]:
    """Yield batches with what the network makes of them; while one is in use, the next is computed."""
    waiting: tuple[list[Prepared], Future[Output] | None] | None = None
    for batch in batches:
        inputs = [one.inputs for one in batch if one.inputs is not None]
        asked = network.submit(classifier.engine.run, np.concatenate(inputs)) if inputs else None
        if waiting is not None:
            yield waiting[0], _result(waiting[1])
        waiting = batch, asked
    if waiting is not None:
        yield waiting[0], _result(waiting[1])


def _result(asked: Future[Output] | None) -> Output | None:
    return None if asked is None else asked.result()


def _rows(classifier: Classifier, batch: Sequence[Prepared], output: Output | None) -> Iterator[list[str]]:
    """Yield the rows of a batch in its order; `output` is of those of its images that could be read."""
    predictions: Iterator[Prediction] = iter(())
    if output is not None:
        statistics = np.concatenate([one.statistics for one in batch if one.statistics is not None])
        small = [one.small for one in batch if one.inputs is not None]
        predictions = iter(
            classifier.answerer.predictions(
                output.logits, output.means, statistics, small, classifier.look_again
            )
        )
    for one in batch:
        if one.inputs is None:
            blank = [""] * (len(header_of(classifier)) - 4)
            yield [one.name, one.digest, *blank, ERROR, one.error]
        else:
            yield [one.name, one.digest, *values_of(next(predictions)), ""]


def values_of(prediction: Prediction) -> list[str]:
    """Return what a row says of an image, from `predicted_class` to `verdict`."""
    unlike = "" if prediction.unlike is None else f"{prediction.unlike.unlike_percentile:.2f}"
    return [
        prediction.class_name,
        f"{prediction.confidence:.6f}",
        *(f"{probability:.6f}" for probability in prediction.probabilities.values()),
        *([] if prediction.abnormal is None else [f"{prediction.abnormal:.6f}"]),
        SEPARATOR.join(prediction.prediction_set),
        unlike,
        prediction.verdict,
    ]


def image_of(source: Source) -> tuple[str, np.ndarray | None, str]:
    """Return a file's hash, its image, and why there is none."""
    digest = ""
    try:
        content = source.read()
        digest = hashlib.sha256(content).hexdigest()
        return digest, read_image(content, name=source.name), ""
    except ImageError as error:
        text = str(error)
        if isinstance(error, NotAnImage) and source.name.lower().endswith(LIST_SUFFIXES):
            text = f"{text.removesuffix('.')}, or name a list of images as {LIST_PREFIX}{source.name}."
        return digest, None, shown(text)
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        return digest, None, shown(f"{source.name}: cannot be read ({reason}); check the path and the file.")


# --- the table -------------------------------------------------------------------------------------


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial.csv")


def _about(partial: Path) -> Path:
    return partial.with_suffix(".json")


def _list(partial: Path) -> Path:
    return partial.with_suffix(".txt")


@contextlib.contextmanager
def _alone_with(partial: Path) -> Iterator[None]:
    """Keep a second command from the same table, whose rows would come twice.

    Raises:
        RunFolderError: another command is at it.
    """
    if fcntl is None:
        yield
        return
    path = partial.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except BlockingIOError:
            is_free = False
        except OSError:  # a disk that knows no locks
            is_free = True
        if not is_free:  # or has just ended, and taken its lock's file with it
            raise RunFolderError(
                f"{partial}: another command is writing this table; wait for it, or choose another name with "
                "--out."
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _append(file: TextIO, rows: Iterable[Sequence[str]]) -> None:
    """Append rows, and make sure that they are on the disk."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    try:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):  # what could not be written would be tried again here
            file.close()
        raise RunFolderError(
            f"{file.name}: cannot be written ({error.strerror}); make room, and repeat the command: it goes "
            "on after the last row."
        ) from error


def _done(
    partial: Path, about: dict[str, Any], header: list[str], sources: Iterator[Source]
) -> tuple[int, Counter[str]]:
    """Begin a table, or take up an interrupted one; return how many rows it has, and their verdicts."""
    if not _has_a_line(partial):
        write_json(_about(partial), about)
        with open(partial, "w", encoding="utf-8", newline="") as file:
            _append(file, [header])
        return 0, Counter()
    try:
        begun = json.loads(_about(partial).read_bytes()) if _about(partial).is_file() else None
    except ValueError as error:
        raise RunFolderError(f"{_about(partial)}: is damaged; delete {partial} to start anew.") from error
    if begun != about:
        raise RunFolderError(
            f"{partial}: is of other images, or of another model or engine; delete it to start anew, or "
            "choose another name with --out."
        )
    rows, verdicts = 0, Counter[str]()
    drawn, step = list[tuple[int, str, Source]](), 1
    with open(partial, "rb+") as file:
        lines = iter(file.readline, b"")
        if _row(next(lines, b"")) != header:
            raise RunFolderError(f"{partial}: is damaged; delete it to start anew.")
        whole, end = 0, file.tell()
        begun_batch = Counter[str]()
        for row in map(_row, lines):
            if row is None:
                break
            source = next(sources, None)
            if source is None or len(row) != len(header) or row[0] != source.name:
                raise _of_others(partial)
            if rows % step == 0:
                drawn.append((rows, row[1], source))
                if len(drawn) > READ_ANEW:
                    drawn, step = drawn[::2], 2 * step
            rows += 1
            begun_batch[row[VERDICT]] += 1
            if rows % BATCH == 0:
                verdicts += begun_batch
                begun_batch.clear()
                whole, end = rows, file.tell()
        # One after another, so that no more than one archive is open.
        while drawn:
            number, digest, source = drawn.pop()
            if number < whole and _is_another(source, digest):
                raise _of_others(partial)
        file.truncate(end)
    return whole, verdicts


def _of_others(partial: Path) -> RunFolderError:
    return RunFolderError(
        f"{partial}: its rows are not of the images that are there now; delete it to start anew."
    )


def _is_another(source: Source, digest: str) -> bool:
    """Return whether a file was changed since a row was made of it; not if it cannot be read, now or then."""
    try:
        return bool(digest) and hashlib.sha256(source.read()).hexdigest() != digest
    except (OSError, ValueError):
        return False


def _has_a_line(partial: Path) -> bool:
    """Return whether a table was begun; one without so much as a header was not."""
    if not partial.is_file():
        return False
    with open(partial, "rb") as file:
        return file.readline().endswith(b"\n")


def _row(line: bytes) -> list[str] | None:
    """Return what stands in a line of a table; None if it has no end, as a power cut leaves the last one, or
    is damaged: from there on it is made anew."""
    try:
        return next(csv.reader([line.decode("utf-8")])) if line.endswith(b"\n") else None
    except (UnicodeDecodeError, csv.Error):
        return None


def _to_parquet(table: Path, out: Path, header: Sequence[str]) -> None:
    """Write a CSV table as Parquet, a part at a time."""
    numbers = {
        "confidence",
        "abnormal",
        "unlike_percentile",
        *(name for name in header if name.startswith("p_")),
    }
    types = {name: pa.float64() if name in numbers else pa.string() for name in header}
    options = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    with (
        written_atomically(out) as partial,
        pyarrow.csv.open_csv(table, convert_options=options) as parts,
        pyarrow.parquet.ParquetWriter(partial, parts.schema) as writer,
    ):
        for part in parts:
            writer.write_batch(part)


def _kept(partial: Path) -> str:
    """Write the names on standard input, which can be read but once, into a list, and return its name."""
    path = _list(partial)
    with written_atomically(path) as kept, open(kept, "w", encoding="utf-8") as file:
        file.writelines(f"{_line(source)}\n" for source in sources_of([STANDARD_INPUT]))
    return f"{LIST_PREFIX}{path}"


def _line(source: Source) -> str:
    """Return an image's name as a list can hold it: as it is, but for ends of lines and what is no UTF-8."""
    name = source.location if source.member is None else f"{source.location}/{source.member}"
    try:
        name.encode()
    except UnicodeEncodeError:
        return source.name
    return source.name if "\n" in name or "\r" in name else name
