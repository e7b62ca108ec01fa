"""Links between documents lead somewhere, paths that they name exist, and the site builds without the net."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support import CHECKOUT
from support.pages import DOCUMENTED, PAGES, name

FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
# A path of the repository in a code span: a package's or a top-level folder's, and the file that it names.
PLACE = re.compile(r"`((?:launcher|vpred_train|data|checkpoints_mgr|monitoring|tests|docs|cluster_configs)/[\w./-]+)`")
RETIRED = re.compile(r"\b(told|tells|wish(es)?|anew|mend(ed)?|bears|for want of)\b", re.I)
# Written by generate.py from docstrings and help texts, which have tests of their own.
GENERATED = {"docs/configuration.md", "docs/commands.md"}


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return set(kept)


def broken(page: Path, text: str) -> list[str]:
    """The links of `text`, which stands in `page`, that lead nowhere."""
    found = []
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists() or (anchor and anchor not in anchors(aim)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, prose(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_that_a_page_names_exist(page: Path) -> None:
    assert [place for place in PLACE.findall(prose(page)) if not (CHECKOUT / place).exists()] == []


@pytest.mark.parametrize("page", [each for each in DOCUMENTED if name(each) not in GENERATED], ids=name)
def test_a_page_has_no_retired_words(page: Path) -> None:
    assert RETIRED.findall(prose(page)) == []


@pytest.mark.parametrize("text", ["[a](no/such/page.md)", "[a](docs/quickstart.md#no-such-heading)", "![a](no.png)"])
def test_a_broken_link_is_found(text: str) -> None:
    assert len(broken(CHECKOUT / "README.md", text)) == 1


def test_the_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


class Fetched(HTMLParser):
    """Collects what a browser would fetch from elsewhere to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        fetched = tag in {"script", "img", "iframe"} or (tag == "link" and given.get("rel") != "canonical")
        address = given.get("src") or given.get("href") or ""
        if fetched and re.match(r"(https?:)?//", address):
            self.addresses.append(address)


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="docs/requirements.lock is not installed; tests/run.sh does it")
    argv = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    answer = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) >= len(DOCUMENTED)
    for page in built:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.addresses == [], page
