// npm run demo:eval: what the demonstration model gets right on pictures that its training never drew (test/demo), as F16 and as
// Q8_0, and wide pictures with and without Pan & Scan. Greedy answers of the engine, compared letter by letter.
//
//   npm run demo:eval                                as a table
//   npm run demo:eval -- --json                      as JSON
//   npm run demo:eval -- --f16 F --q8_0 F --mmproj F  other files than the package's
//   npm run demo:eval -- --limit 20                  the first 20 questions of each kind
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import pictures from '../test/demo/pictures.cjs';
import { main, root } from './steps.mjs';

const LABELS = {
  shape: 'shape: which shape is at the top left?',
  colour: 'colour: what colour is the star?',
  where: 'position: where is the red star?',
  count: 'how many shapes are there?',
  'is-there': 'is there a red star?',
  describe: 'whole descriptions',
  'describe-de': 'whole descriptions, German',
  'describe-fr': 'whole descriptions, French',
  'describe-es': 'whole descriptions, Spanish',
  compare: 'two pictures: what is different?',
  read: 'reading, square pictures',
  'read-wide': 'reading, wide pictures, without Pan & Scan',
  'read-wide+': 'reading, wide pictures, with Pan & Scan',
};

/** Shares of right answers by kind: { kind: { right, asked, stopped } }, and the wrong ones. images: bytes by name. */
export async function evaluate(Gemma, { model, mmproj, items, images, panAndScan = false }) {
  const gemma = await Gemma.load(model, { mmproj });
  const scores = {};
  const wrong = [];
  try {
    // Several at once: the engine computes them together.
    const queue = [...items];
    const worker = async () => {
      for (let item = queue.shift(); item; item = queue.shift()) {
        const content = [
          ...item.images.map((name) => ({ type: 'image', image: images.get(name) })),
          { type: 'text', text: item.question },
        ];
        const { text, finishReason } = await gemma.generate([{ role: 'user', content }], {
          temperature: 0,
          maxOutputTokens: 120,
          panAndScan,
        });
        const score = (scores[item.kind] ??= { right: 0, asked: 0, stopped: 0 });
        score.asked += 1;
        score.stopped += finishReason === 'stop' ? 1 : 0;
        if (text === item.answer) score.right += 1;
        else wrong.push({ ...item, text });
      }
    };
    await Promise.all(Array.from({ length: 4 }, worker));
  } finally {
    await gemma.dispose();
  }
  return { scores, wrong };
}

/** The first n of each kind. */
function first(items, n) {
  const seen = {};
  return items.filter(({ kind }) => (seen[kind] = (seen[kind] ?? 0) + 1) <= n);
}

if (process.argv[1] && import.meta.filename === process.argv[1]) {
  await main(async () => {
    const { values } = parseArgs({
      options: {
        json: { type: 'boolean', default: false },
        wrong: { type: 'boolean', default: false },
        limit: { type: 'string', default: '1000' },
        f16: { type: 'string', default: join(root, 'test', 'demo', 'demo-f16.gguf') },
        q8_0: { type: 'string', default: join(root, 'models', 'demo.gguf') },
        mmproj: { type: 'string', default: join(root, 'models', 'mmproj-demo.gguf') },
      },
    });
    const { Gemma } = await import('../dist/index.mjs');
    const all = JSON.parse(readFileSync(join(root, 'test', 'demo', 'heldout.json'), 'utf8'));
    const items = first(all, Number(values.limit)).filter(({ kind }) => kind in LABELS);
    const wide = items.filter(({ kind }) => kind === 'read-wide').map((item) => ({ ...item, kind: 'read-wide+' }));
    const images = pictures.heldOutPictures();
    const results = {};
    for (const type of ['f16', 'q8_0']) {
      const files = { model: values[type], mmproj: values.mmproj, images };
      const plain = await evaluate(Gemma, { ...files, items });
      const scanned = await evaluate(Gemma, { ...files, items: wide, panAndScan: true });
      results[type] = { ...plain.scores, ...scanned.scores };
      if (values.wrong && type === 'q8_0') {
        for (const { kind, images: names, question, answer, text } of [...plain.wrong, ...scanned.wrong]) {
          process.stderr.write(`${kind} ${names} ${question} expected ${answer} found ${text}\n`);
        }
      }
    }
    if (values.json) {
      process.stdout.write(`${JSON.stringify(results)}\n`);
      return;
    }
    const percent = ({ right, asked }) => `${((100 * right) / asked).toFixed(1)} %`.padStart(8);
    process.stdout.write(`${'right answers, of'.padEnd(52)}        F16      Q8_0\n`);
    for (const [kind, label] of Object.entries(LABELS)) {
      const [f16, q8] = [results.f16[kind], results.q8_0[kind]];
      if (f16 && q8)
        process.stdout.write(`${label.padEnd(46)} ${String(q8.asked).padStart(4)}  ${percent(f16)}  ${percent(q8)}\n`);
    }
    const stopped = Object.values(results.q8_0).reduce((sum, score) => sum + score.stopped, 0);
    const asked = Object.values(results.q8_0).reduce((sum, score) => sum + score.asked, 0);
    process.stdout.write(
      `${'ended by itself (Q8_0)'.padEnd(46)} ${String(asked).padStart(4)}${`${((100 * stopped) / asked).toFixed(1)} %`.padStart(20)}\n`,
    );
  });
}
