"""Serves the dashboard from this machine to this machine, and asks nobody else for anything.

The page's own files, fonts included, come from here; a content security policy makes the browser
refuse any other address. Uploads lie in a folder of their own until they are read, then they go.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from pathlib import Path

# Before Gradio is imported: it reports its start to its makers otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cervicyte import __version__
from cervicyte.dashboard.page import CSS, HEAD, MAX_UPLOAD_MB, THEME, build_page
from cervicyte.errors import UsageError
from cervicyte.inference.classifier import Classifier
from cervicyte.provenance import RESEARCH_USE_ONLY

SECONDS_FOR_OPEN_PAGES = 1  # to let go when the server ends; a page holds its connection for ever

# Gradio's page has inline scripts and styles, and compiles its templates.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)


def build_app(model_path: Path, with_verdicts: bool = True) -> FastAPI:
    """Return the dashboard of a model file, with the page at `/` and its state of health at `/health`.

    Args:
        model_path: a model file, see `load_model_file`.
        with_verdicts: whether maps are held against controls.

    Raises:
        ModelFileError: the file is missing, damaged, or no model.
    """
    classifier = Classifier.from_file(model_path)
    # The folder names the run; its parents are nobody's business.
    name = "/".join(Path(model_path).resolve().parts[-2:])
    uploads = Path(tempfile.gettempdir()) / f"cervicyte-{secrets.token_hex(8)}"

    @contextlib.asynccontextmanager
    async def with_upload_folder(app: FastAPI) -> AsyncIterator[None]:
        uploads.mkdir(mode=0o700)
        try:
            yield
        finally:
            shutil.rmtree(uploads, ignore_errors=True)

    app = FastAPI(
        title="Cervicyte",
        version=__version__,
        lifespan=with_upload_folder,
        # FastAPI's pages of documentation load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(SecurityHeaders)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": name, "version": __version__, "notice": RESEARCH_USE_ONLY}

    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # the one way to tell Gradio
    return gr.mount_gradio_app(
        app,
        build_page(classifier, name, with_verdicts=with_verdicts),
        path="/",
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


def serve(
    model_path: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = True,
    with_verdicts: bool = True,
) -> None:
    """Serve the dashboard until Ctrl-C; print its address when it is ready.

    Args:
        model_path: a model file, see `load_model_file`.
        host: only this machine can reach the default; any other address is warned of.
        port: 0 takes a free one.
        open_browser: open the page when it is ready.
        with_verdicts: whether maps are held against controls.

    Raises:
        ModelFileError: the file is missing, damaged, or no model.
        UsageError: the address cannot be used.
    """
    # Bound before the model is loaded: a port that is taken is told at once.
    with _bound(host, port) as listener:
        app = build_app(model_path, with_verdicts)
        shown_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        shown_host = f"[{shown_host}]" if ":" in shown_host else shown_host
        address = f"http://{shown_host}:{listener.getsockname()[1]}"
        if not _is_loopback(host):
            print(
                f"Warning: listening on {host}, every machine that reaches this one can use the dashboard, "
                "without a password and without encryption.",
                file=sys.stderr,
                flush=True,
            )

        def announce() -> None:
            print(f"{RESEARCH_USE_ONLY}\nDashboard ready at {address} (Ctrl-C ends it)", flush=True)
            if open_browser:
                # Some systems' browsers hold the call until they close.
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        settings = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=SECONDS_FOR_OPEN_PAGES)
        # Uvicorn ends in good order, then raises the signal that ended it once more.
        with contextlib.suppress(KeyboardInterrupt):
            AnnouncingServer(settings, announce).run([listener])
        print("Dashboard ended.", flush=True)


class AnnouncingServer(uvicorn.Server):
    """Uvicorn's server that calls `announce` once it answers."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        """Take Uvicorn's settings and the function to call."""
        super().__init__(config)
        self.announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as Uvicorn does, then announce."""
        await super().startup(sockets)
        if self.started:
            self.announce()


class SecurityHeaders:
    """Tells the browser with every answer to ask no other address and to keep this one to itself."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"Port {port} of {host} cannot be used ({reason}); end the program that uses it, or choose "
            "another with --port."
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
