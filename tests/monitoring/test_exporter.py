"""The exporter against clients that are slow, silent, wrong, or strangers."""

import base64
import http.client
import os
import pty
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge

from monitoring import Exporter, MonitorError, Tls, read_users
from monitoring.exporter import MOST_CONNECTIONS
from monitoring.users import line_of

OPENSSL = "openssl"


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("seven", "It is seven.", registry=registry).set(7)
    return registry


@pytest.fixture
def exporter(registry: CollectorRegistry) -> Iterator[Exporter]:
    made = Exporter(registry, "127.0.0.1", 0)
    yield made
    made.close()


def fetch(
    port: int,
    path: str = "/metrics",
    method: str = "GET",
    context: ssl.SSLContext | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Status and text; over HTTPS with a context."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if context is not None:
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    with closing(client):
        client.request(method, path, headers=headers or {})
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def test_it_answers_get_and_head_of_one_path(exporter: Exporter) -> None:
    status, text = fetch(exporter.port)
    assert status == 200 and "seven 7.0" in text
    assert fetch(exporter.port, method="HEAD") == (200, "")
    assert fetch(exporter.port, "/") == (404, "404 Not Found\n")
    assert fetch(exporter.port, "/metrics/../etc/passwd")[0] == 404
    assert fetch(exporter.port, method="POST") == (405, "405 Method Not Allowed\n")


def test_hung_clients_leave_threads_and_descriptors_bounded(exporter: Exporter) -> None:
    """And Prometheus still gets its answer at once."""
    process = psutil.Process()
    threads, descriptors = threading.active_count(), process.num_fds()
    hung = [socket.create_connection(("127.0.0.1", exporter.port)) for _ in range(200)]
    try:
        for each in hung[::2]:
            each.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")  # a request without an end
        began_s = time.monotonic()
        assert "seven 7.0" in fetch(exporter.port)[1]
        assert time.monotonic() - began_s < 5  # not one time-out after the other
        deadline_s = time.monotonic() + 10
        # Those that gave their place away end in their own time.
        while threading.active_count() > threads + MOST_CONNECTIONS and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert threading.active_count() <= threads + MOST_CONNECTIONS
        ours = process.num_fds() - descriptors - len(hung)
        assert ours <= MOST_CONNECTIONS
    finally:
        for each in hung:
            each.close()


def test_a_client_that_says_nothing_is_cut_off(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.exporter.CONNECTION_TIMEOUT_S", 0.2)
    monkeypatch.setattr("monitoring.exporter._Handler.timeout", 0.2)
    exporter = Exporter(registry, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=10) as silent:
        assert silent.recv(100) == b""
    exporter.close()


def test_its_end_waits_for_no_client(registry: CollectorRegistry) -> None:
    exporter = Exporter(registry, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", exporter.port)):
        began_s = time.monotonic()
        exporter.close()
        assert time.monotonic() - began_s < 5
    with socket.create_server(("127.0.0.1", exporter.port)):
        pass


def test_lingering_ends_with_the_next_scrape_or_with_its_time(exporter: Exporter) -> None:
    fetch(exporter.port)  # this one was before the last change
    began_s = time.monotonic()
    exporter.linger(0.2)
    assert time.monotonic() - began_s >= 0.2
    timer = threading.Timer(0.2, fetch, [exporter.port])
    timer.start()
    exporter.linger(60)
    assert time.monotonic() - began_s < 30
    timer.join()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate for 127.0.0.1 and one of a client, signed by it."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "server.cnf").write_text("subjectAltName=IP:127.0.0.1\n")
    (folder / "client.cnf").write_text("extendedKeyUsage=clientAuth\n")

    def openssl(*words: str) -> None:
        subprocess.run([OPENSSL, *words], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ours", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", f"{name}.cnf", "-out", f"{name}.pem"),
        )
    return folder


def test_tls_proves_the_rank_and_demands_a_certificate(registry: CollectorRegistry, certificates: Path) -> None:
    tls = Tls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    exporter = Exporter(registry, "127.0.0.1", 0, tls.context())
    stranger = ssl.create_default_context(cafile=certificates / "ca.pem")
    known = ssl.create_default_context(cafile=certificates / "ca.pem")
    known.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    with socket.create_connection(("127.0.0.1", exporter.port)):  # a client that never shakes hands
        status, text = fetch(exporter.port, context=known)
    assert status == 200 and "seven 7.0" in text
    with pytest.raises(OSError):
        fetch(exporter.port, context=stranger)
    with pytest.raises((OSError, http.client.HTTPException)):
        fetch(exporter.port)
    exporter.close()


@pytest.mark.parametrize(("certificate", "key"), [("none.pem", "server.key"), ("server.pem", "client.key")])
def test_files_that_make_no_tls_are_refused_in_one_line(certificates: Path, certificate: str, key: str) -> None:
    with pytest.raises(MonitorError, match=r"metrics: TLS cannot use .*cluster.metrics.tls$") as raised:
        Tls(certificates / certificate, certificates / key).context()
    assert "\n" not in str(raised.value)


def test_a_key_with_a_password_is_refused_without_asking_for_it(certificates: Path) -> None:
    encrypted = certificates / "encrypted.key"
    command = [OPENSSL, "pkcs8", "-topk8", "-in", str(certificates / "server.key"), "-out", str(encrypted)]
    subprocess.run([*command, "-passout", "pass:secret"], check=True, capture_output=True)
    program = (
        "import sys; from pathlib import Path; from monitoring import MonitorError, Tls\n"
        "try: Tls(Path(sys.argv[1]), Path(sys.argv[2])).context()\n"
        "except MonitorError as error: print(error)"
    )
    words = [sys.executable, "-c", program, str(certificates / "server.pem"), str(encrypted)]
    terminal, other_end = pty.openpty()  # OpenSSL asks on the controlling terminal, where there is one
    try:
        asked = subprocess.run(
            words, stdin=other_end, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, start_new_session=True, timeout=60
        )
    finally:
        os.close(terminal)
        os.close(other_end)
    assert asked.stdout.startswith(b"metrics: TLS cannot use ") and asked.stdout.count(b"\n") == 1


def test_only_users_may_scrape(registry: CollectorRegistry, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"# who may scrape\n\n{line_of('prometheus', 'secret:ü', b'0123456789abcdef')}\n")
    exporter = Exporter(registry, "127.0.0.1", 0, users=read_users(file))

    def as_(word: str) -> int:
        encoded = base64.b64encode(word.encode()).decode()
        return fetch(exporter.port, headers={"Authorization": f"Basic {encoded}"})[0]

    assert fetch(exporter.port)[0] == 401
    assert [as_(word) for word in ("prometheus:secret", "x:secret:ü", ":", "prometheus")] == [401] * 4
    assert [as_("prometheus:secret:ü") for _ in range(2)] == [200, 200]  # the second time from memory
    assert as_("prometheus:secret:u") == 401
    assert fetch(exporter.port, headers={"Authorization": "Basic \xff\xfe"})[0] == 401
    exporter.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "names no user"),
        ("a:pbkdf2_sha256$1$00$00\n", ":1: is no NAME:HASH"),
        (f"a:pbkdf2_sha256$0${'00' * 16}${'00' * 32}\n", ":1: is no NAME:HASH"),
        ("# fine\nplain:password\n", ":2: is no NAME:HASH"),
    ],
)
def test_a_file_of_users_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "users"
    if text is not None:
        file.write_text(text)
    with pytest.raises(MonitorError, match=words) as raised:
        read_users(file)
    assert "\n" not in str(raised.value) and "password" not in str(raised.value)
