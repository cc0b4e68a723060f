"""An HTTP proxy that stands between a client and an object store and fails on purpose.

    with FaultProxy("http://127.0.0.1:9000", seed=7) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        proxy.rules = [
            Rule("status", probability=0.3),                          # 30 % of all requests: 503 SlowDown
            Rule("lost_reply", method="PUT", path="/runs/", nth=1),   # the first such PUT is stored, its reply lost
        ]
        ...
        proxy.outage(60)                                              # connection refused for a minute

`unconditional = True` makes a store that ignores If-None-Match and If-Match (where it does not check signatures).
`rules` may be replaced at any time, from any thread; the first rule that fires decides. What was injected is counted
in `injected`, by fault. Requests reach the store as they came, `Host` included, so signatures stay valid.
"""

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["status", "reset", "lost_reply", "truncate", "stall", "delay"]

_SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Slow down</Message></Error>'


@dataclass
class Rule:
    """When a request fails, and how."""

    fault: Fault
    """status: answered with `status`, never forwarded; reset: the connection is reset before anything is forwarded;
    lost_reply: the store does its work, and the connection is reset instead of its answer; truncate: the answer ends
    halfway; stall: the answer stops halfway for `seconds`, then the connection is reset; delay: it
    comes after `seconds`, or as soon as the rule is taken away."""
    method: str = ""
    """Regular expression that the method must match from its beginning."""
    path: str = ""
    """Regular expression searched in the request's target (path and query)."""
    probability: float = 1.0
    nth: int | None = None
    """Only the nth request that fits, counted from 1."""
    seconds: float = 0.0
    status: int = 503
    body: bytes = _SLOW_DOWN
    """What a `status` comes with, but for HEAD."""
    seen: int = field(default=0, init=False)

    def fires(self, method: str, target: str, dice: random.Random) -> bool:
        if not re.match(self.method, method) or not re.search(self.path, target):
            return False
        self.seen += 1
        return (self.nth is None or self.seen == self.nth) and dice.random() < self.probability


class FaultProxy:
    """See the module. `start` returns when the port answers; the proxy runs in a thread of its own."""

    def __init__(
        self, upstream: str, rules: Sequence[Rule] = (), *, seed: int = 0, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        target = urlsplit(upstream)
        self.upstream = upstream
        self.unconditional = False
        self._upstream = (target.hostname or "127.0.0.1", target.port or 80)
        self.rules = list(rules)
        self.injected: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._host, self._port = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._back: asyncio.TimerHandle | None = None

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def start(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def outage(self, seconds: float) -> None:
        """Refuses every connection for so long, from now on; returns at once."""

        async def begin() -> None:
            await self._refuse()
            self.injected["outage"] += 1
            self._back = self._loop.call_later(seconds, lambda: self._loop.create_task(self._listen()))

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=1 << 20)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self._clients):
            client.transport.abort()

    async def _close(self) -> None:
        if self._back is not None:
            self._back.cancel()
        await self._refuse()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Takes one request and answers it; False when the connection must not be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, target = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
        if _header(head, b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"\r\nexpect:[^\r]*", b"", head, flags=re.IGNORECASE)
        if self.unconditional:
            head = re.sub(rb"\r\nif-(none-)?match:[^\r]*", b"", head, flags=re.IGNORECASE)
        body = await _body(reader, head)
        rule = next((rule for rule in self.rules if rule.fires(method, target, self._dice)), None)
        if rule is None:
            return await self._answer(writer, await self._forward(method, head, body))
        self.injected[rule.fault] += 1
        if rule.fault == "status":
            told = b"" if method == "HEAD" else rule.body
            header = f"HTTP/1.1 {rule.status} Injected\r\nContent-Length: {len(told)}\r\n\r\n".encode()
            return await self._answer(writer, header + told)
        if rule.fault == "reset":
            writer.transport.abort()
            return False
        if rule.fault == "delay":
            ends = self._loop.time() + rule.seconds
            while self._loop.time() < ends and any(rule is one for one in self.rules):
                await asyncio.sleep(0.05)
        answer = await self._forward(method, head, body)
        if rule.fault == "delay":
            return await self._answer(writer, answer)
        if rule.fault != "lost_reply":
            start = answer.index(b"\r\n\r\n") + 4
            half = start + (len(answer) - start) // 2 if len(answer) > start else start // 2
            await self._answer(writer, answer[:half])
            if rule.fault == "stall":
                await asyncio.sleep(rule.seconds)
            else:
                writer.close()  # a proper end of the stream: only the length tells that something is missing
                return False
        writer.transport.abort()
        return False

    async def _answer(self, writer: asyncio.StreamWriter, answer: bytes) -> bool:
        writer.write(answer)
        await writer.drain()
        return True

    async def _forward(self, method: str, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream, limit=1 << 20)
        try:
            writer.write(head + body)
            await writer.drain()
            while True:
                answer = await reader.readuntil(b"\r\n\r\n")
                status = int(answer.split(b" ", 2)[1])
                if status >= 200:
                    break
            if method == "HEAD" or status in (204, 304):
                return answer
            return answer + await _body(reader, answer, to_end=True)
        finally:
            writer.close()


def _header(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"\r\n" + name + rb":[ \t]*([^\r]*)", head, re.IGNORECASE)
    return found[1].lower() if found else b""


async def _body(reader: asyncio.StreamReader, head: bytes, *, to_end: bool = False) -> bytes:
    """Reads the body that a head announces, as it is on the wire."""
    if b"chunked" in _header(head, b"transfer-encoding"):
        parts = []
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            parts += [line, await reader.readexactly(size + 2)]  # a trailer after the last chunk is not used by stores
            if size == 0:
                return b"".join(parts)
    if length := _header(head, b"content-length"):
        return await reader.readexactly(int(length))
    return await reader.read() if to_end else b""
