"""The fuzz target itself, on what it starts from: the longer run is `fuzz_decode.py`'s."""

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from roomcast.core.messages import Message
from tests.core.effort import effort
from tests.fuzz.decoding import NOW, PLAIN, SUBJECT, seeds, signed, target


def test_every_seed_is_read_to_the_end() -> None:
    """Otherwise a run would begin with nothing but refusals."""
    kinds: set[type] = set()
    for number, seed in enumerate(seeds()):
        wire = signed() if number >= len(seeds()) / 2 else PLAIN
        envelope = wire.open(SUBJECT, seed, NOW)
        kinds |= {type(message) for message in envelope.messages}
        target(seed)
    assert kinds == set(get_args(Message))


@given(st.data())
@effort(200)
def test_no_mutation_of_a_seed_gets_through(data: st.DataObject) -> None:
    payload = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    target(bytes(payload))
