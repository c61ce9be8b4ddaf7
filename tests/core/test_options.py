"""The settings of an adapter, as arguments and in the URL."""

import math
from dataclasses import fields, replace
from typing import Any, get_type_hints

import pytest

from roomcast.core.errors import ConfigurationError
from roomcast.core.options import Options, Settings, options, split_url

NOTHING = frozenset[str]()
SECRET = "a secret of the cluster"  # noqa: S105 - of this file alone


def test_an_adapter_takes_every_option_by_name_and_nothing_else() -> None:
    """`Settings` is what an editor shows; `Options` is what counts."""
    names = [setting.name for setting in fields(Options) if setting.name != "given"]
    hints = get_type_hints(Settings)
    assert list(hints) == names
    for setting in fields(Options):
        if setting.name not in ("secret", "given"):
            assert hints[setting.name] == setting.type


def test_every_option_is_explained() -> None:
    for setting in fields(Options):
        assert setting.name in (Options.__doc__ or "")


def test_the_defaults_work() -> None:
    assert options({}) == Options()
    assert options({"linger": 0.5}) == replace(Options(), linger=0.5)
    assert options({"linger": 0.5}).given == {"linger"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, ()), (SECRET, (SECRET,)), (b"bytes", (b"bytes",)), ([SECRET, b"old"], (SECRET, b"old")), ((), ())],
)
def test_one_secret_or_several(given: object, kept: tuple[str | bytes, ...]) -> None:
    assert options({"secret": given}).secret == kept


def test_a_secret_is_a_secret() -> None:
    assert SECRET not in repr(options({"secret": SECRET}))
    with pytest.raises(ConfigurationError, match="secret is text or bytes"):
        options({"secret": 5})


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown setting 'lnger'.* linger,"):
        options({"lnger": 1})


BAD: list[tuple[str, Any]] = [
    ("prefix", 3),
    ("prefix", None),
    ("name", 3),
    ("confirm", "no"),
    ("confirm", 1),
    ("confirm", None),
    ("linger", -1),
    ("linger", math.nan),
    ("regroup_timeout", -0.1),
    ("heartbeat", True),
    ("heartbeat", 0),
    ("heartbeat", "5"),
    ("emit_timeout", math.nan),
    ("emit_timeout", 0.0),
    ("request_timeout", -1),
    ("connect_timeout", None),
    ("peer_timeout", math.nan),
    ("peer_timeout", 9.9),
    ("freshness", 0),
    ("outbox_messages", 1.5),
    ("outbox_messages", 0),
    ("outbox_bytes", -1),
    ("outbox_age", 0),
    ("max_payload", 4095),
    ("max_payload", "1000000"),
    ("buffer", 0),
    ("client_queue", False),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_that_cannot_work_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name) as refused:
        options({name: value})
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("name", ["linger", "regroup_timeout"])
def test_some_durations_may_be_nothing(name: str) -> None:
    assert getattr(options({name: 0}), name) == 0


def test_the_url_wins_over_the_argument() -> None:
    """ "A setting named in the URL's query wins over the argument of the same name" """
    given = options({"linger": 9.0, "prefix": "mine", "confirm": True, "secret": SECRET})
    bare, own, applied = split_url("redis://u:p@host:1/2?linger=0.5&confirm=false&prefix=a.b", given, NOTHING)
    assert bare == "redis://u:p@host:1/2"
    assert own == {}
    assert applied == replace(given, linger=0.5, confirm=False, prefix="a.b")


@pytest.mark.parametrize(
    ("query", "name", "value"),
    [
        *((f"confirm={text}", "confirm", True) for text in ("true", "True", "TRUE", "1", "yes")),
        *((f"confirm={text}", "confirm", False) for text in ("false", "False", "0", "no", "NO")),
        ("emit_timeout=2", "emit_timeout", 2.0),
        ("emit_timeout=2.5e0", "emit_timeout", 2.5),
        ("buffer=10", "buffer", 10),
        ("name=web%201", "name", "web 1"),
        ("name=", "name", ""),
    ],
)
def test_values_in_the_url(query: str, name: str, value: object) -> None:
    applied = split_url(f"redis://host?{query}", Options(confirm=not value), NOTHING)[2]
    assert getattr(applied, name) == value
    assert type(getattr(applied, name)) is type(value)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("lnger=1", "Unknown parameter 'lnger' in the redis:// URL.* linger,"),
        ("secret=abc", "Unknown parameter 'secret'"),
        ("linger=1&linger=2", "'linger' twice"),
        ("db=1&db=1", "'db' twice"),
        ("confirm=maybe", "confirm='maybe' is not true or false"),
        ("buffer=1.5", "buffer='1.5' is not a whole number"),
        ("linger=soon", "linger='soon' is not a number of seconds"),
        ("linger=", "linger='' is not a number of seconds"),
        ("linger=-1", "linger must be 0 or more"),
        ("emit_timeout=nan", "emit_timeout must be above 0"),
        ("heartbeat=60", "peer_timeout .* at least twice"),
    ],
)
def test_the_url_is_refused_by_the_name_of_what_is_wrong(query: str, says: str) -> None:
    """ "Parameters that neither roomcast nor the broker knows are refused by name." """
    with pytest.raises(ConfigurationError, match=says):
        split_url(f"redis://user:hunter2@host/?{query}", Options(), frozenset({"db"}))


def test_a_broker_gets_its_own_parameters() -> None:
    bare, own, applied = split_url("redis://host?db=2&tls=&linger=1#part", Options(), frozenset({"db", "tls"}))
    assert (bare, own) == ("redis://host", {"db": "2", "tls": ""})
    assert applied.linger == 1.0


def test_a_brokers_parameter_goes_before_a_setting_of_the_same_name() -> None:
    _, own, applied = split_url("redis://host?name=x", Options(), frozenset({"name"}))
    assert (own, applied.name) == ({"name": "x"}, None)


@pytest.mark.parametrize(
    "password", ["p?hunter2", "p?a=1&hunter2", "p?hunter2&b", "p?hunter2#c", "p?hunter2=1&hunter2=2"]
)
def test_a_password_that_was_not_encoded_stands_in_no_refusal(password: str) -> None:
    with pytest.raises(ConfigurationError, match=r"in a password as %3F") as refused:
        split_url(f"redis://user:{password}@host/", Options(), NOTHING)
    assert "hunter2" not in str(refused.value)


def test_no_password_stands_in_a_refusal() -> None:
    for query in ("lnger=1", "linger=x", "linger=1&linger=2"):
        with pytest.raises(ConfigurationError) as refused:
            split_url(f"redis://user:hunter2@host/?{query}", Options(), NOTHING)
        assert "hunter2" not in str(refused.value)
