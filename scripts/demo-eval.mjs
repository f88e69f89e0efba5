// npm run demo:eval: what the demonstration model gets right on pictures that its training never drew (test/demo), as F16 and as
// Q8_0, wide pictures with and without Pan & Scan, and what its adapter adds and costs: JSON about pictures, and tools. Greedy answers
// of the engine, compared letter by letter, objects and calls by their values.
//
//   npm run demo:eval                                as a table
//   npm run demo:eval -- --json                      as JSON
//   npm run demo:eval -- --wrong                     with the wrong answers of Q8_0, on stderr
//   npm run demo:eval -- --f16 F --q8_0 F --mmproj F --adapter F  other files than the package's
//   npm run demo:eval -- --limit 20                  the first 20 questions of each kind
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import lessons from '../test/demo/lessons.cjs';
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

// Of what the adapter was trained for. A schema is given as in `schema`, tools as in `tools`, and what is right follows from them.
const TAUGHT = {
  'json-describe': 'JSON: shapes',
  'json-read': 'JSON: text, square pictures',
  'json-read-wide': 'JSON: text, wide pictures, with Pan & Scan',
  'schema-describe': 'JSON with its schema: shapes',
  'schema-read': 'JSON with its schema: text, square pictures',
  'schema-read-wide': 'JSON with its schema: text, wide, Pan & Scan',
  'add-call': 'what is 417 plus 311? the call',
  'add-answer': 'what is 417 plus 311? call and answer',
  'talk-tools': 'small talk with tools declared: answer, no call',
  talk: 'small talk without tools',
};
const ADAPTER = 'tools';
const AT_ONCE = 4; // the engine computes them together

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What of an item is right, by kind: { kind: boolean }. */
async function judged(gemma, item, images, options) {
  const asked = { temperature: 0, maxOutputTokens: 400, ...options };
  const content = [
    ...(item.images ?? []).map((name) => ({ type: 'image', image: images.get(name) })),
    { type: 'text', text: item.question },
  ];
  const ask = (more) => gemma.generate([{ role: 'user', content }], { ...asked, ...more });
  if (item.input) {
    const { text, steps = [], finishReason } = await ask({ tools: lessons.tools });
    const calls = (steps[0]?.toolCalls ?? []).map(({ name, input }) => ({ name, input }));
    const called = same(calls, [{ name: item.kind, input: item.input }]);
    const right = { [`${item.kind}-call`]: called, [`${item.kind}-answer`]: called && text === item.answer };
    return { right, text: `${JSON.stringify(calls)} ${text}`, finishReason };
  }
  if (item.object) {
    const [free, bound] = [await ask({}), await ask({ schema: lessons.schema })];
    const right = {
      [`json-${item.kind}`]: same(parsed(free.text), item.object),
      [`schema-${item.kind}`]: same(bound.object, item.object),
    };
    return { right, text: `${free.text} with the schema ${bound.text}`, finishReason: free.finishReason };
  }
  if (item.tools) {
    const { text, toolCalls, finishReason } = await ask({ tools: lessons.tools });
    return { right: { [`${item.kind}-tools`]: toolCalls.length === 0 && text === item.answer }, text, finishReason };
  }
  const { text, finishReason } = await ask({});
  return { right: { [item.kind]: text === item.answer }, text, finishReason };
}

/** Shares of right answers by kind: { kind: { right, asked, stopped } }, and the wrong ones. images: bytes by name. */
export async function evaluate(gemma, items, images, options = {}) {
  const scores = {};
  const wrong = [];
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item; item = queue.shift()) {
      const { right, text, finishReason } = await judged(gemma, item, images, options);
      for (const [kind, isRight] of Object.entries(right)) {
        const score = (scores[kind] ??= { right: 0, asked: 0, stopped: 0 });
        score.asked += 1;
        score.stopped += finishReason === 'stop' ? 1 : 0;
        score.right += isRight ? 1 : 0;
        if (!isRight) wrong.push({ ...item, kind, text });
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
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
        adapter: { type: 'string', default: join(root, 'models', 'demo-tools') },
      },
    });
    const { Gemma } = await import('../dist/index.mjs');
    const limit = Number(values.limit);
    const all = JSON.parse(readFileSync(join(root, 'test', 'demo', 'heldout.json'), 'utf8'));
    const items = first(all, limit).filter(({ kind }) => kind in LABELS);
    const isWide = ({ kind }) => kind === 'read-wide';
    const wide = items.filter(isWide).map((item) => ({ ...item, kind: 'read-wide+' }));
    const json = lessons.jsonItems(items);
    const withTools = lessons.talk.map((item) => ({ ...item, tools: true }));
    const asked = first([...lessons.sums(100), ...lessons.talk], limit);
    const images = pictures.heldOutPictures();
    const results = {};
    for (const type of ['f16', 'q8_0']) {
      const gemma = await Gemma.load(values[type], { mmproj: values.mmproj, adapters: { [ADAPTER]: values.adapter } });
      try {
        for (const adapter of [undefined, ADAPTER]) {
          const options = adapter ? { adapter } : {};
          const parts = [
            await evaluate(gemma, items, images, options),
            await evaluate(gemma, wide, images, { ...options, panAndScan: true }),
          ];
          if (adapter) {
            const narrow = json.filter((item) => !isWide(item));
            parts.push(
              await evaluate(gemma, [...narrow, ...asked, ...first(withTools, limit)], images, options),
              await evaluate(gemma, json.filter(isWide), images, { ...options, panAndScan: true }),
            );
          }
          results[adapter ? `${type}+${adapter}` : type] = Object.assign({}, ...parts.map(({ scores }) => scores));
          if (!values.wrong || type !== 'q8_0') continue;
          for (const { kind, images: names = [], question, answer, text } of parts.flatMap(({ wrong }) => wrong)) {
            const which = adapter ? `[${adapter}] ` : '';
            process.stderr.write(`${which}${kind} ${names} ${question} expected ${answer} found ${text}\n`);
          }
        }
      } finally {
        await gemma.dispose();
      }
    }
    if (values.json) {
      process.stdout.write(`${JSON.stringify(results)}\n`);
      return;
    }
    const share = ({ right, asked: n }) => `${((100 * right) / n).toFixed(1)} %`.padStart(8);
    const line = (label, n, shares) =>
      process.stdout.write(`${label.padEnd(46)} ${String(n).padStart(4)}  ${shares.join('  ')}\n`);
    const table = (labels, columns) => {
      for (const [kind, label] of Object.entries(labels)) {
        const scores = columns.map((column) => results[column][kind]);
        if (scores.every((score) => score)) line(label, scores[0].asked, scores.map(share));
      }
    };
    process.stdout.write(`${'right answers, of'.padEnd(52)}       F16      Q8_0  with the adapter: F16  Q8_0\n`);
    table(LABELS, ['f16', 'q8_0', 'f16+tools', 'q8_0+tools']);
    process.stdout.write('with the adapter\n');
    table(TAUGHT, ['f16+tools', 'q8_0+tools']);
    const q8 = ['q8_0', 'q8_0+tools'].flatMap((column) => Object.values(results[column]));
    const sum = (key) => q8.reduce((total, score) => total + score[key], 0);
    line('ended by itself (Q8_0)', sum('asked'), [share({ right: sum('stopped'), asked: sum('asked') })]);
  });
}
