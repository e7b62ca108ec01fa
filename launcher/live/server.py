"""Serves over HTTP with bounded threads and descriptors, to hosts' names that it knows, and only reading."""

import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Collection
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from launcher.live.answers import Answer, Answers

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 64
_TIMEOUT_S = 10.0
_OTHER_NAME = "this server does not go by that name; call it by its IP address"
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


class LiveServer(ThreadingTCPServer):
    """Answers each connection in a thread. When there are too many, the oldest one makes room for a new one.

    Answers close their connections. So the oldest of many is one whose client sends or reads nothing.
    """

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, answers: Answers) -> None:
        """Listen. Raises OSError: when the address cannot be bound."""
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.answers = answers
        self.names = known_names(address)
        self._open: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__((address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection, or end the oldest first."""
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread then closes it
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of ours with its traceback. A client that leaves is none."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("a request could not be answered")


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    timeout = _TIMEOUT_S
    server_version, sys_version = "vpred-launch", ""

    def do_GET(self) -> None:
        """Answer with a body."""
        self._send(self._answer())

    def do_HEAD(self) -> None:
        """Answer without one."""
        self._send(self._answer(), with_body=False)

    def __getattr__(self, name: str) -> Any:
        """Answer every other method the same way."""
        if name.startswith("do_"):
            return lambda: self._send(Answer(b"only GET and HEAD\n", status=405))
        raise AttributeError(name)

    def _answer(self) -> Answer:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) > 1 or (not hosts and self.request_version == "HTTP/1.1"):
            return Answer(b"one Host header is needed\n", status=400)
        if hosts and not is_known(hosts[0], self.server.names):
            return Answer(f"{_OTHER_NAME}\n".encode(), status=421)
        return self.server.answers.get(self.path.partition("?")[0])

    def _send(self, answer: Answer, *, with_body: bool = True) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Content-Security-Policy", answer.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        if answer.location:
            self.send_header("Location", answer.location)
        if answer.status == 405:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log a request for those who look for faults."""
        logger.debug("%s: %s", self.address_string(), format % arguments)


def known_names(address: str) -> frozenset[str]:
    """Return the names of this server. Another site's name that leads here is an attack by DNS rebinding.

    The host's own names lead to an address that others reach.
    """
    if is_loopback(address):
        return _LOCAL_NAMES | {address.lower()}
    own = socket.gethostname().lower()
    return _LOCAL_NAMES | {address.lower(), own, own.partition(".")[0], socket.getfqdn().lower()}


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def is_known(host: str, names: Collection[str]) -> bool:
    """Return whether a Host header names this server. An IP address cannot be bound to another one by a DNS server."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if port and not port.isdecimal():
        return False
    bare = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return bare in names
    return True
