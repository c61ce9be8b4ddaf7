"""From a URL to a broker: the scheme names an entry point of the group `roomcast.brokers`.

A package that declares such an entry point adds a broker; nothing else is needed. What it points to is called
with a `BrokerConfig` and may name, in a class attribute `parameters`, the query parameters that are its own.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from urllib.parse import urlsplit

from roomcast.core.broker import Broker, BrokerConfig
from roomcast.core.errors import ConfigurationError
from roomcast.core.options import Options, split_url

GROUP = "roomcast.brokers"


def schemes() -> list[str]:
    """The URL schemes that some installed package serves."""
    return sorted(entry_points(group=GROUP).names)


def open_broker(url: str, settings: Options, node: str) -> tuple[Broker, Options]:
    """The broker of a URL, not started, and the settings with those that stand in the URL applied.

    Raises:
        ConfigurationError: no broker serves the scheme, its extra is not installed, or the URL is malformed.
    """
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # it is the application's
        raise ConfigurationError(f"A broker's URL is text, such as redis://localhost:6379, not {type(url).__name__}.")
    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # its text may quote a password
        raise ConfigurationError("The broker's URL is malformed: it should read scheme://host:port.") from None
    found = tuple(entry_points(group=GROUP, name=scheme)) if scheme else ()
    if not found:
        raise ConfigurationError(
            f"No broker serves {scheme + '://' if scheme else 'a URL without a scheme'}: "
            f"use one of {', '.join(name + '://' for name in schemes())}."
        )
    make = _load(found[0])
    parameters = frozenset[str](getattr(make, "parameters", ()))
    bare, own, applied = split_url(url, settings, parameters)
    config = BrokerConfig(
        url=bare,
        parameters=own,
        prefix=applied.prefix,
        node=node,
        connect_timeout=applied.connect_timeout,
        heartbeat=applied.heartbeat,
        max_payload=applied.max_payload,
        buffer=applied.buffer,
        everything=applied.recovery is not None,
    )

    def connect(other: str) -> Broker:
        return open_broker(other, applied, node)[0]

    return make(replace(config, connect=connect)), applied


def _load(entry: EntryPoint) -> Callable[[BrokerConfig], Broker]:
    try:
        make: Callable[[BrokerConfig], Broker] = entry.load()
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(f"The broker of {entry.name}:// ({entry.value}) cannot be loaded: {exc}.") from exc
    return make
