"""The load process: many websocket clients in one epoll loop, each cheaper than what it costs a server to serve it.

Run by the measurements, not by hand: it is asked line by line (see `processes`):

- `connect`: `addresses` [[host, port, clients], ...], `concurrency` connections on the way at once, at an even rate
  over `over` seconds (0: as fast as possible); answers when all are Socket.IO clients.
- `run`: tell the UDP port `credit` the number of events received, the mean over all clients, each time it has grown by
  `every`; 0: nobody is told. Keep times of arrival if `timed`.
- `settle`: `until` which event, `timeout` seconds, `times` when each of the timed events was emitted (the monotonic
  clock, from event `first` on); answers when every client has them or the time is over: when the last bytes came, CPU
  seconds since `run`, latencies, and, of all runs so far, events lost, duplicated and reordered, and clients that
  failed.

Events are numbered through the life of the process. Reading is level-triggered, one `recv` for each client that has
something to read: at full speed one read has many frames in it.
"""

import argparse
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from bench.load_wire import Cursor, EventStream, Handshake, ProtocolBroken
from bench.measure import cpu, percentile

_READ = 64 * 1024
_SOURCES = 4
_LIFETIME = 900  # seconds
_REST = 0.01  # seconds between two turns at full speed: fewer reads with more in each, which costs the servers nothing
_FAR = sys.maxsize  # beyond any stream: what is received there never equals it


class Client:
    """One websocket client: `pos` is its cursor's while the cursor may be passed by, else `_FAR`."""

    __slots__ = ("cursor", "handshake", "host", "pos", "recv", "sock")

    def __init__(self, sock: socket.socket, host: str, stream: EventStream) -> None:
        self.sock = sock
        self.recv = sock.recv
        self.host = host
        self.pos = _FAR
        self.handshake: Handshake | None = Handshake()
        self.cursor = Cursor(stream)


class Load:
    """The clients, their loop and the commands.

    Args:
        events: how many events the run may have in all.
        size: characters of one payload.
    """

    def __init__(self, events: int, size: int) -> None:
        self._stream = EventStream(events, size)
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._waiting: deque[tuple[str, int, str]] = deque()
        self._connecting = 0
        self._connected = 0
        self._lost: list[str] = []
        self._received = 0  # bytes of the stream, over all clients
        self._credit = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._every = 0
        self._reported = 0
        self._last = 0.0  # when something was received
        self._cpu = 0.0  # used before this run
        self._timed = False
        self._arrivals: dict[int, list[float]] = {}
        self._commands = b""
        self._running = True

    def serve(self) -> None:
        """Obey until stdin ends."""
        os.set_blocking(0, False)
        self._epoll.register(0, select.EPOLLIN)
        while self._running:
            self._turn(1.0)
            if self._every:
                time.sleep(_REST)

    def _turn(self, timeout: float) -> None:
        clients, startswith = self._clients, self._stream.data.startswith
        size = self._stream.frame_length
        received = 0
        told = False
        for fd, _event in self._epoll.poll(timeout, 4096):
            client = clients.get(fd)
            if client is None:
                told = True
                continue
            try:
                data = client.recv(_READ)
            except BlockingIOError:
                continue
            except OSError as error:
                self._fail(client, str(error))
                continue
            pos = client.pos
            if data and startswith(data, pos):
                length = len(data)
                client.pos = pos + length
                received += length
                if self._timed:
                    self._note(pos // size, client.pos // size)
            else:
                self._slow(client, data)
        if received:
            self._received += received
            self._last = time.monotonic()
        if self._every:
            self._report()
        if told:
            self._obey()  # which may take turns of its own

    def _report(self) -> None:
        done = self._received // (self._stream.frame_length * max(1, self._connected))
        if done - self._reported >= self._every:
            self._reported = done
            self._credit.send(b"%d" % done)

    def _note(self, begin: int, end: int) -> None:
        now = time.monotonic()
        for number in range(begin, end):
            self._arrivals.setdefault(number, []).append(now)

    def _slow(self, client: Client, data: bytes) -> None:
        """What is no event in its turn: a handshake, a ping, an end, or an event that should not come now."""
        try:
            if client.handshake is not None:
                self._shake(client, data)
            elif not data:
                self._fail(client, "The server has closed the connection.")
            else:
                self._feed(client, data)
        except (ProtocolBroken, OSError) as error:
            self._fail(client, str(error))

    def _shake(self, client: Client, data: bytes) -> None:
        handshake = client.handshake
        if handshake is None:
            return
        if not data:
            raise ProtocolBroken("The server has closed the connection during the handshake.")
        self._send(client, handshake.feed(data))
        if handshake.done:
            client.handshake = None
            client.pos = client.cursor.pos
            self._connected += 1
            self._connecting -= 1
            if handshake.rest:
                self._feed(client, handshake.rest)

    def _feed(self, client: Client, data: bytes) -> None:
        cursor = client.cursor
        if client.pos != _FAR:
            cursor.pos = client.pos
        before = cursor.pos
        first = cursor.next
        self._send(client, cursor.feed(data))
        self._received += cursor.pos - before
        if self._timed:
            self._note(first, cursor.next)
        client.pos = _FAR if cursor.rest else cursor.pos
        if cursor.closed:
            self._fail(client, "The server has closed the websocket.")

    def _send(self, client: Client, data: bytes) -> None:
        if data:
            client.sock.sendall(data)

    def _fail(self, client: Client, why: str) -> None:
        if client.handshake is not None:
            self._connecting -= 1
        self._lost.append(why)
        self._clients.pop(client.sock.fileno(), None)
        client.sock.close()

    def _obey(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            self._running = False
            return
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            getattr(self, "_do_" + command.pop("do"))(**command)

    def _do_connect(
        self, addresses: Sequence[tuple[str, int, int]], concurrency: int, over: float, timeout: float
    ) -> None:
        began = time.monotonic()
        total = 0
        places = [deque([(host, port)] * count) for host, port, count in addresses]
        while any(places):  # in turn, so that all servers are busy at once
            for place in places:
                if place:
                    host, port = place.pop()
                    self._waiting.append((host, port, f"127.0.0.{2 + total % _SOURCES}"))
                    total += 1
        before = self._connected
        opened = 0
        while self._connected - before < total and not self._lost and time.monotonic() - began < timeout:
            due = total if not over else total * (time.monotonic() - began) / over
            while self._waiting and self._connecting < concurrency and opened < due:
                self._open(*self._waiting.popleft())
                opened += 1
            self._turn(0.02)
        if self._connected - before < total:
            why = self._lost[0] if self._lost else f"time is over after {timeout} s"
            answer({"error": f"{self._connected - before} of {total} clients are connected: {why}"})
            return
        answer({"connected": self._connected, "seconds": time.monotonic() - began})

    def _open(self, host: str, port: int, source: str) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # leaves no port waiting behind
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: a port is chosen for the pair
        sock.bind((source, 0))
        sock.connect((host, port))  # on this machine, at once
        sock.setblocking(False)
        client = Client(sock, host, self._stream)
        self._clients[sock.fileno()] = client
        self._connecting += 1
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._send(client, Handshake.request(f"{host}:{port}"))

    def _do_run(self, *, credit: int, every: int, timed: bool) -> None:
        self._credit.connect(("127.0.0.1", credit))
        self._every = every
        self._timed = timed
        self._arrivals.clear()
        self._cpu = cpu()
        answer({})

    def _do_settle(self, until: int, timeout: float, first: int = 0, times: Sequence[float] = ()) -> None:
        deadline = time.monotonic() + timeout
        self._every = 0
        goal = until * self._stream.frame_length * self._connected
        while self._received < goal and time.monotonic() < deadline and self._running:
            self._turn(0.05)
        cursors = [client.cursor for client in self._clients.values()]
        for client in self._clients.values():
            if client.pos != _FAR:
                client.cursor.pos = client.pos
        gone = self._connected - len(cursors)
        latencies = sorted(
            at - emitted for number, emitted in enumerate(times, first) for at in self._arrivals.get(number, ())
        )
        answer(
            {
                "ended": self._last,
                "cpu": cpu() - self._cpu,
                "lost": sum(cursor.lost(until) for cursor in cursors) + gone * until,
                "duplicated": sum(cursor.duplicated for cursor in cursors),
                "reordered": sum(cursor.reordered for cursor in cursors),
                "failed": self._lost[:5],
                "p50": percentile(latencies, 0.5) if latencies else None,
                "p99": percentile(latencies, 0.99) if latencies else None,
                "last": max(latencies, default=None),
            }
        )


def answer(message: dict[str, Any]) -> None:
    """Write one answer."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        try:
            data = data[os.write(1, data) :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            select.select([], [1], [])


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=int)
    parser.add_argument("size", type=int)
    options = parser.parse_args()
    signal.alarm(_LIFETIME)
    Load(options.events, options.size).serve()


if __name__ == "__main__":
    main()
