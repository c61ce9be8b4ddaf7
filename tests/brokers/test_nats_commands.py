"""What is said to a NATS server, by the examples of its protocol's documentation."""

from roomcast.brokers.nats_commands import publish, subscribe, unsubscribe


def test_publishes_are_those_of_the_documentation() -> None:
    assert publish("FOO", b"Hello NATS!") == b"PUB FOO 11\r\nHello NATS!\r\n"
    assert publish("FRONT.DOOR", b"Knock Knock", reply="JOKE.22") == b"PUB FRONT.DOOR JOKE.22 11\r\nKnock Knock\r\n"
    assert publish("NOTIFY", b"") == b"PUB NOTIFY 0\r\n\r\n"


def test_headers_are_counted_with_the_empty_line_behind_them() -> None:
    named = publish("FOO", b"Hello NATS!", headers={"Bar": "Baz"})
    assert named == b"HPUB FOO 22 33\r\nNATS/1.0\r\nBar: Baz\r\n\r\nHello NATS!\r\n"
    replied = publish("FRONT.DOOR", b"Knock Knock", reply="JOKE.22", headers={"BREAKFAST": "donut", "LUNCH": "burger"})
    assert replied == (
        b"HPUB FRONT.DOOR JOKE.22 45 56\r\nNATS/1.0\r\nBREAKFAST: donut\r\nLUNCH: burger\r\n\r\nKnock Knock\r\n"
    )


def test_subscriptions_are_those_of_the_documentation() -> None:
    assert subscribe("FOO", b"1") == b"SUB FOO 1\r\n"
    assert subscribe("BAR", b"44", queue="G1") == b"SUB BAR G1 44\r\n"
    assert unsubscribe(b"1") == b"UNSUB 1\r\n"
