"""The live page in a real browser: what it shows, asks for and runs, at the widths of a phone and of a screen."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.contract.run_dir import RunDir
from launcher.live.answers import Answers
from launcher.live.server import LiveServer
from support.run_dirs import hold, make_run, write_grid, write_status

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

EVIL = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
WIDE = "()=>[document.documentElement.scrollWidth, window.innerWidth]"
# Texts whose contrast to their background is below 4.5 : 1 (WCAG 2.1, 1.4.3).
PALE = """() => {
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const pale = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest("svg, script, style, noscript, .sr, .skip")) continue;
    let under = element, back = null;
    for (; under && !back; under = under.parentElement) {
      const colour = parse(getComputedStyle(under).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) back = colour;
    }
    const a = light(parse(getComputedStyle(element).color).slice(0, 3));
    const b = light((back || [255, 255, 255]).slice(0, 3));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) pale.push(`${text.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return pale;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def opened(browser, folder: Path) -> Iterator[Callable[..., "playwright.Page"]]:
    """Opens a path of the server in a new window. Errors and requests elsewhere fail the test at its end."""
    contexts, faults = [], []

    def open_page(path: str, width: int = 1400, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: faults.append(request.url) if not request.url.startswith(site) else None)
        page.goto(f"{site}{path}")
        return page

    with LiveServer("127.0.0.1", 0, Answers(folder)) as server:
        site = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield open_page
        for context in contexts:
            context.close()
        server.shutdown()
    assert faults == []


@pytest.fixture
def live(folder: Path) -> Iterator[RunDir]:
    """A run of eight ranks that is running, with a slow rank, a picture and a log."""
    run = make_run(folder / "demo", slow=5)
    write_grid(run)
    descriptor = hold(run)
    yield run
    os.close(descriptor)


@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_shows_ranks_and_the_time_left(opened, live: RunDir, scripts: bool) -> None:
    page = opened("/runs/demo/", java_script_enabled=scripts)
    assert page.get_by_role("heading", level=1).inner_text() == "demo"
    assert page.get_by_role("status").inner_text() == "Running"
    assert "Slow: rank 5 on n001" in page.locator("#state").inner_text()
    assert "about 20 min 18 s left" in page.locator("#progress").inner_text()
    assert time.strftime("%Z") in page.locator("#progress time").inner_text()
    squares = page.locator("#ranks .squares li")
    assert squares.count() == 8
    slow = squares.nth(5)
    assert slow.inner_text() == "T!"  # readable without its colour
    assert "rank 5 on n001: training, step 420" in slow.get_attribute("aria-label")
    assert page.locator("#preview img").evaluate("image => image.naturalWidth") == 768
    assert "step 449" in page.locator("#log pre").inner_text()
    newest = page.locator("#log code").evaluate("code => code.getBoundingClientRect().bottom")
    assert newest <= page.locator("#log pre").evaluate("pre => pre.getBoundingClientRect().bottom")
    refresh = page.locator("noscript meta[http-equiv=refresh]")
    assert scripts or refresh.count() == 1


def test_the_page_follows_the_run_and_keeps_the_focus(opened, live: RunDir) -> None:
    page = opened("/runs/demo/")
    page.locator("#log-text").focus()
    page.evaluate("window.kept = 1")
    for rank in range(8):
        write_status(live, 1, rank, f"n00{rank // 4}", 425, "validating", time.time())
    live.attempt(1).log(0).write_text("a new line\n")
    playwright.expect(page.locator("#progress")).to_contain_text("step 425 of", timeout=15000)
    playwright.expect(page.locator("#ranks li.validating")).to_have_count(8)
    playwright.expect(page.locator("#log pre")).to_have_text("a new line")
    assert page.evaluate("[window.kept, document.activeElement.id]") == [1, "log-text"]


def test_the_page_says_when_the_server_is_gone(opened, live: RunDir) -> None:
    page = opened("/runs/demo/")
    playwright.expect(page.locator("#updated")).to_contain_text("updated")
    page.route("**/state.json", lambda route: route.fulfill(status=200, body="not json"))
    playwright.expect(page.locator("#updated")).to_have_text(
        "no answer from the server; these are old values", timeout=9000
    )


def test_hostile_text_stays_text(opened, folder: Path) -> None:
    run = make_run(folder / "<b onclick=alert(1)>bold", host_name=f"{EVIL}{{}}", exit_code=1)
    run.attempt(1).log(0).write_text(f"\x1b[2J\x1b[31m{EVIL}\x1b[0m\n" + "x" * 5000 + "\n")
    write_grid(run, "step '\"><svg onload=alert(1)>.png")
    page = opened("/")
    page.get_by_role("link", name="<b onclick=alert(1)>bold").click()
    playwright.expect(page.locator("#updated")).to_contain_text("updated", timeout=9000)
    assert EVIL in page.locator("#log pre").inner_text()
    assert EVIL in page.locator("#state").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main script, main img[onerror], main svg[onload], h1 b").count() == 0


@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("path", ["/", "/runs/demo/", "/runs/failed/", "/runs/many/", "/runs/broken/"])
def test_nothing_overflows_and_all_can_be_read(opened, live: RunDir, folder: Path, width: int, path: str) -> None:
    failed = make_run(folder / "failed", host_name="a-very-long-host-name-without-end-" * 4 + "{}", exit_code=137)
    failed.attempt(1).log(0).write_text("y" * 3000 + "\n")
    make_run(folder / "many", hosts=90)
    make_run(folder / "broken").plan_json.write_text("{")
    for scheme in ("light", "dark"):
        page = opened(path, width, color_scheme=scheme)
        assert page.evaluate(WIDE) == [width, width]
        assert page.evaluate(PALE) == []


def test_keyboard_and_screen_reader_find_their_way(opened, live: RunDir) -> None:
    page = opened("/runs/demo/")
    stops = []
    for _ in range(20):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        if page.evaluate("document.activeElement === document.body"):
            break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", stops[-1]
    assert stops[:4] == ["Skip to the content", "All runs", "attempts-scroll", "log-text"]
    assert "all of this as JSON" in stops
    assert page.locator("h1").count() == page.locator("main").count() == page.locator("nav").count() == 1
    for section in page.locator("main section").all():
        assert section.locator("h2").count() == 1
    assert page.locator("table:not(:has(caption)), img:not([alt]), svg:not([aria-label])").count() == 0


def test_above_512_ranks_a_square_is_a_host(opened, folder: Path) -> None:
    run = make_run(folder / "large", hosts=65, ranks_per_host=8, slow=9)
    write_status(run, 1, 20, "n002", 420, "training", time.time() - 100)
    descriptor = hold(run)
    squares = opened("/runs/large/").locator("#ranks .squares li")
    assert squares.count() == 65
    assert squares.nth(1).inner_text() == "T!"
    assert squares.nth(1).get_attribute("title") == "n001: 8 training; slow: rank 9"
    assert squares.nth(2).inner_text() == "?"
    os.close(descriptor)
