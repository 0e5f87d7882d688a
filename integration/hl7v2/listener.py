"""The MLLP listener: an event loop owns sockets and frames, a fixed pool of threads applies messages.

One connection's frames are applied and answered one after the other, in their order; connections do not wait for
each other. Everything is bounded: connections, size of a frame, time of a frame, idle time, unread answers.
"""

import asyncio
import gc
import hashlib
import logging
import os
import socket
import ssl
import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import uvloop
from django.conf import settings

from common.crashpoints import crashpoint
from common.process import Context
from integration import inbox
from integration.appliers import Appliers, Nursery
from integration.hl7v2.framing import Decoder, Fault, FaultKind, Frame, encode
from integration.hl7v2.workers import Job, Workers
from integration.inbox import Peer, Reply
from integration.sources import Profile

logger = logging.getLogger(__name__)

# Senders give up waiting for an answer after half a minute or so.
_LONGEST_PAUSE_SECONDS = 20.0


def _number(name: str, default: float) -> float:
    return float(os.environ.get(name) or default)


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Limits:
    """The listener's bounds; seconds and bytes. Each may be set by an environment variable ORDERLY_MLLP_…"""

    max_size: int = 32 << 20
    max_connections: int = 500
    max_connections_an_address: int = 300
    idle_seconds: float = 6 * 3600.0
    frame_seconds: float = 120.0
    write_seconds: float = 30.0
    settle_seconds: float = 0.15
    max_waiting_frames: int = 64
    drain_seconds: float = 15.0
    threads: int = 6
    appliers: int = 0
    tolerant: bool = True

    @classmethod
    def from_environment(cls) -> "Limits":
        """The defaults, with what the environment says."""
        return cls(
            max_size=int(_number("ORDERLY_MLLP_MAX_SIZE", cls.max_size)),
            max_connections=int(_number("ORDERLY_MLLP_MAX_CONNECTIONS", cls.max_connections)),
            max_connections_an_address=int(
                _number("ORDERLY_MLLP_MAX_CONNECTIONS_AN_ADDRESS", cls.max_connections_an_address)
            ),
            idle_seconds=_number("ORDERLY_MLLP_IDLE_SECONDS", cls.idle_seconds),
            frame_seconds=_number("ORDERLY_MLLP_FRAME_SECONDS", cls.frame_seconds),
            threads=int(_number("ORDERLY_MLLP_THREADS", cls.threads)),
            appliers=int(_number("ORDERLY_MLLP_APPLIERS", 2 if _cores() > 1 else 0)),
            tolerant=os.environ.get("ORDERLY_MLLP_STRICT") != "1",
        )


class Listener:
    """All connections of one process, and the pool that applies their messages."""

    def __init__(self, limits: Limits | None = None, nursery: Nursery | None = None) -> None:
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.addresses: Counter[str] = Counter()
        self.appliers = Appliers(self.limits.appliers, nursery)
        self.workers = Workers(self.limits.threads, self._apply, max(Workers.AT_ONCE, self.limits.appliers))
        self._nudging = False
        self.closing = False
        self._paced: dict[int, float] = {}
        self._servers: list[asyncio.AbstractServer] = []
        self._watch: asyncio.Task[None] | None = None

    async def start(self, plain: socket.socket | None, tls: socket.socket | None) -> None:
        """Serve on these listening sockets."""
        loop = asyncio.get_running_loop()
        for door, context in ((plain, None), (tls, tls_context() if tls else None)):
            if door is not None:
                door.setblocking(False)
                self._servers.append(
                    await loop.create_server(lambda: Connection(self), sock=door, ssl=context, backlog=1024)
                )
        self._watch = loop.create_task(self._watch_clocks())

    def give(self, job: Job) -> bool:
        """Have the job applied by a thread; False when none is taken any more."""
        given = self.workers.give(job)
        if given and not self._nudging:
            self._nudge()
        return given

    def _nudge(self) -> None:
        """See again in a while whether somebody must step in for those who are at it for long."""
        self._nudging = self.workers.nudge()
        if self._nudging:
            asyncio.get_running_loop().call_later(Workers.LONG_SECONDS, self._nudge)

    def pause_of(self, profile: Profile | None) -> float:
        """Seconds to hold back an answer, so that its source keeps its pace over all its connections."""
        most = profile["per_minute"] if profile and not self.closing else 0
        if not most or profile is None or profile.source_id is None:
            return 0.0
        moment = asyncio.get_running_loop().time()
        due = max(self._paced.get(profile.source_id, 0.0), moment)
        self._paced[profile.source_id] = due + 60 / most
        return min(due - moment, _LONGEST_PAUSE_SECONDS)

    async def stop(self) -> None:
        """Take no more, finish what was received whole, answer it, then close everything."""
        self.closing = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.stop_reading()
        deadline = asyncio.get_running_loop().time() + self.limits.drain_seconds
        while any(c.busy for c in self.connections) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.close()
        if self._watch:
            self._watch.cancel()
        await asyncio.sleep(0)  # lets transports write their last bytes
        self.workers.stop(self.limits.drain_seconds)
        self.appliers.stop()

    def _apply(self, jobs: list[Job]) -> list[Job]:
        """In a thread of the pool: apply and answer what waited together; returns those to be applied alone."""
        if len(jobs) == 1:
            jobs[0].connection.apply(jobs[0].event)
            return []

        def answer(replies: dict[int, Reply]) -> None:
            _tell([(jobs[number].connection, reply) for number, reply in replies.items()])

        frames = [(job.connection, job.event) for job in jobs if isinstance(job.event, Frame)]
        try:
            left = self.appliers.receive([(f.payload, c.peer, f.notes) for c, f in frames], answer)
        except Exception as error:
            logger.error("messages that waited together could not be handled: %s", type(error).__name__)
            left = list(range(len(jobs)))
        return [jobs[number] for number in left]

    async def _watch_clocks(self) -> None:
        """Close what is silent or endless; one task for all connections."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.limits.frame_seconds / 4))
            moment = loop.time()
            for connection in list(self.connections):
                connection.check_clocks(moment)


def _tell(answers: "list[tuple[Connection, Reply | None]]") -> None:
    """Hand answers to the loop that owns their connections."""

    def say() -> None:
        for connection, reply in answers:
            connection.answer(reply)

    try:
        answers[0][0].loop.call_soon_threadsafe(say)
    except RuntimeError:
        pass  # the loop is closed


class Connection(asyncio.Protocol):
    """One peer: frames in, answers out, in order."""

    __slots__ = (
        "_answered_at", "_at_work", "_decoder", "_ending", "_frame_since", "_heard_at", "_listener", "_paused",
        "_profile", "_prompt", "_settle", "_stuck_since", "_transport", "_waiting", "loop", "peer",
    )  # fmt: skip

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.loop = asyncio.get_running_loop()
        self._decoder = Decoder(listener.limits.max_size, listener.limits.tolerant)
        self._transport: Any = None
        self.peer = Peer("")
        self._waiting: deque[Frame | Fault] = deque()
        self._at_work = False
        self._ending = False  # no more is read; close when all is answered
        self._paused = False
        self._profile: Profile | None = None  # of the source that sent the last message
        self._heard_at = self.loop.time()
        self._frame_since: float | None = None
        self._stuck_since: float | None = None
        self._settle: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._prompt = False  # it had its last message ready when it got its answer

    @property
    def busy(self) -> bool:
        """Whether a whole frame is being applied, or waits to be."""
        return self._at_work or bool(self._waiting)

    # -- what the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        name = transport.get_extra_info("peername") or ("", 0)
        self.peer = Peer(str(name[0]), int(name[1]), _fingerprint(transport))
        limits, listener = self._listener.limits, self._listener
        address = self.peer.address
        full = (
            len(listener.connections) >= limits.max_connections
            or listener.addresses[address] >= limits.max_connections_an_address
        )
        if listener.closing or full:
            why = "the listener ends" if listener.closing else "too many connections"
            logger.warning("connection from %s refused: %s", self.peer, why)
            self._transport.abort()
            return
        listener.connections.add(self)
        listener.addresses[address] += 1
        plain = transport.get_extra_info("socket")
        if plain is not None and plain.family in (socket.AF_INET, socket.AF_INET6):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        self._take(self._decoder.feed(data))
        if self._decoder.waiting_for_end and self._settle is None:
            # FS without CR: such a peer waits for its answer, so its silence ends the frame.
            self._settle = self.loop.call_later(self._listener.limits.settle_seconds, self._settled)
        if self._decoder.open_length > 2 * self._listener.limits.max_size + (1 << 20):
            self._take(self._decoder.close())  # a frame that never ends
            self._end()

    def eof_received(self) -> bool:
        self._take(self._decoder.close())
        self._end()
        return True  # half closed: answers still go out

    def connection_lost(self, exc: Exception | None) -> None:
        if self._settle:
            self._settle.cancel()
        self._listener.workers.expect_no_more(self)
        if self in self._listener.connections:
            self._listener.connections.discard(self)
            self._listener.addresses[self.peer.address] -= 1
            self._listener.addresses += Counter()  # drops zero counts
        self._take(self._decoder.close())
        self._ending = True

    def pause_writing(self) -> None:
        self._stuck_since = self.loop.time()

    def resume_writing(self) -> None:
        self._stuck_since = None
        self._next()

    # -- work

    def _settled(self) -> None:
        self._settle = None
        self._take(self._decoder.settle())

    def _take(self, events: list[Frame | Fault]) -> None:
        self._waiting.extend(events)
        if not self._decoder.open_length:
            self._frame_since = None
        elif events or self._frame_since is None:
            self._frame_since = self.loop.time()
        if len(self._waiting) >= self._listener.limits.max_waiting_frames and not self._paused:
            self._paused = True
            self._pause()
        self._next()

    def _next(self) -> None:
        if self._at_work or self._stuck_since is not None:
            return
        if not self._waiting:
            if self._ending:
                self.close()
            elif self._paused:
                self._paused = False
                self._transport.resume_reading()
            return
        self._at_work = True
        self._prompt = self.loop.time() - self._answered_at < Workers.BACK_SECONDS
        event = self._waiting.popleft()
        if not self._listener.give(Job(self, event)):
            self._waiting.clear()  # nothing was stored: the sender keeps its message
            self._at_work = False

    def apply(self, event: Frame | Fault) -> None:
        """In a thread of the pool: apply, and hand the answer to the loop."""
        reply: Reply | None = None
        try:
            reply = _work(event, self.peer)
        except Exception as error:
            logger.error("a frame from %s could not be handled: %s", self.peer, type(error).__name__)
        _tell([(self, reply)])

    def answer(self, reply: Reply | None) -> None:
        """On the loop: say what became of the frame that was at work (None: nothing can be said), and go on."""
        self._at_work = False
        if reply is None:
            self._end()
        elif self._transport is not None and not self._transport.is_closing():
            self._profile = reply.profile or self._profile
            frames = b"".join(encode(part) for part in (reply.ack, reply.later) if part)
            pause = self._listener.pause_of(reply.profile)
            if pause:  # a sender waits for its answer before it sends on
                self._at_work = True
                self.loop.call_later(pause, self._say, frames)
                return
            self._say(frames)
            return
        self._next()

    def _say(self, frames: bytes) -> None:
        self._at_work = False
        if frames and not self._transport.is_closing():
            self._transport.write(frames)
            self._answered_at = self.loop.time()
            if self._prompt and not self._waiting and not self._ending:
                self._listener.workers.expect(self)
        self._next()

    # -- ends

    def check_clocks(self, moment: float) -> None:
        """Close when the peer is silent, when a frame takes too long, or when it does not read its answers."""
        limits = self._listener.limits
        if self._stuck_since is not None and moment - self._stuck_since > limits.write_seconds:
            logger.warning("%s does not read its answers; closed", self.peer)
            self._transport.abort()
        elif self._frame_since is not None and moment - self._frame_since > limits.frame_seconds:
            logger.warning("a frame from %s took too long; closed", self.peer)
            self._take(self._decoder.close())
            self._end()
        elif not self.busy and moment - self._heard_at > (self._own_idle() or limits.idle_seconds):
            self._transport.close()

    def _own_idle(self) -> float:
        """Seconds of silence that the source's profile allows; 0: it says nothing."""
        return float(self._profile["idle_seconds"]) if self._profile else 0.0

    def stop_reading(self) -> None:
        """Read no more; what is whole is still applied and answered."""
        self._ending = True
        self._pause()
        self._next()

    def close(self) -> None:
        """Close now, after the answers that are on their way."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def _end(self) -> None:
        self._ending = True
        self._pause()
        self._next()

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()


def _work(event: Frame | Fault, peer: Peer) -> Reply:
    """In a thread of the pool: the inbox does everything, with this thread's own database connection."""
    if isinstance(event, Frame):
        reply = inbox.receive(event.payload, peer, event.notes)
    elif event.kind is FaultKind.TRUNCATED and not event.data.strip(b"\r\n\x00 "):
        return Reply()
    else:
        reply = inbox.receive_fault(event, peer)
    crashpoint("inbox.after_commit")
    return reply


def _fingerprint(transport: asyncio.BaseTransport) -> str:
    """SHA-256 of the certificate that the peer showed; empty without one."""
    tls = transport.get_extra_info("ssl_object")
    shown = tls.getpeercert(binary_form=True) if tls else None
    return hashlib.sha256(shown).hexdigest() if shown else ""


def tls_context() -> ssl.SSLContext:
    """TLS 1.2 or later with the site's certificate; with an authority configured, peers must show one of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.ORDERLY_TLS_CERTIFICATE, settings.ORDERLY_TLS_KEY or None)
    if settings.ORDERLY_TLS_CA:
        context.load_verify_locations(settings.ORDERLY_TLS_CA)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def main(ctx: Context) -> None:
    """Serve MLLP on the sockets of the context until it says stop."""
    # What was imported stays: the collector need not look at it again, nor at every few hundred new objects.
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)
    limits = Limits.from_environment()
    nursery = Nursery(ctx.let_go) if limits.appliers else None
    uvloop.run(_serve(ctx, limits, nursery))


async def _serve(ctx: Context, limits: Limits, nursery: Nursery | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def wait_for_stop() -> None:
        ctx.stopping.wait()
        try:
            loop.call_soon_threadsafe(stop.set)
        except RuntimeError:
            pass

    listener = Listener(limits, nursery)
    await listener.start(ctx.sockets.get("mllp"), ctx.sockets.get("mllp_tls"))
    threading.Thread(target=wait_for_stop, name="mllp-stop", daemon=True).start()
    ctx.ready()
    while not stop.is_set():
        ctx.beat()
        try:
            await asyncio.wait_for(stop.wait(), 5.0)
        except TimeoutError:
            continue
    await listener.stop()
