"""The process that owns the embedded nats-server. Run as a script (`python -I -S`), on the stdlib alone.

    embedded_guardian.py DIRECTORY FD < {"binary": ..., "base": bool, "port": ..., "token": ..., ...}

It starts the server, restarts it on the same port when it dies, and stops it and removes every file once no
process holds the shared lock on `members` any more. FD is the writing end of the FIFO `alive`: nothing is ever
written to it, but the kernel closes it at the guardian's death, whatever the cause, and every member sees that.
In the other direction the kernel kills the server when the guardian dies (Linux; elsewhere the next guardian
does).
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = ("state", "state.new", "server.conf", "alive", "lock", "members")
"""All files of a directory, in the order of removal: whoever finds `members` gone starts from nothing."""

_POLL = 0.2
"""Seconds between two looks at whether any member is left."""
_START = 5.0
"""Seconds that one start of the server may take, and all restarts on one port together."""
_SAME_PORT = 2.0
"""Seconds to insist on the port of an earlier life, which a dying server may still hold."""
_REFRESH = 3600.0
"""Seconds between touching the files, which keeps cleaners of temporary directories away."""
_FIRST_PORT, _PORTS = 10_240, 20_000
"""Below the usual ephemeral range: no outgoing connection can take the port while the server restarts."""
_PR_SET_PDEATHSIG = 1


class Guardian:
    """One life of a server's port and token."""

    def __init__(self, directory: Path, hint: dict[str, Any]) -> None:
        self._directory = directory
        self._binary: str = hint["binary"]
        self._base: bool = hint["base"]
        self._old: dict[str, Any] = hint
        self._token: str = hint.get("token") or os.urandom(16).hex()
        self._name = f"roomcast-{os.urandom(6).hex()}"
        self._port: int = hint.get("port") or 0
        self._server = 0
        self._die_with_parent = _die_with_parent()
        self._members = os.open(directory / "members", os.O_RDWR)

    def start(self) -> None:
        """Start the server, on the port of the earlier life if possible, and tell the members where it is."""
        self._kill_orphan()
        if not (self._port and self._insist(_SAME_PORT)):
            for _ in range(50):
                self._port = _free_port()
                if self._launch():
                    break
            else:
                raise RuntimeError(f"{self._binary} does not start")
        self._tell()

    def serve(self) -> None:
        """Until nobody is left; raises `RuntimeError` when the server cannot be kept on its port."""
        signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, _ignore)
        refresh = time.monotonic() + _REFRESH
        while not self._alone():
            if select.select([signals], [], [], _POLL)[0]:
                os.read(signals, 4096)
            if os.waitpid(self._server, os.WNOHANG)[0]:
                self._server = 0
                if not self._insist(_START):
                    raise RuntimeError(f"port {self._port} is taken")
                self._tell()
            if time.monotonic() > refresh:
                refresh = time.monotonic() + _REFRESH
                for name in FILES:
                    with contextlib.suppress(OSError):
                        os.utime(self._directory / name)

    def stop(self) -> None:
        """Stop the server: nobody needs what it still holds."""
        if self._server:
            os.kill(self._server, signal.SIGKILL)
            os.waitpid(self._server, 0)
            self._server = 0

    def remove(self) -> None:
        """Leave nothing behind; the lock on `members` is held, so nobody can have joined."""
        remove(self._directory, self._members, base=self._base)

    def _alone(self) -> bool:
        try:
            fcntl.flock(self._members, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _insist(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._launch():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _launch(self) -> bool:
        """Start the server and wait until it answers under its own name."""
        config = self._directory / "server.conf"
        _write(
            config,
            f'listen: "127.0.0.1:{self._port}"\nserver_name: "{self._name}"\n'
            f'authorization {{ token: "{self._token}" }}\nmax_payload: 8MB\n',
        )
        guardian = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                self._die_with_parent()
                if os.getppid() == guardian:
                    os.execv(self._binary, [self._binary, "-c", str(config)])  # noqa: S606 - no shell wanted
            finally:
                os._exit(127)
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
            if _server_name(self._port) == self._name:
                self._server = pid
                return True
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False

    def _kill_orphan(self) -> None:
        """End the server of a guardian that was killed, where the kernel does not do it."""
        port, pid, name = (self._old.get(key) for key in ("port", "server", "name"))
        if port and pid and name and _server_name(port) == name:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _tell(self) -> None:
        state = {
            "port": self._port,
            "token": self._token,
            "name": self._name,
            "guardian": os.getpid(),
            "server": self._server,
        }
        _write(self._directory / "state.new", json.dumps(state))
        (self._directory / "state.new").rename(self._directory / "state")


def remove(directory: Path, members: int, *, base: bool) -> None:
    """Remove a group's files, by one who holds `members` exclusively, unless they are another group's by now."""
    with contextlib.suppress(OSError):
        if not os.path.samestat(os.fstat(members), (directory / "members").lstat()):
            return
        for name in FILES:
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()
        if base:
            directory.parent.rmdir()


def main() -> None:
    """Split in two: one half serves, the other ends as soon as that one is ready, or says why it is not."""
    directory, alive = Path(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(alive, False)  # the server must not keep it
    hint = json.load(sys.stdin)
    said, say = os.pipe()
    if os.fork():
        os.close(say)
        answer = os.read(said, 4096)
        if answer != b"ready":
            sys.stderr.buffer.write(answer)
            sys.stderr.flush()
        os._exit(0 if answer == b"ready" else 1)
    os.close(said)
    try:
        _detach()
        guardian = Guardian(directory, hint)
        guardian.start()
    except Exception as exc:  # noqa: BLE001 - told to the other half
        os.write(say, f"{type(exc).__name__}: {exc}".encode()[:4096])
        os._exit(1)
    with contextlib.suppress(OSError):  # the other half was killed: members read the state all the same
        os.write(say, b"ready")
    os.close(say)
    try:
        guardian.serve()
    except RuntimeError:
        os._exit(1)  # the members see it and start another one, on another port
    guardian.stop()
    guardian.remove()


def _detach() -> None:
    """Outlive the starter: its terminal, its directory, and signals meant for its group.

    A stop of the whole service signals this process too, while members may still say goodbye: it goes when
    the last of them has gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _ignore)  # a handler, because SIG_IGN would be inherited by the server
    os.umask(0o077)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _ignore(_number: int, _frame: object) -> None:
    pass


def _die_with_parent() -> Callable[[], object]:
    """What a child calls so that the kernel kills it when its parent dies; made before the fork."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes  # noqa: PLC0415 - not everywhere, not needed everywhere

            prctl = ctypes.CDLL(None).prctl
            return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return lambda: None


def _server_name(port: int) -> str | None:
    """The name of the NATS server on a loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as sock, sock.makefile("rb") as lines:
            info = lines.readline(65_536)
        if not info.startswith(b"INFO "):
            return None
        name: str | None = json.loads(info[5:]).get("server_name")
    except (OSError, ValueError):
        return None
    return name


def _free_port() -> int:
    while True:
        port = _FIRST_PORT + int.from_bytes(os.urandom(4), "big") % _PORTS
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
