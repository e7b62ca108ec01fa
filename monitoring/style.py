"""Holds the report's style sheet, light and dark. It is a module and not a data file, so packaging cannot omit it."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --edge: #e1e4ea; --ink: #1b2430; --soft: #5b6675; --grid: #e9ecf1;
  --blue: #2459c4; --teal: #0d7d74; --amber: #a85a00; --red: #c62f2f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --edge: #2c3542; --ink: #e6eaf0; --soft: #9aa6b6; --grid: #27303c;
    --blue: #7aa7ff; --teal: #4fd1c1; --amber: #f0ab52; --red: #ff7b72;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { margin: 0; font-size: 28px; line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 6px 0 0; color: var(--soft); }
section { margin-top: 36px; }
h2 { margin: 0 0 12px; font-size: 17px; }
figure { margin: 0; }
.facts { width: 100%; border-collapse: separate; border-spacing: 0; background: var(--card);
  border: 1px solid var(--edge); border-radius: 10px; overflow: hidden; }
.facts th, .facts td { padding: 8px 16px; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.facts tr + tr > * { border-top: 1px solid var(--edge); }
.facts th { width: 36%; color: var(--soft); font-weight: 400; }
.facts td { font-weight: 600; font-variant-numeric: tabular-nums; }
.facts small { margin-left: 8px; color: var(--soft); font-size: 13px; font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.chart, .picture, details { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; }
.chart { padding: 14px 16px 8px; }
.chart.loss { grid-column: 1 / -1; }
.chart figcaption span { margin-left: 6px; color: var(--soft); font-size: 13px; }
.chart .lost { margin-left: 6px; color: var(--red); font-size: 13px; }
.loss { --line: var(--blue); }
.throughput { --line: var(--teal); }
.rate { --line: var(--amber); }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
svg text { fill: var(--soft); font: 11.5px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .last { fill: var(--line); font-weight: 600; }
svg line { stroke-width: 1; }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--soft); }
svg .gap { stroke: var(--red); stroke-width: 2; }
svg polyline { fill: none; stroke: var(--line); stroke-linejoin: round; }
svg .raw { stroke-width: 1; opacity: 0.3; }
svg .main { stroke-width: 2; }
svg .dot { fill: var(--line); }
.picture { padding: 12px; }
.picture + .picture { margin-top: 16px; }
.picture img { display: block; width: 100%; border-radius: 6px; background: #ffffff; }
.picture figcaption { padding: 10px 4px 0; color: var(--soft); font-size: 13px; }
details + details { margin-top: 10px; }
summary { padding: 10px 16px; font-weight: 600; cursor: pointer; }
pre { margin: 0; padding: 4px 16px 16px; overflow-x: auto; font: 13px/1.5 ui-monospace, monospace; }
.none { color: var(--soft); }
@media (max-width: 720px) {
  .charts { grid-template-columns: minmax(0, 1fr); }
  .chart.loss { overflow-x: auto; }
  .chart.loss svg { min-width: 760px; }
}
"""
