"""What a browser may ask of the page: what the page itself asks, in short, of files that it sent.

Gradio answers more than that. It fetches an address for whoever names one, in `file=ADDRESS` or as the place
of a file, and even a picture on another site's page may ask for it; and it reads questions of any size.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cervicyte.dashboard.access import path_of
from cervicyte.dashboard.api import PREFIX
from cervicyte.dashboard.limits import MAX_QUESTION_MB
from cervicyte.dashboard.problems import ProblemError
from cervicyte.dashboard.uploads import PLACE
from cervicyte.dashboard.uploads import ROUTES as UPLOADS

OWN = ("/health", "/adapted-model", "/overlays")
PAGE = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(assets|static|svelte)/.+"
    r"|/gradio_api/(info|app_id|startup-events|theme\.css|upload_progress|reset|cancel)/?"
    r"|/gradio_api/queue/(join|data)|/gradio_api/heartbeat/[^/]+"
)
JOIN = "/gradio_api/queue/join"
NOT_HERE = "There is no such address here; the page is at /, and /api/v1/openapi.json lists those of the API."
TOO_LONG = f"A question of the page has at most {MAX_QUESTION_MB} MB; ask for less at once."
NOT_SENT = "Files are named that were not sent to this server; send them again."


class PageGate:
    """Passes on what the page asks, and refuses the rest of what Gradio would answer."""

    def __init__(self, app: ASGIApp, uploads: Path) -> None:
        """Wrap an application; `uploads` is the folder in which Gradio puts what is sent."""
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        path = path_of(scope)
        if scope["type"] != "http" or path.startswith(f"{PREFIX}/") or path in OWN or path in UPLOADS:
            await self.app(scope, receive, send)
            return
        if not PAGE.fullmatch(path):
            await ProblemError(404, NOT_HERE).response()(scope, receive, send)
            return
        body = b""
        message: Message = {"more_body": True}
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > MAX_QUESTION_MB << 20:
                await ProblemError(413, TOO_LONG).response()(scope, receive, send)
                return
        if path == JOIN and not self._names_uploads_alone(body):
            await ProblemError(403, NOT_SENT).response()(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, received, send)

    def _names_uploads_alone(self, body: bytes) -> bool:
        """Return whether every file that a question names lies where Gradio puts uploads."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return True  # which Gradio refuses
        waiting: list[Any] = [asked]
        while waiting:
            one = waiting.pop()
            if isinstance(one, dict):
                if "path" in one and not self._is_upload(one["path"]):
                    return False
                waiting += one.values()
            elif isinstance(one, list):
                waiting += one
        return True

    def _is_upload(self, place: Any) -> bool:
        if not isinstance(place, str):
            return False
        path = Path(place)
        return (
            path.parent.parent in (self.uploads, self.uploads.resolve())
            and PLACE.fullmatch(path.parent.name) is not None
            and path.name not in ("", ".", "..")
        )
