"""Who may ask the server: a token where others can reach it, and only by names that are its own.

A page from elsewhere can make a browser send requests to this machine. By a name that leads here only for the
moment (DNS rebinding) it could even read the answers: so requests for unknown names are refused, and those
that another site's page sends to change something. Names that are addresses in numbers cannot be rebound.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cervicyte.dashboard.problems import ProblemError
from cervicyte.errors import UsageError
from cervicyte.provenance import RESEARCH_USE_ONLY

COOKIE = "cervicyte_token"
PARAMETER = "token"  # of an address
SECONDS_SIGNED_IN = 12 * 3600
SHORTEST_TOKEN = 16  # characters
MOST_OF_FORM = 4096  # bytes
LOGIN = "/login"
API = "/api/"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Whether the server lives tells nothing, and monitors ask for it.
OPEN_TO_ALL = ("/health", "/api/v1/health", "/api/v1/ready")

# Gradio's page has inline scripts and styles, and compiles its templates.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # by "no-referrer" a form is sent with an Origin of "null"
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}
NEVER_STORED = "no-store"
ASK_FOR_TOKEN = {"WWW-Authenticate": 'Bearer realm="cervicyte"'}
TOKEN_NEEDED = "A token is needed: send it as Authorization: Bearer TOKEN."
FOREIGN = "A page of another site may not send requests here; open the dashboard by its own address."
NOT_CALLED_SO = "This server is not called so; use its own address, or start it with --allow-host NAME."


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def chosen_token(
    host: str, token: str | None, token_file: Path | None, from_environment: str | None
) -> tuple[str | None, bool]:
    """Return the token that is asked for, or None, and whether it was made up here.

    Args:
        host: that the server listens on; needs a token unless only this machine can reach it.
        token: as given; goes before all others.
        token_file: a file that holds one; goes before the environment.
        from_environment: the environment's.

    Raises:
        UsageError: the token is too short, or its file cannot be read.
    """
    if token is None and token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{token_file}: cannot be read as a token; check path and permissions."
            ) from error
    token = from_environment or None if token is None else token
    if token is None:
        return (None, False) if is_loopback(host) else (secrets.token_urlsafe(24), True)
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"The token must have {SHORTEST_TOKEN} characters or more, all letters, digits or signs; leave "
            "it out to have one made."
        )
    return token, False


def own_names(host: str, allowed: Iterable[str] = ()) -> frozenset[str]:
    """Return the names, in small letters, by which a server that listens on `host` may be called."""
    names = {"localhost", host.lower(), *(name.lower() for name in allowed)}
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return frozenset(names)


class BelowPath:
    """Tells the application the path under which a proxy shows it, whether or not the proxy takes it off."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """Wrap an application; `root_path` is such as `/cells`."""
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole path, as ASGI has it."""
        if scope["type"] in ("http", "websocket"):
            path = scope["path"]
            if path != self.root_path and not path.startswith(self.root_path + "/"):
                path = self.root_path + path
            scope = {**scope, "root_path": self.root_path, "path": path}
        await self.app(scope, receive, send)


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
                for name, value in HEADERS.items():
                    headers[name] = value
                # Scripts and styles may be kept; what is said of a cell may not.
                if headers.get("content-type", "").startswith(("application/", "text/html", "image/")):
                    headers.setdefault("Cache-Control", NEVER_STORED)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class OwnNames:
    """Refuses requests for names that are not the server's, and those that another site's page sends."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        """Wrap an application; see `own_names`."""
        self.app, self.names = app, frozenset(names)
        self.beyond_this_machine = {name for name in self.names if not is_loopback(name)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            asked = headers.get("host", "")
            origin = headers.get("origin")
            if not self._is_own(asked):
                await ProblemError(421, NOT_CALLED_SO).response()(scope, receive, send)
                return
            foreign = origin is not None and not self._is_same(origin, asked)
            if foreign and scope.get("method", "") not in SAFE_METHODS:
                await ProblemError(403, FOREIGN).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_own(self, asked: str) -> bool:
        name = _name_of(asked)
        return name is not None and (name in self.names or _is_address(name))

    def _is_same(self, origin: str, asked: str) -> bool:
        # A proxy may call the server by another name than the browser calls the proxy.
        place = origin.partition("://")[2]
        return place.lower() == asked.lower() or _name_of(place) in self.beyond_this_machine


class TokenGate:
    """Lets in who knows the token: in a header, in a cookie, or once in the address or a form for it."""

    def __init__(self, app: ASGIApp, token: str, root_path: str = "") -> None:
        """Wrap an application."""
        self.app, self.root_path = app, root_path
        self._token = _digest(token)
        # What lies in the browser is no token: it opens this server alone.
        self._cookie = hmac.new(token.encode(), b"cervicyte cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, sign its sender in, or refuse it."""
        path = path_of(scope)
        if scope["type"] not in ("http", "websocket") or path in OPEN_TO_ALL or self._knows(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await (await self._signing_in(Request(scope, receive), path))(scope, receive, send)

    async def _signing_in(self, request: Request, path: str) -> Response:
        query = parse_qsl(request.url.query, keep_blank_values=True)
        given = dict(query).get(PARAMETER)
        if request.method == "GET" and given is not None and not path.startswith(API):
            if self._is_token(given):
                rest = urlencode([(name, value) for name, value in query if name != PARAMETER])
                return self._signed_in(request, path + ("?" + rest if rest else ""))
            return self._form("This is not the token.")
        if request.method == "POST" and path == LOGIN:
            if self._is_token(await field_of_form(request, PARAMETER)):
                return self._signed_in(request, "/")
            return self._form("This is not the token.")
        if path.startswith(API) or "text/html" not in request.headers.get("accept", ""):
            return ProblemError(401, TOKEN_NEEDED, headers=ASK_FOR_TOKEN).response()
        return self._form("")

    def _knows(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return hmac.compare_digest(cookie.encode(), self._cookie.encode())

    def _is_token(self, given: str) -> bool:
        # Hashes are of one length, so that the time to compare tells nothing of the token.
        return hmac.compare_digest(_digest(given), self._token)

    def _signed_in(self, request: Request, path: str) -> Response:
        # One slash at the beginning: two would lead to another host.
        response = RedirectResponse(self.root_path + "/" + path.lstrip("/\\"), status_code=303)
        response.set_cookie(
            COOKIE,
            self._cookie,
            max_age=SECONDS_SIGNED_IN,
            path=self.root_path or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )
        return response

    def _form(self, said: str) -> Response:
        text = FORM.format(
            action=html.escape(self.root_path + LOGIN),
            said=f'<p role="alert">{html.escape(said)}</p>' if said else "",
            notice=html.escape(RESEARCH_USE_ONLY),
        )
        return HTMLResponse(text, status_code=401)


def path_of(scope: Scope) -> str:
    """Return the path within the application, without the one under which a proxy shows it."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", ""))
    return path[len(root) :] or "/" if root and path.startswith(root + "/") else path


async def field_of_form(request: Request, name: str) -> str:
    """Return a field of a small form (application/x-www-form-urlencoded); empty if there is none.

    No more of the body is read than such a form may have, and nothing of it is written to the disk.
    """
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_OF_FORM:
                return ""
    except ClientDisconnect:
        return ""
    return parse_qs(body.decode("utf-8", "replace")).get(name, [""])[0]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _name_of(place: str) -> str | None:
    """Return the name in `name:port`, in small letters; None if it is malformed."""
    try:
        split = urlsplit(f"//{place}")
        split.port  # noqa: B018  # raises if it is no number
    except ValueError:
        return None
    if split.username is not None or split.path or split.query or split.fragment:
        return None
    return split.hostname


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>Cervicyte: token</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 26rem; margin: 12vh auto 0; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .25rem; }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box; font: inherit; }}
input, button {{ padding: .6rem .75rem; margin-top: .4rem; border-radius: 6px; border: 1px solid #64748b; }}
button {{ margin-top: 1rem; border: 0; background: #0f766e; color: #fff; font-weight: 600; cursor: pointer; }}
[role=alert] {{ border-left: 5px solid #d9534f; padding-left: .75rem; }}
.notice {{ margin-top: 2rem; font-size: .9rem; }}
</style></head>
<body><main><h1>Cervicyte</h1><p>This server asks for its token. Whoever started it has it.</p>{said}
<form method="post" action="{action}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></form>
<p class="notice">{notice}</p></main></body></html>
"""
