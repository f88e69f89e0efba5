// Models in other types: every type loads and answers, what was interrupted goes on, what cannot be is refused.
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type QuantizeOptions } from '../../lib/index.js';
import { QUANTIZATIONS } from '../../lib/quantize.js';
import { cli, root, runNode } from './helpers.js';

const source = join(root, 'test', 'demo', 'demo-f16.gguf');
let folder: string;
const out = (name: string) => join(folder, name);

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-quantize-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function answer(model: string): Promise<string> {
  const gemma = await Gemma.load(model, { mmproj: false });
  try {
    return (await gemma.generate('What is the capital of France?', { temperature: 0, maxOutputTokens: 12 })).text;
  } finally {
    await gemma.dispose();
  }
}

test.each(QUANTIZATIONS)('%s: written, loaded, answers', async (type) => {
  const seen: number[] = [];
  const path = out(`${type}.gguf`);
  const result = await Gemma.quantize(source, path, { type, onProgress: (fraction) => seen.push(fraction) });
  expect(result).toMatchObject({ path, bytes: statSync(path).size, sourceBytes: statSync(source).size });
  expect(existsSync(`${path}.part`)).toBe(false);
  expect(seen.at(-1)).toBe(1);
  expect(seen).toEqual([...seen].sort((a, b) => a - b));
  const { tensorTypes } = await Gemma.inspect(path, {});
  expect(tensorTypes.map(({ type: name }) => name).sort()).toEqual(result.types.map(({ type: name }) => name).sort());
  expect((await answer(path)).length).toBeGreaterThan(0);
  if (type === 'f16') expect(await answer(path)).toBe(await answer(source));
});

test('a run that was killed goes on, to the same bytes', async () => {
  const whole = out('whole.gguf');
  await Gemma.quantize(source, whole, { type: 'iq4_xs', threads: 1 });
  for (const fraction of [0, 0.2, 0.5, 0.8]) {
    const path = out(`killed-${fraction}.gguf`);
    const script = `
      const { Gemma } = require(${JSON.stringify(root)});
      Gemma.quantize(${JSON.stringify(source)}, ${JSON.stringify(path)}, { type: 'iq4_xs', threads: 1,
        onProgress: (f) => { if (f >= ${fraction}) process.kill(process.pid, 'SIGKILL'); } });`;
    expect((await runNode(['-e', script])).signal).toBe('SIGKILL');
    await Gemma.quantize(source, path, { type: 'iq4_xs', overwrite: true });
    expect(readFileSync(path).equals(readFileSync(whole))).toBe(true);
  }
});

test('what was written of another plan, or damaged, does not count', async () => {
  const path = out('other.gguf');
  writeFileSync(`${path}.part`, 'something else');
  expect(await Gemma.quantize(source, path, { type: 'q8_0' })).toMatchObject({ resumedTensors: 0 });
  expect(readFileSync(path).equals(readFileSync(out('q8_0.gguf')))).toBe(true);
});

test('importance is measured, written and used', async () => {
  const matrix = out('matrix.gguf');
  const text = 'A red circle is on the left of a blue square. '.repeat(40);
  const measured = await Gemma.importance(source, text, matrix, { chunkSize: 64 });
  expect(measured.bytes).toBe(statSync(matrix).size);
  expect(measured.tokens).toBe(64 * measured.chunks);
  const path = out('weighted.gguf');
  await Gemma.quantize(source, path, { type: 'q4_0', importance: matrix });
  expect(readFileSync(path).equals(readFileSync(out('q4_0.gguf')))).toBe(false);
  expect((await answer(path)).length).toBeGreaterThan(0);
  await expect(Gemma.quantize(source, out('x'), { type: 'q4_0', importance: source })).rejects.toMatchObject({
    code: 'ERR_FILE',
    detail: 'NOT_AN_IMPORTANCE_MATRIX',
  });
  await expect(Gemma.importance(source, 'short', out('x'))).rejects.toMatchObject({ detail: 'EMPTY' });
});

test('what cannot be is refused, and nothing is left in place', async () => {
  const refused = async (options: QuantizeOptions, input = source, path = out('no.gguf')) => {
    const error: unknown = await Gemma.quantize(input, path, options).catch((reason: unknown) => reason);
    return (error as { detail?: string }).detail;
  };
  expect(await refused({ type: 'q4_0' }, source, out('q4_0.gguf'))).toBe('FILE_EXISTS');
  const own = out('own.gguf');
  copyFileSync(source, own);
  expect(await refused({ type: 'q4_0', overwrite: true }, own, own)).toBe('SAME_FILE');
  expect(await refused({ type: 'q4_0' }, out('q8_0.gguf'))).toBe('REQUANTIZE');
  expect(await refused({ type: 'q4_0', overrides: { 'blk.99.*': 'q8_0' } })).toBe('NO_SUCH_TENSOR');
  expect(existsSync(out('no.gguf'))).toBe(false);
  await expect(Gemma.quantize(source, out('no.gguf'), { type: 'q3' as 'q4_0' })).rejects.toThrow(/type/);
  await expect(Gemma.quantize(source, out('no.gguf'), { type: 'q4_0', typ: 1 } as never)).rejects.toThrow(/typ/);
  await expect(Gemma.quantize(source, out('no.gguf'), { type: 'q4_0', threads: 0 })).rejects.toThrow(RangeError);
  const aborted = AbortSignal.abort(new Error('mine'));
  await expect(Gemma.quantize(source, out('no.gguf'), { type: 'q4_0', signal: aborted })).rejects.toThrow('mine');
});

test('the command line', async () => {
  const path = out('cli.gguf');
  const args = ['quantize', source, path, '--type', 'q4_0', '--tensor-type', 'token_embd=f16', '--json'];
  const { code, stdout } = await runNode([cli, ...args]);
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ path, bytes: statSync(path).size });
});
