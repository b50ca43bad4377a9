"""Asking an OpenAI-compatible endpoint: deadlines, retries, a cost cap, a cache by content. Knows nothing of rollouts.

Every question ends in exactly one `Answer`, and what is no answer says why: `timeout`, `refused` (a status that no
retry cures), `unreachable` (retries used up), `malformed` (not of the API's form), `capped`.

Cap. A question is let through when what was spent plus the most that all questions let through so far can cost stays
within it; the most is one token per UTF-8 byte of its messages, the template's share, and the longest answer. Answers
from the cache count what they cost when they were asked, so that a resumed run is capped where it would have been.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from unhack.config import EndpointConfig
from unhack.files import read_object, write_json
from unhack.seeds import rng

Outcome: TypeAlias = Literal["answered", "timeout", "refused", "unreachable", "malformed", "capped"]
Message: TypeAlias = dict[str, str]

TEMPLATE_TOKENS = 64  # allowed for what the endpoint's chat template adds to the messages
MAX_ANSWER_BYTES = 2**20
MAX_WAIT_S = 60.0  # between attempts, whatever the endpoint asks for
_RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_MISTAKES = {401: "the key", 403: "the key", 404: "the url and the model", 405: "the url"}


class _AttemptError(Exception):
    def __init__(self, outcome: Outcome, wait_s: float | None = None) -> None:
        super().__init__(outcome)
        self.outcome: Outcome = outcome
        self.wait_s = wait_s


@dataclass(frozen=True)
class Answer:
    """`tokens_in`, `tokens_out`: as the endpoint counted, its largest possible bill where it did not say.

    `attempts`: requests that were sent now; 0: from the cache, or capped.
    """

    outcome: Outcome
    text: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    attempts: int = 0


class Client:
    """`spent_in`, `spent_out`: tokens counted so far, against the cap."""

    def __init__(self, config: EndpointConfig, cache: Path) -> None:
        self.config, self.cache = config, cache
        self.spent_in = self.spent_out = 0
        self._opener = urllib.request.build_opener(_NoRedirect)  # a redirect would carry the key elsewhere

    def key(self, messages: Sequence[Message]) -> str:
        """The content that an answer belongs to: the endpoint, the model, the messages, the length of the answer."""
        known = self.config
        content = [known.url, known.model, list(messages), known.max_answer_tokens]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def ask(self, questions: Sequence[Sequence[Message]]) -> list[Answer]:
        """One answer per question, in order; equal questions are asked once. ValueError for a wrong key or address."""
        keys = [self.key(messages) for messages in questions]
        distinct = dict(zip(keys, questions, strict=True))
        admitted = self._admitted(distinct)
        with ThreadPoolExecutor(self.config.concurrency) as threads:
            waiting = {key: threads.submit(self._answer, key, distinct[key]) for key in admitted}
            answers = {key: future.result() for key, future in waiting.items()}
        for answer in answers.values():
            self.spent_in += answer.tokens_in
            self.spent_out += answer.tokens_out
        return [answers.get(key, Answer("capped")) for key in keys]

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """In the currency of the prices."""
        return (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / 1e6

    def _most_in(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"].encode()) for message in messages) + TEMPLATE_TOKENS

    def _admitted(self, distinct: dict[str, Sequence[Message]]) -> list[str]:
        """The questions that the cap allows even if each costs the most that it can, in order."""
        tokens_in, tokens_out = self.spent_in, self.spent_out
        admitted: list[str] = []
        known = self.config
        for key, messages in distinct.items():
            then_in, then_out = tokens_in + self._most_in(messages), tokens_out + known.max_answer_tokens
            within = known.max_total_tokens is None or then_in + then_out <= known.max_total_tokens
            if within and (known.max_total_cost is None or self.cost(then_in, then_out) <= known.max_total_cost):
                admitted.append(key)
                tokens_in, tokens_out = then_in, then_out
        return admitted

    def _answer(self, key: str, messages: Sequence[Message]) -> Answer:
        path = self.cache / key[:2] / f"{key}.json"
        if path.exists():
            stored = read_object(path)
            if set(stored) != {"text", "tokens_in", "tokens_out"}:
                raise ValueError(f"{path} is no cached answer of the judge: remove it")
            return Answer("answered", stored["text"], stored["tokens_in"], stored["tokens_out"])
        answer = self._with_retries(key, messages)
        if answer.outcome == "answered":
            kept = asdict(answer)
            write_json(path, {name: kept[name] for name in ("text", "tokens_in", "tokens_out")})
        return answer

    def _with_retries(self, key: str, messages: Sequence[Message]) -> Answer:
        """Attempts that were sent and not answered may be billed: each counts as much as it can cost."""
        known, jitter = self.config, rng(0, "backoff", key)
        most_in, lost = self._most_in(messages), 0
        while True:
            try:
                text, tokens_in, tokens_out = self._attempt(messages, most_in)
            except _AttemptError as failure:
                lost += 1
                if failure.outcome in ("refused", "malformed") or lost > known.retries:
                    outcome = failure.outcome
                    return Answer(outcome, "", lost * most_in, lost * known.max_answer_tokens, lost)
                backoff_s = known.backoff_s * 2 ** (lost - 1) * (0.5 + jitter.random() / 2)
                time.sleep(min(MAX_WAIT_S, max(backoff_s, failure.wait_s or 0.0)))
                continue
            return Answer(
                "answered", text, tokens_in + lost * most_in, tokens_out + lost * known.max_answer_tokens, lost + 1
            )

    def _attempt(self, messages: Sequence[Message], most_in: int) -> tuple[str, int, int]:
        known = self.config
        body = {
            "model": known.model,
            "messages": list(messages),
            "max_tokens": known.max_answer_tokens,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if known.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[known.key_variable]}"
        request = urllib.request.Request(
            f"{known.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            raw = self._sent(request)
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                raise self._status(error) from None
        except TimeoutError:
            raise _AttemptError("timeout") from None
        except urllib.error.URLError as error:
            raise _AttemptError("timeout" if isinstance(error.reason, TimeoutError) else "unreachable") from None
        except (OSError, http.client.HTTPException):  # cut off, or not HTTP
            raise _AttemptError("unreachable") from None
        return self._read(raw, most_in)

    def _sent(self, request: urllib.request.Request) -> bytes:
        """The body of the answer. TimeoutError at the deadline, also of an endpoint that sends byte by byte."""
        deadline = time.monotonic() + self.config.timeout_s
        parts: list[bytes] = []
        with self._opener.open(request, timeout=self.config.timeout_s) as response:
            while part := response.read1(65536):
                parts.append(part)
                if time.monotonic() > deadline:
                    raise TimeoutError
                if sum(map(len, parts)) > MAX_ANSWER_BYTES:
                    raise _AttemptError("malformed")
            if response.length:  # fewer bytes than were announced
                raise http.client.IncompleteRead(b"".join(parts))
        return b"".join(parts)

    def _status(self, error: urllib.error.HTTPError) -> _AttemptError:
        """What an error status means; ValueError where only the user can cure it."""
        if error.code in _MISTAKES:
            raise ValueError(
                f"the judge at {self.config.url} answered {error.code}: check {_MISTAKES[error.code]} "
                f"(arm.endpoint.url, model, key_variable); the run can be resumed"
            ) from None
        if error.code not in _RETRIED:
            return _AttemptError("refused")
        asked = error.headers.get("Retry-After", "")
        return _AttemptError("unreachable", float(asked) if asked.isdigit() else None)

    def _read(self, raw: bytes, most_in: int) -> tuple[str, int, int]:
        try:
            value: Any = json.loads(raw)
            text = value["choices"][0]["message"]["content"]
            usage = value.get("usage") or {}
            tokens_in = usage.get("prompt_tokens", most_in)
            tokens_out = usage.get("completion_tokens", self.config.max_answer_tokens)
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            raise _AttemptError("malformed") from None
        counts = (tokens_in, tokens_out)
        if not isinstance(text, str) or any(type(count) is not int or count < 0 for count in counts):
            raise _AttemptError("malformed")
        return text, tokens_in, tokens_out


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error status like any other."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """Follow none."""
