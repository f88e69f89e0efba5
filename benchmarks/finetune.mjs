// Fine-tuning on a small generated task, free text to a JSON record: how many records of held-out texts are right before and after, and how
// long training took.
// Usage: node benchmarks/finetune.mjs [--model M] [--examples N] [--held-out N] [--threads N] [--epochs N] [--rate R] [--out FOLDER] [--table F]
// The table, where one is named, is added to: one JSON line for each run.
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Gemma } from '../dist/index.mjs';
import { randomFrom } from '../scripts/random.mjs';

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'demo' },
    examples: { type: 'string', default: '400' },
    'held-out': { type: 'string', default: '100' },
    threads: { type: 'string', default: '2' },
    epochs: { type: 'string', default: '3' },
    rate: { type: 'string', default: '5e-4' },
    rank: { type: 'string', default: '8' },
    out: { type: 'string' },
    table: { type: 'string' },
  },
});

const random = randomFrom(20260101); // so that every run has the same texts
const below = (n) => (random() * 2 ** 32) % n;
const pick = (list) => list[below(list.length)];

const NAMES =
  'Ana Ben Clara David Emma Felix Greta Hugo Ines Jonas Katya Luis Mira Noah Olga Paul Rosa Samuel Tara Victor'.split(
    ' ',
  );
const ITEMS = 'lattes,croissants,bagels,espressos,muffins,salads,sandwiches,teas,cookies,smoothies,waffles,soups'.split(
  ',',
);
const DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split(' ');
const NUMBERS = 'two three four five six seven eight nine ten eleven twelve'.split(' ');
const CITIES = 'Porto Lyon Graz Turin Bergen Cork Ghent Leeds Malmo Basel'.split(' ');
const FORMS = [
  ({ name, n, item, day, city }) => `Hi, this is ${name}. Please send ${n} ${item} to our office in ${city} on ${day}.`,
  ({ name, n, item, day, city }) => `${day}, ${city}: ${n} ${item} for ${name}, thanks!`,
  ({ name, n, item, day, city }) => `Could ${name} get ${n} ${item} delivered in ${city} this ${day}?`,
  ({ name, n, item, day, city }) => `We need ${n} ${item} by ${day}. The address is in ${city}, ask for ${name}.`,
  ({ name, n, item, day, city }) => `${name} from ${city} called about ${day}: ${n} ${item}, as always.`,
  ({ name, n, item, day, city }) => `order for ${name} / ${n} ${item} / ${city} / ${day}`,
];

function example() {
  const i = below(NUMBERS.length);
  const word = below(2) === 0;
  const told = {
    name: pick(NAMES),
    n: word ? NUMBERS[i] : String(i + 2),
    item: pick(ITEMS),
    day: pick(DAYS),
    city: pick(CITIES),
  };
  const { name, item, day, city } = told;
  return {
    prompt: `${pick(FORMS)(told)}\nRecord as JSON with customer, item, quantity, day and city:\n`,
    completion: JSON.stringify({ customer: name, item, quantity: i + 2, day, city }),
  };
}

const folder = values.out ?? mkdtempSync(join(tmpdir(), 'gemma-finetune-'));
const training = Array.from({ length: Number(values.examples) }, example);
const seen = new Set(training.map(({ prompt }) => prompt));
const heldOut = [];
while (heldOut.length < Number(values['held-out'])) {
  const one = example();
  if (!seen.has(one.prompt)) heldOut.push(one);
}
const data = join(folder, 'orders.jsonl');
const output = join(folder, 'orders');
writeFileSync(data, training.map((line) => `${JSON.stringify(line)}\n`).join(''));

/** The share of held-out texts of which the record is right in every field. */
async function right(gemma, adapter) {
  const answers = await Promise.all(
    heldOut.map(({ prompt }) =>
      gemma.generate(prompt, { temperature: 0, maxOutputTokens: 80, ...(adapter && { adapter }) }),
    ),
  );
  const same = (text, expected) => {
    try {
      return JSON.stringify(JSON.parse(text)) === expected;
    } catch {
      return false;
    }
  };
  return answers.filter(({ text }, i) => same(text, heldOut[i].completion)).length / heldOut.length;
}

const load = () => Gemma.load(values.model, { contextSize: 512, threads: Number(values.threads) });
let gemma = await load();
const before = await right(gemma);
await gemma.dispose();
console.error(`before: ${(100 * before).toFixed(1)} % of ${heldOut.length} records`);

let last = 0;
const result = await Gemma.finetune({
  model: values.model,
  data,
  output,
  overwrite: true,
  epochs: Number(values.epochs),
  learningRate: Number(values.rate),
  rank: Number(values.rank),
  threads: Number(values.threads),
  seed: 1,
  onProgress: ({ step, steps, loss, tokensPerSecond, secondsLeft }) => {
    if (performance.now() - last < 5000) return;
    last = performance.now();
    console.error(
      `step ${step} of ${steps}: loss ${loss.toFixed(4)}, ${tokensPerSecond.toFixed(0)} tokens/s, ${secondsLeft.toFixed(0)} s left`,
    );
  },
});
gemma = await load();
await gemma.loadAdapter('orders', output);
const after = await right(gemma, 'orders');
await gemma.dispose();
const { steps, loss, tokens, seconds, parameters } = result;
const row = {
  date: new Date().toISOString().slice(0, 10),
  machine: `${cpus()[0]?.model.trim()}, ${values.threads} threads`,
  model: values.model.split('/').at(-1),
  ...{ examples: training.length, heldOut: heldOut.length, steps, parameters, rate: Number(values.rate) },
  before,
  after,
  ...{ loss: Number(loss.toFixed(4)), tokens, seconds: Math.round(seconds) },
  peakMiB: Math.round(process.resourceUsage().maxRSS / 1024),
};
console.log(JSON.stringify(row));
if (values.table) appendFileSync(values.table, `${JSON.stringify(row)}\n`);
if (!values.out) rmSync(folder, { recursive: true });
