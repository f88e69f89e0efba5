import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ERROR_CODES, Gemma, GemmaError } from '../../lib/index.js';
import { data, rejection, root, tiny, withModel } from './helpers.js';

async function codeOf(promise: Promise<unknown>): Promise<string> {
  const error = await rejection(promise);
  expect(error).toBeInstanceOf(GemmaError);
  return (error as GemmaError).code;
}

describe('error codes', () => {
  test('are the same in C++ and TypeScript', () => {
    const header = readFileSync(join(root, 'native/base/error.h'), 'utf8');
    const source = readFileSync(join(root, 'native/base/error.cpp'), 'utf8');
    const documented = [...header.matchAll(/^ {2}k\w+, +\/\/ (ERR_\w+)/gm)].map((match) => match[1]);
    const named = [...source.matchAll(/return "(ERR_\w+)";/g)].map((match) => match[1]);
    expect(documented).toEqual([...ERROR_CODES]);
    expect([...new Set(named)].sort()).toEqual([...ERROR_CODES].sort());
  });
});

describe('loading', () => {
  let folder: string;
  beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-errors-'))));
  afterAll(() => rmSync(folder, { recursive: true }));

  test('a file that is not there', async () => {
    const error = await rejection(Gemma.load(join(folder, 'none.gguf')));
    expect(error).toMatchObject({ name: 'GemmaError', code: 'ERR_FILE' });
    expect((error as Error).message).toContain('none.gguf');
  });

  test('a file that is no model', async () => {
    const path = join(folder, 'text.gguf');
    writeFileSync(path, 'GGUXhello, this is a text and not a model at all');
    expect(await rejection(Gemma.load(path))).toMatchObject({ code: 'ERR_GGUF_INVALID', detail: 'BAD_MAGIC' });
    expect(await rejection(Gemma.estimate(path))).toMatchObject({ code: 'ERR_GGUF_INVALID', detail: 'BAD_MAGIC' });
    expect(await rejection(Gemma.inspect(path))).toMatchObject({ code: 'ERR_GGUF_INVALID', detail: 'BAD_MAGIC' });
  });

  test('a truncated file', async () => {
    const path = join(folder, 'cut.gguf');
    copyFileSync(tiny, path);
    truncateSync(path, 300_000);
    expect(await rejection(Gemma.load(path))).toMatchObject({ code: 'ERR_GGUF_INVALID', detail: 'TRUNCATED' });
  });

  test('another kind of model', async () => {
    expect(await codeOf(Gemma.load(join(data, 'mmproj-mm-a-f16.gguf')))).toBe('ERR_UNSUPPORTED_MODEL');
  });

  test('a folder with one model, and with none or two', async () => {
    const one = join(folder, 'one');
    mkdirSync(one);
    expect(await codeOf(Gemma.load(one))).toBe('ERR_FILE');
    copyFileSync(tiny, join(one, 'a.gguf'));
    writeFileSync(join(one, 'mmproj-a.gguf'), '');
    await withModel(async (gemma) => expect(await gemma.countTokens('Hi')).toBeGreaterThan(0), {}, one);
    copyFileSync(tiny, join(one, 'b.gguf'));
    expect(await rejection(Gemma.load(one))).toMatchObject({ code: 'ERR_FILE', detail: 'AMBIGUOUS_FOLDER' });
  });

  test('a file: URL, as object and as text', async () => {
    for (const url of [pathToFileURL(tiny), pathToFileURL(tiny).href]) {
      const gemma = await Gemma.load(url);
      await gemma.dispose();
    }
    expect(await rejection(Gemma.load(new URL('https://example.org/a.gguf')))).toBeInstanceOf(TypeError);
  });

  test('an instruction set or device that is not here', async () => {
    expect(await codeOf(Gemma.load(tiny, { isa: 'sse9' }))).toBe('ERR_BACKEND_UNAVAILABLE');
    expect(await codeOf(Gemma.load(tiny, { device: 'abacus' }))).toBe('ERR_BACKEND_UNAVAILABLE');
  });

  test('vision files', async () => {
    expect(await codeOf(Gemma.load(tiny, { mmproj: 'x.gguf' }))).toBe('ERR_FILE');
    expect(await codeOf(Gemma.load(tiny, { mmproj: tiny }))).toBe('ERR_UNSUPPORTED_MODEL');
  });
});

describe('using', () => {
  test('a prompt that does not fit', async () => {
    await withModel(
      async (gemma) => {
        const long = 'word '.repeat(200);
        expect(await codeOf(gemma.generate(long))).toBe('ERR_CONTEXT_FULL');
        expect(await codeOf(gemma.generate('Hi', { maxOutputTokens: 100 }))).toBe('ERR_CONTEXT_FULL');
        const cut = await gemma.generate('Hi', {
          raw: true,
          maxOutputTokens: 1000,
          onOverflow: 'truncate',
          seed: 1,
          logitBias: { 1: -Infinity, 6: -Infinity },
        });
        expect(cut.finishReason).toBe('length');
        expect(cut.usage.inputTokens + cut.usage.outputTokens).toBeLessThanOrEqual(65);
        expect(cut.usage.inputTokens + cut.usage.outputTokens).toBeGreaterThanOrEqual(64);
      },
      { contextSize: 64 },
    );
  });

  test('token ids past the vocabulary', async () => {
    await withModel(async (gemma) => {
      expect(await codeOf(gemma.generate([2, 448]))).toBe('ERR_INVALID_ARGUMENT');
      expect(await codeOf(gemma.logits([2, 1_000_000]))).toBe('ERR_INVALID_ARGUMENT');
      expect(await codeOf(gemma.detokenize([1_000_000]))).toBe('ERR_INVALID_ARGUMENT');
      expect(await codeOf(gemma.generate('Hi', { logitBias: { 5000: 1 } }))).toBe('ERR_INVALID_ARGUMENT');
    });
  });

  test('images, results of tools', async () => {
    await withModel(async (gemma) => {
      const image = [{ role: 'user' as const, content: [{ type: 'image' as const, image: 'a.png' }] }];
      expect(await codeOf(gemma.generate(image))).toBe('ERR_UNSUPPORTED_INPUT');
      const reply = { role: 'tool' as const, toolCallId: 'x', content: 'x' };
      expect(await codeOf(gemma.generate([reply]))).toBe('ERR_INVALID_ARGUMENT');
    });
  });

  test('after dispose', async () => {
    const gemma = await Gemma.load(tiny);
    await gemma.dispose();
    await gemma.dispose();
    await gemma[Symbol.asyncDispose]();
    expect(await codeOf(gemma.generate('Hi'))).toBe('ERR_DISPOSED');
    expect(await codeOf(gemma.stream('Hi').result)).toBe('ERR_DISPOSED');
    expect(await codeOf(gemma.tokenize('Hi'))).toBe('ERR_DISPOSED');
    expect(await codeOf(gemma.detokenize([2]))).toBe('ERR_DISPOSED');
    expect(await codeOf(gemma.countTokens('Hi'))).toBe('ERR_DISPOSED');
    expect(await codeOf(gemma.logits('Hi'))).toBe('ERR_DISPOSED');
    expect(await codeOf(gemma.perplexity('Hi'))).toBe('ERR_DISPOSED');
    expect(() => gemma.stats()).toThrow(GemmaError);
    expect(gemma.info.config.layers).toBe(7); // what it was stays known
  });
});
