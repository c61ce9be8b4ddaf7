"""How processes of one machine agree on one embedded server: a directory, four files, and kernel locks.

| file          | is                                                                                      |
|---------------|-----------------------------------------------------------------------------------------|
| `members`     | locked shared by every member for as long as it is one; the kernel unlocks it at any death |
| `lock`        | locked exclusively while somebody looks for the guardian, and starts one                |
| `alive`       | a FIFO whose writing end the guardian alone holds: end-of-file is the guardian's death   |
| `state`       | where the server is, with its token; written by the guardian, whole (0600 in 0700)      |
| `server.conf` | the server's configuration                                                              |

Files are removed by the guardian, or by the last member if it is dead, and only with `members` locked
exclusively: for a member all paths are stable. `embedded_guardian.py` is the other side.
"""

import asyncio
import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roomcast.brokers.embedded_guardian import remove
from roomcast.core.errors import BrokerUnavailable, ConfigurationError

_GUARDIAN = Path(__file__).with_name("embedded_guardian.py")
_POLL = 0.02
"""Seconds between two tries of a lock, or two looks for a file."""
_PATIENCE = 15.0
"""Seconds that a guardian may take to start a server, and then some."""

_held: set[int] = set()
"""Descriptors whose copies in a forked child would keep this process's locks after its death."""


def _let_go() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _open(path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    _held.add(fd)
    return fd


def _close(fd: int) -> None:
    if fd in _held:
        _held.discard(fd)
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server listens, and what lets one in."""

    port: int
    token: str = field(repr=False)

    @property
    def url(self) -> str:
        """The URL for the broker of NATS; holds the token."""
        return f"nats://{self.token}@127.0.0.1:{self.port}"


class Member:
    """This process's membership in the group that shares a server."""

    def __init__(self, directory: str | None, name: str, binary: str) -> None:
        self._own_base = directory is None
        self._base = default_base() if directory is None else Path(directory).absolute()
        self._home = self._base / name
        self._binary = binary
        self._members: int | None = None
        self._alive: int | None = None
        self._gone = asyncio.Event()

    async def find(self) -> Place:
        """Where the server is, as a member; starts a guardian if there is none.

        Raises:
            BrokerUnavailable: no server could be started.
        """
        try:
            await self._enter()
            return await self._find()
        except OSError as exc:
            raise BrokerUnavailable(
                f"The embedded server's directory {self._home} cannot be used: {exc}.", broker="embedded"
            ) from exc

    async def guardian_gone(self) -> None:
        """Wait until the guardian that `find` found has died."""
        await self._gone.wait()

    def leave(self) -> None:
        """Be no member any more; the last one's leaving ends the guardian.

        If the guardian is dead, the last one removes the files: with `members` locked nobody can start another.
        """
        self._unwatch()
        if self._members is not None:
            if _locked(self._members, fcntl.LOCK_EX) and not self._guarded():
                remove(self._home, self._members, base=self._own_base)
            _close(self._members)
            self._members = None

    def _guarded(self) -> bool:
        try:
            alive = _open(self._home / "alive", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return _has_writer(alive)
        finally:
            _close(alive)

    async def _enter(self) -> None:
        """Hold `members` shared. Its path and its inode must agree: a guardian may just have removed it."""
        if self._members is not None:
            if _same(self._members, self._home / "members"):
                return
            _close(self._members)
            self._members = None
        while True:
            with suppress(FileNotFoundError):  # removed between two steps
                self._make_directories()
                fd = _open(self._home / "members", os.O_RDWR | os.O_CREAT)
                if _locked(fd, fcntl.LOCK_SH) and _same(fd, self._home / "members"):
                    self._members = fd
                    return
                _close(fd)
            await asyncio.sleep(_POLL)

    def _make_directories(self) -> None:
        if not self._own_base:
            self._base.mkdir(parents=True, exist_ok=True)
        for directory in (self._base, self._home) if self._own_base else (self._home,):
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            _check_private(directory)

    async def _find(self) -> Place:
        self._unwatch()
        lock = _open(self._home / "lock", os.O_RDWR | os.O_CREAT)
        try:
            while not _locked(lock, fcntl.LOCK_EX):  # noqa: ASYNC110 - a lock of the kernel has no event
                await asyncio.sleep(_POLL)
            with suppress(FileExistsError):
                os.mkfifo(self._home / "alive", 0o600)
            alive = _open(self._home / "alive", os.O_RDONLY | os.O_NONBLOCK)
            try:
                while True:
                    if not _has_writer(alive):
                        await self._start_guardian()
                    if (state := self._state()) and _has_writer(alive):
                        place = Place(state["port"], state["token"])
                        self._watch(alive)
                        return place
                    await asyncio.sleep(_POLL)
            except BaseException:
                _close(alive)
                raise
        finally:
            _close(lock)

    async def _start_guardian(self) -> None:
        """From the moment of its start on, the guardian holds the FIFO's writing end, and nobody else."""
        hint = {**self._state(), "binary": self._binary, "base": self._own_base}
        (self._home / "state").unlink(missing_ok=True)
        writer = _open(self._home / "alive", os.O_WRONLY | os.O_NONBLOCK)
        try:
            front = subprocess.Popen(  # noqa: ASYNC220, S603 - a short fork; this interpreter and a file of ours
                [sys.executable, "-I", "-S", str(_GUARDIAN), str(self._home), str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            _close(writer)
        try:
            if front.stdin is not None:
                with suppress(BrokenPipeError), front.stdin:
                    front.stdin.write(json.dumps(hint).encode())
            async with asyncio.timeout(_PATIENCE):
                while front.poll() is None:  # noqa: ASYNC110 - nor has a process, without a watcher
                    await asyncio.sleep(_POLL / 4)
            said = b"" if front.stderr is None else front.stderr.read()
        except TimeoutError as exc:
            raise BrokerUnavailable("The embedded server does not come up.", broker="embedded") from exc
        finally:  # a front that is killed leaves a guardian that members find all the same
            front.kill()
            front.wait()
            if front.stderr is not None:
                front.stderr.close()
        if front.returncode:
            reason = said.decode(errors="replace").strip()[-500:] or f"exit code {front.returncode}"
            raise BrokerUnavailable(f"The embedded server does not start: {reason}.", broker="embedded")

    def _state(self) -> Mapping[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self._home / "state").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state

    def _watch(self, alive: int) -> None:
        self._alive = alive
        self._gone.clear()
        asyncio.get_running_loop().add_reader(alive, self._unwatch_dead)

    def _unwatch_dead(self) -> None:
        if self._alive is not None and not _has_writer(self._alive):
            self._unwatch()
            self._gone.set()

    def _unwatch(self) -> None:
        if self._alive is not None:
            asyncio.get_running_loop().remove_reader(self._alive)
            _close(self._alive)
            self._alive = None


def default_base() -> Path:
    """The per-user directory of all groups; without an XDG_RUNTIME_DIR it stands among temporary files."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK):
        return Path(runtime) / "roomcast"
    return Path(tempfile.gettempdir()) / f"roomcast-{os.geteuid()}"


def _check_private(directory: Path) -> None:
    """Refuse a directory in which somebody else could have put our files."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(
            f"{directory} must be a directory of this user alone (mode 0700): remove it, or name another place "
            "with ?dir="
        )


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_writer(fifo: int) -> bool:
    try:
        return os.read(fifo, 1) != b""
    except BlockingIOError:
        return True
