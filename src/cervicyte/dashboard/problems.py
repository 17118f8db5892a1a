"""How the server says that it cannot do what was asked: problem details (RFC 9457), one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from cervicyte.dashboard.limits import SECONDS_TO_RETRY
from cervicyte.provenance import RESEARCH_USE_ONLY

MEDIA_TYPE = "application/problem+json"
RETRY = {"Retry-After": str(SECONDS_TO_RETRY)}


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What was wrong and what to do, one sentence.")
    errors: list[str] = Field(description="Of each image that was refused.")
    notice: str = RESEARCH_USE_ONLY


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[str] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        """Take what the problem says."""
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), headers

    def problem(self) -> Problem:
        """Return the problem."""
        title = HTTPStatus(self.status).phrase
        return Problem(title=title, status=self.status, detail=self.detail, errors=self.errors)

    def response(self) -> Response:
        """Return the problem as it goes over the wire."""
        return JSONResponse(self.problem().model_dump(), self.status, self.headers, MEDIA_TYPE)


def busy() -> ProblemError:
    """Return what a request is told that finds no room."""
    return ProblemError(503, "The server is at its limit; send the request again later.", headers=RETRY)
