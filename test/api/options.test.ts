import { Gemma, type GenerateOptions, type LoadOptions } from '../../lib/index.js';
import { cropsOptions, estimateOptions, generateOptions, loadOptions, logitsOptions } from '../../lib/options.js';
import { tokenIds } from '../../lib/token-text.js';
import { checked, choices, integers, or } from '../../lib/option-table.js';
import { rejection, tiny } from './helpers.js';

describe('generate options', () => {
  test('defaults are those of Gemma', () => {
    expect(generateOptions({}).params).toMatchObject({
      temperature: 1,
      topK: 64,
      topP: 0.95,
      minP: 0,
      maxOutputTokens: -1,
      logprobs: 0,
    });
  });

  test('drafting', () => {
    expect(generateOptions({}).params.draft).toBe('auto');
    expect(generateOptions({ draft: false }).params.draft).toBe('off');
    expect(generateOptions({ draft: 'model' }).params.draft).toBe('model');
  });

  test('seeds differ unless given', () => {
    expect(generateOptions({}).params.seed).not.toBe(generateOptions({}).params.seed);
    expect(generateOptions({ seed: 7 }).params.seed).toBe(7);
  });

  const wrong: [GenerateOptions | Record<string, unknown>, typeof TypeError | typeof RangeError, string][] = [
    [{ temperature: -0.1 }, RangeError, 'temperature'],
    [{ temperature: NaN }, RangeError, 'temperature'],
    [{ temperature: Infinity }, RangeError, 'temperature'],
    [{ temperature: '1' }, TypeError, 'temperature'],
    [{ temperature: null }, TypeError, 'temperature'],
    [{ panAndScan: 1 }, TypeError, 'panAndScan'],
    [{ panAndScan: { maxCrops: 0 } }, RangeError, 'panAndScan.maxCrops'],
    [{ panAndScan: { maxCrops: 257 } }, RangeError, 'panAndScan.maxCrops'],
    [{ panAndScan: { crops: 3 } }, TypeError, 'crops'],
    [{ tile: 2.5 }, RangeError, 'tile'],
    [{ tile: 2, panAndScan: true }, TypeError, 'tile'],
    [{ images: 'a.png' }, TypeError, 'images'],
    [{ allowRemote: 1 }, TypeError, 'allowRemote'],
    [{ maxImageBytes: 0 }, RangeError, 'maxImageBytes'],
    [{ maxImagePixels: '9' }, TypeError, 'maxImagePixels'],
    [{ maxVideoSeconds: NaN }, RangeError, 'maxVideoSeconds'],
    [{ videoTimeoutMs: -1 }, RangeError, 'videoTimeoutMs'],
    [{ onProgress: 1 }, TypeError, 'onProgress'],
    [{ topK: 1.5 }, RangeError, 'topK'],
    [{ topK: -1 }, RangeError, 'topK'],
    [{ topK: 2 ** 31 }, RangeError, 'topK'],
    [{ topP: 0 }, RangeError, 'topP'],
    [{ topP: 1.01 }, RangeError, 'topP'],
    [{ minP: -1 }, RangeError, 'minP'],
    [{ maxOutputTokens: 0 }, RangeError, 'maxOutputTokens'],
    [{ maxOutputTokens: 2 ** 40 }, RangeError, 'maxOutputTokens'],
    [{ seed: -1 }, RangeError, 'seed'],
    [{ seed: 2 ** 53 }, RangeError, 'seed'],
    [{ seed: 3n }, TypeError, 'seed'],
    [{ temperature: 1e7 }, RangeError, 'temperature'],
    [{ repetitionPenalty: 0 }, RangeError, 'repetitionPenalty'],
    [{ repetitionPenalty: 1e-300 }, RangeError, 'repetitionPenalty'], // 0 in the engine's floats
    [{ repetitionPenalty: 1e300 }, RangeError, 'repetitionPenalty'],
    [{ frequencyPenalty: 2e6 }, RangeError, 'frequencyPenalty'],
    [{ presencePenalty: -2e6 }, RangeError, 'presencePenalty'],
    [{ frequencyPenalty: NaN }, RangeError, 'frequencyPenalty'],
    [{ presencePenalty: '0' }, TypeError, 'presencePenalty'],
    [{ penaltyWindow: -2 }, RangeError, 'penaltyWindow'],
    [{ stopSequences: 'END' }, TypeError, 'stopSequences'],
    [{ stopSequences: [''] }, RangeError, 'stopSequences[0]'],
    [{ stopSequences: ['a', 1] }, TypeError, 'stopSequences[1]'],
    [{ stopTokens: '<|im_end|>' }, TypeError, 'stopTokens'],
    [{ stopTokens: [-1] }, RangeError, 'stopTokens[0]'],
    [{ stopTokens: [1, null] }, TypeError, 'stopTokens[1]'],
    [{ stopTokens: Array(1001).fill(1) }, RangeError, 'stopTokens'],
    [{ logitBias: 3 }, TypeError, 'logitBias'],
    [{ logitBias: { a: 1 } }, RangeError, 'logitBias'],
    [{ logitBias: { 5: 'x' } }, TypeError, 'logitBias[5]'],
    [{ logitBias: { 5: Infinity } }, RangeError, 'logitBias[5]'],
    [{ logitBias: { 5: -1e300 } }, RangeError, 'logitBias[5]'],
    [{ logprobs: 101 }, RangeError, 'logprobs'],
    [{ onOverflow: 'shift' }, RangeError, 'onOverflow'],
    [{ stallTimeoutMs: -1 }, RangeError, 'stallTimeoutMs'],
    [{ stallTimeoutMs: '1' }, TypeError, 'stallTimeoutMs'],
    [{ draft: true }, TypeError, 'draft'],
    [{ draft: 'lookup' }, RangeError, 'draft'],
    [{ raw: 1 }, TypeError, 'raw'],
    [{ signal: {} }, TypeError, 'signal'],
    [{ maxTokens: 5 }, TypeError, 'maxTokens'],
    [[] as unknown as Record<string, unknown>, TypeError, 'options'],
  ];
  test.each(wrong)('%p', (options, kind, name) => {
    const call = () => generateOptions(options);
    expect(call).toThrow(kind);
    expect(call).toThrow(new RegExp(`^${name.replace(/[[\]]/g, '\\$&')}`));
  });

  test('what is not an option', () => {
    expect(() => generateOptions({ quux: 1 } as GenerateOptions)).toThrow(/^(?!.*lora).*stopTokens/);
  });

  test('what other libraries call a schema', () => {
    for (const name of ['jsonSchema', 'json_schema', 'responseFormat', 'response_format', 'format']) {
      expect(() => generateOptions({ [name]: {} })).toThrow(
        new TypeError(`${name}: no such option; here it is schema, or json: true`),
      );
      expect(() => generateOptions({ [name]: undefined })).not.toThrow();
    }
  });
});

describe('load options', () => {
  const wrong: [LoadOptions | Record<string, unknown>, typeof TypeError | typeof RangeError, string][] = [
    [{ threads: 0 }, RangeError, 'threads'],
    [{ threads: 1e6 }, RangeError, 'threads'],
    [{ contextSize: 0 }, RangeError, 'contextSize'],
    [{ contextSize: '4096' }, TypeError, 'contextSize'],
    [{ batchSize: 0 }, RangeError, 'batchSize'],
    [{ kvCache: 'q4_0' }, RangeError, 'kvCache'],
    [{ mmap: 'no' }, TypeError, 'mmap'],
    [{ chatTemplate: 1 }, TypeError, 'chatTemplate'],
    [{ onProgress: 1 }, TypeError, 'onProgress'],
    [{ device: 1 }, TypeError, 'device'],
    [{ gpuLayers: -1 }, RangeError, 'gpuLayers'],
    [{ gpuLayers: 'all' }, TypeError, 'gpuLayers'],
    [{ gpu: true }, TypeError, 'gpu'],
  ];
  test.each(wrong)('%p', (options, kind, name) => {
    expect(() => loadOptions(options)).toThrow(kind);
    expect(() => loadOptions(options)).toThrow(new RegExp(`^${name}`));
  });

  test('the environment counts where the option is not given', () => {
    const before = { ...process.env };
    try {
      Object.assign(process.env, { GEMMA_ISA: 'ref', GEMMA_DEVICE: 'cpu', GEMMA_THREADS: '3' });
      expect(loadOptions({})).toEqual({ isa: 'ref', device: 'cpu', threads: 3 });
      expect(loadOptions({ isa: 'avx2', device: 'auto', threads: 1 })).toEqual({
        isa: 'avx2',
        device: 'auto',
        threads: 1,
      });
      process.env.GEMMA_THREADS = 'many';
      expect(() => loadOptions({})).toThrow(/^GEMMA_THREADS/);
    } finally {
      for (const name of ['GEMMA_ISA', 'GEMMA_DEVICE', 'GEMMA_THREADS']) {
        if (before[name] === undefined) delete process.env[name];
        else process.env[name] = before[name];
      }
    }
  });

  test('reach the caller as rejections', async () => {
    expect(await rejection(Gemma.load(tiny, { threads: -1 }))).toBeInstanceOf(RangeError);
    expect(await rejection(Gemma.load(''))).toBeInstanceOf(TypeError);
    expect(await rejection(Gemma.load(5 as unknown as string))).toBeInstanceOf(TypeError);
    expect(await rejection(Gemma.estimate(tiny, { contextSize: -1 }))).toBeInstanceOf(RangeError);
  });
});

test('other options', async () => {
  expect(() => estimateOptions({ contextSize: 1.5 })).toThrow(RangeError);
  expect(() => logitsOptions({ top: -1 })).toThrow(RangeError);
  expect(() => logitsOptions({ onRow: true as never })).toThrow(TypeError);
  for (const wrong of [-1, 1.5, NaN, Infinity, 2 ** 31, -(2 ** 32)]) {
    const error = await rejection(tokenIds('ids', [1, wrong]));
    expect(error).toBeInstanceOf(RangeError);
    expect((error as Error).message).toMatch(/^ids\[1\]/);
  }
  for (const wrong of [['1'], [undefined], [null], [[1]], 'text']) {
    expect(await rejection(tokenIds('ids', wrong))).toBeInstanceOf(TypeError);
  }
  expect(await tokenIds('ids', [0, 2 ** 31 - 1])).toEqual(Int32Array.of(0, 2 ** 31 - 1));
});

test('null is a wrong type, but for the few options that have always taken it', () => {
  expect(() => generateOptions({ topK: null as never })).toThrow(TypeError);
  expect(loadOptions({ device: 'cpu', isa: null as never })).toEqual(loadOptions({ device: 'cpu' }));
  expect(cropsOptions({ draw: null as never }).draw).toBe(false);
});

// A new option is one row of a table: its check, its bounds, its default, the error for names that are not there and the type of
// the parameters derive from the row.
test('one row is all that an option needs', () => {
  const before = { width: integers(1, 10) } as const;
  const after = { ...before, colour: or(choices('red', 'blue'), 'red') } as const;
  expect(() => checked(before, { colour: 'blue' })).toThrow(/^colour: no such option; there are width$/);
  const params: { width?: number; colour: 'red' | 'blue' } = checked(after, { colour: 'blue' });
  expect(params).toEqual({ colour: 'blue' });
  expect(checked(after, { width: 3 })).toEqual({ width: 3, colour: 'red' });
  expect(() => checked(after, { width: 11 })).toThrow('width: expected an integer from 1 to 10, found 11');
  expect(() => checked(after, { colour: 'green' })).toThrow('colour: expected one of red, blue, found "green"');
  expect(() => checked(after, { size: 1 })).toThrow('size: no such option; there are width, colour');
});
