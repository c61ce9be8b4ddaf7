"""What a log is to be like: `?retention=2m&max_bytes=64mb&streams=1`, the same for every node and every broker."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from roomcast.core.errors import ConfigurationError

PARAMETERS = frozenset({"retention", "max_bytes", "streams"})

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})(|b|kb|mb|gb)", re.ASCII | re.IGNORECASE)
_LEAST_BYTES = 1024 * 1024
_MOST_STREAMS = 64


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The settings of a log, checked at start against those it was made with.

    Attributes:
        retention: seconds for which everything is kept, at least, as long as it fits `max_bytes`.
        max_bytes: about how many bytes all streams together may hold; the oldest entries give way.
        streams: over how many streams the subjects are spread.
    """

    retention: float = 300.0
    max_bytes: int = 256 * 1024**2
    streams: int = 1

    @property
    def stream_bytes(self) -> int:
        """What one stream may hold."""
        return self.max_bytes // self.streams

    def differs(self, where: str, theirs: Mapping[str, str], *, remedy: str) -> None:
        """Raise, naming each setting in which an existing log differs.

        Args:
            where: names the log to an operator.
            theirs: the settings it has, as `written` spells them; what it does not tell is left out.
            remedy: how an operator deletes it.

        Raises:
            ConfigurationError: there is a difference.
        """
        ours = self.written
        unlike = [
            f"{name} is {theirs[name]} there and {ours[name]} here"
            for name in ours
            if name in theirs and theirs[name] != ours[name]
        ]
        if unlike:
            raise ConfigurationError(
                f"{where} has other settings than this node asks for: {'; '.join(unlike)}. Give every node the "
                f"settings of the log, or stop all nodes and delete it ({remedy}): it is made anew at their start."
            )

    @property
    def written(self) -> dict[str, str]:
        """The settings as text, one spelling for each value."""
        return {
            "retention": f"{self.retention:g}s",
            "max_bytes": str(self.max_bytes),
            "streams": str(self.streams),
        }


def log_settings(parameters: Mapping[str, str]) -> LogSettings:
    """The settings that stand in a URL.

    Raises:
        ConfigurationError: a value is not what its name asks for.
    """
    given = LogSettings()
    retention, max_bytes, streams = given.retention, given.max_bytes, given.streams
    if (text := parameters.get("retention")) is not None:
        if (match := _DURATION.fullmatch(text)) is None or (seconds := float(match[1]) * _UNITS[match[2]]) < 1.0:
            raise ConfigurationError(f"retention is a time of at least 1s, such as 90s, 5m or 2h, not {text!r:.40}.")
        retention = seconds
    if (text := parameters.get("max_bytes")) is not None:
        if (match := _SIZE.fullmatch(text)) is None or (
            size := int(match[1]) * _SIZES[match[2].lower()]
        ) < _LEAST_BYTES:
            raise ConfigurationError(f"max_bytes is at least 1mb, such as 64mb or 2gb, not {text!r:.40}.")
        max_bytes = size
    if (text := parameters.get("streams")) is not None:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST_STREAMS):
            raise ConfigurationError(f"streams is a whole number from 1 to {_MOST_STREAMS}, not {text!r:.40}.")
        streams = int(text)
    return LogSettings(retention, max_bytes, streams)


@lru_cache(maxsize=8192)
def stream_of(subject: str, streams: int) -> int:
    """Which stream a subject belongs to: exactly one, the same on every node."""
    if streams == 1:
        return 0
    return int.from_bytes(blake2b(subject.encode(), digest_size=8).digest(), "big") % streams
