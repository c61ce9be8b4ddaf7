"""The part of roomcast that knows no broker: rooms, routing, ordering, recovery."""
