// How good and how well calibrated are decisions? On 60 sentences with labels (decisions.json) with a text model, and on the held-out
// pictures of the demonstration model. Says for each way of asking: accuracy; the expected calibration error (ECE, 10 bins); the same
// with a temperature that was fitted on the other half of the sentences; coverage.
//
//   node benchmarks/decisions.mjs [gemma-3-270m.gguf]       # in a built clone
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fitTemperature, Gemma } from '../dist/index.mjs';

const root = join(import.meta.dirname, '..');
const json = (...path) => JSON.parse(readFileSync(join(root, ...path), 'utf8'));

function ece(rows) {
  const bins = Array.from({ length: 10 }, () => ({ p: 0, right: 0 }));
  for (const { p, right } of rows) {
    const bin = bins[Math.min(9, Math.floor(p * 10))];
    bin.p += p;
    bin.right += right;
  }
  return bins.reduce((sum, { p, right }) => sum + Math.abs(p - right), 0) / rows.length;
}

// The answer at another temperature.
function at(temperature, { decision, answer }) {
  const weights = Object.entries(decision.probabilities).map(([name, p]) => [name, p ** (1 / temperature)]);
  const sum = weights.reduce((total, [, weight]) => total + weight, 0);
  const [best, weight] = weights.reduce((a, b) => (b[1] > a[1] ? b : a));
  return { p: weight / sum, right: Number(best === String(answer)) };
}

const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;

async function report(name, items, ask) {
  const examples = await Promise.all(items.map(async (item) => ({ decision: await ask(item), answer: item.answer })));
  const plain = examples.map((example) => at(1, example));
  const halves = [0, 1].map((half) => examples.filter((_, i) => Math.floor(i / 2) % 2 === half));
  const temperatures = [await fitTemperature(halves[1]), await fitTemperature(halves[0])];
  const fitted = halves.flatMap((half, i) => half.map((example) => at(temperatures[i], example)));
  const columns = [
    `accuracy ${mean(plain.map(({ right }) => right)).toFixed(2)}`,
    `ECE ${ece(plain).toFixed(3)}`,
    `fitted T ${temperatures.map((t) => t.toFixed(2)).join(', ')}: ECE ${ece(fitted).toFixed(3)}`,
    `coverage ${mean(examples.map(({ decision }) => decision.coverage)).toFixed(3)}`,
  ];
  console.log(`${name.padEnd(48)} n ${String(items.length).padStart(3)}  ${columns.join('  ')}`);
}

const model = process.argv[2] ?? join(homedir(), '.cache', 'gemma-native', 'gemma-3-270m-q4_k_m.gguf');
const ways = {
  sentiment: {
    question: 'Is the review positive or negative?',
    examples:
      'Review: What a wonderful day!\nSentiment: positive\n\nReview: The room was dirty and loud.\nSentiment: negative\n\n',
    text: (review) => `Review: ${review}\nSentiment:`,
  },
  topic: {
    question: 'What is the text about?',
    examples:
      'Text: The goalkeeper was injured.\nTopic: sport\n\nText: Fry the onions until golden.\nTopic: food\n\n' +
      'Text: The app now syncs with the cloud.\nTopic: technology\n\nText: Sunny with light winds.\nTopic: weather\n\n' +
      'Text: Smoking damages the lungs.\nTopic: health\n\n',
    text: (text) => `Text: ${text}\nTopic:`,
  },
};

const gemma = await Gemma.load(model);
for (const [set, list] of Object.entries(json('benchmarks', 'decisions.json'))) {
  const items = list.map(([text, answer]) => ({ text, answer }));
  const choices = [...new Set(items.map(({ answer }) => answer))];
  const { question, examples, text } = ways[set];
  for (const calibrate of [false, true]) {
    const how = calibrate ? ', calibrated' : '';
    for (const answers of ['names', 'letters']) {
      await report(`${set}: question, ${answers}${how}`, items, (item) =>
        gemma.decide(item.text, { type: 'choice', question, choices, answers, calibrate }),
      );
    }
    for (const [shots, before] of Object.entries({ 'no examples': '', examples })) {
      const free = ['N/A', '[MASK]', ''].map((empty) => before + text(empty));
      await report(`${set}: verbatim, ${shots}${how}`, items, (item) =>
        gemma.decide(before + text(item.text), {
          type: 'choice',
          choices,
          verbatim: true,
          calibrate: calibrate && free,
        }),
      );
    }
    if (set !== 'sentiment') continue;
    const long = ['The reviewer liked it.', 'The reviewer did not like it at all and wants a refund.'];
    const named = items.map((item) => ({ ...item, answer: long[choices.indexOf(item.answer)] }));
    await report(`sentiment: question, sentences of unequal length${how}`, named, (item) =>
      gemma.decide(item.text, { type: 'choice', question: 'What did the reviewer think?', choices: long, calibrate }),
    );
  }
}
await gemma.dispose();

const folder = mkdtempSync(join(tmpdir(), 'gemma-decisions-'));
execFileSync('tar', ['xf', join(root, 'test', 'demo', 'images.tar'), '-C', folder]);
const demo = await Gemma.load('demo');
const heldOut = json('test', 'demo', 'heldout.json').map((item) => ({
  ...item,
  images: item.images.map((file) => join(folder, file)),
}));
const of = (kind) => heldOut.filter((item) => item.kind === kind);
const yesNo = of('is-there').map((item) => ({ ...item, answer: item.answer === 'Yes.' }));
await report('pictures: is there a red star?', yesNo, ({ question, images }) =>
  demo.decide(question, { type: 'boolean', images, verbatim: true }),
);
await report('  the same with other words behind it', yesNo, ({ question, images }) =>
  demo.decide(question, { type: 'boolean', images }),
);
for (const kind of ['colour', 'count', 'where', 'what']) {
  const items = of(kind);
  const choices = [...new Set(items.map(({ answer }) => answer))];
  await report(`pictures: ${kind}, ${choices.length} choices`, items, ({ question, images }) =>
    demo.decide(question, { type: 'choice', choices, images, verbatim: true }),
  );
}
await demo.dispose();
rmSync(folder, { recursive: true });
