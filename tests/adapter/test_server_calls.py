"""Every call that python-socketio's server has for events and rooms, across nodes, over every broker."""

import asyncio
from typing import Any

import pytest
from socketio.exceptions import TimeoutError as CallTimeoutError

from tests.adapter.servers import Client, Cluster, Heard, Node
from tests.waiting import until

ODD_ROOMS: list[str | int] = [
    "a.b",
    "*",
    ">",
    "#",
    "a.*",
    "room.>",
    " ",
    "\r\nPUBLISH x y\r\n",
    "\0",
    "snow ☃ and 🎉",
    "x" * 10_000,
    "ü" * 5_000,
    "1",
    1,
    0,
    -7,
    2**63,
]


class Scene:
    """Two nodes and three clients: `here` and `near` on node `a`, `far` on node `b`."""

    def __init__(self, cluster: Cluster, a: Node, b: Node, here: Client, near: Client, far: Client) -> None:
        self.cluster = cluster
        self.a, self.b = a, b
        self.here, self.near, self.far = here, near, far

    async def heard(self, *, by: Node | None = None) -> list[list[Heard]]:
        """What `here`, `near` and `far` heard of what node `a` (or another one) emitted, since the last call."""
        return await self.cluster.finish(by or self.a, self.here, self.near, self.far)


@pytest.fixture
async def scene(cluster: Cluster) -> Scene:
    a, b = await cluster.pair()
    here, near, far = await asyncio.gather(a.client(), a.client(), b.client())
    return Scene(cluster, a, b, here, near, far)


async def test_emit_to_everyone_or_to_everyone_but_some(scene: Scene) -> None:
    emit = scene.a.sio.emit
    await emit("all", {"n": 1})
    await emit("but one", 2, skip_sid=scene.here.sid)
    await emit("but that one", 3, skip_sid=scene.far.sid)
    await emit("but two", 4, skip_sid=[scene.near.sid, scene.far.sid])
    await emit("but nobody", 5, skip_sid=[])
    here, near, far = await scene.heard()
    assert [event for event, *_ in here] == ["all", "but that one", "but two", "but nobody"]
    assert [event for event, *_ in near] == ["all", "but one", "but that one", "but nobody"]
    assert [event for event, *_ in far] == ["all", "but one", "but nobody"]
    assert here[0] == near[0] == far[0] == ("all", {"n": 1})


async def test_emit_to_a_sid_of_either_node(scene: Scene) -> None:
    for node in (scene.a, scene.b):
        for client in (scene.here, scene.far):
            await node.sio.emit("mail", "to", to=client.sid)
            await node.sio.emit("mail", "room", room=client.sid)
        await node.sio.send("letter", to=scene.far.sid)
        mail = [("mail", "to"), ("mail", "room")]
        assert await scene.heard(by=node) == [mail, [], [*mail, ("message", "letter")]]


async def test_emit_to_a_room_and_to_several_rooms_reaches_each_member_once(scene: Scene) -> None:
    for room in ("red", "blue"):
        await scene.b.sio.enter_room(scene.far.sid, room)
    await scene.a.sio.enter_room(scene.here.sid, "red")
    await scene.a.sio.enter_room(scene.near.sid, "blue")
    await scene.a.sio.emit("one", room="red")
    await scene.a.sio.emit("two", room=["red", "blue"])
    await scene.a.sio.emit("mixed", room=["red", scene.near.sid, scene.far.sid])
    await scene.a.sio.emit("skipped", room=["red", "blue"], skip_sid=[scene.here.sid, scene.far.sid])
    await scene.a.sio.emit("nobody", room="green")
    await scene.a.sio.send("message", room="red")
    here, near, far = await scene.heard()
    assert here == [("one",), ("two",), ("mixed",), ("message", "message")]
    assert near == [("two",), ("mixed",), ("skipped",)]
    assert far == [("one",), ("two",), ("mixed",), ("message", "message")]


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        (None, ()),
        ((), ()),
        ((1, "two", {"three": 3}), (1, "two", {"three": 3})),
        ([1, "two"], ([1, "two"],)),
        ({"deep": [{"er": (1, 2)}]}, ({"deep": [{"er": [1, 2]}]},)),
        ("", ("",)),
        (0, (0,)),
        (False, (False,)),
        ((None,), (None,)),
        (2**53, (2**53,)),
        ("☃\u2028</script>\0", ("☃\u2028</script>\0",)),
        (b"", (b"",)),
        (b"\x00\xff", (b"\x00\xff",)),
        (bytearray(b"array"), (b"array",)),
        ((b"a", {"b": [b"c", "d", {"e": b"f"}]}, b"g"), (b"a", {"b": [b"c", "d", {"e": b"f"}]}, b"g")),
        ({"_placeholder": False, "num": 0}, ({"_placeholder": False, "num": 0},)),
    ],
    ids=repr,
)
async def test_data_arrives_as_python_socketio_would_deliver_it(alone: Cluster, data: Any, arguments: Heard) -> None:
    a, b = await alone.pair()
    clients = await asyncio.gather(a.client(), b.client(), b.client(transport="polling"))
    await a.sio.emit("data", data)
    assert await alone.finish(a, *clients) == [[("data", *arguments)]] * 3


async def test_binary_at_any_depth_crosses_every_broker_in_order(scene: Scene) -> None:
    blob = bytes(range(256)) * 64
    for number in range(10):
        await scene.a.sio.emit("blob", (number, {"deep": [blob, {"er": blob[:number]}]}))
        await scene.a.sio.emit("text", number)
    expected: list[Heard] = []
    for number in range(10):
        expected += [("blob", number, {"deep": [blob, {"er": blob[:number]}]}), ("text", number)]
    assert await scene.heard() == [expected] * 3


@pytest.mark.parametrize("room", ODD_ROOMS, ids=lambda room: f"{type(room).__name__} {str(room)[:12]!a}")
async def test_an_odd_room_is_a_room_like_any_other(alone: Cluster, room: str | int) -> None:
    a, b = await alone.pair()
    here, far = await asyncio.gather(a.client(), b.client())
    await odd_room(alone, a, b, here, far, room)


async def test_odd_rooms_over_every_broker(scene: Scene) -> None:
    for room in ODD_ROOMS:
        await odd_room(scene.cluster, scene.a, scene.b, scene.here, scene.far, room)
    assert not scene.a.adapter.stats()["disconnects"] + scene.b.adapter.stats()["disconnects"]


async def odd_room(cluster: Cluster, a: Node, b: Node, here: Client, far: Client, room: str | int) -> None:
    await b.sio.enter_room(far.sid, room)
    assert b.sio.rooms(far.sid) == [far.sid, room]
    await a.sio.emit("in", room=room)
    await a.sio.emit("other", room=str(room) if isinstance(room, int) else f"{room}!")
    assert await cluster.finish(a, here, far) == [[], [("in",)]]
    await b.sio.leave_room(far.sid, room)
    await a.sio.emit("left", room=room)
    assert await cluster.finish(a, here, far) == [[], []]


async def test_the_room_named_by_the_empty_string(scene: Scene) -> None:
    await scene.b.sio.enter_room(scene.far.sid, "")
    await scene.a.sio.emit("empty", room="")
    await scene.a.sio.emit("list", to=[""])
    await scene.a.adapter.emit("manager", to="")
    assert await scene.heard() == [[], [], [("empty",), ("list",), ("manager",)]]
    assert scene.b.sio.rooms(scene.far.sid) == [scene.far.sid, ""]


async def test_ignore_queue_stays_on_the_node(scene: Scene) -> None:
    await scene.b.sio.enter_room(scene.far.sid, "red")
    await scene.a.sio.enter_room(scene.here.sid, "red")
    await scene.a.sio.emit("local", room="red", ignore_queue=True)
    await scene.a.sio.emit("local all", ignore_queue=True)
    assert await scene.heard() == [[("local",), ("local all",)], [("local all",)], []]


async def test_a_callback_gets_the_answer_of_a_client_of_either_node(scene: Scene) -> None:
    def one_more(number: int) -> Heard:
        return (number + 1, "two", {"blob": b"\x00\x01"})

    for client in (scene.here, scene.far):
        client.answers["ask"] = one_more
        answer: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()

        def sync(*args: Any, answer: "asyncio.Future[Heard]" = answer) -> None:
            answer.set_result(args)

        await scene.a.sio.emit("ask", 41, to=client.sid, callback=sync)
        assert await asyncio.wait_for(answer, 5) == (42, "two", {"blob": b"\x00\x01"})
        later: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()

        async def awaited(*args: Any, later: "asyncio.Future[Heard]" = later) -> None:
            await asyncio.sleep(0)
            later.set_result(args)

        await scene.a.sio.emit("ask", 1, to=client.sid, callback=awaited)
        assert await asyncio.wait_for(later, 5) == (2, "two", {"blob": b"\x00\x01"})


async def test_a_callback_of_a_room_gets_every_members_answer(scene: Scene) -> None:
    answers: list[str] = []
    for client in (scene.here, scene.near, scene.far):
        client.answers["who"] = client.sid
    for node, client in ((scene.a, scene.here), (scene.b, scene.far)):
        await node.sio.enter_room(client.sid, "red")
    await scene.a.sio.emit("who", room="red", callback=answers.append)
    await until(lambda: len(answers) == 2)
    assert set(answers) == {scene.here.sid, scene.far.sid}
    answers.clear()
    await scene.a.sio.emit("who", callback=answers.append)
    await until(lambda: len(answers) == 3)
    assert set(answers) == {scene.here.sid, scene.near.sid, scene.far.sid}
    await until(lambda: not len(scene.a.inside._broadcast.acks), what="nothing is waited for any more")


async def test_a_callback_without_arguments_and_one_that_fails(scene: Scene) -> None:
    called = asyncio.Event()
    scene.far.answers["ask"] = ()

    def failing(*args: Any) -> None:
        assert args == ()
        called.set()
        raise RuntimeError("the application's own")

    await scene.a.sio.emit("ask", to=scene.far.sid, callback=failing)
    await asyncio.wait_for(called.wait(), 5)
    await until(lambda: scene.a.adapter.stats()["faults"] == 1)
    await scene.b.sio.emit("after", to=scene.here.sid)
    assert (await scene.heard(by=scene.b))[0] == [("after",)]


async def test_call_a_client_of_either_node(scene: Scene) -> None:
    for client in (scene.here, scene.far):
        client.answers |= {"one": "answer", "many": (1, 2), "none": None, "blob": {"b": b"\xff"}}
        assert await scene.a.sio.call("one", {"x": 1}, to=client.sid) == "answer"
        assert await scene.a.sio.call("many", to=client.sid) == (1, 2)
        assert await scene.a.sio.call("none", to=client.sid) is None
        assert await scene.a.sio.call("blob", b"in", to=client.sid) == {"b": b"\xff"}


async def test_call_times_out_on_a_client_that_does_not_answer_or_is_not_there(scene: Scene) -> None:
    silent = asyncio.Event()

    async def never(*_args: Any) -> None:
        await silent.wait()

    scene.far.socket.on("ask", never)
    unknown = scene.far.sid[:-4] + "0000"
    for sid in (scene.far.sid, unknown, "nobody"):
        with pytest.raises(CallTimeoutError):
            await scene.a.sio.call("ask", to=sid, timeout=0.2)
    silent.set()


async def test_rooms_are_entered_and_left_on_any_node(scene: Scene) -> None:
    for node in (scene.a, scene.b):
        for client in (scene.here, scene.far):
            await node.sio.enter_room(client.sid, "red")
            await node.sio.enter_room(client.sid, "red")
    assert scene.a.sio.rooms(scene.here.sid) == [scene.here.sid, "red"]
    assert scene.b.sio.rooms(scene.far.sid) == [scene.far.sid, "red"]
    await scene.a.sio.emit("in", room="red")
    assert await scene.heard() == [[("in",)], [], [("in",)]]
    await scene.a.sio.leave_room(scene.far.sid, "red")
    await scene.b.sio.leave_room(scene.here.sid, "red")
    await scene.b.sio.leave_room(scene.here.sid, "red")
    await scene.a.sio.emit("left", room="red")
    assert await scene.heard() == [[], [], []]


async def test_a_room_is_joined_once_enter_room_returns_and_left_once_leave_room_returns(scene: Scene) -> None:
    for number in range(30):
        room = f"room {number % 3}"
        await scene.a.sio.enter_room(scene.far.sid, room)
        await scene.a.sio.emit("in", number, room=room)
        await scene.b.sio.emit("in too", number, room=room)
        await scene.a.sio.leave_room(scene.far.sid, room)
        await scene.a.sio.emit("out", number, room=room)
        await scene.b.sio.emit("out", number, room=room)
    heard = (await scene.heard())[2] + (await scene.heard(by=scene.b))[2]
    assert [number for event, number in heard if event == "in"] == list(range(30))
    assert [number for event, number in heard if event == "in too"] == list(range(30))
    assert not [number for event, number in heard if event == "out"]


async def test_close_room_empties_it_on_every_node(scene: Scene) -> None:
    for client in (scene.here, scene.near, scene.far):
        await scene.a.sio.enter_room(client.sid, "red")
        await scene.a.sio.enter_room(client.sid, "blue")
    await scene.a.sio.emit("before", room="red")
    await scene.a.sio.close_room("red")
    await scene.a.sio.emit("after", room="red")
    await scene.a.sio.emit("still", room="blue")
    assert await scene.heard() == [[("before",), ("still",)]] * 3
    assert scene.b.sio.rooms(scene.far.sid) == [scene.far.sid, "blue"]
    await scene.a.sio.close_room("nobody is in here")
    await scene.b.sio.enter_room(scene.far.sid, "red")
    await scene.a.sio.emit("again", room="red")
    assert await scene.heard() == [[], [], [("again",)]]


async def test_disconnect_a_client_of_any_node(scene: Scene) -> None:
    reasons: list[tuple[str, str]] = []

    def told(sid: str, reason: str) -> None:
        reasons.append((sid, reason))

    for node in (scene.a, scene.b):
        node.sio.on("disconnect", told)
    gone = [scene.far.sid, scene.near.sid, scene.here.sid]
    await scene.a.sio.disconnect(scene.far.sid)
    await scene.b.sio.disconnect(scene.near.sid)
    await scene.a.sio.disconnect(scene.here.sid)
    for client in (scene.far, scene.near, scene.here):
        await asyncio.wait_for(client.gone.wait(), 5)
    reason = scene.a.sio.reason.SERVER_DISCONNECT
    assert sorted(reasons) == sorted((sid, reason) for sid in gone)
    assert not len(scene.a.inside._rooms) + len(scene.b.inside._rooms)


async def test_an_unknown_sid_is_an_error_to_enter_and_nothing_to_leave_or_disconnect(scene: Scene) -> None:
    of_a, of_b = scene.here.sid[:-4] + "0000", scene.far.sid[:-4] + "0000"
    for sid in (of_a, of_b, "x", "A" * 20):
        with pytest.raises(ValueError, match="not connected"):
            await scene.a.sio.enter_room(sid, "red")
        await scene.a.sio.leave_room(sid, "red")
        await scene.a.sio.disconnect(sid)
        await scene.a.sio.emit("nobody", to=sid)
        assert scene.a.sio.rooms(sid) == []
        with pytest.raises(KeyError):
            await scene.a.sio.get_session(sid)
    with pytest.raises(ValueError, match="not connected"):
        await scene.a.sio.enter_room(scene.far.sid, "red", namespace="/elsewhere")
    assert await scene.heard() == [[], [], []]


async def test_the_room_of_another_clients_sid_cannot_be_entered_or_closed(scene: Scene) -> None:
    with pytest.raises(ValueError, match="sid room"):
        await scene.a.sio.enter_room(scene.here.sid, scene.near.sid)
    with pytest.raises(ValueError, match="sid room"):
        await scene.b.sio.enter_room(scene.here.sid, scene.near.sid)
    with pytest.raises(ValueError, match="sid room"):
        await scene.a.sio.close_room(scene.near.sid)
    await scene.a.sio.emit("private", to=scene.near.sid)
    assert await scene.heard() == [[], [("private",)], []]


async def test_namespaces_are_apart(scene: Scene) -> None:
    both = await scene.b.client("/", "/chat")
    await scene.b.sio.enter_room(both.sid_in("/"), "red")
    await scene.b.sio.enter_room(both.sid_in("/chat"), "red", namespace="/chat")
    await scene.a.sio.emit("root", room="red")
    await scene.a.sio.emit("chat", b"blob", room="red", namespace="/chat")
    await scene.a.sio.emit("chat all", namespace="/chat")
    await scene.a.sio.emit("end", namespace="/chat")
    assert await both.hear("end", "/chat") == [("chat", b"blob"), ("chat all",), ("end",)]
    assert await scene.cluster.finish(scene.a, both, scene.far) == [[("root",)], []]
    await scene.a.sio.disconnect(both.sid_in("/chat"), namespace="/chat")
    await scene.a.sio.emit("chat", namespace="/chat")
    await scene.a.sio.emit("still here", to=both.sid)
    assert await scene.cluster.finish(scene.a, both) == [[("still here",)]]
    assert scene.b.adapter.get_namespaces() == ("/",)
