"""roomcast: run a python-socketio application on many processes, joined by the broker of your choice."""
