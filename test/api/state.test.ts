// Saved states through the binding: another process goes on from one to the same bits, and wrong arguments and files are errors.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { addon, type NativeModel } from '../../lib/native.js';
import { data, rejection, root, runNode, tiny } from './helpers.js';

const OPTIONS = { prefixCacheBytes: 8 << 20, device: 'cpu', threads: 2 };

function load(path: string, options: object = OPTIONS): Promise<NativeModel> {
  return new Promise((resolve, reject) => {
    addon().load({ path, ...options }, (event) => {
      if (event.kind === 'loaded') resolve(event.model);
      if (event.kind === 'failed') reject(new Error('not loaded', { cause: event.error }));
    });
  });
}

/** Logits of the last token. */
function lastRow(model: NativeModel, tokens: Int32Array): Promise<Float32Array> {
  return new Promise((resolve, reject) => {
    let row: Float32Array | undefined;
    model.evaluate({ tokens, all: false, rows: true, top: 0, next: false }, (event) => {
      if (event.kind === 'position') row = event.row;
      else if (row) resolve(row);
      else reject(new Error('no row', { cause: event.error }));
    });
  });
}

const base64 = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64'); // prettier-ignore

// More than a page, more than the window.
const tokens = Int32Array.from([2, ...Array.from({ length: 210 }, (_, i) => 10 + ((i * 7919) % 389))]);
const next = Int32Array.of(...tokens, 20, 21);
const metadata = JSON.stringify({ text: 'h\u00e9 \u{1f600}' });

let folder: string;
let model: NativeModel;
let path: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-state-'));
  path = join(folder, 'st\u00e4te');
  model = await load(tiny);
});
afterAll(async () => {
  await model.close();
  rmSync(folder, { recursive: true });
});

test('another process goes on from a state to the same bits', async () => {
  await lastRow(model, tokens);
  const saved = await model.saveState({ path, tokens, metadata });
  expect(saved).toEqual({ bytes: readFileSync(path).length, positions: tokens.length });
  const alone = await load(tiny, { ...OPTIONS, prefixCacheBytes: 0 });
  const want = base64(await lastRow(alone, next));
  await alone.close();
  const script = `
    const { addon } = require(${JSON.stringify(join(root, 'dist', 'native.js'))});
    const [, options, path, next] = JSON.parse(process.argv[1]);
    const load = () => new Promise((resolve, reject) => addon().load(options, (event) => {
      if (event.kind === 'loaded') resolve(event.model);
      if (event.kind === 'failed') reject(event.error);
    }));
    (async () => {
      const model = await load();
      const { tokens, metadata, positions } = await model.restoreState(path);
      let row;
      await new Promise((resolve) => model.evaluate({ tokens: Int32Array.from(next), all: false, rows: true, top: 0, next: false },
        (event) => { if (event.kind === 'position') row = event.row; else resolve(); }));
      const { cachedPromptTokens } = model.stats();
      const bits = Buffer.from(row.buffer, row.byteOffset, row.byteLength).toString('base64');
      console.log(JSON.stringify({ tokens: [...tokens], metadata, positions, cachedPromptTokens, bits }));
    })();`;
  const options = { path: tiny, ...OPTIONS };
  const { code, stdout, stderr } = await runNode(['-e', script, JSON.stringify([0, options, path, [...next]])]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const found = JSON.parse(stdout) as Record<string, unknown>;
  expect(found).toMatchObject({ tokens: [...tokens], metadata, positions: tokens.length });
  expect(found.cachedPromptTokens).toBe(tokens.length);
  expect(found.bits).toBe(want);
});

test('wrong files and wrong arguments', async () => {
  await model.saveState({ path, tokens, metadata });
  const restore = async (bytes: Uint8Array, options: object = OPTIONS, file = tiny) => {
    const changed = join(folder, 'changed');
    writeFileSync(changed, bytes);
    const other = await load(file, options);
    try {
      return await rejection(other.restoreState(changed));
    } finally {
      await other.close();
    }
  };
  const file = readFileSync(path);
  const flipped = Buffer.from(file);
  flipped[file.length >> 1]! ^= 1;
  expect(await restore(flipped)).toMatchObject({ code: 'ERR_FILE', detail: 'STATE_DAMAGED' });
  expect(await restore(file.subarray(0, -1))).toMatchObject({ code: 'ERR_FILE', detail: 'STATE_DAMAGED' });
  expect(await restore(Buffer.from('no state'))).toMatchObject({ code: 'ERR_FILE', detail: 'NOT_A_STATE' });
  const later = Buffer.from(file);
  later[8] = 2;
  expect(await restore(later)).toMatchObject({ code: 'ERR_FILE', detail: 'STATE_VERSION' });
  expect(await restore(file, { ...OPTIONS, kvCache: 'q8_0' })).toMatchObject({
    code: 'ERR_UNSUPPORTED_MODEL',
    detail: 'STATE_KV_TYPE',
  });
  expect(await restore(file, OPTIONS, join(data, 'text-a-q4_0.gguf'))).toMatchObject({
    code: 'ERR_UNSUPPORTED_MODEL',
    detail: 'STATE_MODEL',
  });
  expect(await restore(file, { ...OPTIONS, contextSize: 100 })).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
  expect(await rejection(model.restoreState(join(folder, 'none')))).toMatchObject({ code: 'ERR_FILE' });
  const missing = join(folder, 'none', 'state');
  expect(await rejection(model.saveState({ path: missing, tokens, metadata }))).toMatchObject({ code: 'ERR_FILE' });
  expect(await rejection(model.saveState({ path, tokens: new Int32Array(), metadata }))).toMatchObject({
    code: 'ERR_INVALID_ARGUMENT',
    detail: 'EMPTY',
  });
  expect(() => model.restoreState(7 as unknown as string)).toThrow(/expected/);
  expect(() => model.saveState(undefined as never)).toThrow(/expected/);
  expect(() => model.saveState({ path, tokens: [1] as never, metadata })).toThrow(/expected/);
  expect(readFileSync(path)).toEqual(file);
  expect(readdirSync(folder).toSorted()).toEqual(['changed', 'st\u00e4te']);

  const closed = await load(tiny);
  const saving = closed.saveState({ path, tokens, metadata }).catch((error: unknown) => error);
  await closed.close();
  const ended = await saving; // before it closed, or not at all
  if (ended instanceof Error) expect(ended).toMatchObject({ code: 'ERR_DISPOSED' });
  expect(() => closed.restoreState(path)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
});
