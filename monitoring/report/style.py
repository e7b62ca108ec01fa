"""Holds the report's style sheet, light and dark. It is a module and not a data file, so packaging cannot omit it."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --edge: #e1e4ea; --ink: #1b2430; --soft: #5b6675; --grid: #e9ecf1;
  --blue: #2459c4; --teal: #0d7d74; --amber: #a85a00; --red: #c62f2f; --violet: #7a3fb3; --green: #4c7d12;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --edge: #2c3542; --ink: #e6eaf0; --soft: #9aa6b6; --grid: #27303c;
    --blue: #7aa7ff; --teal: #4fd1c1; --amber: #f0ab52; --red: #ff7b72; --violet: #c39bff; --green: #a5cf5b;
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
.norm, .held-out, .loss-by-snr { --line: var(--blue); }
.loss-by-snr .now { stroke: var(--line); fill: var(--line); stroke-width: 2; }
.loss-by-snr .before { stroke: var(--soft); fill: var(--soft); opacity: 0.45; }
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
.part-0 { fill: var(--amber); background: var(--amber); }
.part-1 { fill: var(--violet); background: var(--violet); }
.part-2 { fill: var(--blue); background: var(--blue); }
.part-3 { fill: var(--red); background: var(--red); }
.part-4 { fill: var(--green); background: var(--green); }
.part-5 { fill: var(--teal); background: var(--teal); }
.part-6 { fill: var(--soft); background: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0 8px; padding: 0; list-style: none;
  font-size: 13px; }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 2px; }
.scroll { overflow-x: auto; }
.attempts { width: 100%; border-collapse: separate; border-spacing: 0; background: var(--card); font-size: 13px;
  border: 1px solid var(--edge); border-radius: 10px; font-variant-numeric: tabular-nums; }
.attempts th, .attempts td { padding: 6px 12px; text-align: left; vertical-align: top; }
.attempts td { white-space: nowrap; }
.attempts td:nth-child(5) { min-width: 180px; white-space: normal; }
.attempts thead th { color: var(--soft); font-weight: 400; white-space: nowrap; }
.attempts tbody tr > * { border-top: 1px solid var(--edge); }
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
  .chart { overflow-x: auto; }
  .chart svg { min-width: 420px; }
  .chart.loss svg { min-width: 760px; }
}
"""
