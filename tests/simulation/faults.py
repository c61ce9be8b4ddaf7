"""What fate does to a simulated cluster: links, servers and processes fail, between any two callbacks of a node."""

import random
from collections.abc import Callable

from tests.simulation.history import Fault
from tests.simulation.parties import SimProcess
from tests.simulation.world import World

LONG = (0.003, 0.05, 0.4, 1.0, 2.5, 4.5)
"""Seconds that a fault may last."""


def _on_a_node(fault: Callable[[World, random.Random, SimProcess], float]) -> Callable[[World, random.Random], None]:
    """A fault that strikes one node after some callbacks more."""

    def begin(world: World, draw: random.Random) -> None:
        running = world.running
        if not running:
            return
        node = draw.choice(running)

        def strike() -> None:
            if node.alive and not node.stopping:
                seconds = fault(world, draw, node)
                world.note(Fault(fault.__name__, node.name, seconds))

        world.loop.after_turns(node.name, draw.randint(1, 12), strike)

    return begin


def cut(world: World, draw: random.Random, node: SimProcess) -> float:
    """A link breaks, and comes back."""
    seconds = draw.choice(LONG)
    if world.on_log:
        world.logs.refused.add(node.sim.id)
        world.logs.cut(node.sim.id, reach=draw.randint(0, 3))
        world.loop.call_later(seconds, _let_in, world, node)
    else:
        node.broker.lose_link(reach=draw.randint(0, 3), partial=draw.randint(0, 3))
        world.loop.call_later(seconds, _restore, node, context=node.context)  # it is the process that connects
    return seconds


def stall(world: World, draw: random.Random, node: SimProcess) -> float:
    """Nothing comes through, and the link seems fine."""
    seconds = draw.choice(LONG)
    if world.on_log:
        world.logs.stall(node.sim.id)
        world.loop.call_later(seconds, lambda: world.logs.stall(node.sim.id, stalled=False))
    else:
        node.broker.stall()
        world.loop.call_later(seconds, lambda: node.broker.stall(stalled=False))
    return seconds


def freeze(world: World, draw: random.Random, node: SimProcess) -> float:
    """A process stands still; what is sent to it waits."""
    seconds = draw.choice(LONG)
    world.loop.freeze(node.name, seconds)
    return seconds


def delay(world: World, draw: random.Random, node: SimProcess) -> float:
    """Some deliveries take longer."""
    seconds = draw.choice((0.003, 0.02, 0.3, 1.0))
    if not world.on_log:
        node.broker.delay(seconds, draw.randint(1, 3))
    return seconds


def overflow(world: World, draw: random.Random, node: SimProcess) -> float:
    """The buffer of a node is full."""
    if not world.on_log:
        node.broker.overflow(draw.randint(1, 3))
    return 0.0


def lose(world: World, draw: random.Random, node: SimProcess) -> float:
    """Deliveries vanish in silence."""
    if not world.on_log:
        node.broker.lose(draw.randint(1, 2))
    return 0.0


def repeat(world: World, draw: random.Random, node: SimProcess) -> float:
    """Deliveries come twice."""
    if not world.on_log:
        node.broker.repeat(draw.randint(1, 2))
    return 0.0


def kill(world: World, draw: random.Random, node: SimProcess) -> float:
    """A process dies, if others are left."""
    if len(world.running) > 2:
        world.kill_node(node, reach=draw.randint(0, 3))
    return 0.0


def crash(world: World, draw: random.Random) -> None:
    """The server goes away, and comes back; a log has lost nothing, its last entries, or everything."""
    seconds = draw.choice(LONG)
    if world.on_log:
        tail = draw.choice((0, 0, 0, 3, None))
        world.logs.crash(tail=tail)
        world.note(Fault("crash" if tail == 0 else "forget", seconds=seconds))
        world.loop.call_later(seconds, world.logs.restart)
        return
    world.note(Fault("crash", seconds=seconds))
    nodes = list(world.running)
    draw.shuffle(nodes)
    for node in nodes:
        node.broker.lose_link(reach=draw.randint(0, 2))
        seconds += draw.choice((0.0, 0.0015, 0.2))
        world.loop.call_later(seconds, _restore, node, context=node.context)


def trim(world: World, draw: random.Random) -> None:
    """A log's retention is over for its oldest entries."""
    if world.on_log:
        world.logs.trim(draw.randint(1, 50))
        world.note(Fault("trim"))


def _restore(node: SimProcess) -> None:
    if node.alive:
        node.broker.restore_link()


def _let_in(world: World, node: SimProcess) -> None:
    if node.alive:
        world.logs.refused.discard(node.sim.id)


FAULTS_BY_KIND: dict[str, Callable[[World, random.Random], None]] = {
    fault.__name__: _on_a_node(fault) for fault in (cut, stall, freeze, delay, overflow, lose, repeat, kill)
} | {"crash": crash, "trim": trim}
