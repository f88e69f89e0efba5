// Adapters: the logits of PEFT's own unmerged forward (test/reference/data/adapters), what is refused, and what becomes of calls that
// have one while it goes. Damaged adapters are made here from a sound one.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type GenerateOptions, type LoadOptions } from '../../lib/index.js';
import { cli, data, runNode } from './helpers';
import { readJson, Tensors } from './reference';

const folder = join(data, 'adapters');
const base = join(folder, 'text-f16.gguf');
const golden = readJson<{ ids: number[]; runs: { name: string; adapters: Record<string, number> }[] }>(
  'adapters/adapters.json',
);
const { ids } = golden;
const names = [...new Set(golden.runs.flatMap(({ adapters }) => Object.keys(adapters)))];
const paths = Object.fromEntries(names.map((name) => [name, join(folder, name)]));
const exact: LoadOptions = { kvCache: 'f32' };

let scratch: string;
let gemma: Gemma;
beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), 'gemma-adapters-'));
  gemma = await Gemma.load(base, { ...exact, adapters: paths });
});
afterAll(async () => {
  await gemma.dispose();
  rmSync(scratch, { recursive: true });
});

const plainAnswer: GenerateOptions = { maxOutputTokens: 20, temperature: 0.9, seed: 5, logprobs: 1 };

async function answer(options: GenerateOptions, prompt: readonly number[] = ids.slice(0, 12)): Promise<unknown> {
  const { tokens, logprobs } = await gemma.generate(prompt, { ...plainAnswer, ...options });
  return { tokens, logprobs };
}

describe('golden data', () => {
  const tensors = new Tensors('adapters/logits.safetensors');
  // float32 differs from float64 by 5e-6; every adapter moves the logits by more than 1.
  test.each(golden.runs)('$name', async ({ name, adapters }) => {
    const { data: logits } = await gemma.logits(ids, { adapter: adapters });
    const expected = tensors.f32(name);
    const mean = expected.reduce((sum, value) => sum + value, 0) / expected.length;
    let error = 0;
    let size = 0;
    expected.forEach((value, i) => {
      error += ((logits[i] ?? NaN) - value) ** 2;
      size += (value - mean) ** 2;
    });
    expect(Math.sqrt(error / size)).toBeLessThan(3e-5);
  });

  test('several add up: half and half of one is all of it, and nothing of one is none', async () => {
    await gemma.loadAdapter('again', join(folder, 'bf16'));
    const close = async (a: Record<string, number>, b: Record<string, number>) => {
      const [x, y] = await Promise.all([a, b].map((adapter) => gemma.logits(ids, { adapter })));
      const worst = (x?.data ?? new Float32Array()).reduce(
        (most, value, i) => Math.max(most, Math.abs(value - (y?.data[i] ?? NaN))),
        0,
      );
      expect(worst).toBeLessThan(5e-4);
    };
    await close({ bf16: 0.5, again: 0.5 }, { bf16: 1 });
    await close({ bf16: 0, again: 1 }, { bf16: 1 });
    await close({ bf16: 1, again: -1 }, {});
    await gemma.unloadAdapter('again');
  });

  test('tells what is loaded', () => {
    const found = gemma.adapters;
    expect(found.map(({ name }) => name)).toEqual([...names].sort());
    expect(found.find(({ name }) => name === 'dora')).toMatchObject({ rank: 2, tensors: 63, vision: false });
    const bytes = found.reduce((sum, adapter) => sum + adapter.bytes, 0);
    expect(gemma.info.memory.adapterBytes).toBe(bytes);
  });
});

describe('company', () => {
  test('rows of a batch with different adapters are those of each alone, to the bit', async () => {
    const all: GenerateOptions['adapter'][] = [...names, {}, { bf16: 0.5, 'rs-patterns': -1 }, 'bf16'];
    const alone: unknown[] = [];
    for (const adapter of all) alone.push(await answer({ adapter: adapter ?? {} }));
    const together = await Promise.all(all.map((adapter) => answer({ adapter: adapter ?? {} })));
    expect(together).toEqual(alone);
    expect(new Set(alone.map((one) => JSON.stringify(one))).size).toBe(all.length - 1);
  });

  test('a prompt in chunks, and other instruction sets, compute the same model', async () => {
    const whole = await gemma.logits(ids, { adapter: { dora: 0.7, head: 1 } });
    for (const options of [{ batchSize: 7 }, { isa: 'ref' }, { mmap: false, threads: 1 }]) {
      const other = await Gemma.load(base, { ...exact, ...options, adapters: [paths.dora ?? '', paths.head ?? ''] });
      const { data: logits } = await other.logits(ids, { adapter: { dora: 0.7, head: 1 } });
      const worst = logits.reduce((most, value, i) => Math.max(most, Math.abs(value - (whole.data[i] ?? NaN))), 0);
      expect(worst).toBeLessThan(options.isa ? 5e-4 : 1e-9);
      await other.dispose();
    }
  });
});

describe('while it is in use', () => {
  test('calls under way and calls that wait keep what is unloaded; the name is free at once', async () => {
    await gemma.loadAdapter('mine', join(folder, 'bf16'));
    const expected = await answer({ adapter: 'mine' });
    const other = await answer({ adapter: 'head' });
    const calls = Array.from({ length: 80 }, () => answer({ adapter: 'mine' })); // 64 run, others wait
    while (gemma.stats().waiting === 0) await new Promise(setImmediate);
    await gemma.unloadAdapter('mine');
    await expect(gemma.generate(ids, { adapter: 'mine' })).rejects.toMatchObject({ detail: 'UNKNOWN_ADAPTER' });
    await gemma.loadAdapter('mine', join(folder, 'head'));
    expect(await answer({ adapter: 'mine' })).toEqual(other);
    for (const call of calls) expect(await call).toEqual(expected);
    await gemma.unloadAdapter('mine');
  });

  test('aborting leaves nothing behind', async () => {
    const before = gemma.adapters;
    await expect(
      gemma.loadAdapter('gone', join(folder, 'dora'), { signal: AbortSignal.abort(new Error('before')) }),
    ).rejects.toThrow('before');
    const controller = new AbortController();
    const loading = gemma.loadAdapter('gone', join(folder, 'dora'), { signal: controller.signal });
    controller.abort(new Error('within'));
    await expect(loading).rejects.toThrow('within');
    const stopped = new AbortController();
    const running = gemma.stream(ids, {
      maxOutputTokens: 400,
      temperature: 0,
      adapter: 'dora',
      signal: stopped.signal,
    });
    const reading = (async () => {
      for await (const part of running) if (part.type === 'text') stopped.abort(new Error('later'));
    })();
    await expect(reading).rejects.toThrow('later');
    while (gemma.stats().running > 0) await new Promise(setImmediate);
    expect(gemma.adapters).toEqual(before);
  });

  test('a model that is disposed meanwhile', async () => {
    const other = await Gemma.load(base, exact);
    const loading = other.loadAdapter('dora', join(folder, 'dora'));
    await other.dispose();
    await loading.catch((error: unknown) => expect(error).toMatchObject({ code: 'ERR_DISPOSED' }));
    await expect(other.loadAdapter('dora', join(folder, 'dora'))).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(() => other.adapters).toThrow('disposed');
  });
});

describe('caches', () => {
  const long = [2, 300, ...ids.slice(1), ...ids.slice(1), ...ids.slice(1)]; // nothing else here begins so

  test('what is kept of a prompt belongs to its adapters and scales', async () => {
    const cached = async (adapter: GenerateOptions['adapter']) =>
      (await gemma.generate(long, { maxOutputTokens: 1, temperature: 0, adapter: adapter ?? {} })).usage
        .cachedInputTokens;
    for (const adapter of ['bf16', { bf16: 0.5 }, 'head', {}, { bf16: 1, head: 1 }] as const) {
      expect(await cached(adapter)).toBe(0);
      expect(await cached(adapter)).toBeGreaterThan(100);
    }
    await gemma.loadAdapter('twin', join(folder, 'bf16'));
    expect(await cached('twin')).toBe(0);
    await gemma.unloadAdapter('twin');
  });

  test('a conversation keeps its adapter in its file', async () => {
    const file = join(scratch, 'chat');
    const chat = gemma.chat({ adapter: { bf16: 0.75 }, temperature: 0, maxOutputTokens: 24, system: 'x '.repeat(60) });
    const first = await chat.send('one');
    await chat.save(file);
    const fresh = await Gemma.load(base, { ...exact, adapters: [join(folder, 'bf16'), join(folder, 'head')] });
    const again = await fresh.restoreChat(file);
    const next = await again.send('two');
    expect(next.text).toBe((await chat.send('two')).text);
    expect(next.usage.cachedInputTokens).toBeGreaterThan(first.usage.inputTokens / 2);
    const other = await fresh.restoreChat(file, { adapter: 'head' });
    expect((await other.send('three')).usage.cachedInputTokens).toBe(0);
    await fresh.unloadAdapter('bf16');
    await expect(fresh.restoreChat(file)).rejects.toMatchObject({ detail: 'UNKNOWN_ADAPTER' });
    await fresh.dispose();
  });
});

describe('every call', () => {
  test('score, perplexity, stream and chat have it', async () => {
    const [a, b] = await Promise.all([{}, 'head'].map((adapter) => gemma.score(ids, [[290], [300, 301]], { adapter })));
    expect(a?.[0]?.logprob).not.toBeCloseTo(b?.[0]?.logprob ?? NaN, 2);
    const [c, d] = await Promise.all([{}, 'head'].map((adapter) => gemma.perplexity(ids.slice(1), { adapter })));
    expect(c?.nll).not.toBeCloseTo(d?.nll ?? NaN, 2);
    const { data: logits } = await gemma.logits(ids, { adapter: 'head' });
    const best = logits.indexOf(Math.max(...logits));
    const streamed = await gemma.stream(ids, { temperature: 0, maxOutputTokens: 1, adapter: 'head' }).result;
    expect(streamed.tokens).toEqual([best]);
  });

  test('decide and rerank have it: their probabilities are those of score', async () => {
    const adapter = { head: 0.02 }; // enough to see, and both answers stay possible
    const text = 'x y z';
    const asked = { type: 'boolean', verbatim: true, labels: { true: 'a', false: 'b' }, raw: true } as const;
    const without = await gemma.decide(text, asked);
    const { probabilities } = await gemma.decide(text, { ...asked, adapter });
    const [yes, no] = await gemma.score(text, [' a', ' b'], { raw: true, adapter });
    expect(probabilities.true).toBeCloseTo(1 / (1 + Math.exp((no?.logprob ?? NaN) - (yes?.logprob ?? NaN))), 6);
    expect(probabilities.true).not.toBeCloseTo(without.probabilities.true, 5);
    const documents = ['one', 'two', 'three'];
    const [ranked, bare] = [
      await gemma.rerank('q', documents, { raw: true, adapter }),
      await gemma.rerank('q', documents, { raw: true }),
    ];
    const scoresOf = (all: typeof ranked) => documents.map((_, i) => all.find(({ index }) => index === i)?.score);
    expect(scoresOf(ranked)).not.toEqual(scoresOf(bare));
    expect(scoresOf(await gemma.rerank('q', documents, { raw: true, adapter: {} }))).toEqual(scoresOf(bare));
    const unknown = { detail: 'UNKNOWN_ADAPTER' };
    await expect(gemma.decide(text, { ...asked, adapter: 'no' })).rejects.toMatchObject(unknown);
    await expect(gemma.rerank('q', ['d'], { adapter: 'no' })).rejects.toMatchObject(unknown);
  });

  test('embed has it, norms of an adapter included', async () => {
    const long = 'a longer text than that '.repeat(30);
    const cut = await Gemma.load(base, { ...exact, batchSize: 7, adapters: paths });
    const seen = new Set<string>();
    for (const name of ['', ...names]) {
      const adapter = name === '' ? {} : name;
      const { data: whole } = await gemma.embed(['x', long], { adapter });
      expect((await cut.embed(['x', long], { adapter })).data).toEqual(whole);
      seen.add(Buffer.from(whole.buffer).toString('base64'));
    }
    await cut.dispose();
    expect(seen.size).toBe(names.length + 1);
  });

  test('the command line', async () => {
    const args = ['logits', '--model', base, '--json', '--tokens', ids.join(',')];
    const run = async (...more: string[]) => {
      const { code, stdout, stderr } = await runNode([cli, ...args, ...more]);
      if (code !== 0) throw new Error(stdout + stderr);
      return (JSON.parse(stdout) as { top: { token: number; logit: number }[][] }).top[0]?.[0];
    };
    const { top } = await gemma.logits(ids, { adapter: { dora: 0.5 }, top: 1 });
    const found = await run('--adapter', `${join(folder, 'dora')}=0.5`);
    expect(found?.token).toBe(top?.[0]?.[0]?.token);
    expect(found?.token === (await run())?.token && found?.logit === (await run())?.logit).toBe(false);
    const { code } = await runNode([cli, ...args, '--adapter', `${join(folder, 'dora')}=x`]);
    expect(code).not.toBe(0);
  });

  test('the memory that is planned', async () => {
    const plan = await Gemma.estimate(base, { adapters: { one: join(folder, 'dora') } });
    const other = await Gemma.load(base, { adapters: { one: join(folder, 'dora') } });
    expect(plan.adapterBytes).toBe(other.adapters[0]?.bytes);
    expect(plan.adapterBytes).toBeGreaterThan(0);
    await other.dispose();
  });
});

describe('wrong arguments', () => {
  test.each([
    [3, TypeError],
    [['head'], TypeError],
    ['', RangeError],
    [{ head: '1' }, TypeError],
    [{ head: NaN }, RangeError],
    [{ head: 1.1e6 }, RangeError],
    [Object.fromEntries(Array.from({ length: 17 }, (_, i) => [`a${i}`, 1])), RangeError],
  ])('adapter: %j', async (adapter, type) => {
    await expect(gemma.generate(ids, { adapter: adapter as string })).rejects.toThrow(type);
  });

  test('both ends of a scale', async () => {
    for (const scale of [-1e6, 1e6, 0]) await gemma.logits(ids.slice(0, 2), { adapter: { head: scale } });
  });

  test('names', async () => {
    await expect(gemma.generate(ids, { adapter: 'nobody' })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      detail: 'UNKNOWN_ADAPTER',
      message: expect.stringContaining('bf16, dora') as string,
    });
    await expect(gemma.unloadAdapter('nobody')).rejects.toMatchObject({ detail: 'UNKNOWN_ADAPTER' });
    await expect(gemma.loadAdapter('head', join(folder, 'dora'))).rejects.toMatchObject({ detail: 'ADAPTER_EXISTS' });
    await expect(gemma.loadAdapter('', join(folder, 'dora'))).rejects.toThrow(RangeError);
    await expect(gemma.loadAdapter('x', join(folder, 'nowhere'))).rejects.toMatchObject({ code: 'ERR_FILE' });
    await expect(gemma.loadAdapter('x', join(folder, 'dora'), { wrong: 1 } as object)).rejects.toThrow('wrong');
    await expect(Gemma.load(base, { adapters: 3 as never })).rejects.toThrow(TypeError);
    await expect(gemma.generate(ids, { lora: 'x' } as object)).rejects.toThrow('adapter');
  });

  test('two that replace the same', async () => {
    await gemma.loadAdapter('twin', join(folder, 'saved-norm'));
    await expect(gemma.generate(ids, { adapter: { twin: 1, 'saved-norm': 1 } })).rejects.toMatchObject({
      code: 'ERR_ADAPTER_INVALID',
      detail: 'CONFLICT',
    });
    await gemma.unloadAdapter('twin');
  });
});

describe('refused', () => {
  type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  let n = 0;

  // A copy of a sound adapter, spoiled.
  function spoiled(
    change: (tensors: Map<string, { shape: number[]; bytes: Buffer; dtype: string }>) => void,
    config: Record<string, unknown> | ((text: string) => string) = {},
    of = 'qv-layer0',
  ): string {
    const copy = join(scratch, `bad-${n++}`);
    cpSync(join(folder, of), copy, { recursive: true });
    const file = join(copy, 'adapter_model.safetensors');
    const bytes = readFileSync(file);
    const start = 8 + Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.toString('utf8', 8, start)) as Header;
    const tensors = new Map(
      Object.entries(header).map(
        ([
          name,
          {
            dtype,
            shape,
            data_offsets: [from, to],
          },
        ]) => [name, { dtype, shape, bytes: bytes.subarray(start + from, start + to) }],
      ),
    );
    change(tensors);
    const written: Header = {};
    let at = 0;
    for (const [name, { dtype, shape, bytes: own }] of tensors) {
      written[name] = { dtype, shape, data_offsets: [at, (at += own.length)] };
    }
    const text = Buffer.from(JSON.stringify(written));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    writeFileSync(file, Buffer.concat([length, text, ...[...tensors.values()].map(({ bytes: own }) => own)]));
    const settings = join(copy, 'adapter_config.json');
    const source = readFileSync(settings, 'utf8');
    writeFileSync(
      settings,
      typeof config === 'function' ? config(source) : JSON.stringify({ ...(JSON.parse(source) as object), ...config }),
    );
    return copy;
  }

  const a = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight';
  const b = a.replace('lora_A', 'lora_B');
  type Change = Parameters<typeof spoiled>[0];
  const rename =
    (to: string): Change =>
    (t) => {
      const tensor = t.get(a);
      if (tensor) t.set(to, tensor);
      t.delete(a);
    };
  const nothing: Change = () => {};
  const change =
    (name: string, fields: object): Change =>
    (t) =>
      t.set(name, { ...(t.get(name) as { shape: number[]; bytes: Buffer; dtype: string }), ...fields });

  test.each<[string, Change, Record<string, unknown> | ((text: string) => string), string]>([
    ['half of a pair', (t) => t.delete(b), {}, 'MISSING_TENSOR'],
    ['another shape', change(a, { shape: [32, 2] }), {}, 'BAD_TENSOR'],
    ['more rows than the rank', change(a, { shape: [4, 16] }), {}, 'BAD_TENSOR'],
    ['a layer that is not there', rename(a.replace('layers.0', 'layers.99')), {}, 'MISSING_TENSOR'],
    ['a module that is not there', rename(a.replace('q_proj', 'z_proj')), {}, 'BAD_NAME'],
    ['another prefix', rename(a.replace('base_model.', '')), {}, 'BAD_NAME'],
    ['a part that is unknown', rename(a.replace('lora_A', 'lora_C')), {}, 'BAD_NAME'],
    ['a layer too large for a number', rename(a.replace('layers.0', 'layers.99999999999')), {}, 'BAD_NAME'],
    [
      'a vision tower that is not there',
      (t) => {
        for (const name of [a, b]) {
          const tensor = t.get(name);
          const to = name
            .replace('model.layers', 'model.vision_tower.encoder.layers')
            .replace('model.model.model.', 'model.model.');
          if (tensor) t.set(to, tensor);
        }
      },
      {},
      'BAD_TENSOR',
    ],
    [
      'a whole module that nobody named',
      (t) => t.set('base_model.model.model.norm.weight', { dtype: 'F32', shape: [32], bytes: Buffer.alloc(128) }),
      {},
      'BAD_NAME',
    ],
    ['integers', change(a, { dtype: 'I32' }), {}, 'BAD_TENSOR'],
    ['a scalar', (t) => t.set(a, { dtype: 'F32', shape: [], bytes: Buffer.alloc(4) }), {}, 'BAD_TENSOR'],
    ['no tensors', (t) => t.clear(), {}, 'MISSING_TENSOR'],
    ['NaN', change(a, { bytes: Buffer.alloc(256, 0xff) }), {}, 'NONFINITE'],
    ['another rank in the configuration', nothing, { r: 3 }, 'BAD_RANK'],
    ['a rank of 0', nothing, { r: 0 }, 'BAD_CONFIG'],
    ['a rank that is no number', nothing, { r: '2' }, 'BAD_CONFIG'],
    ['alpha that is no number', nothing, { lora_alpha: null }, 'BAD_CONFIG'],
    [
      'an infinite scale',
      nothing,
      (text: string) => text.replace(/"lora_alpha": \S+,/, '"lora_alpha": 1e308,'),
      'NONFINITE',
    ],
    ['no JSON', nothing, () => '{', 'BAD_CONFIG'],
    ['a list', nothing, () => '[]', 'BAD_CONFIG'],
    ['a file without end', nothing, (text: string) => text + ' '.repeat(1 << 20), 'BAD_CONFIG'],
    ['another kind', nothing, { peft_type: 'IA3' }, 'BAD_KIND'],
    ['DoRA without lengths', nothing, { use_dora: true }, 'MISSING_TENSOR'],
    ['biases of the model', nothing, { bias: 'all' }, 'UNSUPPORTED'],
    ['a beginning that changes the model', nothing, { init_lora_weights: 'pissa_niter_4' }, 'UNSUPPORTED'],
    ['transposed weights', nothing, { fan_in_fan_out: true }, 'UNSUPPORTED'],
    ['what is not known yet', nothing, { use_something: true }, 'UNSUPPORTED'],
    [
      'rows of tokens that are not there',
      nothing,
      { trainable_token_indices: { embed_tokens: [1] } },
      'MISSING_TENSOR',
    ],
    ['rows of other modules', nothing, { trainable_token_indices: { lm_head: [1] } }, 'UNSUPPORTED'],
    ['a pattern that is none', nothing, { rank_pattern: { '(': 2 } }, 'UNSUPPORTED'],
    ['a pattern that looks back', nothing, { alpha_pattern: { '(?<=x)q_proj': 2 } }, 'UNSUPPORTED'],
    ['a pattern without a number', nothing, { alpha_pattern: { q_proj: 'x' } }, 'BAD_CONFIG'],
  ])('%s', async (_, tensors, config, detail) => {
    const before = gemma.adapters;
    const loading = gemma.loadAdapter('bad', spoiled(tensors, config));
    await expect(loading).rejects.toMatchObject({ code: 'ERR_ADAPTER_INVALID', detail });
    expect(gemma.adapters).toEqual(before);
  });

  test('files that are missing, cut or of another kind', async () => {
    const cut = spoiled(nothing);
    const file = join(cut, 'adapter_model.safetensors');
    writeFileSync(file, readFileSync(file).subarray(0, -5));
    await expect(gemma.loadAdapter('bad', cut)).rejects.toMatchObject({ code: 'ERR_SAFETENSORS_INVALID' });
    const bare = spoiled(nothing);
    rmSync(join(bare, 'adapter_config.json'));
    await expect(gemma.loadAdapter('bad', bare)).rejects.toMatchObject({ detail: 'NO_CONFIG' });
    rmSync(join(cut, 'adapter_model.safetensors'));
    await expect(gemma.loadAdapter('bad', cut)).rejects.toMatchObject({ code: 'ERR_FILE' });
    await expect(gemma.loadAdapter('bad', base)).rejects.toMatchObject({ detail: 'BAD_KIND' });
    await expect(gemma.loadAdapter('bad', join(folder, 'adapters.json'))).rejects.toMatchObject({
      code: 'ERR_GGUF_INVALID',
    });
  });

  test('an adapter with the model that is refused leaves no model', async () => {
    await expect(Gemma.load(base, { adapters: { bad: spoiled((t) => t.delete(b)) } })).rejects.toMatchObject({
      detail: 'MISSING_TENSOR',
    });
  });
});
