"""Processes that measure nothing, for tests of what starts them; imported by them, and therefore without torch."""

import os
import time
from types import SimpleNamespace


def serve(connection, settings):
    """Answers rows; dies or hangs at those whose names say so."""
    connection.send(({"pid": str(os.getpid())}, None))
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        if "graph replay" in name:
            os._exit(7)
        if "moved" in name:
            time.sleep(60)
        connection.send(SimpleNamespace(name=name, lost="slope" in name, pid=os.getpid()))


def refuse(connection, settings):
    """Cannot open the device."""
    connection.send(ValueError(f"Invalid --device {settings.device}: the dog ate it"))
