# SPDX-License-Identifier: Apache-2.0
"""The server keeps its limits whatever clients do, answers others meanwhile, and shuts down in order."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from nettop.errors import NettopError, PermissionMissing, UsageError
from nettop.process import interrupts, service_manager
from nettop.process.interrupts import Requests
from nettop.reading import has_data
from nettop.serve.http.credentials import Credentials, read_credentials
from nettop.serve.http.guard import Guard
from nettop.serve.http.limits import Limits, Server
from nettop.serve.http.listeners import checked_listen, endpoints_of, open_sockets, url_of
from nettop.serve.http.server import serve
from nettop.settings.serve import ServeSettings
from tests.builders.serving import Application
from tests.unit.logging_run import until

DEADLINE_S = 60
"""Only a test that fails waits so long: a busy machine is slow."""
GET = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"
WAIT = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
TOKEN = b"0123456789abcdef0123456789abcdef"


class Timeless(uvloop.Loop):  # type: ignore[misc]
    """An event loop whose time passes only when a test says so: until then nothing times out, however slow."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        """Return the test's clock."""
        return self._now

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Schedule a call for when the test has let this much time pass."""
        timer = asyncio.TimerHandle(self._now + delay, callback, args, self, context)
        self._timers.append(timer)
        return timer

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Schedule a call for this time of the test's clock."""
        return self.call_later(when - self._now, callback, *args, context=context)

    def let_pass(self, seconds: float) -> None:
        """Advance the clock, and make the calls that are due by then."""
        self._now += seconds
        due = [timer for timer in self._timers if timer.when() <= self._now]
        self._timers = [timer for timer in self._timers if timer.when() > self._now]
        for timer in sorted(due, key=asyncio.TimerHandle.when):
            self.call_soon(self._end, timer)

    @staticmethod
    def _end(timer: asyncio.TimerHandle) -> None:
        if not timer.cancelled():  # by one before it
            timer._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled call is skipped when due."""


@dataclass(eq=False)
class Running:
    """A server in a separate thread."""

    server: Server
    application: Application
    thread: threading.Thread
    reports: list[str]
    tls: ssl.SSLContext | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def let_pass(self, seconds: float) -> None:
        """Let time pass for a server that is timeless, once it has done what it had to do before."""
        assert isinstance(self.loop, Timeless)
        self.loop.call_soon_threadsafe(self.loop.let_pass, seconds)

    @property
    def address(self) -> Any:
        """Return the address on which it listens."""
        return self.server.listeners[0].getsockname()

    def connect(self) -> socket.socket:
        """Return a new connection."""
        family = self.server.listeners[0].family
        client = socket.socket(family)
        client.settimeout(DEADLINE_S)
        client.connect(self.address)
        return client if self.tls is None else self.tls.wrap_socket(client)

    def ask(self, request: bytes = GET) -> Answer:
        """Return the answer to one request on a connection of its own."""
        with self.connect() as client:
            client.sendall(request)
            return answer_of(client)

    def let_answer(self) -> None:
        """Let requests for `/wait` be answered."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.application.may_answer.set)

    def request_end(self) -> None:
        """Request the end once: a second, later request is an interrupt."""
        if not self.server.requests.ending:
            self.server.requests.end()

    def end(self) -> None:
        """Have it end, and wait for that."""
        self.request_end()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


@dataclass(frozen=True)
class Answer:
    """An answer of the server."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def answer_of(client: socket.socket) -> Answer:
    """Return the next answer of a connection, read no further than its end."""
    response = http.client.HTTPResponse(client)
    # It reads ahead: without a buffer what follows stays in the socket.
    response.fp = client.makefile("rb", 0)  # type: ignore[assignment]
    response.begin()
    return Answer(response.status, response.headers, response.read())


def is_closed(client: socket.socket) -> bool:
    """Return whether the server closes the connection, whatever it sends before."""
    with suppress(ConnectionError):
        while client.recv(1 << 16):
            pass
    return True


@contextmanager
def running(
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    *,
    word: str = "127.0.0.1:0",
    credentials: Credentials | None = None,
    tls: ssl.SSLContext | None = None,
    is_timeless: bool = False,
) -> Iterator[Running]:
    """Yield a server with an Application. It must end by itself and without an exception."""
    application = Application()
    reports: list[str] = []
    failures: list[BaseException] = []
    accepting = threading.Event()
    credentials = credentials or Credentials()
    with open_sockets(endpoints_of(word)) as listeners:

        def accept() -> None:
            run.loop = asyncio.get_running_loop()
            accepting.set()

        server = Server(
            lambda: Guard(application, credentials, frozenset()),
            listeners,
            Requests(),
            reports.append,
            credentials,
            limits,
            on_ready=accept,
        )

        def work() -> None:
            try:
                with pytest.MonkeyPatch.context() as patch:
                    if is_timeless:
                        patch.setattr(uvloop, "new_event_loop", Timeless)
                    serve(server)
            except BaseException as error:  # noqa: BLE001 - reported by the test
                failures.append(error)

        run = Running(server, application, threading.Thread(target=work), reports, tls)
        run.thread.start()
        try:
            assert accepting.wait(DEADLINE_S)
            yield run
        finally:
            run.request_end()
            run.thread.join(DEADLINE_S)
    assert not run.thread.is_alive()
    assert failures == []


# Limits.


def test_others_are_answered_while_connections_idle_or_send_half_a_request() -> None:
    """Idle and half-sent connections time out, and everybody else is answered meanwhile."""
    with running(Limits(idle_s=0.5, request_s=0.5), is_timeless=True) as run, ExitStack() as clients:
        idle, half, silent = (
            [clients.enter_context(run.connect()) for _ in range(n)] for n in (100, 100, 10)
        )
        for client in half:
            client.sendall(GET[:20])
        for client in idle:
            client.sendall(GET)
        assert {answer_of(client).status for client in idle} == {200}
        assert {run.ask().status for _ in range(50)} == {200}
        run.let_pass(0.5)
        assert all(is_closed(client) for client in (*idle, *silent))
        assert {answer_of(client).status for client in half} == {408}
        run.let_pass(run.server.limits.linger_s)
        until(lambda: run.server.counts.open_connections == 0)
        assert run.server.counts.timeouts == len(half) + len(silent)
        assert run.reports == []


def test_more_connections_than_fit_are_all_answered() -> None:
    """1,000 requests over more persistent connections than allowed are all answered."""
    with running(Limits(connections=16, crowded_s=DEADLINE_S)) as run:
        answers: list[bytes] = []
        most: list[int] = []

        def ask() -> None:
            for _ in range(20):
                with run.connect() as client:
                    client.sendall(GET)
                    answers.append(client.recv(1000)[:12])
                most.append(run.server.counts.open_connections)

        askers = [threading.Thread(target=ask) for _ in range(50)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(DEADLINE_S)
        assert answers == [b"HTTP/1.1 200"] * 1000
        assert max(most) <= 16
        assert run.server.counts.responses == {"2xx": 1000}


@pytest.mark.parametrize("has_tls", [False, True])
def test_idle_connections_make_room(
    certificates: tuple[ServeSettings, ServeSettings], *, has_tls: bool
) -> None:
    """At the limit close the longest-idle connections, only as many as needed, also those over TLS."""
    first, _ = certificates
    secret = {"credentials": read_credentials(first), "tls": trusting(first)} if has_tls else {}
    limits = Limits(connections=4, crowded_s=DEADLINE_S, linger_s=DEADLINE_S)
    with running(limits, **secret) as run, ExitStack() as clients:  # type: ignore[arg-type]
        idle = [clients.enter_context(run.connect()) for _ in range(4)]
        for client in idle:
            client.sendall(GET)
            assert answer_of(client).status == 200
        assert run.ask().status == 200
        assert has_tls or is_closed(idle[0])
        assert run.server.counts.evicted == 1
        for client in idle[1:]:
            client.sendall(GET)
            assert answer_of(client).status == 200


def test_half_sent_requests_make_room() -> None:
    """At the limit a request must arrive sooner."""
    with running(Limits(connections=4, crowded_s=0.2)) as run, ExitStack() as clients:
        half = [clients.enter_context(run.connect()) for _ in range(4)]
        for client in half:
            client.sendall(GET[:20])
        assert run.ask().status == 200
        assert run.server.counts.evicted > 0


def test_connections_being_answered_are_not_evicted() -> None:
    """If all connections are being answered, a new client waits for its turn."""
    with running(Limits(connections=2), is_timeless=True) as run, ExitStack() as clients:
        busy = [clients.enter_context(run.connect()) for _ in range(2)]
        for client in busy:
            client.sendall(WAIT)
            assert run.application.waiting.acquire(timeout=DEADLINE_S)
        later = clients.enter_context(run.connect())
        later.sendall(GET)
        assert not has_data([later.fileno()], 0)
        run.let_pass(5 * run.server.limits.crowded_s)
        run.let_answer()
        assert {answer_of(client).body for client in busy} == {b"at last"}
        assert answer_of(later).status == 200


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
REFUSED = {
    "a URL that is too long": (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
    "a URL without end": (b"GET /" + b"x" * 70_000, 431),
    "a header that is too long": (GET[:-2] + b"A: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    "a header without end": (GET[:-2] + b"A: " + b"x" * 70_000, 431),
    "headers that are too long": (GET[:-2] + b"A: xxxxxxxxxxxxxxxx\r\n" * 7_000 + b"\r\n", 431),
    "too many headers": (GET[:-2] + b"A: 1\r\n" * 101 + b"\r\n", 431),
    "empty lines without end": (b"\r\n" * 40_000, 400),
    "a body that is too long": (POST + b"Content-Length: 65537\r\n\r\n", 413),
    "chunks that are too long": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n" * 40,
        400,
    ),
    "chunks without end": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 40,
        413,
    ),
    "a chunk extension without end": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 140_000,
        413,
    ),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a tunnel": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", 400),
    "bytes beyond ASCII": (b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "length and chunks": (
        POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize(("request_", "status"), REFUSED.values(), ids=REFUSED)
def test_refused_requests(request_: bytes, status: int) -> None:
    """An oversized or malformed request gets a problem, and its connection ends; others are answered."""
    with running(Limits(linger_s=DEADLINE_S)) as run:
        with run.connect() as client:
            client.sendall(request_)
            answer = answer_of(client)
            assert answer.status == status
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["Connection"] == "close"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert is_closed(client)
        assert run.ask().status == 200
        assert run.server.counts.too_large == (status in {413, 431})
        assert run.server.counts.responses == {"4xx": 1, "2xx": 1}
        assert run.reports == []


def test_the_largest_request_is_answered() -> None:
    """A head of exactly the allowed size is accepted, and one more byte is refused."""
    with running(Limits(linger_s=DEADLINE_S)) as run:
        most = run.server.limits.head_bytes
        head = GET[:-2] + b"A: "
        filler = most - len(head) - len(b"\r\n\r\n")
        assert run.ask(head + b"x" * filler + b"\r\n\r\n").status == 200
        assert run.ask(head + b"x" * (filler + 1) + b"\r\n\r\n").status == 431


@pytest.mark.parametrize("is_passed_on", [False, True])
def test_bodies(*, is_passed_on: bool) -> None:
    """A small body is accepted, and passed on only if the application takes bodies. Trailers are ignored."""
    with running(Limits(takes_bodies=is_passed_on)) as run:
        post = b"POST /body HTTP/1.1\r\nHost: localhost\r\n"
        taken = repr({"type": "http.request", "body": b"abc" * is_passed_on, "more_body": False}).encode()
        assert run.ask(post + b"Content-Length: 3\r\n\r\nabc").body == taken
        chunks = b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\nHost: evil.example\r\n\r\n"
        assert run.ask(post + chunks).body == taken
        with run.connect() as client:
            client.sendall(post + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(b"abc")
            assert answer_of(client).body == taken


def test_head_has_no_body() -> None:
    """HEAD gets the headers of GET, and the next request on its connection is answered."""
    with running() as run, run.connect() as client:
        client.sendall(GET.replace(b"GET", b"HEAD") + GET[:-2] + b"Connection: close\r\n\r\n")
        answered = client.makefile("rb").read()
    assert answered.count(b"HTTP/1.1 200") == 2
    assert answered.count(b"content-length: 12\r\n") == 2
    assert answered.count(b"hello /hello") == 1


def test_odd_methods_are_the_applications_business() -> None:
    """Pass any method on to the application."""
    with running() as run:
        assert run.ask(b"PROPFIND /method HTTP/1.1\r\nHost: localhost\r\n\r\n").body == b"PROPFIND"


def test_upgrade_requests_are_answered_in_http() -> None:
    """A request for a protocol upgrade is answered by HTTP, and so is the next on the connection."""
    upgrade = GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    with running() as run, run.connect() as client:
        client.sendall(upgrade + GET)
        assert [answer_of(client).status for _ in range(2)] == [200, 200]
        assert run.reports == []


def test_http_1_0() -> None:
    """HTTP/1.0 has no chunks: an answer of unknown length ends with the connection."""
    with running() as run:
        for path, body in (("/pieces", "".join(f"piece {at};" for at in range(1000))), ("/a", "hello /a")):
            with run.connect() as client:
                client.sendall(f"GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode() * 2)
                head, _, rest = client.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"transfer-encoding" not in head
            assert rest.decode() == body
        assert run.reports == []


def test_the_access_log() -> None:
    """Each answer is a log line with client, request and duration; an invalid request has only the rest."""
    lines: list[str] = []
    with running() as run:
        run.server.log = lines.append
        run.ask(b"GET /a?b=c HTTP/1.1\r\nHost: localhost\r\n\r\n")
        run.ask(b"nonsense\r\n\r\n")
    answered, refused = lines
    assert re.fullmatch(r'127\.0\.0\.1 "GET /a\?b=c" 200 \d+\.\d ms', answered)
    assert refused == '127.0.0.1 "-" 400'


def test_pipelined_requests() -> None:
    """Pipelined requests are answered in order; an incomplete or invalid one is refused after the others."""
    with running(Limits(request_s=2.0), is_timeless=True) as run, ExitStack() as clients:
        client = clients.enter_context(run.connect())
        client.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % n for n in range(2000)))
        client.sendall(GET[:-2] + b"Connection: close\r\n\r\n")
        answered = re.findall(rb"hello /(\d+|hello)", client.makefile("rb").read())
        assert answered == [*(b"%d" % n for n in range(2000)), b"hello"]
        followed = clients.enter_context(run.connect())
        followed.sendall(GET + GET[:20])
        assert answer_of(followed).status == 200
        run.let_pass(2.0)
        assert answer_of(followed).status == 408
        wrong = clients.enter_context(run.connect())
        wrong.sendall(GET + b"nonsense\r\n\r\n")
        assert [answer_of(wrong).status for _ in range(2)] == [200, 400]
        assert is_closed(wrong)


def test_a_client_that_goes_while_more_requests_wait() -> None:
    """A client that leaves during an answer ends it, without an error."""
    with running() as run:
        with run.connect() as client:
            client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET * 2)
            client.recv(1)
        until(lambda: run.server.counts.open_connections == 0)
        assert run.ask().status == 200
    assert run.reports == []


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_never_reads_is_closed(version: str) -> None:
    """Close a client that never reads, also (1.0) once the application wrote all of its last answer."""
    with running(Limits(write_s=0.3), is_timeless=True) as run, run.connect() as client:
        client.sendall(f"GET /large HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        assert run.ask().status == 200  # so what was sent before is being answered
        run.let_pass(0.3)
        until(lambda: run.server.counts.timeouts >= 1)
        until(lambda: run.server.counts.open_connections == 0)
        assert version == "1.0" or run.server.counts.timeouts == 1


def test_bugs_are_reported_once() -> None:
    """An application's exception gives a 500, or ends the connection; others are answered."""
    with running() as run:
        for _ in range(3):
            assert run.ask(b"GET /bug HTTP/1.0\r\n\r\n").status == 500
            with pytest.raises(http.client.IncompleteRead):
                run.ask(b"GET /half HTTP/1.0\r\n\r\n")
        assert run.ask().status == 200
        assert ["by nought" in report for report in run.reports] == [True, False]
        assert "Traceback" in run.reports[0]
        assert run.server.counts.responses == {"5xx": 3, "2xx": 4}


def test_want_of_descriptors_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry to accept when the server ran out of file descriptors, and report it once."""
    monkeypatch.setattr("nettop.serve.http.acceptor._RETRY_S", 0.01)
    accept, failures = socket.socket.accept, [OSError(errno.EMFILE, "Too many open files")]

    def accept_later(listener: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return accept(listener)

    with running() as run:
        monkeypatch.setattr(socket.socket, "accept", accept_later)
        assert run.ask().status == 200
        assert ["Too many open files" in report for report in run.reports] == [True]


# The end.


def test_responses_under_way_are_finished() -> None:
    """At the end the server accepts no clients, closes idle connections, and completes its answers."""
    with running(Limits(drain_s=DEADLINE_S)) as run, run.connect() as client, run.connect() as idle:
        idle.sendall(GET)
        assert answer_of(idle).status == 200
        client.sendall(WAIT)
        assert run.application.waiting.acquire(timeout=DEADLINE_S)
        address = run.address
        run.server.requests.end()
        assert is_closed(idle)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        run.let_answer()
        answer = answer_of(client)
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        run.end()


def test_slow_responses_are_cut_off_at_the_exit() -> None:
    """Endless answers get limited time at the end, and are not reported as a bug."""
    with running(Limits(drain_s=0.2)) as run, run.connect() as client:
        client.sendall(WAIT)
        assert run.application.waiting.acquire(timeout=DEADLINE_S)
        run.end()
        assert is_closed(client)
        assert run.reports == []


def test_an_application_that_cannot_be_made_is_an_error() -> None:
    """The application factory's exception reaches the caller."""

    def fail() -> Any:
        raise UsageError("no")

    with open_sockets(endpoints_of("127.0.0.1:0")) as listeners, pytest.raises(UsageError):
        serve(Server(fail, listeners, Requests(), print))


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("times", [1, 2])
def test_signals_end_it_in_order(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer requests in flight, then end and restore the handlers; a second signal ends it during any answer."""
    monkeypatch.setattr(interrupts, "AGAIN_S", 0)
    before = [signal.getsignal(number) for number in ENDING]
    application, is_ending = Application(), threading.Event()

    def end() -> None:
        is_ending.set()
        if times == 1:
            application.may_answer.set()

    def ask(address: Any) -> bytes:
        with socket.create_connection(address, DEADLINE_S) as client, suppress(ConnectionError):
            client.sendall(WAIT)
            assert application.waiting.acquire(timeout=DEADLINE_S)
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_ending.wait(DEADLINE_S)
            if times == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return client.makefile("rb").read()
        return b""

    with (
        ThreadPoolExecutor(1) as pool,
        open_sockets(endpoints_of("127.0.0.1:0")) as listeners,
        interrupts.requested_by_signals() as requests,
    ):
        asked = pool.submit(ask, listeners[0].getsockname())
        with pytest.raises(KeyboardInterrupt) if times == 2 else nullcontext():
            serve(Server(lambda: application, listeners, requests, print, on_ending=end))
        assert asked.result(DEADLINE_S).endswith(b"at last") == (times == 1)
    assert [signal.getsignal(number) for number in ENDING] == before


def test_the_token_is_read_again(tmp_path: Path) -> None:
    """A request to reopen files reads the token again; an unusable file is reported, and changes nothing."""
    path, new = tmp_path / "token", TOKEN[::-1]
    write_secret(path, TOKEN)
    with running(credentials=read_credentials(ServeSettings(token_file=str(path)))) as run:

        def statuses() -> list[int]:
            head = GET[:-2] + b"Authorization: Bearer %b\r\n\r\n"
            return [run.ask(head % token).status for token in (TOKEN, new)]

        assert statuses() == [200, 401]
        write_secret(path, b"short")
        run.server.requests.reopen()
        until(lambda: run.reports)
        assert "fewer than 16 characters; the previous files stay in use" in run.reports[0]
        assert statuses() == [200, 401]
        write_secret(path, new)
        run.server.requests.reopen()
        until(lambda: statuses() == [401, 200])


def test_files_are_read_again_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server notifies readiness only once it is ready, after reading its files again."""
    told: list[str] = []
    for word in ("ready", "reloading", "stopping"):
        monkeypatch.setattr(service_manager, word, lambda *_, word=word: told.append(word))
    requests, reported = Requests(), asyncio.Event()
    with open_sockets(endpoints_of("127.0.0.1:0")) as listeners:
        server = Server(Application, listeners, requests, lambda _: reported.set())

        async def become_ready() -> None:
            requests.reopen()
            await reported.wait()
            assert told == ["reloading"]

        server.until_ready = become_ready
        server.on_ready = requests.end
        serve(server)
    assert told == ["reloading", "ready", "stopping"]


# TLS and the token.


def write_secret(path: Path, content: bytes) -> None:
    """Write it so that only its owner may read it, all at once."""
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_bytes(content + b"\n")
    new.rename(path)


def certificate(folder: Path, name: str) -> ServeSettings:
    """Return a certificate for localhost, and its key."""
    folder.mkdir(exist_ok=True)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", *options, *names, *files], check=True, capture_output=True)
    return ServeSettings(cert=str(cert), key=str(key))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServeSettings, ServeSettings]:
    """Return two certificates with their keys."""
    folder = tmp_path_factory.mktemp("certificates")
    return certificate(folder, "first"), certificate(folder, "second")


def trusting(settings: ServeSettings) -> ssl.SSLContext:
    """Return the TLS context of a client that trusts this certificate."""
    context = ssl.create_default_context(cafile=settings.cert)
    context.check_hostname = False
    return context


def test_tls(certificates: tuple[ServeSettings, ServeSettings]) -> None:
    """Requests are answered over TLS 1.2 or newer, beside clients that fail at the handshake or never begin it."""
    first, _ = certificates
    tls = trusting(first)
    with (
        running(Limits(request_s=2.0), credentials=read_credentials(first), tls=tls, is_timeless=True) as run,
        socket.create_connection(run.address) as silent,
        socket.create_connection(run.address) as plain,
        socket.create_connection(run.address) as strange,
    ):
        assert run.ask().status == 200
        plain.settimeout(DEADLINE_S)
        plain.sendall(GET)
        assert is_closed(plain)
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(strange, server_hostname="localhost")
        silent.settimeout(DEADLINE_S)
        until(lambda: run.server.counts.handshake_failures == 2)
        run.let_pass(2.0)
        assert is_closed(silent)
        until(lambda: run.server.counts.open_connections == 0)
        assert run.server.counts.handshake_failures == 3
        assert run.server.counts.timeouts == 1
        with run.connect() as half:
            half.sendall(GET[:20])
            assert run.ask().status == 200  # so what was sent before has been received
            run.let_pass(2.0)
            assert answer_of(half).status == 408
        assert run.server.credentials.tls is not None
        assert run.server.credentials.tls.minimum_version == ssl.TLSVersion.TLSv1_2
        assert run.reports == []


def test_the_certificate_is_read_again(
    tmp_path: Path, certificates: tuple[ServeSettings, ServeSettings]
) -> None:
    """New connections get the new certificate; an unusable one changes nothing."""
    first, second = certificates
    settings = ServeSettings(cert=str(tmp_path / "cert"), key=str(tmp_path / "key"))

    def install(cert: str | None, key: str | None) -> None:
        for given, name in ((cert, "cert"), (key, "key")):
            assert given is not None
            write_secret(tmp_path / name, Path(given).read_bytes())

    def shown() -> bytes:
        with socket.create_connection(run.address) as client, anybody.wrap_socket(client) as wrapped:
            return wrapped.getpeercert(binary_form=True) or b""

    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    install(first.cert, first.key)
    with running(credentials=read_credentials(settings), tls=trusting(first)) as run:
        old = shown()
        assert run.ask().status == 200
        install(second.cert, first.key)
        run.server.requests.reopen()
        until(lambda: run.reports)
        assert "does not match the certificate" in run.reports[0]
        assert shown() == old
        install(second.cert, second.key)
        run.server.requests.reopen()
        until(lambda: shown() != old)
        assert run.reports[1:] == ["reloaded the certificate"]
        run.tls = trusting(second)
        assert run.ask().status == 200


def test_bad_certificates(tmp_path: Path, certificates: tuple[ServeSettings, ServeSettings]) -> None:
    """The error names the certificate file and the cause."""
    first, second = certificates
    nonsense, public = tmp_path / "nonsense", tmp_path / "public.key"
    write_secret(nonsense, b"nonsense")
    assert first.key is not None
    public.write_bytes(Path(first.key).read_bytes())
    public.chmod(0o644)
    missing = str(tmp_path / "missing")
    locked = tmp_path / "locked.key"
    words = ["openssl", "pkey", "-in", first.key, "-aes128", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(words, check=True, capture_output=True)
    cases = [
        (first.cert, second.key, f"the key in {second.key} does not match"),
        (str(nonsense), first.key, f"no usable certificate in {nonsense}"),
        (first.cert, str(nonsense), f"no usable key in {nonsense}"),
        (first.cert, str(locked), f"no usable key in {locked}"),
        (missing, first.key, f"cannot read the certificate {missing}: no such file"),
        (first.cert, missing, f"cannot read the key {missing}: no such file"),
        (first.cert, str(tmp_path), f"cannot read the key {tmp_path}: is a directory"),
        (first.cert, str(public), f"other users may read or change the key {public}"),
    ]
    for cert, key, message in cases:
        with pytest.raises(UsageError) as raised:
            read_credentials(ServeSettings(cert=cert, key=key))
        assert message in raised.value.what
        assert raised.value.remedy


def test_the_token_file(tmp_path: Path) -> None:
    """The token is one stripped line in a file unreadable by others; a group may read it, as for systemd."""
    path = tmp_path / "token"
    path.write_bytes(b"  " + TOKEN + b" \r\n\n")
    settings = ServeSettings(token_file=str(path))
    for mode in (0o600, 0o400, 0o440, 0o640):
        path.chmod(mode)
        assert read_credentials(settings).token == TOKEN
    for mode in (0o644, 0o604, 0o602):
        path.chmod(mode)
        with pytest.raises(UsageError) as raised:
            read_credentials(settings)
        assert raised.value.remedy == f"chmod 600 {path}"
    path.chmod(0o600)
    too_short, two, spaced = TOKEN[:15], TOKEN + b"\n" + TOKEN, TOKEN + b" x"
    for bad in (b"", too_short, two, spaced, "ü".encode() * 16, b"x" * 5000, b"\0" * 20):
        path.write_bytes(bad)
        with pytest.raises(UsageError, match="token"):
            read_credentials(settings)
    with pytest.raises(UsageError, match="no such file"):
        read_credentials(ServeSettings(token_file=str(tmp_path / "missing")))


# Where it listens.


@pytest.mark.parametrize(
    ("word", "addresses"),
    [
        ("127.0.0.1:9471", {"127.0.0.1"}),
        ("[::1]:9471", {"::1"}),
        ("0.0.0.0:9471", {"0.0.0.0"}),
        ("[::]:65535", {"::"}),
        ("unix:/run/nettop.sock", {"/run/nettop.sock"}),
    ],
)
def test_addresses(word: str, addresses: set[str]) -> None:
    """A word means an address or a path."""
    given = [endpoint.address for endpoint in endpoints_of(word)]
    assert {option if isinstance(option, str) else option[0] for option in given} == addresses


@pytest.mark.parametrize(
    "word",
    ["", "9471", ":9471", "*:9471", "[]:9471", "localhost", "localhost:", "localhost:http", "localhost:65536", "::",
     "localhost:-1", "localhost:٩", "::1:9471", "unix:", "unix:" + "x" * 108, "http://localhost:9471"],
)  # fmt: skip
def test_bad_addresses(word: str) -> None:
    """Refuse an invalid address with an error that gives a valid one."""
    with pytest.raises(UsageError) as raised:
        endpoints_of(word)
    assert raised.value.remedy


@pytest.mark.parametrize("host", ["nettop.invalid", "a..b", "x" * 64 + ".invalid"])
def test_unknown_names(host: str) -> None:
    """Unknown and impossible names are errors."""
    with pytest.raises(NettopError, match="no address for"):
        endpoints_of(f"{host}:9471")


def test_beyond_loopback_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Require a token, or an explicit option, beyond loopback; local names have only local addresses."""
    local = ("127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "localhost:1", "unix:/run/x")
    assert checked_listen(ServeSettings(listen=local))
    twice = ServeSettings(listen=("localhost:1", "127.0.0.1:1"))
    addresses = [endpoint.address for endpoint in checked_listen(twice)]
    assert len(addresses) == len(set(addresses))
    for word in ("0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[fe80::1%lo]:1"):
        with pytest.raises(UsageError) as raised:
            checked_listen(ServeSettings(listen=("127.0.0.1:1", word)))
        assert "--token-file" in raised.value.remedy
        assert "--insecure-listen" in raised.value.remedy
        assert checked_listen(ServeSettings(listen=(word,), insecure_listen=True))
        assert checked_listen(ServeSettings(listen=(word,), token_file="token"))

    def resolve(*_: object, **__: object) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        return [(*kind, ("127.0.0.1", 1)), (*kind, ("192.0.2.1", 1))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UsageError):
        checked_listen(ServeSettings(listen=("both:1",)))


@pytest.mark.parametrize("half", [{"cert": "cert.pem"}, {"key": "key.pem"}])
def test_tls_takes_both(half: dict[str, str]) -> None:
    """A certificate without its key is an error, and the reverse."""
    with pytest.raises(UsageError, match="without"):
        checked_listen(ServeSettings(**half))  # type: ignore[arg-type]


def test_listening_sockets() -> None:
    """Listening sockets know their addresses, are not inherited, and are closed at the end."""
    with open_sockets(endpoints_of("0.0.0.0:0")) as (first,):
        port = first.getsockname()[1]
        assert url_of(first, is_tls=False) == f"http://0.0.0.0:{port}/"
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not first.get_inheritable()
    assert first.fileno() == -1


def test_all_addresses() -> None:
    """[::] includes IPv4, whatever the host's default; beside 0.0.0.0 it is IPv6 only."""
    with open_sockets(endpoints_of("[::]:0")) as (both,):
        port = both.getsockname()[1]
        assert url_of(both, is_tls=True) == f"https://[::]:{port}/"
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port)):
                both.accept()[0].close()
    with open_sockets((*endpoints_of(f"0.0.0.0:{port}"), *endpoints_of(f"[::]:{port}"))) as sockets:
        for listener, address in zip(sockets, ("127.0.0.1", "::1"), strict=True):
            with socket.create_connection((address, port)):
                listener.accept()[0].close()


def test_absent_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server listens at a name's available addresses; an explicit address that the host lacks is an error."""
    kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
    known = [(*kind, ("192.0.2.1", 0)), (*kind, ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: known)
    with open_sockets(endpoints_of("both:0")) as (listener,):
        assert listener.getsockname()[0] == "127.0.0.1"
    known.pop()
    with (
        pytest.raises(NettopError, match=r"no address 192\.0\.2\.1"),
        open_sockets(endpoints_of("absent:0")),
    ):
        pass


def test_a_port_in_use(tmp_path: Path) -> None:
    """A port in use is an error, and closes the sockets opened before."""
    path = tmp_path / "socket"
    with open_sockets(endpoints_of("127.0.0.1:0")) as (used,):
        port = used.getsockname()[1]
        both = (*endpoints_of(f"unix:{path}"), *endpoints_of(f"127.0.0.1:{port}"))
        with pytest.raises(NettopError) as raised, open_sockets(both):
            pass
        assert raised.value.what == f"cannot listen on 127.0.0.1:{port}: port {port} is in use"
        assert f"sport = :{port}" in raised.value.remedy
        assert not path.exists()


def test_a_forbidden_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a forbidden port names the capability."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with (
        pytest.raises(PermissionMissing, match="CAP_NET_BIND_SERVICE"),
        open_sockets(endpoints_of("127.0.0.1:80")),
    ):
        pass


def test_unix_sockets(tmp_path: Path) -> None:
    """A Unix socket is for user and group; a stale one is replaced; one in use, or another file, is an error."""
    path = tmp_path / "socket"
    word = f"unix:{path}"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with running(word=word) as run:
        assert url_of(run.server.listeners[0], is_tls=False) == word
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert run.ask(b"GET /hello HTTP/1.1\r\nHost: whatever\r\n\r\n").body == b"hello /hello"
        with pytest.raises(NettopError, match="another process listens"), open_sockets(endpoints_of(word)):
            pass
        assert run.ask().status == 200
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(NettopError, match="is not a socket"), open_sockets(endpoints_of(word)):
        pass
    assert path.read_text() == "precious"
    with (
        pytest.raises(NettopError, match="no such file"),
        open_sockets(endpoints_of(f"unix:{tmp_path}/missing/socket")),
    ):
        pass


def test_the_socket_of_another_is_not_removed(tmp_path: Path) -> None:
    """A foreign socket that replaced ours is not removed."""
    path = tmp_path / "socket"
    with open_sockets(endpoints_of(f"unix:{path}")):
        path.unlink()
        path.touch()
    assert path.exists()
