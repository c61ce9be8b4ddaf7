"""The exception tree: by state and by certainty."""

import inspect
import re

import pytest

from roomcast.core import errors
from roomcast.core.errors import (
    AckTimeout,
    Backpressure,
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    EncodeError,
    PayloadTooLarge,
    PublishRejected,
    PublishUnconfirmed,
    ReplayUnavailable,
    RequestTimeout,
    RoomcastError,
    WireError,
)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    path: list[str] = []
    for branch, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)[1:]:
        if not hasattr(errors, name):
            continue  # the prose below the tree
        depth = len(branch) // 3
        path[depth:] = [name]
        if depth:
            assert issubclass(getattr(errors, name), getattr(errors, path[depth - 1]))
    drawn = {name for name in re.findall(r"[A-Z]\w+", errors.__doc__ or "") if hasattr(errors, name)}
    assert drawn == {name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, Exception)}


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ConfigurationError, ValueError), (EncodeError, TypeError), (RequestTimeout, TimeoutError)]
)
def test_who_catches_the_standard_error_catches_ours(ours: type[Exception], theirs: type[Exception]) -> None:
    assert issubclass(ours, theirs)
    assert issubclass(ours, RoomcastError)


@pytest.mark.parametrize(
    "kind", [BrokerError, BrokerUnavailable, BrokerClosed, PublishRejected, Backpressure, PublishUnconfirmed]
)
def test_a_broker_error_says_which_broker(kind: type[BrokerError]) -> None:
    error = kind("Not now.", broker="redis")
    assert (str(error), error.broker) == ("Not now.", "redis")


def test_a_payload_too_large_carries_its_numbers() -> None:
    error = PayloadTooLarge(size=10, limit=5, broker="nats")
    assert (error.size, error.limit, error.broker) == (10, 5, "nats")
    assert isinstance(error, PublishRejected)
    assert re.search("10 bytes.*nats.*5", str(error))


def test_a_timeout_keeps_what_did_arrive() -> None:
    replies = {"a": 1}
    error = RequestTimeout("Late.", replies=replies, missing={"b"})
    replies["c"] = 2
    assert (error.replies, error.missing) == ({"a": 1}, frozenset({"b"}))
    ack = AckTimeout("Late.", responses=[1, 2], missing={"sid"})
    assert (ack.responses, ack.missing, ack.replies) == ([1, 2], frozenset({"sid"}), {})


def test_the_rest_say_why_in_a_word() -> None:
    assert ReplayUnavailable("Gone.", reason="trimmed").reason == "trimmed"
    assert WireError("stale", "Old.").kind == "stale"
