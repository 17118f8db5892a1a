"""Serves dashboard and API, to this machine alone unless told otherwise, and asks nobody for anything.

The page's own files, fonts included, come from here; a content security policy makes the browser
refuse any other address. Uploads lie in a folder of their own until they are read, then they go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import traceback
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

# Before Gradio is imported: it reports its start to its makers otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.exception_handlers import http_exception_handler
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount

from cervicyte import __version__
from cervicyte.dashboard.access import (
    PARAMETER,
    BelowPath,
    OwnNames,
    SecurityHeaders,
    TokenGate,
    chosen_token,
    field_of_form,
    is_loopback,
    own_names,
)
from cervicyte.dashboard.api import PREFIX, build_api, problem_of
from cervicyte.dashboard.batching import LOGGER, Batcher, log_failure
from cervicyte.dashboard.events import Events
from cervicyte.dashboard.limits import MAX_UPLOAD_MB
from cervicyte.dashboard.monitoring import Monitor
from cervicyte.dashboard.page import build_page
from cervicyte.dashboard.page_gate import PageGate
from cervicyte.dashboard.problems import ProblemError
from cervicyte.dashboard.reading_log import ReadingLog
from cervicyte.dashboard.styles import CSS, HEAD, THEME
from cervicyte.dashboard.uploads import BoundedUploads, new_folder_name, private_folder
from cervicyte.errors import UsageError
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.engines import Precision
from cervicyte.provenance import RESEARCH_USE_ONLY

SECONDS_FOR_OPEN_PAGES = 1  # to let go when the server ends; a page holds its connection for ever
SECONDS_BETWEEN_ASKING = 0.05  # whether a first image went through
SECONDS_BETWEEN_SWEEPS = 60  # in which pages that nobody looks at any more are forgotten
ADAPTED_NAME = "cervicyte_adapted.safetensors"
OVERLAYS_NAME = "cervicyte_overlays.zip"
NO_ADAPTED_MODEL = "There is no adapted model any more; adapt anew."
NO_OVERLAYS = "There are no overlays any more; make them anew."
TOKEN_VARIABLE = "CERVICYTE_TOKEN"


@dataclass(frozen=True)
class Access:
    """Who may ask, and by which address.

    Attributes:
        names: by which the server may be called, see `own_names`.
        token: that every request must carry; None asks for none.
        root_path: under which a proxy shows the server, such as `/cells`; empty at the top.
    """

    names: frozenset[str] = own_names("127.0.0.1")
    token: str | None = None
    root_path: str = ""


def build_app(
    model_path: Path,
    with_verdicts: bool = True,
    access: Access = Access(),
    reading_log: ReadingLog | None = None,
    head: str | None = None,
    engine: str | None = None,
    precision: Precision = "float32",
) -> FastAPI:
    """Return the dashboard of a model file: the page at `/`, the API at `PREFIX`, its health at `/health`.

    Args:
        model_path: a model file or an exported graph, see `Classifier.from_file`.
        with_verdicts: whether maps are held against controls.
        access: who may ask.
        reading_log: takes what readers call the cells; None keeps nothing.
        head: the class list to answer in, see `network.heads`.
        engine, precision: see `choice.engine_for`. Another engine than torch gives maps with the answer.

    Raises:
        ModelFileError: the file is missing, damaged, or no model.
        UsageError: it has no such head.
    """
    _keep_texts_from_gradios_log()
    vars(gr.route_utils).update(GradioUploadFile=UploadOfItsOwn)
    classifier = Classifier.from_file(model_path, engine=engine, precision=precision, head=head)
    # The folder names the run; its parents are nobody's business.
    name = "/".join(Path(model_path).resolve().parts[-2:])
    uploads = new_folder_name()
    monitor = Monitor()
    batcher = Batcher(classifier, on_batch=monitor.batches.observe)
    monitor.watch(lambda: batcher.waiting)
    events = Events(classifier, name, batcher, uploads, with_verdicts, reading_log)

    async def forget_in_time() -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)
            await asyncio.to_thread(events.sessions.sweep)

    @contextlib.asynccontextmanager
    async def with_what_is_kept(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(_log_failure_of_loop)
        with private_folder(uploads), contextlib.closing(events.sessions), contextlib.closing(batcher):
            sweeping = asyncio.create_task(forget_in_time())
            yield
            sweeping.cancel()

    app = FastAPI(
        title="Cervicyte",
        version=__version__,
        lifespan=with_what_is_kept,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # the API has its own
    )
    app.state.batcher = batcher
    app.add_middleware(BoundedUploads, folder=uploads)
    app.add_middleware(PageGate, uploads=uploads)
    if access.token is not None:
        app.add_middleware(TokenGate, token=access.token, root_path=access.root_path)
    app.add_middleware(OwnNames, names=access.names)
    app.add_middleware(SecurityHeaders)  # around the others: whatever is answered has them
    if access.root_path:
        app.add_middleware(BelowPath, root_path=access.root_path)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": name, "version": __version__, "notice": RESEARCH_USE_ONLY}

    @app.post("/adapted-model")
    async def adapted_model(request: Request) -> Response:
        """Give the model that was adapted to a page's list to who knows the page's key."""
        path = events.adapted_file(await field_of_form(request, "key"))
        return _file_or_problem(path, ADAPTED_NAME, "application/octet-stream", NO_ADAPTED_MODEL)

    @app.post("/overlays")
    async def overlays(request: Request) -> Response:
        """Give the overlays that were made of a page's list to who knows the page's key."""
        path = events.overlays_file(await field_of_form(request, "key"))
        return _file_or_problem(path, OVERLAYS_NAME, "application/zip", NO_OVERLAYS)

    app.mount(PREFIX, build_api(classifier, name, batcher, monitor))
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # the one way to tell Gradio
    gr.mount_gradio_app(
        app,
        build_page(events, name),
        path="/",
        root_path=access.root_path or None,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=f"{MAX_UPLOAD_MB}mb",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css=CSS,
        head=HEAD,
    )
    pages = next(
        one.app for one in app.routes if isinstance(one, Mount) and isinstance(one.app, gr.routes.App)
    )
    for one in (app, pages):  # the pages take every address that nobody else has
        one.add_exception_handler(HTTPException, _problem_unless_gradios)
    return app


async def _problem_unless_gradios(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and "/gradio_api/" in request.url.path:  # its script reads its own
        return await http_exception_handler(request, error)
    return await problem_of(request, error)


class UploadOfItsOwn(gr.route_utils.GradioUploadFile):
    """An upload whose place nobody else's has: Gradio puts files of equal content into the same place.

    The first page to read such a file would remove it from the others.
    """

    def __init__(self, *given: Any, **settings: Any) -> None:
        """Begin an upload; its place is called after all that is hashed."""
        super().__init__(*given, **settings)
        self.sha.update(secrets.token_bytes(32))


class PlaceOnly(ModuleType):
    """The module `traceback`, but what it prints of the current exception is what `log_failure` tells."""

    def __init__(self) -> None:
        """Take the place of the module."""
        super().__init__(traceback.__name__)

    def __getattr__(self, name: str) -> Any:
        """Return what the module has."""
        return getattr(traceback, name)

    def print_exc(self, *ignored: object, **also_ignored: object) -> None:
        """Log where the program failed; the text of Gradio's errors holds what was sent."""
        error = sys.exc_info()[1]
        if error is not None:
            log_failure(error)


def _keep_texts_from_gradios_log() -> None:
    """Let Gradio print no text that was sent: neither tracebacks with it, nor parts of addresses."""
    for name, module in list(sys.modules.items()):
        if name.startswith("gradio.") and vars(module).get("traceback") is traceback:
            vars(module).update(traceback=PlaceOnly())
            if name in ("gradio.queueing", "gradio.routes"):  # what answers requests
                vars(module).update(print=lambda *ignored, **also_ignored: None)


def _log_failure_of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what failed with nobody waiting for it; by default its text would be printed."""
    error = context.get("exception")
    if error is None:
        LOGGER.error("%s", context["message"])  # asyncio's own words
    else:
        log_failure(error)


def _file_or_problem(path: Path | None, name: str, media_type: str, missing: str) -> Response:
    if path is None:
        return ProblemError(404, missing).response()
    # Sent from where it lies, a piece at a time: no copy in memory or on the disk.
    return FileResponse(path, media_type=media_type, filename=name)


def serve(
    model_path: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = True,
    with_verdicts: bool = True,
    *,
    token: str | None = None,
    token_file: Path | None = None,
    allowed_names: Iterable[str] = (),
    root_path: str = "",
    log: Path | None = None,
    head: str | None = None,
    engine: str | None = None,
    precision: Precision = "float32",
) -> None:
    """Serve the dashboard until Ctrl-C; print its address when it is ready.

    Args:
        model_path: a model file or an exported graph, see `Classifier.from_file`.
        host: only this machine can reach the default; any other needs a token.
        port: 0 takes a free one.
        open_browser: open the page when it is ready.
        with_verdicts: whether maps are held against controls.
        token: that every request must carry. Without one here, in `token_file` or in the environment's
            `CERVICYTE_TOKEN`, one is made and shown where others can reach the server.
        token_file: holds the token.
        allowed_names: by which the server may be called beside its own, such as a proxy's.
        root_path: under which a proxy shows the server, such as `/cells`.
        log: a reading log, which is made if it is not there; see `ReadingLog`.
        head: the class list to answer in, of a model that has several.
        engine, precision: see `choice.engine_for`.

    Raises:
        ModelFileError: the file is missing, damaged, or no model.
        ReadingLogError: the log cannot be used.
        UsageError: the address, the token or the path cannot be used.
    """
    chosen, made_here = chosen_token(host, token, token_file, os.environ.get(TOKEN_VARIABLE))
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise UsageError(f"--root-path {root_path}: must begin with / and not end with it, such as /cells.")
    # Bound before the model is loaded: a port that is taken is told at once.
    with _bound(host, port) as listener:
        reading_log = None if log is None else ReadingLog(log)
        access = Access(own_names(host, allowed_names), chosen, root_path)
        app = build_app(model_path, with_verdicts, access, reading_log, head, engine, precision)
        shown_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        shown_host = f"[{shown_host}]" if ":" in shown_host else shown_host
        address = f"http://{shown_host}:{listener.getsockname()[1]}"
        opened = address if chosen is None else f"{address}/?{PARAMETER}={quote(chosen, safe='')}"
        if not is_loopback(host):
            print(
                f"Warning: listening on {host}, every machine that reaches this one and knows the token can "
                "use the dashboard, without encryption; put a proxy with TLS before it.",
                file=sys.stderr,
                flush=True,
            )

        batcher: Batcher = app.state.batcher

        def announce() -> None:
            is_it = "ready" if batcher.ready.is_set() else "open, though its model failed at a first image,"
            # A token that its owner has chosen is not shown.
            print(
                f"{RESEARCH_USE_ONLY}\n"
                f"Dashboard {is_it} at {opened if made_here else address} (Ctrl-C ends it)"
            )
            if reading_log is not None:
                print(f"Readings are kept in {reading_log.path}")
            sys.stdout.flush()
            if open_browser:
                # Some systems' browsers hold the call until they close.
                threading.Thread(target=webbrowser.open, args=(opened,), daemon=True).start()

        _log_to_stderr()
        # No access log: addresses and names of files are nobody's business.
        settings = uvicorn.Config(
            app,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SECONDS_FOR_OPEN_PAGES,
        )
        # Uvicorn ends in good order, then raises the signal that ended it once more.
        with contextlib.suppress(KeyboardInterrupt):
            AnnouncingServer(settings, batcher.tried.is_set, announce).run([listener])
        print("Dashboard ended.", flush=True)


def _log_to_stderr() -> None:
    if not LOGGER.handlers:
        handler = LineHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        LOGGER.addHandler(handler)


class LineHandler(logging.StreamHandler):
    """Writes lines to the error output; one that cannot be written is lost, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Stay silent: by default the error that is at hand would be printed, with its text."""


class AnnouncingServer(uvicorn.Server):
    """Uvicorn's server that calls `announce` once it answers and its model has been tried."""

    def __init__(
        self, config: uvicorn.Config, is_tried: Callable[[], bool], announce: Callable[[], None]
    ) -> None:
        """Take Uvicorn's settings, what says that the model was tried, and the function to call."""
        super().__init__(config)
        self.is_tried = is_tried
        self.announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as Uvicorn does; announce when a probe that asks then is not told to wait."""
        await super().startup(sockets)
        while self.started and not self.is_tried() and not self.should_exit:
            await asyncio.sleep(SECONDS_BETWEEN_ASKING)
        if self.started and not self.should_exit:
            self.announce()


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"Port {port} of {host} cannot be used ({reason}); end the program that uses it, or choose "
            "another with --port."
        ) from error
