"""Credentials in a URL stay there: never in a log, a repr, or the text of an error."""

import logging
import traceback

import pytest

from roomcast import Adapter, BrokerUnavailable, ConfigurationError
from tests.services import free_port

USER, PASSWORD = "ulrich-the-user", "pass-0f-ulrich"
URLS = [
    "redis://{user}:{password}@127.0.0.1:{port}/0",
    "rediss://{user}:{password}@127.0.0.1:{port}/0",
    "redis+sentinel://{user}:{password}@127.0.0.1:{port}/main?sentinel_password={password}",
    "redis+cluster://{user}:{password}@127.0.0.1:{port}",
    "nats://{user}:{password}@127.0.0.1:{port}",
    "tls://{user}:{password}@127.0.0.1:{port}",
    "amqp://{user}:{password}@127.0.0.1:{port}/",
    "amqps://{user}:{password}@127.0.0.1:{port}/",
]


@pytest.mark.parametrize("url", URLS, ids=lambda url: url.partition(":")[0])
async def test_an_unreachable_broker(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shared = "the secret of the whole cluster"
    adapter = Adapter(url.format(user=USER, password=PASSWORD, port=free_port()), connect_timeout=0.3, secret=shared)
    with pytest.raises(BrokerUnavailable) as caught:
        await adapter.start()
    await adapter.aclose()
    shown = [repr(adapter), str(adapter), repr(adapter.health()), repr(adapter.stats()), caplog.text]
    shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value), str(caught.value)]
    for text in shown:
        assert PASSWORD not in text
        assert shared not in text
    assert USER not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "pigeon://{user}:{password}@host",
        "redis://{user}:{password}@host:port",
        "redis://{user}:{password}@host?nonsense=1",
        "redis+cluster://{user}:{password}@one,{user}:{password}@two",
        "redis+sentinel://{user}:{password}@one,two?sentinel_password={password}",
        "nats://{user}:{password}@host?heartbeat=never",
        "memory://{user}:{password}@host",
        "amqp://{user}:{password}@[host/",
    ],
)
def test_a_url_that_cannot_work(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Adapter(url.format(user=USER, password=PASSWORD))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
