"""Makes the pictures of the live page in docs/operations, from made-up runs, by Debian's chromium.

PYTHONPATH=.:tests .venv/bin/python tests/support/programs/picture_live_page.py docs/operations
"""

import argparse
import io
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from launcher.live.answers import Answers
from launcher.live.server import LiveServer
from launcher.records.attempt_record import AttemptRecord, LostTime
from support import CHECKOUT
from support.run_dirs import hold, make_run, write_histories, write_status

WIDTHS = (1400, 380)
COLOURS = 256
EMOJI = CHECKOUT / "data" / "fluent_emoji"
SIDE_PX = 96


def make_demonstration(folder: Path) -> None:
    """A run of 32 ranks in its second attempt, with a slow rank."""
    now = time.time()
    hosts = tuple(f"n{number:03}" for number in range(4))
    first = AttemptRecord(
        attempt=1, hosts=hosts, world_size=32, started_unix_s=now - 9000, ended_unix_s=now - 4000, exit_code=137,
        text="rank 21 on host n002 ended with SIGKILL after step 233", host="n002", last_step=233, checkpoint_step=200,
        step_s=2.0, total_steps=1000, trained_s=420.0, lost=LostTime(start_s=44, load_s=20, compile_s=99),
    )  # fmt: skip
    run = make_run(folder / "sd21-v-ship", hosts=4, ranks_per_host=8, earlier=(first,), slow=13)
    for rank in range(24, 32):
        write_status(run, 2, rank, "n003", 420, "checkpointing", now)
    write_histories(run)
    run.grids.mkdir()
    pictures = [Image.open(path, formats=["JPEG"]).convert("RGB") for path in sorted(EMOJI.glob("*.jpg"))[:16]]
    sheet = Image.new("RGB", (8 * SIDE_PX, 2 * SIDE_PX), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture.resize((SIDE_PX, SIDE_PX)), (number % 8 * SIDE_PX, number // 8 * SIDE_PX))
    sheet.save(run.grids / "step-400.png")
    run.manifest(400).parent.mkdir(parents=True)
    (run.manifest(400).parent / "shard").write_bytes(bytes(40 << 20))
    run.manifest(400).touch()
    hold(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, sync_playwright() as engine:
        make_demonstration(Path(made))
        server = LiveServer("127.0.0.1", 0, Answers(Path(made)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = engine.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/runs/sd21-v-ship/")
            page.wait_for_timeout(5000)  # curves come with the next look
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True)), formats=["PNG"])
            picture.quantize(COLOURS).save(options.folder / f"live_page_{width}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
