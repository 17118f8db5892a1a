"""Who may ask the server, by which name, and what the browser is told."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from cervicyte.dashboard import access
from cervicyte.dashboard.access import (
    COOKIE,
    BelowPath,
    OwnNames,
    SecurityHeaders,
    TokenGate,
    chosen_token,
    own_names,
)
from cervicyte.errors import UsageError
from cervicyte.provenance import RESEARCH_USE_ONLY

TOKEN = "correct-horse-battery"
PAGE = {"accept": "text/html"}


def app_of(token: str | None = None, names: frozenset[str] | None = None, root_path: str = "") -> Starlette:
    async def there(request):
        return PlainTextResponse("inside")

    paths = ("/", "/health", "/api/v1/health", "/api/v1/predict", "/gradio_api/upload", "/file")
    app = Starlette(routes=[Route(path, there, methods=["GET", "POST"]) for path in paths])
    if token is not None:
        app.add_middleware(TokenGate, token=token, root_path=root_path)
    app.add_middleware(OwnNames, names=own_names("127.0.0.1") if names is None else names)
    app.add_middleware(SecurityHeaders)
    if root_path:
        app.add_middleware(BelowPath, root_path=root_path)
    return app


def client_of(app: Starlette, base: str = "http://127.0.0.1:7860", **more) -> TestClient:
    return TestClient(app, base_url=base, follow_redirects=False, **more)


@pytest.fixture
def client() -> TestClient:
    return client_of(app_of(TOKEN))


# --- the token -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/v1/predict", "/gradio_api/upload", "/file", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_token_nothing_is_let_in(client, path, method):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"{COOKIE}={TOKEN}"}, PAGE):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401
        assert "inside" not in response.text
        assert TOKEN not in response.text


def test_the_api_takes_the_token_as_bearer_and_says_so(client):
    response = client.get("/api/v1/predict")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert "Authorization: Bearer" in response.json()["detail"]
    assert client.get("/api/v1/predict", headers={"authorization": f"Bearer {TOKEN}"}).text == "inside"
    # A token in the address would stand in the logs of whatever lies between.
    assert client.get(f"/api/v1/predict?token={TOKEN}").status_code == 401


def test_the_address_with_the_token_signs_a_browser_in_once(client):
    response = client.get(f"/file?token={TOKEN}&x=1", headers=PAGE)
    assert response.status_code == 303
    assert response.headers["location"] == "/file?x=1"
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert TOKEN not in response.headers["set-cookie"]
    assert client.get("/").text == "inside"
    assert client_of(client.app).get(f"/?token={TOKEN}x", headers=PAGE).status_code == 401


def test_a_browser_without_it_is_shown_a_form_that_signs_it_in(client):
    response = client.get("/", headers=PAGE)
    assert response.status_code == 401
    assert '<form method="post" action="/login">' in response.text
    assert RESEARCH_USE_ONLY in response.text
    assert not re.search(r"(src|href)=", response.text)
    assert "not the token" in client.post("/login", data={"token": "guess"}).text
    assert client.post("/login", content=b"token=" + b"x" * 10_000).status_code == 401
    response = client.post("/login", data={"token": TOKEN})
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert client.get("/").text == "inside"


def test_no_address_leads_a_signed_in_browser_elsewhere(client):
    for path in ("//evil.example", "/\\evil.example"):
        browser = client_of(client.app)
        location = browser.get(f"http://127.0.0.1:7860{path}?token={TOKEN}", headers=PAGE).headers["location"]
        assert "evil" in location
        assert re.match(r"/[^/\\]", location)


def test_the_cookie_is_for_https_only_where_that_is_spoken():
    response = client_of(app_of(TOKEN), "https://127.0.0.1").get(f"/?token={TOKEN}", headers=PAGE)
    assert "secure" in response.headers["set-cookie"].lower()


def test_behind_a_proxy_the_form_and_the_cookie_are_for_its_path():
    client = client_of(app_of(TOKEN, root_path="/cells"))
    assert 'action="/cells/login"' in client.get("/", headers=PAGE).text
    response = client.post("/login", data={"token": TOKEN})
    assert response.headers["location"] == "/cells/"
    assert "Path=/cells" in response.headers["set-cookie"]
    response = client.get(f"/cells/file?token={TOKEN}", headers=PAGE)
    assert response.text == "inside"  # signed in


@pytest.mark.parametrize("prefix", ["", "/cells"], ids=["taken off by the proxy", "left on"])
def test_a_proxy_may_leave_its_path_on_or_take_it_off(prefix):
    client = client_of(app_of(TOKEN, root_path="/cells"))
    assert client.get(f"{prefix}/health").text == "inside"
    assert client.get(f"{prefix}/api/v1/predict").status_code == 401
    response = client.get(f"{prefix}/file?token={TOKEN}", headers=PAGE)
    assert response.headers["location"] == "/cells/file"
    # The browser asks the proxy below /cells, and so sends the cookie.
    cookie = {"cookie": response.headers["set-cookie"].split(";")[0]}
    assert client.get(f"{prefix}/file", headers=cookie).text == "inside"


def test_whether_the_server_lives_may_be_asked_by_all(client):
    assert client.get("/health").text == client.get("/api/v1/health").text == "inside"


def test_tokens_are_compared_in_constant_time(client, monkeypatch):
    compared = []

    def noting(one, other):
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    class Noting:
        new, compare_digest = staticmethod(hmac.new), staticmethod(noting)

    monkeypatch.setattr(access, "hmac", Noting)
    for given in ("", "x", TOKEN, TOKEN + "x", "ü" * 40):
        client.get("/api/v1/predict", headers={"authorization": f"Bearer {given}".encode()})
    tokens = [lengths for lengths in compared if lengths[1] == 32]
    assert len(tokens) == 5
    assert set(tokens) == {(32, 32)}  # of hashes, whatever was given


# --- which token ---------------------------------------------------------------------------------


def test_a_server_that_others_can_reach_has_a_token_whatever_was_said(tmp_path):
    assert chosen_token("127.0.0.1", None, None, None) == (None, False)
    assert chosen_token("localhost", None, None, "") == (None, False)
    made, here = chosen_token("0.0.0.0", None, None, "")
    assert here
    assert made is not None
    assert len(made) >= 32
    assert made != chosen_token("0.0.0.0", None, None, None)[0]


def test_an_option_goes_before_a_file_and_a_file_before_the_environment(tmp_path):
    (tmp_path / "token").write_text("from-the-file-0001\n")
    both = (tmp_path / "token", "from-the-environment")
    assert chosen_token("127.0.0.1", "from-the-option-01", *both) == ("from-the-option-01", False)
    assert chosen_token("127.0.0.1", None, *both) == ("from-the-file-0001", False)
    assert chosen_token("127.0.0.1", None, None, "from-the-environment") == ("from-the-environment", False)


@pytest.mark.parametrize(
    "token", ["short", "", "with a space in it!", "not-äscii-at-all-here", "line\nbreak-0123456"]
)
def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused(token):
    with pytest.raises(UsageError, match="16 characters or more"):
        chosen_token("127.0.0.1", token, None, None)


def test_a_token_file_that_cannot_be_read_is_named():
    with pytest.raises(UsageError, match="none/token: cannot be read"):
        chosen_token("127.0.0.1", None, Path("none/token"), None)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:7860", 200),
        ("192.168.1.7:7860", 200),  # a number cannot be rebound
        ("evil.example", 421),
        ("evil.example:7860", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1@evil.example", 421),
        ("evil.example#127.0.0.1", 421),
        ("localhost:x", 421),
        ("", 421),
    ],
)
def test_only_names_of_its_own_are_answered(host, status):
    response = client_of(app_of()).get("/", headers={"host": host})
    assert response.status_code == status
    assert ("inside" in response.text) is (status == 200)


def test_further_names_may_be_allowed():
    client = client_of(app_of(names=own_names("0.0.0.0", ["Cells.Lab.example"])))
    assert client.get("/", headers={"host": "cells.lab.example"}).status_code == 200
    assert client.get("/", headers={"host": "lab.example"}).status_code == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:7860", 200),
        ("https://cells.lab.example", 200),
        ("http://127.0.0.1:9999", 403),  # another program of this machine
        ("http://localhost:9999", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
def test_another_sites_page_may_not_send_anything(origin, status):
    client = client_of(app_of(names=own_names("127.0.0.1", ["cells.lab.example"])))
    headers = {} if origin is None else {"origin": origin}
    assert client.post("/api/v1/predict", headers=headers).status_code == status
    assert client.get("/", headers=headers).status_code == 200


def test_every_answer_has_the_security_headers_refusals_too(client):
    for response in (
        client.get("/health"),
        client.get("/", headers=PAGE),
        client.get("/", headers={"host": "evil.example"}),
        client.get(f"/?token={TOKEN}", headers=PAGE),
    ):
        for name, value in access.HEADERS.items():
            assert response.headers[name] == value
    assert client_of(client.app).get("/", headers=PAGE).headers["cache-control"] == "no-store"
