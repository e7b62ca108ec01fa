"""The server: its paths, what it refuses, what it shows of files, and what hung clients cost."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.contract.exit_codes import ExitCode
from launcher.live.answers import Answers
from launcher.live.files import plain
from launcher.live.serve import parse_listen
from launcher.live.server import MOST_CONNECTIONS, LiveServer, is_known, is_loopback, known_names
from support import CHECKOUT
from support.jobs import free_ports
from support.run_dirs import hold, make_run, write_grid

EVIL = "<script>alert(1)</script>"


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    with LiveServer("127.0.0.1", 0, Answers(folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root / "one", slow=5)
    make_run(root / "deep" / "one")
    return root


def test_the_fixed_paths_answer(folder: Path) -> None:
    descriptor = hold(make_run(folder / "live"))
    with serving(folder) as port:
        assert ask(port, "/healthz")[2] == "ok\n"
        assert "one" in ask(port, "/")[2]
        assert 'vpred_launcher_run_state{run="live",state="running"} 1.0' in ask(port, "/metrics")[2]
        groups = json.loads(ask(port, "/sd")[2])
        assert len(groups) == 8
        assert groups[5] == {
            "targets": ["n001:9401"],
            "labels": {
                **{"job": "vpred", "run": "live", "rank": "5", "local_rank": "1", "hostname": "n001.cluster"},
                **{"device_id": "1", "__vpred_run_dir": str(folder / "live")},
            },
        }
        hosts = [{"hostname": "n000.cluster"}, {"hostname": "n001.cluster"}]
        assert [group["labels"] for group in json.loads(ask(port, "/sd/node")[2])] == hosts
        assert [group["targets"] for group in json.loads(ask(port, "/sd/npu")[2])] == [["n000:8082"], ["n001:8082"]]
        status, headers, page = ask(port, "/runs/live/")
        assert status == 200 and "n001" in page
        assert "script-src 'nonce-" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        state = json.loads(ask(port, "/runs/live/state.json")[2])
        assert (state["run_state"], state["step"], len(state["ranks"])) == ("running", 420, 8)
        assert ask(port, "/runs/live")[1]["Location"] == "/runs/live/"
        assert ask(port, "/runs/deep%2Fone/")[0] == ask(port, "/runs/one/?x=1")[0] == 200
    os.close(descriptor)


def test_runs_that_ended_have_no_targets(folder: Path) -> None:
    with serving(folder) as port:
        status, headers, text = ask(port, "/sd")
        assert (status, headers["Content-Type"], json.loads(text)) == (200, "application/json", [])


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/runs/", "/runs/none/", "/runs/one/plan.json", "/runs/one/../one/", "/runs/one/%2e%2e/", "/../etc",
        "/runs/one/log/../../plan.json", "/runs/one%2F..%2Fone/", "/runs/one//", "/runs/%00/", "*",
        "/runs/one/attempts/0001/rank_0.log", "/runs/one/report.html", "/runs/one/preview",
    ],
)  # fmt: skip
def test_any_other_path_is_not_found(folder: Path, path: str) -> None:
    with serving(folder) as port:
        assert ask(port, path)[0] == 404


@pytest.mark.parametrize(("method", "code"), [("POST", 405), ("PUT", 405), ("DELETE", 405), ("OPTIONS", 405)])
def test_it_only_reads(folder: Path, method: str, code: int) -> None:
    with serving(folder) as port:
        status, headers, _ = ask(port, "/", method)
        assert (status, headers["Allow"]) == (code, "GET, HEAD")


def test_head_has_no_body(folder: Path) -> None:
    with serving(folder) as port:
        status, headers, body = ask(port, "/metrics", "HEAD")
        assert (status, body) == (200, "") and int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:9399", 200), ("localhost", 200), ("[::1]:80", 200), ("10.1.2.3", 200),
        (socket.gethostname(), 421), ("evil.example", 421), ("127.0.0.1.evil.example:9399", 421),
        ("localhost:evil", 421), ("", 421), ("localhost.evil", 421),
    ],
)  # fmt: skip
def test_a_name_of_another_site_is_refused(folder: Path, host: str, code: int) -> None:
    with serving(folder) as port:
        assert ask(port, "/metrics", Host=host)[0] == code


def test_one_host_header_is_needed(folder: Path) -> None:
    with serving(folder) as port:
        for head, code in (
            (b"GET / HTTP/1.1\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"400"),
            (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(head)
                assert client.recv(64).split()[1] == code


def test_the_listening_name_is_known() -> None:
    assert is_known("Monitor.example:1", known_names("monitor.example"))
    assert not is_known("monitor.example.", known_names("127.0.0.1"))
    assert is_known(f"{socket.gethostname()}:9399", known_names("::"))


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "a&b<i>", host_name=f"{EVIL}{{}}", exit_code=1)
    run.attempt(1).log(0).write_text(f"\x1b[31mred\x1b[0m {EVIL} \x1b]0;title\x07\u202eturned\x00\n")
    write_grid(run, f"step {EVIL.replace('/', '-')}.png")
    with serving(tmp_path / "runs") as port:
        for path in ("/", "/runs/a%26b%3Ci%3E/"):
            status, _, page = ask(port, path)
            assert status == 200
            assert EVIL not in page and "<i>" not in page.replace('<i class="part', "")
        assert "&lt;script&gt;" in page
        assert "red &lt;script&gt;" in page
        assert not set("\x1b\u202e\x00") & set(page)
        state = json.loads(ask(port, "/runs/a%26b%3Ci%3E/state.json")[2])
        assert all(EVIL not in html for html in state["sections"].values())


def test_a_line_of_a_log_becomes_plain_text() -> None:
    assert plain("10 %\r20 %\r") == "20 %"
    assert plain("a\x1b[1;31mb\x1b[0m\tc\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x07") == "ab\tclink \ufffd"


def test_no_link_leads_out_of_the_run(folder: Path) -> None:
    secret = folder.parent / "secret.png"
    secret.write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    run = make_run(folder / "linked")
    run.grids.mkdir()
    (run.grids / "step-1.png").symlink_to(secret)
    run.report_html.symlink_to(secret)
    run.attempt(1).log(0).unlink()
    run.attempt(1).log(0).symlink_to(secret)
    with serving(folder) as port:
        assert ask(port, "/runs/linked/preview")[0] == ask(port, "/runs/linked/report.html")[0] == 404
        assert "secret" not in ask(port, "/runs/linked/log")[2] + ask(port, "/runs/linked/")[2]


def test_a_pipe_in_place_of_a_file_blocks_nothing(folder: Path) -> None:
    run = make_run(folder / "piped")
    run.attempt(1).log(0).unlink()
    os.mkfifo(run.attempt(1).log(0))
    with serving(folder) as port:
        assert ask(port, "/runs/piped/log")[2] == "\n" or ask(port, "/runs/piped/log")[2] == ""


def test_the_newest_picture_and_the_report_are_shown(folder: Path) -> None:
    run = make_run(folder / "seen")
    write_grid(run)
    (run.grids / "notes.png").write_text("no picture")
    os.utime(run.grids / "notes.png", (1, 1))
    run.report_html.write_text("<script>1</script>report")
    with serving(folder) as port:
        status, headers, _ = ask(port, "/runs/seen/preview")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        _, headers, text = ask(port, "/runs/seen/report.html")
        assert text.endswith("report") and headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_a_loss_that_is_no_number_leaves_json_that_browsers_read(folder: Path) -> None:
    run = make_run(folder / "nan")
    status = run.attempt(1).status(0)
    status.write_text(status.read_text().replace('"loss":0.2143', '"loss":NaN').replace('"step":420', '"step":421'))
    with serving(folder) as port:
        text = ask(port, "/runs/nan/state.json")[2]
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word))["loss"] is None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e18"])
def test_numbers_of_damaged_files_do_not_break_the_pages(folder: Path, number: str) -> None:
    run = make_run(folder / "odd", slow=1)
    for path in (run.attempt(1).record, run.attempt(1).status(0), run.attempt(1).stragglers_json):
        document = json.loads(path.read_text(), parse_float=lambda text: "NUMBER")
        path.write_text(json.dumps(document).replace('"NUMBER"', number))
    descriptor = hold(run)
    with serving(folder) as port:
        for path in ("/", "/metrics", "/runs/odd/", "/runs/odd/state.json", "/sd"):
            assert ask(port, path)[0] == 200, path
    os.close(descriptor)


def test_hung_clients_leave_threads_and_descriptors_bounded(folder: Path) -> None:
    port = free_ports(1)
    argv = [sys.executable, "-P", "-m", "vpred_train.entry", "launcher.live.serve", str(folder)]
    server = subprocess.Popen([*argv, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, cwd=CHECKOUT, text=True)
    try:
        assert "live page" in server.stderr.readline()
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for client in clients[::2]:  # the others send nothing at all
            client.sendall(b"GET / HTTP/1.1\r\nHost: localh")
        for _ in range(3):
            assert ask(port, "/runs/one/")[0] == 200
        process = Path(f"/proc/{server.pid}")
        # The threads of those that made room end by themselves, long before the time-out of the others.
        deadline_s = time.monotonic() + 8
        while len(list((process / "fd").iterdir())) > MOST_CONNECTIONS + 24 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert len(list((process / "fd").iterdir())) <= MOST_CONNECTIONS + 24
        assert len(list((process / "task").iterdir())) <= MOST_CONNECTIONS + 24
        for client in clients:
            client.close()
    finally:
        server.terminate()
        server.wait(timeout=30)
        server.stderr.close()


@pytest.mark.parametrize(
    ("folder_name", "options", "message"),
    [
        ("none", (), "none: no such folder; give a folder with run directories, or a run directory"),
        ("file", (), "file: not a folder; give"),
        ("empty", (), "empty: holds no run; give the folder above your --run-dir"),
        ("good", ("--listen", "9399"), "--listen: found '9399'; write ADDRESS:PORT"),
        ("good", ("--listen", "::1:9399"), "--listen: found '::1:9399'"),
        ("good", ("--listen", "127.0.0.1:70000"), "--listen: found '127.0.0.1:70000'"),
        ("good", ("--listen", "192.0.2.1:9399"), "--listen: found 192.0.2.1:9399 ("),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys, folder_name: str, options, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    make_run(tmp_path / "good" / "run")
    assert main(["serve", str(tmp_path / folder_name), *options]) == ExitCode.BAD_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_taken_port_is_one_line(folder: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["serve", str(folder), "--listen", place]) == ExitCode.BAD_CONFIG
    assert capsys.readouterr().err == (
        f"--listen: found {place} (Address already in use); choose another port: --listen 127.0.0.1:PORT\n"
    )


@pytest.mark.parametrize(
    ("text", "place", "local"),
    [
        ("[::1]:1", ("::1", 1), True),
        ("192.0.2.7:9399", ("192.0.2.7", 9399), False),
        ("localhost:0", ("localhost", 0), True),
    ],
)
def test_addresses_are_parsed(text: str, place: tuple[str, int], local: bool) -> None:
    assert parse_listen(text) == place
    assert is_loopback(place[0]) == local


def test_run_serve_shows_the_run_while_it_runs(bench) -> None:
    port = free_ports(3) + 2
    launcher = bench.start_training("--serve", f"127.0.0.1:{port}")
    bench.wait_until(lambda: answers(port))
    assert 'vpred_launcher_run_state{run="run",state="running"} 1.0' in ask(port, "/metrics")[2]
    assert len(json.loads(ask(port, "/sd")[2])) == 2
    launcher.send_signal(signal.SIGTERM)
    _, stderr = launcher.communicate(timeout=60)
    assert f"live page of {bench.run.root}: http://127.0.0.1:{port}/\n" in stderr
    assert not answers(port)


def test_run_serve_refuses_a_taken_port_before_it_starts(bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        result = bench.launch("--serve", place)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        ExitCode.BAD_CONFIG,
        f"--serve: found {place} (Address already in use); choose another port: --serve 127.0.0.1:PORT",
    )
    assert not bench.run.root.exists()


def answers(port: int) -> bool:
    try:
        return ask(port, "/healthz")[0] == 200
    except OSError:
        return False


def test_a_page_that_is_being_read_costs_one_pass_in_two_seconds(folder: Path, monkeypatch) -> None:
    passes = []
    monkeypatch.setattr("launcher.live.runs._Known.read", count(passes))
    with serving(folder) as port:
        begun = time.monotonic()
        for _ in range(40):
            assert ask(port, "/metrics")[0] == 200
        assert len(passes) <= 2 * (1 + (time.monotonic() - begun) // 2)


def count(passes: list[int]):
    from launcher.live.runs import _Known

    kept = _Known.read

    def read(known: _Known, now_unix_s: float):
        passes.append(1)
        return kept(known, now_unix_s)

    return read
