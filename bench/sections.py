"""What the page says of each part: prose, and which figures its table has. Pure data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Section:
    """One part on the page.

    Attributes:
        part: its name.
        title: heading.
        text: what was measured, and how to read it.
        case: heading of the column of cases, with "{name}" for a value; empty: there is only one case.
        figures: name of a figure to heading of its column.
        plot: file name of its plot without ".svg"; empty: none.
    """

    part: str
    title: str
    text: str
    case: str
    figures: Mapping[str, str]
    plot: str = ""
    compared: Sequence[str] = field(default=())


SECTIONS: Sequence[Section] = (
    Section(
        "remote_fanout",
        "Fan-out to another node",
        "Node A emits an event of 200 bytes to a room as fast as it can, one emit after the other; the members are on "
        "node B. Events per second count from the first emit until the last client's packet waits for its transport. "
        "The CPU of A is per event, that of B per delivery, of which an event has as many as the room has members.",
        "{members} members",
        {
            "events_per_second": "events/s",
            "deliveries_per_second": "deliveries/s",
            "sender_us_per_event": "A: us/event",
            "receiver_us_per_delivery": "B: us/delivery",
        },
        "remote_fanout",
        ("events_per_second", "sender_us_per_event", "receiver_us_per_delivery"),
    ),
    Section(
        "emits",
        "Emits, 64 in flight",
        "One node emits into rooms that nobody is in, with 64 emits in flight, so that only publishing is measured. "
        "In Python 64 tasks each await their emit; in Node.js, whose emit cannot be awaited, 64 commands wait for "
        "Redis's answer. roomcast's emit returns when the event is accepted; `roomcast-redis-confirm` has "
        "`confirm=True`, and returns when Redis has answered.",
        "",
        {"us_per_emit": "CPU us/emit", "emits_per_second": "emits/s"},
        "emits",
        ("us_per_emit", "emits_per_second"),
    ),
    Section(
        "uninterested",
        "A node that has no use for a message",
        "Node A emits to a room whose only member is on node B. What does each event cost node C, which has a client "
        "in another room?",
        "",
        {"us_per_message": "C: CPU us/event"},
        "",
        ("us_per_message",),
    ),
    Section(
        "latency",
        "Latency at 200 events per second",
        "From the call of emit on node A until the packet waits for its transport on node B, over the clock that the "
        "processes of a machine share.",
        "",
        {
            "p50_us": "p50 us",
            "p99_us": "p99 us",
            "sender_us_per_event": "A: CPU us/event",
            "receiver_us_per_event": "B: CPU us/event",
        },
        "latency",
        ("p50_us", "p99_us"),
    ),
    Section(
        "disconnects",
        "Disconnects while many rooms exist",
        "A client that is in two rooms goes. The first column is what the client manager, or adapter, takes to forget "
        "it; the second all that the server does when the connection is lost. Wall-clock time in one process, median "
        "of 30 clients in a round. roomcast unsubscribes two seconds later; that cost is in the next table.",
        "{rooms} rooms",
        {"forget_us": "forget: us", "disconnect_us": "all: us"},
        "",
        ("forget_us", "disconnect_us"),
    ),
    Section(
        "joins",
        "Joining and leaving",
        "One client joins 2000 rooms, 64 at a time, then leaves them. Where nobody else of the node is in the rooms, "
        "nodes that subscribe to rooms subscribe and unsubscribe for each. When roomcast's `enter_room` returns, an "
        "emit on any node reaches the client; python-socketio subscribes to no room, so its nodes hear every message "
        "of every room (see above); Node's `join` returns before its sharded adapter has subscribed, and is counted "
        "until it has.",
        "{others} others in the room",
        {
            "join_cpu_us": "join: CPU us",
            "leave_cpu_us": "leave: CPU us",
            "join_us": "join: us",
            "leave_us": "leave: us",
        },
        "",
        ("join_cpu_us", "leave_cpu_us"),
    ),
    Section(
        "membership",
        "Memory",
        "Heap bytes per membership of a room, the subscription at the broker's client included; for 0 members, per "
        "client without a transport, in no room. tracemalloc in Python, V8's heap in Node.js, both after a full "
        "collection.",
        "{members} members",
        {"bytes": "bytes"},
        "",
        ("bytes",),
    ),
    Section(
        "curves",
        "As rooms, nodes, members and payload grow",
        "CPU of the receiving side per delivery. Rooms: B has so many rooms of one member each, A emits to them in "
        "turn. Nodes: so many nodes in two processes, ten members of the room on each. Members: of the room, all on "
        "B. Payload: bytes in the event, to ten members on B.",
        "{point} {curve}",
        {
            "receiver_us_per_delivery": "B: us/delivery",
            "sender_us_per_event": "A: us/event",
            "deliveries_per_second": "deliveries/s",
        },
        "curves",
        ("receiver_us_per_delivery", "sender_us_per_event"),
    ),
    Section(
        "end_to_end",
        "End to end: 1000 websockets on two nodes",
        "Real websocket clients, half on each node (uvicorn in Python), all in one room; node A emits events of 200 "
        "bytes, in a burst as fast as it can with 16 events under way, and paced at 5,000 deliveries a second. CPU is "
        "that of both server processes. Every client checks every event; none may be lost, doubled or out of order.",
        "{mode}",
        {
            "server_us_per_delivery": "servers: us/delivery",
            "deliveries_per_second": "deliveries/s",
            "p50_ms": "p50 ms",
            "p99_ms": "p99 ms",
        },
        "end_to_end",
        ("server_us_per_delivery", "deliveries_per_second", "p50_ms", "p99_ms"),
    ),
    Section(
        "connections",
        "Many connections",
        "So many websocket clients on two nodes, and one event to all of them: memory of both nodes per connection, "
        "clients connected per second, the time until the last one has the event, and how late the slower node's "
        "event loop was meanwhile.",
        "{clients} clients",
        {
            "bytes_per_connection": "bytes/connection",
            "connections_per_second": "connections/s",
            "last_ms": "last client: ms",
            "lag_max_ms": "largest lag: ms",
            "server_us_per_delivery": "servers: us/delivery",
        },
        "",
        ("bytes_per_connection", "connections_per_second", "last_ms", "lag_max_ms", "server_us_per_delivery"),
    ),
)

NOT_MEASURED = """\
- More than one machine. Everything runs over loopback, so a network's latency, its limits and its losses are not in
  these figures, and brokers compete with nodes for the same processors.
- Brokers in clusters, replication, TLS, persistence, and brokers that are busy with anything else.
- uvloop, other Python versions than the one named, PyPy, free-threaded builds; Bun and Deno.
- Clients that poll, compression, binary attachments, and acknowledgements.
- Node's packages on anything but `redis` and `ws`: ioredis, uWebSockets.js; several workers in one machine through
  Node's cluster module. redis 5 is used because it was faster here than redis 6.
- Node's other adapters (Postgres, MongoDB, cluster, AMQP, NATS, Google Pub/Sub and others), and python-socketio's
  managers for threads, among them those for Kafka and ZeroMQ.
- How long a contestant can keep its rate up: rounds are short, and none runs into a full buffer.
- Faults: what is lost, and how nodes recover, is in [the failure model](failure-model.md).
"""
"""What the page admits, as Markdown."""
