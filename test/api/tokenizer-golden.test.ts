// Token ids and texts of the real Gemma 3 tokenizer: all of test/reference/data/tokenizer.json.gz. Where the references differ,
// its cases carry what llama.cpp gives for the GGUF's vocabulary (peer_ids); texts of such cases may give either.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { Gemma } from '../../lib/index.js';
import { data, realModel } from './helpers.js';

interface Golden {
  cases: { text: string; ids: number[]; ids_plain?: number[]; peer_ids?: number[]; peer_ids_plain?: number[] }[];
  decode: { ids: number[]; text: string }[];
  chat: { text?: string; ids?: number[] }[];
}

const IMAGE_SOFT_TOKEN = 262144; // in tokenizer.json, not in the 270M's vocabulary
const golden = JSON.parse(gunzipSync(readFileSync(join(data, 'tokenizer.json.gz'))).toString('utf8')) as Golden;

let gemma: Gemma;
beforeAll(async () => {
  gemma = await Gemma.load(realModel());
});
afterAll(() => gemma.dispose());

test('the golden file is whole', () => {
  expect(golden.cases).toHaveLength(711);
  expect(golden.decode).toHaveLength(133);
});

test('text with special tokens parsed: the ids of tokenizer.json', async () => {
  for (const { text, ids, peer_ids } of golden.cases) {
    const expected = ids.includes(IMAGE_SOFT_TOKEN) ? peer_ids : ids;
    expect({ text, ids: await gemma.tokenize(text, { special: true }) }).toEqual({ text, ids: expected });
  }
});

test('plain text: the ids of tokenizer.json, and of llama.cpp where only that keeps control tokens out', async () => {
  for (const { text, ids, ids_plain, peer_ids_plain } of golden.cases) {
    const plain = ids_plain ?? ids;
    // tokenizer.json parses <mask> and <unusedN> in plain text. llama.cpp parses <start_of_image> there, splits </s>, and
    // keeps runs of U+2581 apart.
    const kept = /<mask>|<unused\d+>/.test(text) ? (peer_ids_plain ?? plain) : plain;
    // Both parse [multimodal], which is reserved and no word of Gemma's; here it stays text: "[", "multi", "modal", "]".
    const expected = text === '[multimodal]' ? [236840, 8606, 98624, 236842] : kept;
    expect({ text, ids: await gemma.tokenize(text) }).toEqual({ text, ids: expected });
  }
});

test('chat renderings', async () => {
  const rendered = golden.chat.filter(({ ids }) => ids !== undefined);
  expect(rendered.length).toBeGreaterThan(10);
  for (const { text, ids } of rendered) expect(await gemma.tokenize(text ?? '', { special: true })).toEqual(ids);
});

test('bos is put in front on request', async () => {
  expect(await gemma.tokenize('Hello, world!', { bos: true })).toEqual([2, 9259, 236764, 1902, 236888]);
});

test('ids to text', async () => {
  for (const { ids, text } of golden.decode) {
    expect({ ids, text: await gemma.detokenize(ids) }).toEqual({ ids, text });
  }
});

test('a text comes back from its ids, but for U+2581, which is a blank', async () => {
  for (const { text } of golden.cases) {
    expect(await gemma.detokenize(await gemma.tokenize(text))).toBe(text.replaceAll('\u2581', ' '));
  }
});
