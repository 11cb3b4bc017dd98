import os
import socket
from pathlib import Path

EPOCH = Path("/run/hakobu/epoch")


def served_by():
    """Which process answers. Read for each request: all of it changes when the process is restored on another host."""
    try:
        epoch = EPOCH.read_text().strip()
    except OSError:
        epoch = ""
    return {"pid": os.getpid(), "host": socket.gethostname(), "epoch": epoch or "none"}


class ServedByMiddleware:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response["X-Served-By"] = "host={host}; pid={pid}; epoch={epoch}".format(**served_by())
        return response
