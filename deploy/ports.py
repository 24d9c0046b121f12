"""A port of this machine for a server that is started next and cannot say which one it took."""

from __future__ import annotations

import socket


def reserved_port() -> int:
    """One that no other program is given for a minute, but that a server may name and listen on.

    The system gives nobody a port of which a connection was just closed on the listening side;
    servers name such a port by SO_REUSEADDR, which nearly all set so that they can be restarted.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            connection, _ = listener.accept()
            connection.close()  # before the other side
    return port
