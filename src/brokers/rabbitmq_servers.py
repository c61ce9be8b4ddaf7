"""Where RabbitMQ is, as a URL says it: one server, or several nodes of one cluster.

`amqp://[user:password@]host[:port][,host[:port]...][/vhost]`, or `amqps://`. Login and virtual host are those of all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit, urlunsplit

from roomcast.core.errors import ConfigurationError

_SHAPE = (
    "A RabbitMQ URL is amqp://user:password@host:port/vhost, or amqps://; several nodes of a cluster stand between "
    "commas, host:port,host:port, after one user and password for all. What is special in a password is "
    "percent-encoded."
)
_PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class Server:
    """One server.

    Attributes:
        host: its name or address.
        port: its port.
        url: as the client library wants it, credentials and all.
    """

    host: str
    port: int
    url: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def servers(url: str, options: Mapping[str, str], heartbeat: float) -> list[Server]:
    """The servers of a URL, in its order, none twice.

    AMQP's own heartbeat only lets the *server* notice a dead node and remove its queue; it must not cut a
    node whose loop was busy for a moment, hence at least 10 s. This side has the watchdog.

    Raises:
        ConfigurationError: the URL is malformed; it says what to write and shows nothing of what was written.
    """
    auth = options.get("auth", "plain").lower()
    if auth not in {"plain", "external"}:
        raise ConfigurationError("auth is plain (user and password) or external (client certificate).")
    query = f"heartbeat={max(10, math.ceil(2 * heartbeat))}&auth={auth}"
    scheme, slashes, rest = url.partition("?")[0].partition("://")
    netloc, slash, path = rest.partition("/")
    if scheme not in _PORTS or not slashes:
        raise ConfigurationError(_SHAPE)
    found: dict[tuple[str, int], Server] = {}
    logins: set[str] = set()
    several = netloc.split(",")
    for part in several:
        login, at, address = part.rpartition("@")
        if at:
            logins.add(login)
        if not address and len(several) > 1:
            raise ConfigurationError(_SHAPE)
        parts = _parts(f"{scheme}://{part}")
        host = parts.hostname or "localhost"
        found[host, parts.port or _PORTS[scheme]] = Server(host, parts.port or _PORTS[scheme], "")
    if len(logins) > 1:
        raise ConfigurationError(f"The nodes of a cluster have one login for all of them. {_SHAPE}")
    head = "".join(f"{login}@" for login in logins)
    return [
        Server(
            host,
            port,
            urlunsplit((scheme, f"{head}{f'[{host}]' if ':' in host else host}:{port}", slash + path, query, "")),
        )
        for host, port in found
    ]


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.port != 0 and not parts.path and not parts.fragment:
            return parts
    except ValueError:
        pass  # not chained: the original quotes the URL after the last colon, which may be a password
    raise ConfigurationError(_SHAPE)
