"""A patient HTTP session: repeats what may pass, gives up at once on what will not, and keeps the key to itself.

Clients of online databases (mp-api, optimade) take a ``requests`` session. This one gives them timeouts, repeated
tries with growing pauses, and errors with one meaning each; so no fault of one request reaches their paging.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from requests import exceptions
from requests.adapters import HTTPAdapter
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from dao_pipeline import __version__
from dao_pipeline.config import Network
from dao_pipeline.errors import ContinueLater

log = logging.getLogger(__name__)

PASSING_STATUS = {408, 425, 429}
"""Answers besides 5xx after which the same request may succeed."""

LEFT_TO_CLIENT = {414, 422}
"""Answers that mp-api itself takes as a sign to ask for less at a time."""


class Unreachable(Exception):  # noqa: N818 - it says what the server is
    """A request that failed in every try, though it might have succeeded."""


class Refused(Exception):  # noqa: N818 - it says what happened to the request
    """A request that the server will never answer; ``status`` is 0 when what answers is no such server."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Passing(Exception):  # noqa: N818
    """A fault that may pass; ``pause`` is what the server asks for, in seconds."""

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


class PatientAdapter(HTTPAdapter):
    """Sends requests as ``network`` says; ``secret`` is replaced wherever an answer echoes it."""

    def __init__(self, network: Network, secret: str = "", sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(max_retries=0)
        self._network, self._secret, self._sleep = network, secret, sleep
        self.failure: Exception | None = None
        """The last error raised: a client may have swallowed it."""

    def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
        """The answer, read to its end and checked to be JSON.

        Raises Unreachable or Refused, and ContinueLater when the server asks for a pause longer than allowed.
        """
        options |= {"stream": False, "timeout": self._network.timeout}
        tries = Retrying(
            retry=retry_if_exception_type(_Passing),
            stop=stop_after_attempt(self._network.attempts),
            wait=self._pause,
            sleep=self._sleep,
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            return tries(self._once, request, options)
        except _Passing as error:
            self.failure = Unreachable(f"{error} ({self._network.attempts} tries)")
        except (Refused, ContinueLater) as error:
            self.failure = error
        raise self.failure from None

    def _once(self, request: requests.PreparedRequest, options: dict[str, Any]) -> requests.Response:
        try:
            response = super().send(request, **options)
            body = response.content  # read here, so that a cut connection is this try's fault
        except exceptions.Timeout:
            raise _Passing(f"no answer within {self._network.timeout:g} s") from None
        except exceptions.RequestException as error:
            raise _Passing(self._clean(f"connection failed: {error}")) from None
        if self._secret and self._secret.encode() in body:
            response._content = body = body.replace(self._secret.encode(), b"(key)")
        self._check(request, response, body)
        return response

    def _check(self, request: requests.PreparedRequest, response: requests.Response, body: bytes) -> None:
        status = response.status_code
        if status >= 500 or status in PASSING_STATUS:
            raise _Passing(f"status {status}: {self._clean(response.text)}", self._asked_pause(response))
        if response.is_redirect:
            here, there = urlsplit(request.url or ""), urlsplit(response.headers.get("location", ""))
            same = there.netloc in ("", here.netloc) and there.scheme in ("", here.scheme)
            if not same:  # requests would send the key along
                raise Refused(status, f"redirects to {there.scheme}://{there.hostname}")
            return
        if status >= 400 and status not in LEFT_TO_CLIENT:
            raise Refused(status, f"status {status}: {self._clean(response.text)}")
        try:
            json.loads(body)
        except ValueError:
            if body.lstrip()[:1] == b"<":
                raise Refused(0, "answered with a web page instead of JSON: a login or proxy page?") from None
            raise _Passing(f"broken JSON ({len(body)} bytes)") from None

    def _clean(self, text: str) -> str:
        """``text`` on one line, short and without the key."""
        words = " ".join(text.split())
        return (words.replace(self._secret, "(key)") if self._secret else words)[:300]

    def _asked_pause(self, response: requests.Response) -> float:
        """Seconds of Retry-After, which is a number or a date; 0 without one."""
        asked = response.headers.get("Retry-After", "").strip()
        try:
            seconds = float(asked) if asked.replace(".", "", 1).isdigit() else _seconds_until(asked)
        except (ValueError, TypeError):
            seconds = 0.0
        if seconds > self._network.longest_wait:
            raise ContinueLater(
                f"{urlsplit(response.url).hostname} asks for a pause of {seconds:.0f} s, more than "
                "data.network.longest_wait; what has arrived is kept"
            )
        return max(0.0, seconds)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: doubled each time, and at least what the server asked for."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.pause if isinstance(error, _Passing) else 0.0
        return max(asked, min(self._network.longest_wait, self._network.backoff * 2 ** (state.attempt_number - 1)))

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        log.warning("try %d failed: %s; again in %.3g s", state.attempt_number, error, pause)


def _seconds_until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds() if date else 0.0


def open_session(network: Network, secret: str = "") -> requests.Session:
    """A session that sends everything through one PatientAdapter."""
    session, adapter = requests.Session(), PatientAdapter(network, secret)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    session.headers["user-agent"] = f"dao-pipeline/{__version__}"
    return session
