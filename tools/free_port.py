"""Ends with one clear message if a port of this machine is taken: `python tools/free_port.py 5000`."""

import socket
import sys

port = int(sys.argv[1])
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"error: port {port} cannot be used: {error.strerror}\n  to do:    another one: make mlflow PORT={port + 1}")
