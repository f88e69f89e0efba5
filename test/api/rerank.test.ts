// gemma.rerank: scores are those of gemma.score on the prompt it describes, what is shared, what is cut, and what is refused.
import { Gemma, type RerankOptions } from '../../lib/index.js';
import { cli, rejection, runNode, tiny, withModel } from './helpers.js';

let gemma: Gemma;
beforeAll(async () => (gemma = await Gemma.load(tiny, { kvCache: 'f32' })));
afterAll(() => gemma.dispose());

const query = 'Who built the tower?';
const documents = [
  'The tower stands in Paris.',
  'Eiffel built it.',
  '',
  'Cats sleep all day long.',
  'Eiffel built it.',
];
const prompt = (document: string, instruction: string) =>
  `${instruction}\n\nQuery: ${query}\n\nDocument: ${document}\n\nIs the document relevant to the query? Answer with Yes or No.`;
const usual = 'Decide whether a document is relevant to a query: whether it helps to answer it.';

test('scores are those of the prompts, the best first, equal ones in their order', async () => {
  const ranking = await gemma.rerank(query, documents, { raw: false });
  expect(ranking.map(({ index }) => index).toSorted()).toEqual([0, 1, 2, 3, 4]);
  for (const { index, score, document } of ranking) {
    expect(document).toBe(documents[index]);
    const [yes] = await gemma.score(prompt(document, usual), ['Yes', 'No'], { raw: false });
    expect(Math.abs(score - (yes?.probability ?? NaN))).toBeLessThan(1e-12);
  }
  expect(ranking.map(({ score }) => score)).toEqual(ranking.map(({ score }) => score).toSorted((a, b) => b - a));
  const same = ranking.filter(({ document }) => document === 'Eiffel built it.').map(({ index }) => index);
  expect(same).toEqual([1, 4]);
});

test('an instruction, text to continue, and the best of them', async () => {
  const instruction = 'Find lies.';
  const [best, ...rest] = await gemma.rerank(query, documents, { instruction, raw: true, topN: 1 });
  expect(rest).toEqual([]);
  const scores: number[] = [];
  for (const document of documents) {
    const [yes] = await gemma.score(`${prompt(document, instruction)}\nAnswer:`, [' Yes', ' No'], { raw: true });
    scores.push(yes?.probability ?? NaN);
  }
  expect(best?.score).toBeCloseTo(Math.max(...scores), 12);
  expect(await gemma.rerank(query, documents, { topN: 99 })).toHaveLength(5);
  expect(await gemma.rerank(query, [])).toEqual([]);
});

test('what all documents have in common is computed once', async () => {
  const many = Array.from({ length: 40 }, (_, i) => `Document number ${i}.`);
  const seen: number[] = [];
  await withModel(async (fresh) => {
    const long = `${query} ${'In many words. '.repeat(20)}`;
    const ranking = await fresh.rerank(long, many, { onProgress: (fraction) => seen.push(fraction) });
    const { promptTokens, cachedPromptTokens } = fresh.stats();
    expect(cachedPromptTokens).toBeGreaterThan(promptTokens / 2);
    // Alone as in company
    const [alone] = await fresh.rerank(long, ['Document number 7.']);
    expect(alone?.score).toBe(ranking.find(({ index }) => index === 7)?.score);
  });
  expect(seen).toHaveLength(40);
  expect(seen).toEqual(seen.toSorted((a, b) => a - b));
  expect(seen.at(-1)).toBe(1);
});

test('documents that do not fit: refused by their place, or cut', async () => {
  await withModel(
    async (small) => {
      const long = 'The tower is high. '.repeat(100);
      for (const document of [long, 'word '.repeat(1 << 20)]) {
        const refused = small.rerank(query, ['short', document], { raw: true });
        expect(await rejection(refused)).toMatchObject({
          code: 'ERR_CONTEXT_FULL',
          detail: 'CONTEXT_OVERFLOW',
          message: expect.stringMatching(/^documents\[1\]: .*truncate: true/),
        });
      }
      const options: RerankOptions = { raw: true, truncate: true };
      const ranking = await small.rerank(query, ['short', long, `${long} and another end`, 'ö'.repeat(3000)], options);
      const scoreOf = (i: number) => ranking.find(({ index }) => index === i)?.score;
      expect(ranking).toHaveLength(4);
      expect(scoreOf(1)).toBe(scoreOf(2)); // their ends were cut
      const [short] = await small.rerank(query, ['short'], { raw: true });
      expect(scoreOf(0)).toBe(short?.score);
      const noRoom = small.rerank('why '.repeat(300), [long], options);
      expect(await rejection(noRoom)).toMatchObject({
        code: 'ERR_CONTEXT_FULL',
        message: expect.stringContaining('query: it takes'),
      });
    },
    { contextSize: 256 },
  );
});

test('one that fails or is aborted ends all', async () => {
  const reason = new Error('enough');
  const many = Array.from({ length: 50 }, (_, i) => `Document number ${i}.`);
  const later = new AbortController();
  const begun = gemma.rerank(query, many, { signal: later.signal, onProgress: () => later.abort(reason) });
  expect(await rejection(begun)).toBe(reason);
  expect(await rejection(gemma.rerank(query, many, { signal: AbortSignal.abort(reason) }))).toBe(reason);
  const thrown = gemma.rerank(query, many, {
    onProgress: () => {
      throw reason;
    },
  });
  expect(await rejection(thrown)).toBe(reason);
  expect(await gemma.rerank(query, documents)).toHaveLength(5);
});

test('what is refused', async () => {
  const wrong: [unknown, unknown, object, string, string][] = [
    [7, documents, {}, 'TypeError', 'query: expected a string'],
    ['x'.repeat(100_001), documents, {}, 'RangeError', 'query: expected at most'],
    [query, 'one', {}, 'TypeError', 'documents: expected an array'],
    [query, ['one', 7], {}, 'TypeError', 'documents[1]: expected a string'],
    [query, Array(10_001).fill('x'), {}, 'RangeError', 'documents: expected 0 to 10000'],
    [query, documents, { topN: 0 }, 'RangeError', 'topN:'],
    [query, documents, { topN: '1' }, 'TypeError', 'topN:'],
    [query, documents, { truncate: 1 }, 'TypeError', 'truncate:'],
    [query, documents, { instruction: 7 }, 'TypeError', 'instruction:'],
    [query, documents, { top_n: 1 }, 'TypeError', 'top_n: no such option'],
  ];
  for (const [asked, list, options, name, message] of wrong) {
    expect(await rejection(gemma.rerank(asked as string, list as string[], options))).toMatchObject({
      name,
      message: expect.stringContaining(message),
    });
  }
});

test('the command line', async () => {
  const args = ['rerank', '--model', tiny, '--kv', 'f32', '--top-n', '2', query, ...documents.slice(0, 2)];
  const exit = await runNode([cli, ...args, '--json']);
  expect(JSON.parse(exit.stdout)).toEqual({ ranking: await gemma.rerank(query, documents.slice(0, 2)) });
  expect(await runNode([cli, 'rerank', '--model', tiny, query])).toMatchObject({ code: 2 });
});
