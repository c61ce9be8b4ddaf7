"""Identities that NATS knows, made anew for each test: nkeys, JWTs of an operator, certificates."""

import base64
import importlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol, cast

from tests.services import unavailable

NONE: Mapping[str, str] = {}


class _Pair(Protocol):
    @property
    def public_key(self) -> bytes: ...
    def sign(self, data: bytes, /) -> bytes: ...


class _Nkeys(Protocol):
    """What is used of the nkeys package, which has no types."""

    PREFIX_BYTE_OPERATOR: int
    PREFIX_BYTE_ACCOUNT: int
    PREFIX_BYTE_USER: int

    def encode_seed(self, raw: bytes, prefix: int, /) -> bytes: ...
    def from_seed(self, seed: bytes, /) -> _Pair: ...


nkeys = cast("_Nkeys", importlib.import_module("nkeys"))


class Key:
    """A new nkey, which signs JWTs as `nsc` does."""

    def __init__(self, prefix: int) -> None:
        seed = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(seed)
        self.seed = seed.decode()
        self.public = self._pair.public_key.decode()

    def jwt(self, subject: str, kind: str, claims: Mapping[str, Any], *, expires: float | None = None) -> str:
        body: dict[str, Any] = {
            "jti": token_hex(16),
            "iat": int(time.time()),
            "iss": self.public,
            "sub": subject,
            "name": kind,
        }
        if expires is not None:
            body["exp"] = int(expires)
        body["nats"] = {**claims, "type": kind, "version": 2}
        signed = b".".join(
            base64.urlsafe_b64encode(data).rstrip(b"=")
            for data in (b'{"typ":"JWT","alg":"ed25519-nkey"}', json.dumps(body).encode())
        )
        return b".".join((signed, base64.urlsafe_b64encode(self._pair.sign(signed)).rstrip(b"="))).decode()


def user_key() -> Key:
    return Key(nkeys.PREFIX_BYTE_USER)


def account_key() -> Key:
    return Key(nkeys.PREFIX_BYTE_ACCOUNT)


class Operator:
    """An operator with one account, whose users the server knows by their JWTs alone."""

    def __init__(self) -> None:
        operator = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self.account = account_key()
        limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
        claims = {"limits": {**limits, "wildcards": True}, "default_permissions": {"pub": NONE, "sub": NONE}}
        account = operator.jwt(self.account.public, "account", claims)
        self.text = f"""
            operator: {operator.jwt(operator.public, "operator", NONE)}
            resolver: MEMORY
            resolver_preload: {{ {self.account.public}: {account} }}
        """

    def user(self, key: Key, *, by: Key | None = None, expires: float | None = None) -> str:
        claims = {"pub": NONE, "sub": NONE, "subs": -1, "data": -1, "payload": -1}
        return (by or self.account).jwt(key.public, "user", claims, expires=expires)


def creds(jwt: str, seed: str) -> str:
    """The text of a credentials file, as `nsc` writes it."""
    return f"""-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

************************* IMPORTANT *************************
NKEY Seed printed below can be used to sign and prove identity.
NKEYs are sensitive and should be treated as secrets.

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------

*************************************************************
"""


class Authority:
    """A certificate authority of its own, made with openssl."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("openssl") is None:
            unavailable("TLS", "no openssl on this machine (Debian: apt-get install openssl)")
        self._directory = directory
        self.key, self.cert = directory / "ca.key", directory / "ca.pem"
        extension = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._run("req", "-x509", *self._new(self.key), "-subj", "/CN=roomcast test CA", *extension, "-out", self.cert)

    def issue(self, name: str, extensions: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        cert, key, request, wanted = (self._directory / f"{name}.{end}" for end in ("pem", "key", "csr", "ext"))
        common = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
        wanted.write_text(common + extensions)
        self._run("req", *self._new(key), "-subj", f"/CN={name}", "-out", request)
        issuer = ("-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-extfile", wanted)
        self._run("x509", "-req", "-in", request, *issuer, "-days", "2", "-out", cert)
        return cert, key

    def locked(self, key: Path, passphrase: str) -> Path:
        """The same key, encrypted."""
        locked = key.with_suffix(".locked")
        self._run("pkcs8", "-topk8", "-in", key, "-passout", f"pass:{passphrase}", "-out", locked)
        return locked

    def _new(self, key: Path) -> tuple[str | Path, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-days", "2")

    def _run(self, *words: str | Path) -> None:
        done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class Certificates:
    """What the TLS tests need: an authority, a server's certificate, a client's, and a stranger's."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        self.authority = str(authority.cert)
        cert, key = authority.issue("server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        self.server = f'cert_file: "{cert}", key_file: "{key}", ca_file: "{authority.cert}"'
        self.client = authority.issue("client", "extendedKeyUsage=clientAuth\n")
        self.locked = authority.locked(self.client[1], "correct horse")
        other = directory / "other"
        other.mkdir()
        stranger = Authority(other)
        self.unknown = str(stranger.cert)
        self.stranger = stranger.issue("client", "extendedKeyUsage=clientAuth\n")

    def parameters(self, cert: object = None, key: object = None, **more: str) -> dict[str, str]:
        own = {"tls_ca": self.authority, "tls_cert": cert, "tls_key": key}
        return {name: str(value) for name, value in own.items() if value is not None} | more
