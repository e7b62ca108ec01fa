"""Holds the frame of a page: policy, style sheet and script. A page asks for nothing from another host."""

import secrets
from collections.abc import Mapping
from html import escape

FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#1f4fb5"/>'
    '<path d="M3 4c2 9 4 9 5 2s3-3 5 4" fill="none" stroke="#fff" stroke-width="1.8"/></svg>'
)
_REFRESH_S = 5
_POLL_MS = 2000

# Each section of a page comes from the server as HTML that is escaped there. A section that has changed is replaced;
# what has the focus keeps it.
_SCRIPT = """
const seen = new Map(), note = document.getElementById("updated");
async function refresh() {
  try {
    const answer = await fetch("state.json", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const state = await answer.json();
    for (const [id, html] of Object.entries(state.sections)) {
      const place = document.getElementById(id);
      if (!place) { location.reload(); return; }
      if (seen.get(id) === html) continue;
      if (seen.has(id) || place.innerHTML !== html) {
        const held = place.contains(document.activeElement) ? document.activeElement.id : "";
        place.innerHTML = html;
        if (held) document.getElementById(held)?.focus({preventScroll: true});
      }
      seen.set(id, html);
    }
    document.title = state.title;
    note.textContent = "updated " + new Date().toLocaleTimeString();
    note.classList.remove("stale");
  } catch (error) {
    note.textContent = "no answer from the server; these are old values";
    note.classList.add("stale");
  }
}
setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
"""

STYLE = """
:root { color-scheme: light dark; --page: #f4f6f9; --card: #fff; --edge: #dde2ea; --ink: #1a2432; --soft: #566172;
  --grid: #e6eaf0; --blue: #2257c5; --teal: #0b746b; --amber: #9a5200; --red: #b92525; --green: #16703f;
  --link: #1f4fb5; }
@media (prefers-color-scheme: dark) { :root { --page: #10151c; --card: #18202a; --edge: #2b3543; --ink: #e7ebf1;
  --soft: #9da9ba; --grid: #263040; --blue: #7ea9ff; --teal: #4ecdbd; --amber: #f0ad56; --red: #ff8a80;
  --green: #6fd39a;  --link: #9dbdff; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 20px 16px 48px; }
header, footer { max-width: 1320px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 20px; }
a { color: var(--link); text-underline-offset: 2px; }
:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 8px; top: 8px; padding: 6px 12px; background: var(--card); z-index: 1; }
h1 { margin: 0; font-size: 25px; line-height: 1.25; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 16px; }
h3 { margin: 18px 0 4px; font-size: 14px; }
p { margin: 0; overflow-wrap: anywhere; }
.soft, .none, figcaption span, small { color: var(--soft); font-size: 13px; }
.stale { color: var(--red); font-weight: 600; }
section { margin-top: 16px; padding: 16px 18px; background: var(--card); border: 1px solid var(--edge);
  border-radius: 12px; min-width: 0; }
#state { padding: 0; overflow: hidden; }
.state { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: baseline; padding: 14px 18px;
  border-left: 6px solid var(--tone); }
.state strong { font-size: 21px; color: var(--tone); }
.state div { flex: 1 1 260px; min-width: 0; }
.state div p + p { margin-top: 2px; }
.running { --tone: var(--blue); } .complete { --tone: var(--green); } .failed, .lost { --tone: var(--red); }
.stopped { --tone: var(--amber); } .waiting { --tone: var(--soft); }
progress { display: block; width: 100%; height: 12px; margin: 8px 0 6px; border: 0; border-radius: 6px;
  appearance: none;  background: var(--grid); color: var(--blue); overflow: hidden; }
progress::-webkit-progress-bar { background: var(--grid); }
progress::-webkit-progress-value { background: var(--blue); border-radius: 6px; }
progress::-moz-progress-bar { background: var(--blue); border-radius: 6px; }
.ends { display: flex; flex-wrap: wrap; gap: 2px 20px; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 14px 18px; margin: 0; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dd small { display: block; font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(270px, 100%), 1fr)); gap: 18px 22px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 14px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg text.bin { font-size: 10px; }
svg .end { text-anchor: end; } svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--soft); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg polyline.raw { opacity: .3; stroke-width: 1; }
svg polyline.blue { stroke: var(--blue); } svg polyline.teal { stroke: var(--teal); }
svg polyline.amber { stroke: var(--amber); } svg circle.amber { fill: var(--amber); }
svg circle.blue, svg rect.blue { fill: var(--blue); } svg circle.teal { fill: var(--teal); }
svg rect.blue { opacity: .75; } svg .error { stroke: var(--ink); stroke-width: 1.5; fill: none; }
.bar { height: 22px; border-radius: 6px; margin: 4px 0 8px; background: var(--grid); }
.part-0 { fill: #2257c5; background: #2257c5; } .part-1 { fill: #d98a1f; background: #d98a1f; }
.part-2 { fill: #0f8f83; background: #0f8f83; } .part-3 { fill: #8a4fc7; background: #8a4fc7; }
.part-4 { fill: #c2405f; background: #c2405f; } .part-5 { fill: #6b7787; background: #6b7787; }
.part-6 { fill: #3c9a3c; background: #3c9a3c; } .part-7 { fill: #b0752f; background: #b0752f; }
.part-8 { fill: #4a7f9c; background: #4a7f9c; } .part-9 { fill: #97406f; background: #97406f; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0; padding: 0; list-style: none; font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 3px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 13px; padding-bottom: 6px; }
th, td { padding: 6px 14px 6px 0; text-align: left; vertical-align: top; border-top: 1px solid var(--edge); }
thead th { border: 0; color: var(--soft); font-weight: 600; white-space: nowrap; }
td.time { white-space: nowrap; }
td.long { min-width: 200px; overflow-wrap: anywhere; }
.word { font-weight: 600; color: var(--tone); white-space: nowrap; }
.hosts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); gap: 10px 24px;
  margin: 10px 0 12px; padding: 0; list-style: none; }
.hosts > li { min-width: 0; overflow-wrap: anywhere; font-size: 13px; }
.squares { display: flex; flex-wrap: wrap; gap: 4px; margin: 0; padding: 0; list-style: none; }
.squares li { display: grid; place-items: center; width: 24px; height: 24px; border-radius: 5px; color: #fff;
  font: 600 12px/1 system-ui, sans-serif; }
.many { margin: 10px 0 12px; }
.starting { background: #5b6878; } .compiling { background: #7a3fc0; } .training { background: #0a7050; }
.validating { background: #1f55c0; } .checkpointing { background: #9a5200; } .sampling { background: #0c6c85; }
.done { background: #36404e; } .absent { background: transparent; border: 1px solid var(--soft); }
.squares .absent { color: var(--ink); }
.silent { background: #8f1d1d; }
.squares .slow { box-shadow: 0 0 0 2px var(--card), 0 0 0 4px var(--red); }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
#preview img { display: block; max-width: 100%; max-height: 420px; border-radius: 8px; background: #fff; }
pre { margin: 0; padding: 10px 12px; overflow-x: auto; background: var(--page); border-radius: 8px;
  font: 12.5px/1.5 ui-monospace, monospace; }
#links ul { display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 0; padding: 0; list-style: none; }
footer { padding-bottom: 32px; color: var(--soft); font-size: 13px; }
@media (min-width: 1000px) { main { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 0 16px;
  align-items: start; } section { grid-column: 1 / -1; } #preview, #log { grid-column: auto; } }
@media (max-width: 640px) { .minor { display: none; } h1 { font-size: 21px; } dd { font-size: 17px; }
  th, td { padding-right: 10px; } section { padding: 14px; } }
@media (prefers-reduced-motion: no-preference) { progress::-webkit-progress-value { transition: width .5s; } }
"""


def page(title: str, header: str, sections: Mapping[str, str], footer: str) -> tuple[str, str]:
    """Return a page as HTML and its Content-Security-Policy. Without scripts it loads itself again every few seconds.

    title: plain text
    header, footer: HTML
    sections: HTML by id; the script replaces those that change
    """
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    script = _SCRIPT.replace("POLL_MS", str(_POLL_MS))
    body = "\n".join(f'<section id="{place}">{content}</section>' for place, content in sections.items())
    html = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<noscript><meta http-equiv="refresh" content="{_REFRESH_S}"></noscript>\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="/favicon.svg">\n'
        f'<style nonce="{nonce}">{STYLE}</style>\n</head>\n<body>\n'
        f'<a class="skip" href="#main">Skip to the content</a>\n<header>{header}</header>\n'
        f'<main id="main" tabindex="-1">\n{body}\n</main>\n'
        f'<footer>{footer} · <span id="updated"></span></footer>\n'
        f'<script nonce="{nonce}">{script}</script>\n</body>\n</html>\n'
    )
    return html, policy
