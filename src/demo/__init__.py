"""`roomcast demo`: several real nodes on one machine behind one address, with a chat page to see them talk.

`node.py` is the application, `launch.py` runs it as processes, `balancer.py` puts one address in front,
`check.py` tries all of it unattended, `run.py` is the command.
"""


class DemoError(Exception):
    """The demo cannot go on; the text is a sentence for the person who started it."""
