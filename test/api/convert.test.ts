// Checkpoints' folders become GGUF files: the tensors are those of the file that the folder was made of, to the bit, and so are logits.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type Message, type QuantizeOptions } from '../../lib/index.js';
import { checkpointOf, readGguf, writeCheckpoint, type Gguf } from './checkpoint.js';
import { cli, data, runNode, withModel } from './helpers.js';

const gguf = join(data, 'mm-a-f16.gguf');
const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
const textGguf = join(data, 'text-a-f16.gguf');
const folder = mkdtempSync(join(tmpdir(), 'gemma-convert-'));
afterAll(() => rmSync(folder, { recursive: true }));

const TEXT = 'The quiet river opens a letter; na\u00efve \u65e5\u672c\u8a9e  <b>x</b>\n\n1, 2.';
const pixels = new Uint8Array(24 * 24 * 3).map((_, i) => i * 7);
const SEEN = [
  { role: 'user', content: [{ type: 'image', image: { data: pixels, width: 24, height: 24, channels: 3 } }, { type: 'text', text: 'What?' }] }, // prettier-ignore
] as Message[];

async function outputs(model: string, options: object, pictures: boolean) {
  return withModel(
    async (gemma) => ({
      tokens: await gemma.tokenize(TEXT),
      text: (await gemma.logits(TEXT, { raw: true, all: true })).data,
      ...(pictures && { seen: (await gemma.logits(SEEN)).data }),
      generated: (await gemma.generate(TEXT, { raw: true, maxOutputTokens: 8, temperature: 0 })).tokens,
    }),
    options,
    model,
  );
}

// Keys whose values must be those of the file that llama.cpp's converter wrote. Names and scores of tokens without merges differ.
const DIFFERENT = /^general\.(name|size_label)$|^tokenizer\.ggml\.(scores|token_type|tokens)$|rope\.freq_base_swa$|^tokenizer\.chat_template$|projector\.scale_factor|^general\.sampling/; // prettier-ignore
function expectSame(found: Gguf, expected: Gguf): void {
  expect([...found.tensors.keys()].sort()).toEqual([...expected.tensors.keys()].sort());
  for (const [name, tensor] of expected.tensors) {
    const own = found.tensors.get(name);
    expect({ name, dtype: own?.dtype, shape: own?.shape }).toEqual({ name, dtype: tensor.dtype, shape: tensor.shape });
    expect(own?.data.equals(tensor.data)).toBe(true);
  }
  for (const [key, value] of expected.keys) {
    if (!DIFFERENT.test(key)) expect([key, found.keys.get(key)]).toEqual([key, value]);
  }
}

test.each([
  ['today', 'new', 'F16', 1],
  ['2025', 'old', 'F16', 1],
  ['three files', 'new', 'F16', 3],
  ['float32', 'new', 'F32', 1],
] as const)('a folder with a vision encoder: %s', async (name, layout, dtype, shards) => {
  const from = writeCheckpoint(join(folder, name), checkpointOf(gguf, mmproj, { layout, dtype }), shards);
  const path = join(folder, `${name}.gguf`);
  const result = await Gemma.quantize(from, path, { type: 'f16' });
  const beside = join(folder, `mmproj-${name}.gguf`);
  expect(result.bytes).toBe(statSync(path).size);
  expect(result.mmproj).toMatchObject({ path: beside, bytes: statSync(beside).size });
  expectSame(readGguf(path), readGguf(gguf));
  expectSame(readGguf(beside), readGguf(mmproj));
  const options = { visionPrecision: 'exact' };
  const expected = await outputs(gguf, { mmproj, ...options }, true);
  expect(await outputs(path, options, true)).toEqual(expected);
  expect(await outputs(from, options, true)).toEqual(expected);
});
