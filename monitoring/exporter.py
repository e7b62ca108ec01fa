"""Serves a registry over HTTP for Prometheus to scrape, at a cost that no client can raise."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from monitoring.errors import MonitorError
from monitoring.users import Users

MOST_CONNECTIONS = 8
CONNECTION_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Tls:
    """Names the files (PEM) with which the exporter proves who it is.

    client_ca: certificates that sign those of clients; without it every client may connect
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises MonitorError: when one of them cannot be used."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password here, OpenSSL would ask for that of an encrypted key on the terminal, and wait.
            made.load_cert_chain(self.certificate, self.key, password="")
            if self.client_ca is not None:
                made.load_verify_locations(self.client_ca)
                made.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(each) for each in (self.certificate, self.key, self.client_ca) if each)
            raise MonitorError(
                f"metrics: TLS cannot use {files} ({error}); give PEM files that belong together in cluster.metrics.tls"
            ) from None
        return made


class Exporter:
    """Serves `registry` at http://address:port/metrics from daemon threads; port 0 selects a free port.

    Raises MonitorError: when the address or port is not available.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        address: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        users: Users | None = None,
    ) -> None:
        self._scraped = threading.Event()
        try:
            self._server = _server_class(address, port)((address, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MonitorError(
                f"metrics: cannot listen on {address}:{port} ({reason}); end what uses that port, or set "
                "cluster.metrics.base_port or cluster.metrics.address to others"
            ) from None
        self._server.tls = tls
        self._server.set_app(_guarded(make_wsgi_app(registry), users, self._scraped.set))
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="exporter")
        self._thread.start()

    def linger(self, most_s: float) -> None:
        """Wait until Prometheus has fetched what is true now, at most `most_s` seconds."""
        self._scraped.clear()
        self._scraped.wait(most_s)

    def close(self) -> None:
        """Stop listening and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _guarded(
    serve: Callable[..., Iterable[bytes]], users: Users | None, scraped: Callable[[], None]
) -> Callable[..., Iterable[bytes]]:
    """Return the application that answers GET and HEAD of /metrics, to known users where there are any."""

    def refuse(start_response: Callable[..., Any], status: str, *headers: tuple[str, str]) -> list[bytes]:
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
        return [f"{status}\n".encode()]

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            return refuse(start_response, "405 Method Not Allowed", ("Allow", "GET, HEAD"))
        if environ.get("PATH_INFO") != "/metrics":
            return refuse(start_response, "404 Not Found")
        if users is not None and not users.knows(environ.get("HTTP_AUTHORIZATION", "")):
            return refuse(start_response, "401 Unauthorized", ("WWW-Authenticate", 'Basic realm="vpred"'))
        body = serve({**environ, "REQUEST_METHOD": "GET"}, start_response)
        if method == "GET":
            scraped()
            return body
        return []

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    """Has a thread for each of at most MOST_CONNECTIONS connections. A further one takes the place of the oldest."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    tls: ssl.SSLContext | None = None

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, None] = {}  # in the order in which they came
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def server_bind(self) -> None:
        # HTTPServer asks the name server for this host's name, which may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(CONNECTION_TIMEOUT_S)
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):  # it may have ended by itself
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread then closes it
            self._open[request] = None
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        # In the connection's own thread: a client that is slow to shake hands holds up nobody.
        with suppress(OSError), self.tls.wrap_socket(request.dup(), server_side=True) as secure:
            super().finish_request(secure, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is no event of the training."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_class(address: str, port: int) -> type[_Server]:
    """Choose the family of the address. Raises OSError and OverflowError: when it is none."""
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    return _Server6 if family == socket.AF_INET6 else _Server


class _Handler(WSGIRequestHandler):
    timeout = CONNECTION_TIMEOUT_S
    server_version = "vpred"
    sys_version = ""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the rank's log is for the training."""
