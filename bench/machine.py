"""What a run was made on: this machine, and the versions of all that takes part."""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from bench.contestants import NODE, URLS


def machine() -> dict[str, str | int | float]:
    """What this machine is, without its name."""
    model = platform.processor() or platform.machine()
    memory = 0.0
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    if meminfo.exists():
        memory = round(int(meminfo.read_text().split(maxsplit=2)[1]) / 1024**2, 1)
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "memory_gib": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


_PACKAGES = (
    "roomcast", "python-socketio", "python-engineio", "redis", "hiredis", "nats-py", "aio-pika", "msgspec", "uvicorn",
    "websockets", "uvloop",
)  # fmt: skip
_NODE_PACKAGES = {
    "socket.io", "engine.io", "ws", "redis", "@socket.io/redis-adapter", "@socket.io/redis-streams-adapter",
}  # fmt: skip
_SAYS = {
    "redis": ("Redis", b"INFO server\r\n", rb"redis_version:([\w.]+)"),
    "nats": ("NATS", b"", rb'"version":"([\w.]+)"'),
    "amqp": ("RabbitMQ", b"AMQP\x00\x00\x09\x01", rb"versionS\x00\x00\x00.([\w.]+)"),
}
"""What each broker is called, what it is sent, and where its version is in what it answers."""


def versions() -> dict[str, str]:
    """The versions of what takes part, by name; what is not there is left out."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    for broker, (variable, usual) in URLS.items():
        found |= broker_version(broker, os.environ.get(variable) or usual)
    if shutil.which("node") is not None:
        found["Node.js"] = subprocess.check_output(("node", "--version"), text=True, timeout=10).strip().lstrip("v")
    for manifest in sorted((NODE / "node_modules").glob("**/package.json")):
        name = manifest.parent.relative_to(NODE / "node_modules").as_posix()
        if name in _NODE_PACKAGES:
            found[f"{name} (npm)"] = str(json.loads(manifest.read_text())["version"])
    return found


def broker_version(broker: str, url: str) -> dict[str, str]:
    """The name of a broker, and the version that the one at a URL says it has; empty if it does not answer so."""
    name, hello, pattern = _SAYS[broker]
    address = urlsplit(url)
    said = b""
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or 0), timeout=2) as link:
            link.sendall(hello)
            while (match := re.search(pattern, said, re.DOTALL)) is None and (part := link.recv(65536)):
                said += part
    except OSError:
        return {}
    return {name: match[1].decode()} if match else {}
