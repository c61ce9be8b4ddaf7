"""The broker over core NATS: `nats://` and `tls://`, one or several servers separated by commas.

A subject is a NATS subject, verbatim. The connection is `nats_link.Link`; this module reads the URL and keeps
what outlives a link: the subjects and what was received. When the next link is made: `lifecycle`; to the same server
or to the next one: `nats_servers`. How a subscription holds in a whole cluster: `nats_reach`.
"""

import asyncio
import importlib.util
import re
import ssl
from collections import UserString
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import SplitResult, unquote, urlsplit

from roomcast.brokers.attempts import each_once
from roomcast.brokers.lifecycle import Lifecycle
from roomcast.brokers.nats_link import Link
from roomcast.brokers.nats_outflow import Publishing
from roomcast.brokers.nats_servers import Servers
from roomcast.core.arrivals import Arrivals
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Guarantees, Log, Subject
from roomcast.core.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    PayloadTooLarge,
)

_FLUSH = 1.0
"""Seconds that `aclose` waits for the confirmation of what was accepted."""
_LONGEST_DELAY = 0.3
"""Seconds between attempts to reconnect, at most; peers wait for the last one back."""
_JWT = re.compile(r"-BEGIN NATS USER JWT-+\s+([\w-]+\.[\w-]+\.[\w-]+)\s", re.ASCII)
_SEED = re.compile(r"^[ \t]*(SU[A-Z2-7]{56})[ \t\r]*$", re.MULTILINE)


class NatsBroker:
    """Core NATS over one connection.

    Order is FIFO per publishing node, across subjects, through a cluster too: the messages of one account travel
    between two of its servers over one connection. A publish resolves when the server in use has handled it: a
    marker published behind it has come back. A cancelled publish was sent all the same. The barrier of `subscribe`
    is that of the whole cluster, where its servers trace messages (`guarantees.barrier`).
    """

    parameters: ClassVar[frozenset[str]] = frozenset(
        {"creds", "nkey_seed", "tls_ca", "tls_cert", "tls_key", "tls_hostname", "tls_handshake_first", "gossip"}
    )
    log: Log | None = None

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        urls, self._options = endpoints(config)
        self._servers = Servers(urls)
        self._server = self._servers.first
        self._gossip = flag(config.parameters, "gossip", default="1")
        self._subjects: dict[Subject, None] = {}
        self._arrivals = Arrivals(config.buffer, self._check_open)
        self._life = Lifecycle[Link](
            "nats",
            lambda: f"NATS at {self._server.url}",
            self._arrivals,
            connect=self._connect,
            flush=self._flush,
            drop=Link.aclose,
            longest=_LONGEST_DELAY,
        )
        self.guarantees = Guarantees(order="publisher", confirmed=True, max_payload=config.max_payload)

    async def start(self) -> None:
        """Connect to one of the servers, or raise `BrokerUnavailable` (rule 1)."""
        await self._life.start()

    async def aclose(self) -> None:
        """Flush and disconnect; blocked calls raise `BrokerClosed` (rule 11)."""
        await self._life.aclose()

    def publish(self, subject: Subject, payload: bytes, /) -> Publishing:
        """Send one payload; resolves once the server has handled it (rules 4 and 5)."""
        limit = self.guarantees.max_payload
        error: BrokerError
        if (link := self._life.link) is None:
            error = self._life.no_link()
        elif len(payload) > min(limit, link.max_payload):
            error = PayloadTooLarge(size=len(payload), limit=min(limit, link.max_payload), broker="nats")
        else:
            return link.publish(subject, payload)
        future: Publishing = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return future

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        """Hear these subjects from now on, on the far side of a barrier (rule 2).

        Raises:
            ConfigurationError: the account's permissions do not allow a subject.
        """
        self._check_open()
        subjects = tuple(subjects)
        self._subjects.update(dict.fromkeys(subjects))
        link = self._life.require()
        if not subjects:
            return
        try:
            refused = await link.subscribe(subjects)
        except BrokerUnavailable as exc:
            if self._life.closed:
                raise self._life.no_link() from exc
            raise
        await link.unsubscribe([subject for subject in subjects if subject not in self._subjects])
        if refused:
            for subject in refused:
                self._subjects.pop(subject, None)
            raise _refusal(refused)

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        """Stop hearing these subjects (rule 3)."""
        for subject in subjects:
            self._subjects.pop(subject, None)
        if (link := self._life.link) is not None:
            await link.unsubscribe(subjects)

    async def receive(self) -> Sequence[Delivery | Gap]:
        """All that has arrived, at least one event (rule 7)."""
        return await self._arrivals.take()

    async def _connect(self) -> Link:
        """Try each server once, all within `connect_timeout`."""
        link = await each_once(len(self._servers), self._config.connect_timeout, self._open)
        limit = min(self._config.max_payload, link.max_payload)
        self.guarantees = replace(self.guarantees, max_payload=limit, barrier=link.scope)
        self._life.use(link)
        return link

    async def _flush(self, link: Link) -> None:
        await link.flush(_FLUSH)

    async def _open(self, timeout: float) -> Link:
        """A link to the next server, with all subjects heard."""
        link = Link(self._config, self._deliver, self._on_lost, self._arrivals.gap)
        opened = False
        try:
            server = self._servers.following()
            options = self._options | self._login()
            if server.name is not None:
                options.setdefault("tls_hostname", server.name)
            self._server = server
            await link.open(server.url, options, timeout)
            self._learn(link)
            while missing := [subject for subject in self._subjects if subject not in link.subjects]:
                if refused := await link.subscribe(missing):
                    refusal = _refusal(refused)
                    raise BrokerUnavailable(str(refusal), broker="nats") from refusal
            await link.unsubscribe([subject for subject in link.subjects if subject not in self._subjects])
            await link.settle()
            if link.over.is_set():
                raise BrokerUnavailable("The connection to NATS was lost at once.", broker="nats")
            opened = True
            return link
        finally:
            if not opened:
                await link.aclose()

    def _learn(self, link: Link) -> None:
        if self._gossip:
            self._servers.learn(link.others, self._server)

    def _login(self) -> dict[str, Any]:
        """The files are read for each link: they may have been renewed, or be half written just now."""
        try:
            return login_files(self._config.parameters)
        except ConfigurationError as exc:
            raise BrokerUnavailable(str(exc), broker="nats") from exc

    def _on_lost(self, link: Link, reason: Exception) -> None:
        if self._life.lost(link, reason):
            self._learn(link)

    def _deliver(self, subject: Subject, payload: bytes) -> None:
        self._arrivals.put(Delivery(subject, payload))

    def _check_open(self) -> None:
        self._life.check_open()


def _refusal(refused: Collection[Subject]) -> ConfigurationError:
    return ConfigurationError(
        f"The NATS account may not subscribe to {min(refused)}: "
        "its permissions must allow to publish and to subscribe on <prefix>.>"
    )


def endpoints(config: BrokerConfig) -> tuple[list[str], dict[str, Any]]:
    """The servers, without credentials, and what `connect` of nats-py is to be told."""
    scheme, _, rest = config.url.partition("://")
    hosts, _, path = rest.partition("/")
    servers: list[str] = []
    logins: set[tuple[str | None, str | None]] = set()
    for host in hosts.split(","):
        parts = _parts(f"{scheme}://{host}")
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        servers.append(f"{scheme}://{name}:{parts.port or 4222}")
        if parts.username:
            password = None if parts.password is None else unquote(parts.password)
            logins.add((unquote(parts.username), password))
    if path:
        raise ConfigurationError("A NATS URL is nats://[user:password@ or token@]host[:port][,host...].")
    if len(logins) > 1:
        raise ConfigurationError("A NATS URL with several servers has one login for all of them.")
    options: dict[str, Any] = {}
    files = login_files(config.parameters)
    if len(files) > 1 or (files and any(password is not None for _, password in logins)):
        raise ConfigurationError("creds, nkey_seed and user:password are different logins: a NATS URL has one.")
    for user, password in logins:
        options |= {"token": user} if password is None else {"user": user, "password": password}
    return servers, options | _tls(config.parameters, scheme)


def _parts(url: str) -> SplitResult:
    with suppress(ValueError):  # its text may hold half a password
        parts = urlsplit(url)
        if parts.hostname and (parts.port is None or parts.port > 0) and parts.username != "":
            return parts
    raise ConfigurationError(
        "A NATS URL is nats://[user:password@ or token@]host[:port][,host...]; percent-encode "
        "what is special in a password."
    )


def login_files(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Credentials that stand in files, read here: nats-py looks for the JWT for ever in a file that has none."""
    options: dict[str, Any] = {}
    if path := parameters.get("creds"):
        text = _credentials("creds", path)
        if (jwt := _JWT.search(text)) is None or (seed := _SEED.search(text)) is None:
            raise ConfigurationError(f"creds names a file without a user JWT and its seed: {path}")
        options["user_credentials"] = UserString(
            f"-----BEGIN NATS USER JWT-----\n{jwt[1]}\n-----BEGIN USER NKEY SEED-----\n{seed[1]}\n"
        )
    if path := parameters.get("nkey_seed"):
        if (seed := _SEED.search(_credentials("nkey_seed", path))) is None:
            raise ConfigurationError(f"nkey_seed names a file without the seed of a user, SU...: {path}")
        options["nkeys_seed_str"] = seed[1]
    return options


def _credentials(parameter: str, path: str) -> str:
    if importlib.util.find_spec("nkeys") is None:
        raise ConfigurationError(f'{parameter} needs the nkeys package: pip install "roomcast[nats]"')
    if not Path(path).is_file():
        raise ConfigurationError(f"{parameter} names a file that does not exist: {path}")
    try:
        return Path(path).read_bytes().decode("ascii", errors="replace")
    except OSError as exc:
        raise ConfigurationError(f"{parameter} names a file that cannot be read: {exc}.") from exc


def _tls(parameters: Mapping[str, str], scheme: str) -> dict[str, Any]:
    handshake_first = flag(parameters, "tls_handshake_first")
    if scheme != "tls":
        if handshake_first or any(parameters.get(name) for name in ("tls_ca", "tls_cert", "tls_key", "tls_hostname")):
            raise ConfigurationError(
                "tls_ca, tls_cert, tls_key, tls_hostname and tls_handshake_first belong to a tls:// URL."
            )
        return {}
    options: dict[str, Any] = {"tls": _context(*(parameters.get(name) for name in ("tls_ca", "tls_cert", "tls_key")))}
    if hostname := parameters.get("tls_hostname"):
        options["tls_hostname"] = hostname
    if handshake_first:
        options["tls_handshake_first"] = True
    return options


def _context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    if key and not cert:
        raise ConfigurationError("tls_key needs tls_cert.")
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert:
            context.load_cert_chain(cert, key, _passphrase)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigurationError(f"tls_ca, tls_cert or tls_key cannot be used: {exc}.") from exc
    return context


def _passphrase() -> str:
    """Called for an encrypted key; without it OpenSSL would stop the process to ask the terminal."""
    raise ConfigurationError("tls_key is encrypted: it must be a key without a passphrase.")


def flag(parameters: Mapping[str, str], name: str, default: str = "0") -> bool:
    """A parameter that is on or off, or `ConfigurationError`."""
    text = parameters.get(name, default).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ConfigurationError(f"{name} is 1 or 0, not {text!r}.")
