"""Where Redis is, as a URL says it, and how to connect to it: hosts, credentials, TLS.

| URL                                                   | what it names                               |
|-------------------------------------------------------|---------------------------------------------|
| `redis://[user:password@]host[:port][/db]`            | one server                                  |
| `unix:///path[?db=db]`                                | the same by a local socket                  |
| `redis+sentinel://[...@]host[:port],.../service[/db]` | sentinels that know the master of a service |
| `redis+cluster://[...@]host[:port],...`               | some servers of a Redis Cluster             |

`rediss` in the place of `redis` is the same with TLS. Credentials are those of the Redis servers.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from roomcast.brokers.redis_link import Connection, pack
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import BrokerUnavailable, ConfigurationError

try:
    from redis import asyncio as redis_asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, ResponseError
except ImportError as missing:
    raise ConfigurationError('redis:// needs the Redis client: pip install "roomcast[redis]"') from missing

TLS_PARAMETERS = frozenset({"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})

_SHAPES = {
    "": (
        "A Redis URL is redis://[user:password@]host[:port][/database], rediss:// likewise for TLS, "
        "or unix:///path[?db=database]"
    ),
    "+sentinel": (
        "A URL of Redis Sentinel is redis+sentinel://[user:password@]host[:port],host[:port].../service[/database], "
        "rediss+sentinel:// likewise for TLS: the hosts are those of the sentinels, the service is what they call the "
        "master, user and password are those of the Redis servers (sentinel_username and sentinel_password, in the "
        "query, are those of the sentinels)"
    ),
    "+cluster": (
        "A URL of a Redis Cluster is redis+cluster://[user:password@]host[:port],host[:port]..., rediss+cluster:// "
        "likewise for TLS: some of its servers, from which the others are learnt; user and password stand once"
    ),
}
_NO_HOST = re.compile(r"[\s=@,]")
_MAP = "address_map is announced-host:port=host:port, with commas between several: where to find what Redis announces."


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, port: int) -> Self:
        """From `host[:port]`, with an IPv6 address in brackets; `ValueError` when it is none."""
        parts = urlsplit(f"//{text}")
        if parts.netloc != text or not parts.hostname or _NO_HOST.search(parts.hostname):
            raise ValueError("not an address")
        return cls(parts.hostname, parts.port or port)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server and how to connect to it.

    Attributes:
        address: host and port, or path, for people to read.
        make: makes a connection that is not connected yet.
        check: what each connection must pass before it is used.
    """

    address: str
    make: Callable[[], Connection] = field(repr=False)
    check: "Check | None" = field(default=None, repr=False)

    async def dial(self, names: Collection[str], *, within: float) -> list[Connection]:
        """One connection per name, all connected within so many seconds, or none."""
        connections: list[Connection] = []
        try:
            async with asyncio.timeout(within):
                for name in names:
                    connections.append(self.make())
                    await self._greet(connections[-1], name)
        except BaseException as exc:
            for connection in connections:
                await connection.disconnect(nowait=True)
            if isinstance(exc, AuthenticationError | ResponseError):
                raise ConfigurationError(f"Redis at {self.address} refuses this user: {exc}") from exc
            if isinstance(exc, TimeoutError):
                text = f"Redis at {self.address} did not answer within {within:g} s."
                raise BrokerUnavailable(text, broker="redis") from exc
            if isinstance(exc, Exception):  # rule 13: whatever it is, nothing of the client's leaves here
                text = f"Redis at {self.address} cannot be reached: {exc}"
                raise BrokerUnavailable(text, broker="redis") from exc
            raise
        return connections

    async def _greet(self, connection: Connection, name: str) -> None:
        """Connect, and tell operators who this is; a user who may not set a name goes without."""
        await connection.connect()
        with suppress(ResponseError):
            await ask(connection, pack(b"CLIENT", b"SETNAME", name.encode()))
        if self.check and (fault := self.check.judge(await ask(connection, self.check.command))):
            raise ConnectionError(fault)


@dataclass(frozen=True, slots=True)
class Check:
    """A question for a server before it is used.

    Attributes:
        command: packed.
        judge: gets the answer; says what is wrong with the server, or nothing.
    """

    command: bytes
    judge: Callable[[object], str]


async def ask(connection: Connection, command: bytes) -> object:
    """The answer to a packed command on a connection that is otherwise idle."""
    await connection.send_packed_command([command], check_health=False)
    return await connection.read_response()


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to connect to any server of a deployment.

    Attributes:
        kind: the client's class of connections.
        settings: for each of them; hold credentials.
        addresses: where to find servers that are announced under another address than they have from here.
    """

    kind: Callable[..., Connection] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    addresses: Mapping[Address, Address] = field(default_factory=dict[Address, Address])

    def to(self, address: Address, check: Check | None = None) -> Endpoint:
        """The server that is announced under this address."""
        host, port = self.addresses.get(address, address)
        make, settings = self.kind, {**self.settings, "host": host, "port": port}
        return Endpoint(str(address), lambda: make(**settings), check)

    def as_user(self, name: str | None, password: str | None) -> "Access":
        """The same with other credentials and no database."""
        return replace(self, settings={**self.settings, "username": name, "password": password, "db": 0})


@dataclass(frozen=True, slots=True)
class Servers:
    """What a URL with several hosts says.

    Attributes:
        hosts: in the order of the URL, none twice.
        access: how to connect to a Redis server.
        path: the segments of the URL's path.
        parameters: the broker's own that are neither TLS, database nor address map.
    """

    hosts: tuple[Address, ...]
    access: Access
    path: tuple[str, ...]
    parameters: Mapping[str, str] = field(repr=False)


def endpoint(config: BrokerConfig) -> Endpoint:
    """Where the URL of one server points, or `ConfigurationError`."""
    try:
        parts = urlsplit(config.url)
        port = parts.port or 6379
    except ValueError:
        # The cause is left out: it may quote a piece of the password.
        raise _shape("") from None
    options = _options(config)
    path = unquote(parts.path)
    if parts.scheme == "unix":
        if parts.hostname or not path.strip("/"):
            raise _shape("")
        settings = _settings(parts.username, parts.password, options.pop("db", ""), "")
        _no_tls(options, parts.scheme)
        make = cast("Callable[..., Connection]", redis_asyncio.UnixDomainSocketConnection)
        return Endpoint(path, lambda: make(path=path, **settings))
    database = options.pop("db", "") or path.strip("/")
    access = _access(parts.scheme, _settings(parts.username, parts.password, database, ""), options)
    return access.to(Address(parts.hostname or "localhost", port))


def servers(config: BrokerConfig, *, port: int, own: Collection[str] = ()) -> Servers:
    """Where a URL with several hosts points, or `ConfigurationError`.

    Args:
        config: of a broker whose scheme ends in `+sentinel` or `+cluster`.
        port: of hosts that name none.
        own: parameters that the broker reads itself.
    """
    scheme, _, rest = config.url.partition("?")[0].partition("://")
    form = "+" + scheme.partition("+")[2]
    netloc, _, path = rest.partition("/")
    credentials, _, named = netloc.rpartition("@")
    if "@" in credentials:
        raise _shape(form)
    try:
        hosts = tuple(dict.fromkeys(Address.parse(host, port) for host in named.split(",")))
    except ValueError:
        raise _shape(form) from None
    user, _, password = credentials.partition(":")
    segments = tuple(unquote(segment) for segment in path.split("/") if segment)
    options = _options(config)
    parameters = {name: options.pop(name) for name in own if name in options}
    addresses = _address_map(options.pop("address_map", ""))
    # The database stands behind the service in a sentinels' URL; a cluster has none.
    database = options.pop("db", "") or (segments[1] if len(segments) == 2 else "")  # noqa: PLR2004
    access = _access(scheme.partition("+")[0], _settings(user, password, database, form), options)
    return Servers(hosts, replace(access, addresses=addresses), segments, parameters)


def shape_of(form: str) -> str:
    """What a URL of this form, such as "+cluster", looks like."""
    return f"{_SHAPES[form]}; special characters of a password are percent-encoded."


def _shape(form: str) -> ConfigurationError:
    return ConfigurationError(shape_of(form))


def _options(config: BrokerConfig) -> dict[str, str]:
    """The broker's parameters, from the query of a URL that has one, and from the configuration."""
    return {**dict(parse_qsl(config.url.partition("?")[2])), **config.parameters}


def _settings(user: str | None, password: str | None, database: str, form: str) -> dict[str, Any]:
    if database and not (database.isascii() and database.isdigit()):
        raise ConfigurationError(f"A Redis database is a number: {shape_of(form)}")
    return {
        "username": unquote(user or "") or None,
        "password": unquote(password or "") or None,
        "db": int(database or 0),
        "protocol": 2,  # works on every Redis, and a message is a plain list
        "socket_timeout": None,  # the link has its own watch
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),  # rule 5: nothing is repeated behind the caller's back
    }


def _access(scheme: str, settings: dict[str, Any], options: dict[str, str]) -> Access:
    if scheme == "rediss":
        kind: object = redis_asyncio.SSLConnection
        settings |= _tls_settings(options)
    else:
        _no_tls(options, scheme)
        kind = redis_asyncio.Connection
    return Access(cast("Callable[..., Connection]", kind), settings)


def _no_tls(options: Mapping[str, str], scheme: str) -> None:
    if mistaken := sorted(TLS_PARAMETERS & options.keys()):
        raise ConfigurationError(f"Only rediss:// takes {', '.join(mistaken)}, not {scheme}://.")


def _tls_settings(options: Mapping[str, str]) -> dict[str, Any]:
    options = {name: value for name, value in options.items() if name in TLS_PARAMETERS}
    verify = options.get("ssl_cert_reqs", "required")
    if verify not in {"required", "optional", "none"}:
        raise ConfigurationError("ssl_cert_reqs is required, optional or none.")
    check = options.get("ssl_check_hostname", "false" if verify == "none" else "true").lower()
    if check not in {"true", "false", "1", "0"}:
        raise ConfigurationError("ssl_check_hostname is true or false.")
    if verify == "none" and check in {"true", "1"}:
        raise ConfigurationError("ssl_check_hostname needs ssl_cert_reqs to be required or optional.")
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options and not Path(options[name]).is_file():
            raise ConfigurationError(f"{name} names no file: {options[name]}")
    return options | {"ssl_cert_reqs": verify, "ssl_check_hostname": check in {"true", "1"}}


def _address_map(text: str) -> dict[Address, Address]:
    addresses: dict[Address, Address] = {}
    try:
        for pair in filter(None, text.split(",")):
            announced, _, found = pair.partition("=")
            addresses[Address.parse(announced, 6379)] = Address.parse(found, 6379)
    except ValueError:
        raise ConfigurationError(_MAP) from None
    return addresses
