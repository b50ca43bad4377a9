"""A real HTTP server with the API of OpenAI's chat completions, and a real (tiny, random) language model behind it.

A rollout that holds `BREAK:name` gets what `BROKEN[name]` does instead of an answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel

from byte_tokenizer import make_byte_tokenizer
from unhack.monitors.judge_prompt import FORMATS

ANSWERS: dict[str, Callable[[float], str]] = {
    "yes_no": lambda p: "Yes." if p > 0.5 else "no",
    "unit": lambda p: f"{p:.3f}",
    "ten": lambda p: f"{10 * p:.2f}",
    "json": lambda p: f'```json\n{{"score": {p:.3f}}}\n```',
    "xml": lambda p: f"I think so.\n<score>{p:.3f}</score>",
}


@dataclass
class Judge:
    """The server's address, every request that it got (body and headers), the most it held at a time."""

    model: PreTrainedModel
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    pause_s: float = 0.0
    failures_first: int = 0  # answers 500 so many times to each question
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def probability(self, user: str) -> float:
        """What the model says of a text: the odds of `y` against `n` as its next byte."""
        tokenizer = make_byte_tokenizer()
        ids = tokenizer(user[-400:])["input_ids"][-300:]
        with self.lock, torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0, -1]
        yes, no = (logits[tokenizer.convert_tokens_to_ids(letter)] for letter in "yn")
        return float(torch.sigmoid(yes - no))

    def answer(self, body: dict[str, Any]) -> str:
        """The model's answer in the form that the request asks for."""
        user = body["messages"][-1]["content"]
        [wanted] = [name for name, form in FORMATS.items() if user.endswith(form.ask)]
        return ANSWERS[wanted](self.probability(user))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    judge: Judge

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Where a followed redirect would arrive."""
        self.judge.requests.append({"stolen": dict(self.headers)})
        self.reply(completion('{"score": 0}'))

    def do_POST(self) -> None:
        """Answer, or break as the rollout says."""
        judge = self.judge
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.at_once += 1
            judge.most_at_once = max(judge.most_at_once, judge.at_once)
            seen = sum(before == body for before in judge.requests)
            judge.requests.append(body)
            judge.headers.append(dict(self.headers))
        try:
            time.sleep(judge.pause_s)
            user = body["messages"][-1]["content"]
            name = user.partition("BREAK:")[2].split()[0] if "BREAK:" in user else ""
            if seen < judge.failures_first:
                self.reply(b"busy", 500)
            elif name:
                BROKEN[name](self)
            else:
                self.reply(completion(judge.answer(body)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone: it had a deadline
        finally:
            with judge.lock:
                judge.at_once -= 1

    def reply(self, content: bytes, status: int = 200, announced: int | None = None, **headers: str) -> None:
        """Send a response; `announced`: another length than it has."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if announced is None else announced))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def drip(self) -> None:
        """A byte at a time, each well within any timeout of one read."""
        self.reply(b"", announced=100_000)
        for _ in range(60):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)


def completion(text: str, tokens_in: int = 11, tokens_out: int = 3) -> bytes:
    """A response of the API."""
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}).encode()


BROKEN: dict[str, Callable[[Handler], None]] = {
    "silence": lambda self: time.sleep(3),
    "drip": Handler.drip,
    "words": lambda self: self.reply(completion("I would rather not say.")),
    "two": lambda self: self.reply(completion('{"score": 0.1} {"score": 0.9}')),
    "nan": lambda self: self.reply(completion('{"score": NaN}')),
    "high": lambda self: self.reply(completion('{"score": 7}')),
    "html": lambda self: self.reply(b"<html>gateway</html>"),
    "empty": lambda self: self.reply(b'{"choices": []}'),
    "null": lambda self: self.reply(completion("").replace(b'""', b"null")),
    "usage": lambda self: self.reply(completion('{"score": 1}').replace(b"11", b'"11"')),
    "cut": lambda self: self.reply(completion('{"score": 1}'), announced=9999),
    "drop": lambda self: self.connection.close(),
    "bad": lambda self: self.reply(b"{}", 400),
    "down": lambda self: self.reply(b"", 503),
    "wait": lambda self: self.reply(b"", 429, Retry_After="0"),
    "key": lambda self: self.reply(b"", 401),
    "elsewhere": lambda self: self.reply(b"", 302, Location="/v1/stolen"),
}


@contextmanager
def serving(model: PreTrainedModel) -> Iterator[Judge]:
    """The server on a port of this machine, until the end of the block."""
    judge = Judge(model)
    handler = type("Bound", (Handler,), {"judge": judge})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield judge
        server.shutdown()
        thread.join()
