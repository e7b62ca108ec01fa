"""Draws a dashboard with Grafana's own components in Chromium, for a look at units, legends and empty panels.

    .venv/bin/python tests/support/grafana/picture/draw.py http://127.0.0.1:9090 RUN picture.png

It needs a Prometheus that has the run, npm, and Debian's chromium. The packages (450 MB) stay in .venv/grafana-ui.
No test runs it: Grafana itself is not here, and a picture needs an eye.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[3]
INSTALLED = CHECKOUT / ".venv" / "grafana-ui"
DASHBOARDS = CHECKOUT / "monitoring" / "stack" / "grafana" / "dashboards"
CELL_HEIGHT, TOP, WIDTH = 34, 60, 1600  # pixels, as in page.tsx
PAGE = b"""<!doctype html><link rel=stylesheet href=/page.css><div id=root></div>
<script>window.grafanaBootData = {settings: {}, user: {}}</script><script src=/page.js></script>"""


def bundle() -> None:
    """Install the packages and bundle the page, where that is not done yet."""
    INSTALLED.mkdir(exist_ok=True)
    if not (INSTALLED / "node_modules").exists():
        shutil.copy(HERE / "package.json", INSTALLED)
        argv = ["npm", "install", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(argv, cwd=INSTALLED, check=True)
    shutil.copy(HERE / "page.tsx", INSTALLED)
    options = [
        "--bundle",
        "--minify",
        "--outfile=page.js",
        "--loader:.svg=text",
        "--loader:.ttf=empty",
        '--define:process.env.NODE_ENV="production"',
    ]
    subprocess.run([INSTALLED / "node_modules/.bin/esbuild", "page.tsx", *options], cwd=INSTALLED, check=True)


def serve(prometheus: str, dashboard: Path) -> ThreadingHTTPServer:
    """Serve the page, the dashboard, and Prometheus' answers from one address."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/v1/query"):
                kind, body = "application/json", direct.open(prometheus + self.path, timeout=30).read()
            elif path == "/dashboard.json":
                kind, body = "application/json", dashboard.read_bytes()
            elif path in ("/page.js", "/page.css"):
                file = INSTALLED / path[1:]
                kind = "text/javascript" if path.endswith("js") else "text/css"
                body = file.read_bytes() if file.exists() else b""
            else:
                kind, body = "text/html", PAGE
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prometheus", help="address of a Prometheus")
    parser.add_argument("run", help="name of the run")
    parser.add_argument("picture", type=Path, help="the PNG")
    parser.add_argument("--dashboard", default="vpred-run", help="uid of the dashboard")
    parser.add_argument("--span", type=int, default=900, help="seconds shown")
    parser.add_argument("--rate", default="60s", help="stands for $__rate_interval")
    arguments = parser.parse_args()
    file = DASHBOARDS / f"{arguments.dashboard}.json"
    if not file.exists():
        print(f"{file}: no such dashboard", file=sys.stderr)
        return 2
    bundle()
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in json.loads(file.read_text())["panels"])
    server = serve(arguments.prometheus, file)
    words = f"run={arguments.run}&span={arguments.span}&rate={arguments.rate}"
    with tempfile.TemporaryDirectory() as profile:
        argv = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}"]
        argv += ["--virtual-time-budget=20000", f"--window-size={WIDTH},{rows * CELL_HEIGHT + TOP}"]
        argv += [f"--screenshot={arguments.picture.resolve()}", f"http://127.0.0.1:{server.server_port}/?{words}"]
        subprocess.run(argv, check=True, capture_output=True, timeout=120)
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
