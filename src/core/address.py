"""Whom an operation addresses, and how: the value that operators build and everything else reads."""

import msgspec

from roomcast.core.messages import Selection
from roomcast.core.subjects import Room


class Address(msgspec.Struct, frozen=True, gc=False):
    """Clients of a namespace, and the manner in which to reach them.

    Attributes:
        namespace: the namespace.
        rooms: in any of these rooms; a sid is a room of one; everyone when empty.
        excluded: and in none of these.
        local: only those of this node.
        volatile: an event may be dropped for a client for whom others wait.
        timeout: seconds to wait for answers; None for `request_timeout`.
    """

    namespace: str = "/"
    rooms: tuple[Room, ...] = ()
    excluded: tuple[Room, ...] = ()
    local: bool = False
    volatile: bool = False
    timeout: float | None = None

    @property
    def selection(self) -> Selection:
        """The clients, as other nodes are told."""
        return Selection(self.namespace, self.rooms, self.excluded)
