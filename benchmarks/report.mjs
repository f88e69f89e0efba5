// Figures to summaries, and a report of them as Markdown.
import { GROUPS } from './groups.mjs';

const OURS = 'gemma-native';

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export const spread = (values) => ({ min: Math.min(...values), median: median(values), max: Math.max(...values) });

/**
 * A figure with, for each engine, the spread of its values; for each peer, how many times as good ours is (taken within each
 * round); with a baseline, how many times the baseline each engine reaches.
 */
export function summarise(figure) {
  const { engines, baseline, lowerIsBetter, peaks, ...rest } = figure;
  const mine = engines[OURS].values;
  const summary = { ...rest, ...(lowerIsBetter && { lowerIsBetter }), engines: {}, times: {} };
  for (const [name, { values, ofPeak }] of Object.entries(engines)) {
    summary.engines[name] = { ...spread(values), values, ...(ofPeak && { ofPeak: median(ofPeak) }) };
    if (baseline) {
      const without = baseline.engines[name];
      summary.engines[name].baseline = { ...spread(without), times: spread(values.map((v, i) => v / without[i])) };
    }
    if (name !== OURS) {
      summary.times[name] = spread(mine.map((v, i) => (lowerIsBetter ? values[i] / v : v / values[i])));
    }
  }
  if (baseline) summary.baseline = baseline.what;
  summary.peaks = Object.fromEntries(
    Object.entries(peaks[0])
      .filter(([key, value]) => typeof value === 'number' && key !== 'threads')
      .map(([key]) => [key, spread(peaks.map((p) => p[key]))]),
  );
  return summary;
}

const number = (x) => (x >= 1000 ? x.toFixed(0) : x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2));
const range = ({ min, median, max }, format = number) =>
  min === max ? format(median) : `${format(median)} (${format(min)}–${format(max)})`;
const times = (x) => x.toFixed(2);
const percent = (x) => `${(100 * x).toFixed(0)} %`;

function figureTable(figures) {
  const names = [...new Set(figures.flatMap(({ engines }) => Object.keys(engines)))];
  const peers = names.filter((name) => name !== OURS);
  const note = figures.find(({ baseline }) => baseline)?.baseline;
  const header = ['model', 'figure', ...names, ...peers.map((name) => `times ${name}`)];
  const lines = [`| ${header.join(' | ')} |`, `| --- | --- |${' ---: |'.repeat(header.length - 2)}`];
  for (const figure of figures) {
    const cell = (name) => {
      const engine = figure.engines[name];
      if (!engine) return '';
      const extra = [
        ...(engine.ofPeak === undefined ? [] : [percent(engine.ofPeak)]),
        ...(engine.baseline ? [`${range(engine.baseline.times, times)} x ${number(engine.baseline.median)}`] : []),
      ];
      return [range(engine), ...extra].join('; ');
    };
    const ratio = (name) => (figure.times[name] ? range(figure.times[name], times) : '');
    const row = [figure.model, `${figure.what}, ${figure.unit}`, ...names.map(cell), ...peers.map(ratio)];
    lines.push(`| ${row.join(' | ')} |`);
  }
  const { peakNote, lowerIsBetter } = figures[0];
  const notes = [
    ...(peakNote ? [`Percentages: ${peakNote}.`] : []),
    ...(note ? [`"x": times ${note}.`] : []),
    ...(lowerIsBetter ? ['Less is better; "times" is how many times less ours takes.'] : []),
  ];
  return [...lines, ...(notes.length > 0 ? ['', notes.join(' ')] : []), ''];
}

function kernelTable(kernels, { readGBps }) {
  const lines = [];
  const peaks = Object.fromEntries(kernels.filter(({ op }) => op === 'peak').map((row) => [row.isa, row]));
  for (const op of ['linear', 'bulk_linear', 'attention']) {
    if (!kernels.some((k) => k.op === op)) continue;
    const rows = [...new Set(kernels.filter((k) => k.op === op).map((k) => k.rows))];
    const unit = (n) => (kernels.find((k) => k.op === op && k.rows === n).GBps === undefined ? 'GOP/s' : 'GB/s');
    lines.push(
      `| ${op} | type | ${rows.map((n) => `${n} ${n === 1 ? 'row' : 'rows'}, ${unit(n)}`).join(' | ')} |`,
      `| --- | --- |${' ---: |'.repeat(rows.length)}`,
    );
    const kinds = [...new Set(kernels.filter((k) => k.op === op).map((k) => `${k.isa} | ${k.type}`))];
    for (const kind of kinds) {
      const cells = rows.map((n) => {
        const k = kernels.find((x) => x.op === op && x.rows === n && `${x.isa} | ${x.type}` === kind);
        if (!k) return '';
        if (k.GBps !== undefined) return `${k.GBps.toFixed(1)} (${percent(k.GBps / readGBps)})`;
        const float = op === 'attention' || ['F32', 'F16', 'BF16'].includes(k.type);
        const peak = float ? peaks[k.isa]?.f32Gops : peaks[k.isa]?.productGops;
        return `${k.Gops.toFixed(0)}${peak ? ` (${percent(k.Gops / peak)})` : ''}`;
      });
      lines.push(`| ${kind} | ${cells.join(' | ')} |`);
    }
    lines.push('');
  }
  lines.push(
    'GB/s: bytes of weights, or of keys and values, that are read per second, and of the read bandwidth. GOP/s: two for a ' +
      'multiply-add, and of what registers alone reach with the same instructions: for quantised types ' +
      `${Object.values(peaks)
        .map(({ isa, of, productGops }) => `${productGops.toFixed(0)} (${isa}${of === isa ? '' : ` by ${of}`})`)
        .join(', ')}, ` +
      `for float types and attention ${Object.values(peaks)
        .map(({ isa, f32Gops }) => `${f32Gops.toFixed(0)} (${isa})`)
        .join(', ')}.`,
    '',
  );
  return lines;
}

export function markdown(report) {
  const { machine, peaks, figures, kernels } = report;
  const lines = [
    `# ${report.date}, ${machine.cpu}`,
    '',
    `${machine.cores} cores, ${(machine.memoryBytes / 1e9).toFixed(0)} GB, ${machine.system}, Node ${machine.node}; load average ` +
      `${machine.loadBefore.toFixed(2)} before and ${machine.loadAfter.toFixed(2)} after.`,
    `Command: \`${report.command}\``,
    `${report.threads} threads${report.isa ? `, ${report.isa}` : ''}, ${report.rounds} rounds: median (least to most).` +
      report.peers
        .map(({ name, version, isa }) => ` ${name} ${version ?? ''}`.trimEnd() + (isa ? `, built for ${isa}` : ''))
        .join(';') +
      (report.peers.length > 0 ? '.' : ''),
    `Peaks: read ${range(peaks.readGBps)} GB/s` +
      ['int8', 'bf16', 'f32']
        .filter((kind) => peaks[`${kind}Gops`])
        .map(
          (kind) =>
            `; ${kind} ${range(peaks[`${kind}Gops`])} GOP/s${report.peakIsas?.[kind] ? ` (${report.peakIsas[kind]})` : ''}`,
        )
        .join('') +
      '.',
    '',
  ];
  for (const [name, { title }] of Object.entries(GROUPS)) {
    const group = figures.filter((figure) => figure.group === name);
    if (group.length > 0) lines.push(`## ${title}`, '', ...figureTable(group));
  }
  if (kernels) lines.push('## Kernels', '', ...kernelTable(kernels.rows, kernels.peaks));
  return lines.join('\n');
}
