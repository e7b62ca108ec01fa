"""Serves a registry over HTTP for Prometheus to scrape."""

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from monitoring.errors import MonitorError


class Exporter:
    """Holds a running exporter; it listens on `port`."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server, self._thread = server, thread
        self.port: int = server.server_port

    def close(self) -> None:
        """Stop listening and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_exporter(registry: CollectorRegistry, address: str, port: int) -> Exporter:
    """Serve `registry` at http://address:port/metrics from a daemon thread; port 0 selects a free port.

    Raises MonitorError: when the address or port is not available.
    """
    try:
        server, thread = start_http_server(port, address, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MonitorError(
            f"metrics: cannot listen on {address}:{port} ({reason}); end what uses that port, or set "
            "cluster.metrics.base_port or cluster.metrics.address to others"
        ) from None
    return Exporter(server, thread)
