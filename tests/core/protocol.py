"""Socket.IO protocol v5, read strictly: the reference for what may reach a client."""

import json
import re
from collections.abc import Sequence
from typing import Any, cast


class Broken(Exception):
    """The strict parser's refusal."""


_WHOLE = re.compile(r'[ \t\n\r]*(?:[\[\]{}:,]|true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|'
                    r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")[ \t\n\r]*')  # fmt: skip


def strict_json(text: str) -> Any:
    """RFC 8259, which Python's own parser goes beyond: no NaN, no raw control characters."""
    at = 0
    while at < len(text):
        token = _WHOLE.match(text, at)
        if token is None:
            raise Broken(f"no JSON token at {at}")
        at = token.end()
    return json.loads(text)


def strict_event(parts: Sequence[str | bytes], namespace: str) -> list[Any]:
    """An event without an id, by the grammar of Socket.IO protocol v5 and the checks of the JavaScript parser."""
    head, *attachments = parts
    if not isinstance(head, str) or not all(isinstance(part, bytes) for part in attachments):
        raise Broken("text first, then bytes")
    announced = re.match(r"2|5(?P<count>[1-9][0-9]*)-", head)
    if announced is None:
        raise Broken("not an event")
    rest = head[announced.end() :]
    if namespace != "/":
        if not rest.startswith(namespace + ","):
            raise Broken("another namespace")
        rest = rest[len(namespace) + 1 :]
    if not rest.startswith("["):
        raise Broken("an id, or no list")
    try:
        data = strict_json(rest)
    except ValueError as exc:
        raise Broken(str(exc)) from exc
    if not isinstance(data, list) or not isinstance(next(iter(cast("list[Any]", data)), None), str):
        raise Broken("no name")
    count = int(announced["count"] or 0)
    if count != len(attachments):
        raise Broken("attachments that are not announced, or the other way round")
    if count and sorted(placeholders(data)) != list(range(count)):
        raise Broken("placeholders that do not fit")
    return cast("list[Any]", data)


def placeholders(data: Any) -> list[int]:
    if isinstance(data, dict):
        fields = cast("dict[str, Any]", data)
        if fields.get("_placeholder") is not True:
            return placeholders(list(fields.values()))
        if type(fields.get("num")) is not int:
            raise Broken("a placeholder without a number")
        return [fields["num"]]
    items = cast("list[Any]", data) if isinstance(data, list) else []
    return [number for item in items for number in placeholders(item)]
