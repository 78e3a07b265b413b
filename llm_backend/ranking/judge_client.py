"""One question to an OpenAI-compatible endpoint: timeouts, retries with growing waits, and what is an error."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

from llm_backend.ranking.errors import RankingError

RETRIED = (408, 409, 425, 429)  # and everything from 500


def import_httpx() -> ModuleType:
    """httpx. Raises RankingError that says how to install it."""
    try:
        import httpx
    except ImportError as error:
        raise RankingError(f"a judge needs httpx ({error}); install it with: pip install 'prefgeo[judge]'") from None
    return httpx


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """``url`` is the base (.../v1) or whole (.../chat/completions) address; ``model`` is its name there.

    The key is read from the environment variable ``key_variable`` when it is needed, and kept nowhere. ``parameters``
    go into each request as they are. A request that fails in passing (no connection, no whole answer within ``timeout``
    seconds, status 408, 409, 425, 429 or from 500, a body that is no chat completion) is sent again up to ``retries``
    times, after ``first_wait``, 2 ``first_wait``, 4 ``first_wait``, ... seconds or what Retry-After says, but at most
    ``longest_wait``. The time is looked at whenever a part of the answer comes, and a silence of ``timeout`` ends it
    too: a server that sends a byte now and then holds a request up for twice ``timeout`` at most once its headers are
    there. Raises: RankingError for a setting out of its range.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 60.0
    retries: int = 3
    first_wait: float = 1.0
    longest_wait: float = 120.0
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 512})

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise RankingError(f"the address of a judge begins with http:// or https://, got {self.url!r}")
        for name, least in (("timeout", 1e-3), ("retries", 0), ("first_wait", 0.0), ("longest_wait", 0.0)):
            if not least <= getattr(self, name) < float("inf"):
                raise RankingError(f"{name} of a judge must be at least {least}, got {getattr(self, name)}")
        if {"model", "messages", "stream", "n"} & set(self.parameters):
            raise RankingError("parameters of a judge may not set model, messages, stream or n; leave them out")

    @property
    def address(self) -> str:
        """Where requests go."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else base + "/chat/completions"

    def key(self) -> str | None:
        """The API key. Raises RankingError where its variable is not set."""
        if self.key_variable is None:
            return None
        found = os.environ.get(self.key_variable, "").strip()
        if not found:
            raise RankingError(
                f"the environment variable {self.key_variable} is not set; it must hold the API key of {self.url}"
            )
        return found


class PassingError(Exception):
    """Something that may work next time."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class Client:
    """Asks the endpoint, also from several threads. ``stop`` ends all waiting; ``count`` is told of each event."""

    def __init__(self, endpoint: Endpoint, *, connections: int, count: Callable[[str], object]) -> None:
        self.endpoint, self.count, self.stop = endpoint, count, threading.Event()
        self._httpx, self._key = import_httpx(), endpoint.key()
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        limits = self._httpx.Limits(max_connections=connections)
        self._client = self._httpx.Client(timeout=endpoint.timeout, headers=headers, limits=limits)

    def close(self) -> None:
        """Close connections and forget the key."""
        self._client.close()
        self._key = None

    def ask(self, text: str) -> str | None:
        """The text of the answer; None for an answer without text. Raises RankingError that names the endpoint."""
        for attempt in range(self.endpoint.retries + 1):
            if self.stop.is_set():
                raise RankingError(f"{self.endpoint.url}: stopped")
            try:
                return self._once(text)
            except PassingError as problem:
                if attempt == self.endpoint.retries:
                    raise RankingError(
                        f"the judge {self.endpoint.model} at {self.endpoint.url} failed {attempt + 1} times in a row, "
                        f"last: {problem}"
                    ) from None
                wait = self.endpoint.first_wait * 2.0**attempt if problem.wait is None else problem.wait
                self.count("retries")
                self.stop.wait(min(wait, self.endpoint.longest_wait))
        raise AssertionError("unreachable")

    def _once(self, text: str) -> str | None:
        self.count("requests")
        body = {**self.endpoint.parameters, "model": self.endpoint.model}
        body["messages"] = [{"role": "user", "content": text}]
        try:
            reply, answer = self._send(body)
        except self._httpx.TimeoutException:
            raise PassingError(f"no answer within {self.endpoint.timeout:g} s") from None
        except self._httpx.TransportError as problem:
            raise PassingError(f"{type(problem).__name__}: {self._without_key(str(problem))}") from None
        status = reply.status_code
        if status in RETRIED or status >= 500:
            raise PassingError(f"status {status}", _retry_after(reply.headers.get("retry-after")))
        if status != 200:
            raise RankingError(
                f"the judge {self.endpoint.model} at {self.endpoint.url} refused with status {status}: "
                f"{self._without_key(answer)}"
            )
        try:
            return _content(json.loads(answer))
        except (ValueError, KeyError, IndexError, TypeError):
            raise PassingError(f"a body that is no chat completion: {self._without_key(answer)}") from None

    def _send(self, body: Mapping[str, Any]) -> tuple[Any, str]:
        """The response and its text. httpx bounds the wait for each part; this also bounds them together."""
        end = time.monotonic() + self.endpoint.timeout
        content = bytearray()
        with self._client.stream("POST", self.endpoint.address, json=body) as reply:
            for part in reply.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise self._httpx.ReadTimeout("the answer comes too slowly")
        return reply, content.decode("utf-8", errors="replace")

    def _without_key(self, text: str) -> str:
        shown = text if self._key is None else text.replace(self._key, "***")
        return " ".join(shown.split())[:160]


def _content(body: Any) -> str | None:
    """The first choice's text. Raises KeyError and its like where there are no choices."""
    content = body["choices"][0]["message"].get("content")
    if content is not None and not isinstance(content, str):
        raise TypeError("content must be text")
    found: str | None = content
    return found


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait: the header's number, or the time until its date; None for neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
