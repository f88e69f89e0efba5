#!/usr/bin/env node
// A picture of how many times as fast as llama.cpp each engine is, from results files of `npm run bench -- --peers`.
//
//   node benchmarks/chart.mjs RESULTS.json... > benchmarks/results/comparison.svg
//
// A bar is the median over the rounds, its thin line the least and the most. Where less is better (time, memory), it is how many
// times less. A bar past the end of the scale is cut and says how many times. The picture follows the reader's light or dark
// colours and brings its own background.
import { readFileSync, realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { median } from './report.mjs';

const BASE = 'llama.cpp';
const ENGINES = ['gemma-native', 'ik_llama.cpp', BASE];
const TITLES = {
  prefill: 'Prefill, 512 tokens',
  decode: 'Decode, one sequence',
  long: 'Decode, long context',
  batch: 'Eight sequences at once',
  busy: 'Decode beside one busy process',
  start: 'Process start to first token, 16 in the prompt',
  memory: 'Peak memory, context of 8k',
  tokenizer: 'Tokenizer',
};

const MOST = 6; // times; the end of the scale
const WIDTH = 820;
const LEFT = 190;
const RIGHT = 120;
const BAR = 11;
const GAP = 10;
const HEAD = 30;
const TOP = 64;

const STYLE = `
  svg { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
  .card { fill: #ffffff; stroke: #d0d7de; } .text { fill: #1f2328; } .faint { fill: #59636e; } .grid { stroke: #d0d7de; }
  .e0 { fill: #0b6bcb; } .e1 { fill: #8a63d2; } .e2 { fill: #8c959f; } .range { stroke: #1f2328; }
  .title { font-size: 15px; font-weight: 600; } .head { font-weight: 600; } .end { text-anchor: end; } .middle { text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d; } .text { fill: #f0f6fc; } .faint { fill: #9198a1; } .grid { stroke: #3d444d; }
    .e0 { fill: #4493f8; } .e1 { fill: #ab7df8; } .e2 { fill: #656c76; } .range { stroke: #f0f6fc; }
  }`;

const escape = (text) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
const show = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

/** "gemma-3-1b-random-qat.gguf" -> "1B QAT". */
function modelName(file) {
  const parts = /gemma-3-(\d+[bm])-(?:it-)?(?:random-)?(.*)\.gguf$/i.exec(file);
  return parts ? `${parts[1].toUpperCase()} ${parts[2].toUpperCase()}` : file.replace(/\.gguf$/, '');
}

function ratios(figure, name) {
  const base = figure.engines[BASE].values;
  return figure.engines[name].values.map((v, i) => (figure.lowerIsBetter ? base[i] / v : v / base[i]));
}

function rowsOf(figures) {
  const rows = [];
  for (const [group, title] of Object.entries(TITLES)) {
    const members = figures.filter((figure) => figure.group === group && figure.engines[BASE]);
    if (members.length > 0) rows.push({ title });
    for (const figure of members) {
      const at = /after (\d+) positions/.exec(figure.what)?.[1];
      rows.push({
        label: modelName(figure.model) + (at ? `, at ${Math.round(at / 1024)}k` : ''),
        bars: ENGINES.filter((name) => figure.engines[name]).map((name) => ({
          name,
          ratios: ratios(figure, name),
          value: `${show(figure.engines[name].median)} ${figure.unit}`,
        })),
      });
    }
  }
  return rows;
}

/** The picture of one or several reports, as SVG text. Undefined without figures of llama.cpp. */
export function chart(reports) {
  const rows = rowsOf(reports.flatMap(({ figures }) => figures));
  if (rows.length === 0) return undefined;
  const height = (row) => (row.title ? HEAD : row.bars.length * (BAR + 2) + GAP);
  const total = TOP + rows.reduce((sum, row) => sum + height(row), 0) + 34;
  const most = Math.min(MOST, Math.max(...rows.flatMap((row) => (row.bars ?? []).flatMap((bar) => bar.ratios))));
  const scale = (WIDTH - LEFT - RIGHT) / most;
  const x = (ratio) => (LEFT + Math.min(ratio, most) * scale).toFixed(1);
  const out = [];
  const text = (at, y, content, classes = 'text') =>
    out.push(`<text class="${classes}" x="${at}" y="${y.toFixed(1)}">${escape(content)}</text>`);

  const names = ENGINES.filter((name) => rows.some((row) => row.bars?.some((bar) => bar.name === name)));
  text(20, 28, 'Gemma 3 on a CPU: times as fast as llama.cpp', 'text title');
  let at = 20;
  for (const name of names) {
    out.push(`<rect class="e${ENGINES.indexOf(name)}" x="${at}" y="40" width="11" height="11"/>`);
    text(at + 16, 50, name, 'faint');
    at += 34 + name.length * 7;
  }
  for (let tick = 0; tick <= most; tick++) {
    out.push(`<line class="grid" x1="${x(tick)}" x2="${x(tick)}" y1="${TOP}" y2="${total - 34}"/>`);
    text(x(tick), total - 20, `${tick}x`, 'faint middle');
  }
  let y = TOP;
  for (const row of rows) {
    if (row.title) {
      text(20, y + 20, row.title, 'text head');
    } else {
      text(LEFT - 10, y + (row.bars.length * (BAR + 2)) / 2 + 4, row.label, 'text end');
      row.bars.forEach((bar, i) => {
        const top = y + i * (BAR + 2);
        const middle = (top + BAR / 2).toFixed(1);
        const [least, greatest] = [Math.min(...bar.ratios), Math.max(...bar.ratios)];
        const middling = median(bar.ratios);
        const width = (Math.min(middling, most) * scale).toFixed(1);
        out.push(
          `<rect class="e${ENGINES.indexOf(bar.name)}" x="${LEFT}" y="${top}" width="${width}" height="${BAR}"/>`,
        );
        if (greatest > least && least < most) {
          out.push(`<line class="range" x1="${x(least)}" x2="${x(greatest)}" y1="${middle}" y2="${middle}"/>`);
        }
        const value = middling > most ? `${bar.value}, ${middling.toFixed(0)}x` : bar.value;
        text(Number(x(greatest)) + 6, top + BAR - 1, value, 'faint');
      });
    }
    y += height(row);
  }
  const [{ date, machine, threads }] = reports;
  text(WIDTH - 20, 28, `${date}, ${machine.cpu}, ${threads} threads`, 'faint end');
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${total}" width="${WIDTH}" height="${total}" role="img" ` +
    `aria-label="Speed of gemma-native, ik_llama.cpp and llama.cpp">\n<style>${STYLE}\n</style>\n` +
    `<rect class="card" x="0.5" y="0.5" width="${WIDTH - 1}" height="${total - 1}" rx="8"/>\n${out.join('\n')}\n</svg>\n`
  );
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const picture = chart(process.argv.slice(2).map((file) => JSON.parse(readFileSync(file, 'utf8'))));
  if (picture) {
    process.stdout.write(picture);
  } else {
    process.stderr.write(
      'usage: node benchmarks/chart.mjs RESULTS.json... > PICTURE.svg   (results of npm run bench -- --peers)\n',
    );
    process.exitCode = 2;
  }
}
