"""The settings of an adapter: what a developer passes, and what an operator changes in the URL.

A setting named in the URL's query wins over the argument of the same name, because the URL is what an operator
can change without a release. Parameters that neither roomcast nor the broker knows are refused by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, cast, get_args
from urllib.parse import parse_qsl, urlsplit

from roomcast.core.broker import Broker
from roomcast.core.errors import ConfigurationError

SlowClient = Literal["disconnect", "drop_newest", "drop_oldest"]
"""What happens to a client for whom too much waits."""

Agreed = Literal["publisher", "total"]
"""How far clients agree on the order of events."""

_SAYS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number of seconds",
    str: "text",
    str | None: "text or None",
    SlowClient: " or ".join(f'"{policy}"' for policy in get_args(SlowClient)),
    Agreed: " or ".join(f'"{order}"' for order in get_args(Agreed)),
}
_ON_A_LOG: dict[str, Any] = {"confirm": True, "outbox_age": 120.0}
_MAY_BE_ZERO = ("linger", "regroup_timeout", "compress_from")


Environ = Mapping[str, Any]


def _can_drop_a_place(environ: Environ, _auth: Any) -> bool:
    """Every client but python-socketio's own, as far as they can be told: they hand all arguments to their handlers."""
    agent = str(environ.get("HTTP_USER_AGENT", ""))
    return not agent.startswith(("Python/", "python-requests/"))


@dataclass(frozen=True, slots=True)
class Recovery:
    """Connection state recovery: a client that comes back within the window goes on where it left, on any node.

    Attributes:
        window: seconds within which it has to come back.
        patience: seconds for which a node that still serves a client's earlier connection may take to let go of it, and
            three times what it may take to say that it is there.
        sessions: how many clients may be away at the same time, in the whole cluster.
        memory: bytes of packets that each node keeps for those who come back; while it gives them back, a quarter more.
        session_bytes: bytes of a client's session data that are kept; the largest values beyond them are left out.
        skip_connect_handler: do not call the connect handler for a client whose session is restored.
        offer: called with the environ and `auth` of a new client: whether it is offered recovery. Events carry a place
            as a last argument for those who are; without this all are but python-socketio's own clients.
        identity: called with the environ and `auth`: who the client is. Only who is the same gets a session back.
    """

    window: float = 120.0
    patience: float = 3.0
    sessions: int = 100_000
    memory: int = 64 * 1024 * 1024
    session_bytes: int = 64 * 1024
    skip_connect_handler: bool = False
    offer: Callable[[Environ, Any], bool] = _can_drop_a_place
    identity: Callable[[Environ, Any], str] | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            name = f"Recovery's {setting.name}"
            if setting.name in ("offer", "identity"):
                if not callable(value) and not (value is None and setting.name == "identity"):
                    raise ConfigurationError(f"{name} is a function of the environ and auth, not {value!r:.80}.")
            else:
                _check(name, setting.type, value)
        if math.isinf(self.window) or math.isinf(self.patience):
            raise ConfigurationError("Recovery's window and patience are numbers of seconds, not infinite.")


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one node; durations are seconds.

    Attributes:
        prefix: head of everything the library touches on the broker; two applications on one broker differ in it.
        name: what operators see for this node; None: host name and process id.
        secret: the cluster's shared secrets (see `Wire`); the first signs, all verify; empty: no signatures.
        order: "publisher": clients see the events of one node in its order; "total": the clients of all nodes see the
            events of a room in one order. That needs a broker with a log.
        recovery: give clients that come back what they missed. That needs a broker with a log, and is "total" in order.
        confirm: `emit` returns only once the broker has confirmed; true on a log unless it is set.
        emit_timeout: how long `emit` may wait for a place in the outbox, and for a confirm.
        request_timeout: how long a request to another node may take; and how long after an emit a call that moves or
            disconnects a client of this node waits for that to come back from the log, with `order="total"`.
        connect_timeout: how long one attempt to connect may take.
        heartbeat: period of this node's heartbeats, and of the checks of its link.
        peer_timeout: silence after which a peer is lost; at least twice the heartbeat.
        linger: how long a subject stays subscribed after its last local member left.
        regroup_timeout: how long publishing waits, after an outage, for the peers to be back.
        freshness: how far the clocks of two nodes may differ when envelopes are signed; a log may hold them longer.
        outbox_messages, outbox_bytes: bounds of what is not confirmed yet.
        outbox_age: how long an outage may last before its first messages are given up; 120 on a log unless it is set.
        max_payload: largest message in bytes, to send or to receive.
        buffer: deliveries that may wait to be handled.
        client_queue, client_queue_bytes: bounds of what may wait for one client, the attachments included.
        slow_client: what happens beyond them: "disconnect" the client, "drop_newest" (it does not get the new event),
            or "drop_oldest" (it does not get the oldest events that wait).
        compress_from: on a connection that has negotiated compression, the size in bytes from which a packet is
            compressed; smaller ones are sent as they are, at once. 0 compresses all of them.
        given: names of the settings that were set, rather than left at their defaults.
    """

    prefix: str = "roomcast"
    name: str | None = None
    secret: tuple[str | bytes, ...] = field(default=(), repr=False)
    order: Agreed = "publisher"
    recovery: Recovery | None = None
    confirm: bool = False
    emit_timeout: float = 5.0
    request_timeout: float = 5.0
    connect_timeout: float = 5.0
    heartbeat: float = 5.0
    peer_timeout: float = 10.0
    linger: float = 2.0
    regroup_timeout: float = 1.0
    freshness: float = 30.0
    outbox_messages: int = 100_000
    outbox_bytes: int = 64 * 1024 * 1024
    outbox_age: float = 30.0
    max_payload: int = 1024 * 1024
    buffer: int = 65_536
    client_queue: int = 10_000
    client_queue_bytes: int = 8 * 1024 * 1024
    slow_client: SlowClient = "disconnect"
    compress_from: int = 1024
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def __post_init__(self) -> None:
        for setting in fields(self):
            if setting.name not in ("secret", "given", "recovery"):
                _check(setting.name, setting.type, getattr(self, setting.name))
        if not (self.recovery is None or isinstance(self.recovery, Recovery)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"recovery is a roomcast.Recovery or None, not {self.recovery!r:.80}.")
        if self.peer_timeout < 2 * self.heartbeat:
            raise ConfigurationError(
                f"peer_timeout ({self.peer_timeout} s) must be at least twice the heartbeat ({self.heartbeat} s), "
                "or nodes are taken for lost between two heartbeats."
            )
        if self.max_payload < 4096:  # noqa: PLR2004 - room for the library's own messages
            raise ConfigurationError(f"max_payload must be at least 4096 bytes, not {self.max_payload}.")

    def on(self, broker: Broker, name: str) -> "Options":
        """The same settings with the defaults of a broker, when it can do what they ask for.

        Args:
            broker: the broker.
            name: the scheme of its URL.

        Raises:
            ConfigurationError: it cannot.
        """
        log = broker.log
        if log is None:
            for asked, wanted in (('order="total"', self.order == "total"), ("recovery", self.recovery is not None)):
                if wanted:
                    raise ConfigurationError(
                        f"{asked} needs a broker that keeps a log, and {name}:// does not: "
                        "use one that does, such as redis+streams://."
                    )
            return self
        settings = replace(self, **{name: value for name, value in _ON_A_LOG.items() if name not in self.given})
        if self.recovery is None:
            return settings
        if self.order != "total" and "order" in self.given:
            raise ConfigurationError('recovery needs order="total", which it implies: leave the setting out.')
        if broker.guarantees.order != "total":
            raise ConfigurationError("recovery needs a log of one stream: leave streams=N out of the URL.")
        if log.retention < 2 * self.recovery.window:
            raise ConfigurationError(
                f"recovery looks back for {2 * self.recovery.window:g} s, but the log keeps {log.retention:g}: "
                f"say retention={math.ceil(2 * self.recovery.window)}s or more in the URL, or choose a shorter window."
            )
        return replace(settings, order="total")


def _check(name: str, kind: Any, value: Any) -> None:
    if kind in (SlowClient, Agreed):
        if value not in get_args(kind):
            raise ConfigurationError(f"{name} is {_SAYS[kind]}, not {value!r:.80}.")
        return
    allowed = {float: (int, float), str | None: (str, type(None))}.get(kind, (kind,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ConfigurationError(f"{name} is {_SAYS[kind]}, not {value!r:.80}.")
    if kind in (int, float):
        lowest_included = name in _MAY_BE_ZERO
        number = cast("float", value)
        if not (number > 0 or (lowest_included and number == 0)):  # "not" refuses nan as well
            raise ConfigurationError(f"{name} must be {'0 or more' if lowest_included else 'above 0'}, not {value}.")


class Settings(TypedDict, total=False):
    """The keyword arguments of an adapter; see `Options` for what each one means."""

    prefix: str
    name: str | None
    secret: str | bytes | Sequence[str | bytes] | None
    order: Agreed
    recovery: Recovery | None
    confirm: bool
    emit_timeout: float
    request_timeout: float
    connect_timeout: float
    heartbeat: float
    peer_timeout: float
    linger: float
    regroup_timeout: float
    freshness: float
    outbox_messages: int
    outbox_bytes: int
    outbox_age: float
    max_payload: int
    buffer: int
    client_queue: int
    client_queue_bytes: int
    slow_client: SlowClient
    compress_from: int


_KNOWN = frozenset(setting.name for setting in fields(Options)) - {"given"}
_FROM_URL = _KNOWN - {"secret", "recovery"}


def options(arguments: Mapping[str, Any]) -> Options:
    """Options from keyword arguments; `secret` may be one secret or several.

    Raises:
        ConfigurationError: a name or a value is not one of an adapter's settings.
    """
    if unknown := sorted(set(arguments) - _KNOWN):
        raise ConfigurationError(f"Unknown setting {unknown[0]!r}: it is one of {', '.join(sorted(_KNOWN))}.")
    settings: dict[str, Any] = {**arguments, "given": frozenset(arguments)}
    secret = settings.get("secret", ())
    if secret is None or isinstance(secret, (str, bytes)):
        settings["secret"] = () if secret is None else (secret,)
    elif isinstance(secret, Sequence):
        settings["secret"] = tuple(cast("Sequence[str | bytes]", secret))
    else:
        raise ConfigurationError("secret is text or bytes, or a list of those.")
    return Options(**settings)


def split_url(url: str, settings: Options, broker_parameters: frozenset[str]) -> tuple[str, dict[str, str], Options]:
    """The URL without its query, the broker's own parameters, and the options with the URL's ones applied.

    Raises:
        ConfigurationError: a parameter is unknown, given twice, or has a value that does not fit.
    """
    parts = urlsplit(url)
    own: dict[str, Any] = {}
    broker: dict[str, str] = {}
    # a ? in a password begins the query, so that its end may stand where a name should
    cut = "@" in url.partition("?")[2]
    hint = " Write a ? in a password as %3F." if cut else ""
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        shown = "parameter" if cut else f"parameter {name!r:.80}"
        if name in own or name in broker:
            raise ConfigurationError(f"The URL names the {shown} twice.")
        if name in broker_parameters:
            broker[name] = text
        elif name in _FROM_URL:
            own[name] = _value(name, text)
        else:
            known = ", ".join(sorted(_FROM_URL | broker_parameters))
            raise ConfigurationError(f"Unknown {shown} in the {parts.scheme}:// URL: it is one of {known}.{hint}")
    bare = url.partition("#")[0].partition("?")[0]
    return bare, broker, replace(settings, **own, given=settings.given | own.keys())


def _value(name: str, text: str) -> object:
    kind = next(setting.type for setting in fields(Options) if setting.name == name)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        raise ConfigurationError(f"The URL's {name}={text!r:.80} is not {_SAYS[kind]}.") from None
