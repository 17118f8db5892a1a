"""The same rows from many processes or machines: Ray Data carries names to workers and rows back.

Each worker loads the model once and takes batches of the same images as `predict` alone would, so that
rows differ in nothing but rounding, and in nothing where an engine takes as many threads. Rows come back in
the order of the images. What a worker that dies was asked, Ray asks another; the table is written here alone,
where rows that were lost or doubled on the way would be seen.

Ray itself has no guard at its door: whoever reaches a cluster's ports can run programs there. It reports
nothing to its makers here, and shows no dashboard.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pyarrow as pa

from cervicyte import __version__
from cervicyte.errors import UsageError, WorkersError, to_install
from cervicyte.evaluation.predictions import BATCH
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.engines import Precision
from cervicyte.inference.object_store import is_uri
from cervicyte.inference.predict import Rows, rows_of_batch
from cervicyte.inference.sources import Archive, Source

ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray's own
BLOCK = 2 * BATCH  # images that a worker is handed at once, and that are asked again if it dies
AT_ONCE = 100_000  # images whose names are with Ray; after them, workers load the model anew
READING_THREADS = 8  # a worker's; an object store answers late
STORE_BYTES = 256 << 20  # of the memory that processes of one machine share: the model, names and rows
PATIENCE_S = 10.0  # for a cluster to answer
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no report to its makers
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # containers often have little in /dev/shm
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it warns of every actor's arguments
    "RAY_worker_niceness": "0",  # by default workers stand back behind all else, to a standstill
}


@dataclass(frozen=True)
class RayWorkers:
    """Workers of a Ray cluster, or of one that is begun on this machine and ended with the work.

    Attributes:
        model: the file that the classifier was read from; workers get its bytes.
        address: of a cluster, as `ray.init` takes it; None is that of $RAY_ADDRESS, or this machine alone.
        threads: that each worker takes; there are as many workers as that leaves room for.
    """

    model: Path
    address: str | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot work before a model is loaded."""
        if self.threads < 1:
            raise UsageError(f"{self.threads} threads a worker are too few; choose 1 or more.")
        if util.find_spec("ray") is None:
            raise UsageError(f"The engine ray needs the package ray; install it with: {to_install('ray')}.")

    def describe(self) -> dict[str, Any]:
        """See `predict.Workers`."""
        return {"ray": {"version": metadata.version("ray"), "threads_per_worker": self.threads}}

    def rows(self, classifier: Classifier, sources: Iterator[Source]) -> Rows:
        """See `predict.Workers`."""
        first = next(sources, None)
        if first is None:  # an interrupted table that lacks no row
            return
        sources = itertools.chain([first], sources)
        with _joined(self.address) as ray:
            crew = crew_of(
                [node["Resources"] for node in ray.nodes() if node["Alive"]],
                self.threads,
                wants_gpu=classifier.engine.name == "torch",
            )
            content = ray.put(self.model.read_bytes())  # held here until the last worker has ended
            arguments = (
                content,
                self.model.suffix,
                classifier.engine.name,
                classifier.engine.precision,
                self.threads,
                classifier.weights_sha256,
                __version__,
                classifier.model.metadata.get("head"),
            )
            while names := list(itertools.islice(sources, AT_ONCE)):
                yield from _checked(_answered(ray, names, crew, arguments), len(names))


@dataclass(frozen=True)
class Crew:
    """How many workers there are, and what each takes of its machine.

    Attributes:
        workers: at least 1.
        processors: of each.
        gpus: of each, 0 or 1.
    """

    workers: int
    processors: int
    gpus: int


def crew_of(machines: Sequence[Mapping[str, float]], threads: int, wants_gpu: bool) -> Crew:
    """Return the crew that machines have room for.

    Args:
        machines: what Ray says of each: `CPU` and, if it has any, `GPU`.
        threads: of a worker.
        wants_gpu: each worker is to have a GPU, where there is one.

    Raises:
        WorkersError: no machine has so many processors.
    """
    if wants_gpu and any(machine.get("GPU", 0) >= 1 for machine in machines):
        room = [min(machine.get("GPU", 0), machine.get("CPU", 0) // threads) for machine in machines]
        crew = Crew(int(sum(map(int, room))), threads, 1)
    else:
        crew = Crew(int(sum(machine.get("CPU", 0) // threads for machine in machines)), threads, 0)
    if crew.workers:
        return crew
    most = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
    raise WorkersError(
        f"No machine of the Ray cluster has {threads} processors for a worker, the largest has {most}; "
        "choose fewer with --ray-threads."
    )


# --- here ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _joined(address: str | None) -> Iterator[Any]:
    """Yield Ray, in a cluster; one that was begun or joined here is left at the end."""
    address = address or os.environ.get(ADDRESS_VARIABLE) or "local"
    _knock(address)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.execution_options.preserve_order)
    began = not ray.is_initialized()
    # What a cluster has is for whoever began it to say.
    own: dict[str, Any] = {}
    if address == "local":
        own = {
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "_node_ip_address": "127.0.0.1",
        }
    try:
        if began:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                reason = " ".join(str(error).split())
                raise WorkersError(
                    f"{address}: Ray cannot be begun or joined there ({reason}); check --ray-address."
                ) from error
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        yield ray
    except ray.exceptions.RayError as error:
        raise _of_ray(error) from error
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before
        if began:
            ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address at which nobody answers; Ray itself would try for minutes.

    Raises:
        WorkersError: nobody answers.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        return  # a word of Ray's, or nothing at all, of which Ray says so
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WorkersError(
            f"{address}: no Ray cluster answers there ({reason}); check --ray-address."
        ) from error


def _of_ray(error: Exception) -> WorkersError:
    """Return the sentence of an error that a worker raised, which Ray wraps in its own and in a traceback."""
    ours = re.findall(r"cervicyte\.errors\.\w+: (.+)", str(error))
    said = str(error).strip() or type(error).__name__  # some say nothing
    reason = ours[-1] if ours else said.splitlines()[-1].strip()
    return WorkersError(
        f"The workers on Ray could not go on: {reason.rstrip('.')}. What was answered is kept: repeat the "
        "command once it is mended."
    )


def _answered(
    ray: Any, sources: Sequence[Source], crew: Crew, arguments: tuple[Any, ...]
) -> Iterator[pa.Table]:
    """Yield tables with the numbers of images and their rows, in order, as workers make them."""
    blocks = [_table_of(sources[start : start + BLOCK], start) for start in range(0, len(sources), BLOCK)]
    answers = ray.data.from_arrow(blocks).map_batches(
        Worker,
        fn_constructor_args=arguments,
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=crew.workers),
        num_cpus=crew.processors,
        num_gpus=crew.gpus,
    )
    yield from answers.iter_batches(batch_size=None, batch_format="pyarrow")


def _checked(tables: Iterable[pa.Table], images: int) -> Iterator[list[list[str]]]:
    """Yield the rows of tables; every image has one, in order, or this ends."""
    expected = 0
    for table in tables:
        numbers = table.column("number").to_pylist()
        if numbers != list(range(expected, expected + len(numbers))):
            raise WorkersError(
                "Ray lost or doubled rows on the way; repeat the command to ask for them again."
            )
        expected += len(numbers)
        yield table.column("row").to_pylist()
    if expected < images:
        raise WorkersError("Ray lost rows on the way; repeat the command to ask for them again.")


def _table_of(sources: Sequence[Source], first: int) -> pa.Table:
    """Return images as a table that goes to a worker, where this process' folder may be another one."""
    there = [
        source if is_uri(source.location) else replace(source, location=str(Path(source.location).absolute()))
        for source in sources
    ]
    return pa.table(
        {
            "number": pa.array(range(first, first + len(there)), pa.int64()),
            "name": pa.array([source.name for source in there], pa.string()),
            # Bytes, as a path need not be UTF-8.
            "location": pa.array([os.fsencode(source.location) for source in there], pa.binary()),
            "member": pa.array([source.member for source in there], pa.string()),
        }
    )


# --- there -----------------------------------------------------------------------------------------


class Worker:
    """A model in a process of Ray's, that answers batch by batch."""

    def __init__(
        self,
        content: Any,
        suffix: str,
        engine: str,
        precision: Precision,
        threads: int,
        weights_sha256: str,
        version: str,
        head: str | None = None,
    ) -> None:
        """Load a model.

        Args:
            content: Ray's reference to the bytes of its file.
            suffix: of that file.
            engine, precision: of `choice.engine_for`.
            threads: that the engine takes.
            weights_sha256: see `Classifier.weights_sha256`, of whoever asks.
            version: of the program that asks.
            head: of a model that has several, the one whose classes to take.

        Raises:
            WorkersError: another version of the program is installed here, or the model's file was changed.
            UsageError, ModelFileError: see `Classifier.from_file`.
        """
        if version != __version__:
            raise WorkersError(
                f"a worker has Cervicyte {__version__}, and {version} is what asks; install the same "
                "everywhere."
            )
        import ray

        os.environ["OMP_NUM_THREADS"] = str(threads)  # which the engines go by
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"model{suffix}"
            file.write_bytes(ray.get(content))
            self._classifier = Classifier.from_file(file, engine=engine, precision=precision, head=head)
        if self._classifier.weights_sha256 != weights_sha256:
            raise WorkersError("the model's file was changed after it was read")
        if engine == "torch":
            import torch

            torch.set_num_threads(threads)
        self._threads = ThreadPoolExecutor(READING_THREADS)
        self._archive: tuple[str, Archive | None] = ("", None)  # the last one, which the next batch may share

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the numbers and rows of images, of a table of `_table_of` with at most `BATCH`."""
        columns = (batch.column(name).to_pylist() for name in ("name", "location", "member"))
        sources = []
        for name, location, member in zip(*columns, strict=True):
            path = os.fsdecode(location)
            if member is not None and path != self._archive[0]:
                self._archive = path, Archive(path)
            sources.append(Source(name, path, member, None if member is None else self._archive[1]))
        rows = rows_of_batch(self._classifier, sources, self._threads)
        return pa.table({"number": batch.column("number"), "row": pa.array(rows, pa.list_(pa.string()))})
