"""Fixtures that every test may use."""

import asyncio
import gc
import signal
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.broker_clusters import SharedClusters
from tests.loops import loops_of
from tests.services import SharedBrokers, name_of, required

_shared = pytest.StashKey[SharedBrokers]()
_clusters = pytest.StashKey[SharedClusters]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests interrupt calls, and programs that they start
    config.stash[_shared] = SharedBrokers()
    config.stash[_clusters] = SharedClusters()
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.stash[_shared].share()  # once for all workers of pytest-xdist


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_shared].close()
    config.stash[_clusters].close()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Which loops a test runs on: see `tests.loops`."""
    return loops_of(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin the clusters that tests of this run are marked with: some take long to start."""
    if config.getoption("collectonly"):
        return
    for item in items:
        for mark in item.iter_markers("cluster"):
            config.stash[_clusters].begin(*mark.args)
            item.add_marker(pytest.mark.timeout(180))  # the first one waits until it is up


def pytest_collection_finish() -> None:
    """Take the modules and the thousands of tests out of what each `gc.collect()` of a test looks at: 0.1 s each."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter", config: pytest.Config) -> None:
    """Say which brokers the run used, and which were not to be had."""
    sources = config.stash[_shared].sources
    if sources:
        terminalreporter.section(f"brokers (missing ones {'fail' if required() else 'skip their tests'})")
    for scheme, source in sources.items():
        had = "" if scheme in config.stash[_shared].found else "MISSING: "
        terminalreporter.line(f"{name_of(scheme)}: {had}{source}")


@pytest.fixture(scope="session")
def shared_brokers(pytestconfig: pytest.Config) -> Iterator[SharedBrokers]:
    """The shared Redis, NATS and RabbitMQ of this run: `shared_brokers.url("redis" | "nats" | "amqp")`."""
    shared = pytestconfig.stash[_shared]
    yield shared
    if hasattr(
        pytestconfig, "workerinput"
    ):  # what this process started; pytest-xdist ends it without pytest_unconfigure
        shared.close()


@pytest.fixture(scope="session")
def shared_clusters(pytestconfig: pytest.Config) -> SharedClusters:
    """The clusters of this run: `shared_clusters.urls("nats" | "amqp")`, to use, never to break."""
    return pytestconfig.stash[_clusters]


@pytest.fixture
def redis_url(shared_brokers: SharedBrokers) -> str:
    """A Redis to use, never to break."""
    return shared_brokers.url("redis")


@pytest.fixture
def nats_url(shared_brokers: SharedBrokers) -> str:
    """A NATS to use, never to break."""
    return shared_brokers.url("nats")


@pytest.fixture
def amqp_url(shared_brokers: SharedBrokers) -> str:
    """A RabbitMQ to use, never to break."""
    return shared_brokers.url("amqp")
