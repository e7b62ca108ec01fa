// Draws a dashboard of ours with Grafana's own components, from its JSON and a running Prometheus.
// Heat maps, tables and state timelines are not in @grafana/ui as panels: their place shows how many series they have.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { createTheme, dateTime, Field, FieldType, getDisplayProcessor, toDataFrame } from '@grafana/data';
import {
  BarGauge, BarGaugeDisplayMode, BigValue, BigValueColorMode, BigValueGraphMode, BigValueJustifyMode, BigValueTextMode,
  GlobalStyles, PanelChrome, ThemeContext, TimeSeries,
} from '@grafana/ui';

const asked = new URLSearchParams(location.search);
const run = asked.get('run')!, rate = asked.get('rate')!, span = Number(asked.get('span'));
const end = Math.floor(Date.now() / 1000), start = end - span, step = Math.max(1, Math.round(span / 250));
const theme = createTheme({ colors: { mode: 'dark' } });
const CELL = { width: 1600 / 24, height: 34 }, TOP = 44;

const filledIn = (expr: string) =>
  expr.replaceAll('$__rate_interval', rate).replaceAll('$__range', `${span}s`).replaceAll('$run', run).replaceAll('$hostname', '.*');

const legend = (template: string, labels: Record<string, string>) =>
  template === '__auto' ? 'value' : template.replace(/\{\{(\w+)\}\}/g, (_, name) => labels[name] ?? '');

async function asks(target: any): Promise<any[]> {
  const words = new URLSearchParams({ query: filledIn(target.expr) });
  if (target.instant) words.set('time', String(end));
  else for (const [name, value] of Object.entries({ start, end, step })) words.set(name, String(value));
  const answer = await (await fetch(`/api/v1/${target.instant ? 'query' : 'query_range'}?${words}`)).json();
  return answer.data.result;
}

async function framesOf(panel: any) {
  const { defaults, overrides } = structuredClone(panel.fieldConfig);
  for (const each of defaults.thresholds?.steps ?? []) each.value ??= -Infinity;
  const color = { mode: panel.type === 'timeseries' ? 'palette-classic' : 'thresholds' };
  const frames: any[] = [];
  for (const target of panel.targets) {
    for (const series of await asks(target)) {
      const points = series.values ?? [series.value], name = legend(target.legendFormat, series.metric);
      const config: any = { color, ...structuredClone(defaults), displayNameFromDS: name };
      for (const { properties } of overrides.filter((each: any) => each.matcher.options === name)) {
        for (const { id, value } of properties) {
          if (id.startsWith('custom.')) config.custom[id.slice(7)] = value;
          else config[id] = value;
        }
      }
      frames.push(toDataFrame({
        refId: target.refId, name,
        fields: [
          { name: 'Time', type: FieldType.time, values: points.map((p: any) => p[0] * 1000), config: { interval: step * 1000 } },
          { name: 'Value', type: FieldType.number, labels: series.metric, values: points.map((p: any) => Number(p[1])), config },
        ],
      }));
    }
  }
  frames.forEach((frame, index) => frame.fields.forEach((field: Field) => {
    field.state = { ...field.state, seriesIndex: index };
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
  }));
  return frames;
}

const last = (frame: any) => { const field = frame.fields[1]; return field.display(field.values[field.values.length - 1]); };

function Body({ panel, frames, width, height }: any) {
  if (panel.type === 'text') return <div style={{ padding: 8 }}>{panel.options.content}</div>;
  if (!frames.length) return <div style={{ padding: 8, color: '#888' }}>No data</div>;
  if (panel.type === 'timeseries') {
    const timeRange = { from: dateTime(start * 1000), to: dateTime(end * 1000), raw: { from: 'now', to: 'now' } };
    return <TimeSeries frames={frames} structureRev={1} timeRange={timeRange} timeZone="utc" width={width} height={height}
      legend={panel.options.legend} options={panel.options} replaceVariables={(text: string) => text} />;
  }
  if (panel.type === 'stat') {
    return <BigValue value={last(frames[0])} theme={theme} width={width} height={height} colorMode={BigValueColorMode.Value}
      graphMode={BigValueGraphMode.None} textMode={BigValueTextMode.Value} justifyMode={BigValueJustifyMode.Auto} />;
  }
  if (panel.type === 'bargauge') {
    const most = Math.max(...frames.map((frame: any) => frame.fields[1].values[0]));
    return <div>{frames.map((frame: any, index: number) => <BarGauge key={index} theme={theme} width={width}
      height={Math.min(40, height / frames.length - 4)} text={{ titleSize: 13, valueSize: 16 }} orientation={'horizontal' as any} displayMode={BarGaugeDisplayMode.Gradient}
      value={{ ...last(frame), title: frame.name }} field={{ ...frame.fields[1].config, min: 0, max: most }}
      display={frame.fields[1].display} itemSpacing={4} lcdCellWidth={8} />)}</div>;
  }
  return <div style={{ padding: 8, color: '#888' }}>{panel.type}: {frames.length} series</div>;
}

class Guard extends React.Component<any, { fault?: string }> {
  state = { fault: undefined };
  static getDerivedStateFromError(fault: unknown) { return { fault: String(fault) }; }
  render() { return this.state.fault ? <pre style={{ color: 'red' }}>{this.state.fault}</pre> : this.props.children; }
}

function Panel({ panel, done }: any) {
  const [frames, set] = React.useState<any>(null);
  React.useEffect(() => { framesOf({ targets: [], ...panel }).then(set).finally(done); }, []);
  const at = panel.gridPos, width = at.w * CELL.width - 8, height = at.h * CELL.height - 8;
  const style: any = { position: 'absolute', left: at.x * CELL.width + 4, top: at.y * CELL.height + TOP };
  if (panel.type === 'row') return <div style={{ ...style, fontWeight: 600, paddingTop: 6 }}>{panel.title}</div>;
  return <div style={style}><PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
    {(w: number, h: number) => frames ? <Guard><Body panel={panel} frames={frames} width={w} height={h} /></Guard> : <span />}
  </PanelChrome></div>;
}

(async () => {
  const dashboard = await (await fetch('/dashboard.json')).json();
  document.body.style.cssText = 'background:#111217;margin:0;font-family:Inter,DejaVu Sans,sans-serif;color:#ccc';
  let left = dashboard.panels.filter((panel: any) => panel.type !== 'row').length;
  const done = () => { left -= 1; if (!left) setTimeout(() => { document.title = 'drawn'; }, 1500); };
  createRoot(document.getElementById('root')!).render(<ThemeContext.Provider value={theme}><GlobalStyles />
    <h3 style={{ margin: '10px 8px' }}>{dashboard.title} · {run}</h3>
    {dashboard.panels.map((panel: any) => <Panel key={panel.id} panel={panel} done={panel.type === 'row' ? () => {} : done} />)}
  </ThemeContext.Provider>);
})();
