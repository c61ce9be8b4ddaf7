"""What the installed wheel must be: run with `bare`, `all` or `demo`, as the environment has those extras."""

import importlib
import pkgutil
import sys
import sysconfig
from pathlib import Path

import roomcast
from roomcast.core.errors import ConfigurationError

EXTRAS = {"redis": "redis", "nats": "nats", "rabbitmq": "rabbitmq"}


def main(mode: str) -> None:
    site = Path(sysconfig.get_path("purelib"))
    home = Path(roomcast.__file__).parent
    assert home == site / "roomcast", home
    assert (home / "py.typed").is_file(), "py.typed is not in the wheel"
    for stray in ("core", "brokers", "src", "demo", "tests", "typings"):
        assert not (site / stray).exists(), f"{stray} landed at the top of site-packages"
    if mode == "bare":
        for module, extra in EXTRAS.items():
            try:
                importlib.import_module(f"roomcast.brokers.{module}")
            except ConfigurationError as exc:
                said = str(exc)
            else:
                said = "nothing"
            assert f"roomcast[{extra}]" in said, f"importing roomcast.brokers.{module} without its client said {said}"
        print("wheel: imports without extras, and names the extra that is missing")  # noqa: T201 - a script speaks
        return
    names = [module.name for module in pkgutil.walk_packages([str(home)], "roomcast.")]
    names = [name for name in names if (mode == "demo") == name.startswith("roomcast.demo")]
    for name in names:
        importlib.import_module(name)
    print(f"wheel: {len(names)} modules import with the extras of {mode!r}")  # noqa: T201 - a script speaks


if __name__ == "__main__":
    main(sys.argv[1])
