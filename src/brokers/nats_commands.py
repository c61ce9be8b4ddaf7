"""What a client says to a NATS server (docs.nats.io, NATS client protocol)."""

from collections.abc import Mapping

PUBLISH = b"PUB %b %d\r\n%b\r\n"
"""Subject, size of the payload in bytes, payload; where nobody is to reply."""
PONG = b"PONG\r\n"


def publish(subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    """Publish a message.

    Args:
        subject: without white space, like `reply`.
        payload: at most what the server carries, with the headers.
        reply: the subject on which an answer is awaited.
        headers: names and values without line ends.
    """
    to = f"{subject} {reply}" if reply else subject
    if not headers:
        return PUBLISH % (to.encode(), len(payload), payload)
    head = "".join(("NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n")).encode()
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (to.encode(), len(head), len(head) + len(payload), head, payload)


def subscribe(subject: str, number: bytes, *, queue: str = "") -> bytes:
    """Hear a subject, under a number of the client's choice; alone, or as one of a queue group."""
    return b"SUB %b %b\r\n" % (f"{subject} {queue}".encode() if queue else subject.encode(), number)


def unsubscribe(number: bytes) -> bytes:
    """Hear no more what was subscribed to under the number."""
    return b"UNSUB %b\r\n" % number
