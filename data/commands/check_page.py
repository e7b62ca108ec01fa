"""Renders a check as one self-contained HTML file: the findings and a contact sheet."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape

import numpy as np

from data.commands.examine import Findings
from data.images.decode import decode
from data.images.size import Size
from data.sources.source import Folder, Sample

SHEET = 60  # images
TILE_PX = 160
SHOWN = 200  # rows of a list
# The policy makes the browser load nothing, whatever a caption may contain.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """\
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --edge: #e1e4ea; --ink: #1b2430; --soft: #5b6675;
  --bar: #2459c4; --bad: #c62f2f; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --edge: #2c3542; --ink: #e6eaf0;
  --soft: #9aa6b6; --bar: #7aa7ff; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { margin: 0; font-size: 28px; overflow-wrap: anywhere; }
h2 { margin: 36px 0 12px; font-size: 17px; }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--edge); }
th, td { padding: 7px 14px; border-top: 1px solid var(--edge); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { width: 24%; color: var(--soft); font-weight: 400; }
td { font-variant-numeric: tabular-nums; }
.bad th { color: var(--bad); }
.bar { display: block; height: 12px; background: var(--bar); border-radius: 3px; }
.count { width: 90px; text-align: right; }
.count + td { vertical-align: middle; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 12px; }
figure { margin: 0; padding: 8px; background: var(--card); border: 1px solid var(--edge); border-radius: 8px; }
figure img { display: block; width: 100%; height: 144px; object-fit: contain; }
figcaption { margin-top: 6px; font-size: 12px; line-height: 1.35; overflow-wrap: anywhere; }
figcaption small { display: block; color: var(--soft); }
"""


def render_page(checks: Sequence[tuple[Folder, Findings]]) -> str:
    """Return the page of all folders that were checked. All text is escaped."""
    body = "\n".join(_folder(source, findings) for source, findings in checks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Data check</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _folder(source: Folder, findings: Findings) -> str:
    cut = findings.tokens.cut if findings.tokens else []
    sections = [
        f"<h1>{escape(findings.path)}</h1>",
        _list("Summary", findings.lines()[1:]),
        _list("Bad rows", findings.bad, "bad"),
        *(_images(source, findings) if len(source) else ()),
        _list("The same image more than once", [(group[0], ", ".join(group[1:])) for group in findings.duplicates]),
        _list(
            f"Images with a side below {findings.smallest_allowed_side_px} px",
            [(origin, f"{width} x {height}") for origin, width, height in findings.small],
        ),
        _list("Ends of captions that no network sees", [(each.origin, f"... {each.lost}") for each in cut]),
    ]
    return "\n".join(section for section in sections if section)


def _images(source: Folder, findings: Findings) -> Iterator[str]:
    yield _bars("Width : height", findings.aspect_ratios)
    yield _bars("Short side", _histogram(source.sizes(np.arange(len(source))).min(1)))
    yield _sheet(source)


def _list(heading: str, pairs: Sequence[tuple[str, str]], style: str = "") -> str:
    """Return a table of the first SHOWN pairs; empty when there are none."""
    if not pairs:
        return ""
    rows = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>' for a, b in pairs[:SHOWN])
    more = f"<p>and {len(pairs) - SHOWN} more; all are in vpred-data check --json</p>" if len(pairs) > SHOWN else ""
    return f'<h2>{escape(heading)}</h2>\n<table class="{style}"><tbody>{rows}</tbody></table>{more}'


def _bars(heading: str, counts: dict[str, int]) -> str:
    highest = max(counts.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="count">{count}</td>'
        f'<td><span class="bar" style="width: {100 * count / highest:.1f}%"></span></td></tr>'
        for name, count in counts.items()
    )
    return f"<h2>{escape(heading)}</h2>\n<table><tbody>{rows}</tbody></table>"


def _histogram(sides: Iterable[int]) -> dict[str, int]:
    """Count sides by powers of two of pixels."""
    exponents = np.floor(np.log2(np.maximum(np.array(sides), 1))).astype(int)
    steps = range(exponents.min(), exponents.max() + 1)
    return {f"{2**each} to {2 ** (each + 1) - 1} px": int((exponents == each).sum()) for each in steps}


def _sheet(source: Folder) -> str:
    chosen = np.linspace(0, len(source) - 1, min(SHEET, len(source))).round().astype(int).tolist()
    figures = "".join(_figure(source.sample(number)) for number in chosen)
    return f'<h2>{len(chosen)} images, evenly spread</h2>\n<div class="sheet">{figures}</div>'


def _figure(sample: Sample) -> str:
    image = decode(sample.read(), at_least=Size(TILE_PX, TILE_PX))
    image.thumbnail((TILE_PX, TILE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    captions = " / ".join(sample.captions)
    facts = f"{sample.size}, {sample.origin}"
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        f"<figcaption>{escape(captions)}<small>{escape(facts)}</small></figcaption></figure>"
    )
