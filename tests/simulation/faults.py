"""What fate does to a simulated cluster: links, servers and processes fail, between any two callbacks of a node.

What can happen to a server, and to the ways to it, its own kind knows: `servers`, `client_servers`.
"""

import random
from collections.abc import Callable

from tests.simulation.history import Fault
from tests.simulation.parties import SimProcess
from tests.simulation.plan import CLIENT_FAULTS, FAULTS
from tests.simulation.servers import LONG
from tests.simulation.world import World


def _freeze(world: World, node: SimProcess, draw: random.Random) -> float:
    """A process stands still; what is sent to it waits."""
    seconds = draw.choice(LONG)
    world.loop.freeze(node.name, seconds)
    return seconds


def _kill(world: World, node: SimProcess, draw: random.Random) -> float:
    """A process dies, if others are left."""
    if len(world.running) > 2:
        world.kill_node(node, draw)
    return 0.0


_PROCESS_FAULTS = {"freeze": _freeze, "kill": _kill}


def _strike(kind: str) -> Callable[[World, random.Random], None]:
    """A fault of the server, or one that strikes one node after some callbacks more; if there is such a thing here."""

    def begin(world: World, draw: random.Random) -> None:
        if (fault := world.servers.server_faults.get(kind)) is not None:
            called, seconds = fault(draw)
            world.note(Fault(called, seconds=seconds))
            return
        running = world.running
        if not running or not (kind in _PROCESS_FAULTS or kind in world.servers.node_faults):
            return
        node = draw.choice(running)

        def strike() -> None:
            if not node.alive or node.stopping:
                return
            if kind in _PROCESS_FAULTS:
                seconds = _PROCESS_FAULTS[kind](world, node, draw)
            else:
                seconds = world.servers.node_faults[kind](node, draw)
            world.note(Fault(kind, node.name, seconds))

        world.loop.after_turns(node.name, draw.randint(1, 12), strike)

    return begin


FAULTS_BY_KIND: dict[str, Callable[[World, random.Random], None]] = {
    kind: _strike(kind) for kind in FAULTS | CLIENT_FAULTS
}
