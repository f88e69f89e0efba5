// What names of models mean, which files of a repository they choose, and which proxy a URL takes.
import { Gemma, GemmaError } from '../../lib/index.js';
import { proxyFor } from '../../lib/hub/http.js';
import { isModelName, isSafePath, parseModelName } from '../../lib/hub/names.js';
import { ggufModels, selectFiles } from '../../lib/hub/select.js';
import { rejection } from './helpers.js';

const hf = (repo: string, revision = 'main', selector?: string) => ({
  scheme: 'hf',
  repo,
  revision,
  ...(selector !== undefined && { selector }),
});

describe('names', () => {
  test('are taken apart', () => {
    const names: [string, unknown][] = [
      ['hf:google/gemma-3-4b-it', hf('google/gemma-3-4b-it')],
      ['hf:o/r:Q4_K_M', hf('o/r', 'main', 'Q4_K_M')],
      ['hf:o/r:sub/model.gguf', hf('o/r', 'main', 'sub/model.gguf')],
      ['hf:o/r@v1.0', hf('o/r', 'v1.0')],
      ['hf:o/r@refs/pr/3:q8_0', hf('o/r', 'refs/pr/3', 'q8_0')],
      ['ollama:gemma3', { scheme: 'ollama', parts: ['registry.ollama.ai', 'library', 'gemma3', 'latest'] }],
      ['ollama:gemma3:4b', { scheme: 'ollama', parts: ['registry.ollama.ai', 'library', 'gemma3', '4b'] }],
      ['ollama:me/mine:x', { scheme: 'ollama', parts: ['registry.ollama.ai', 'me', 'mine', 'x'] }],
      ['ollama:hf.co/o/r:Q4_K_M', { scheme: 'ollama', parts: ['hf.co', 'o', 'r', 'Q4_K_M'] }],
      ['ollama:localhost:5000/o/r', { scheme: 'ollama', parts: ['localhost:5000', 'o', 'r', 'latest'] }],
      ['lmstudio:o/r', { scheme: 'lmstudio', repo: 'o/r' }],
      ['lmstudio:o/r/a.gguf', { scheme: 'lmstudio', repo: 'o/r', selector: 'a.gguf' }],
    ];
    for (const [name, expected] of names) expect([name, parseModelName(name)]).toEqual([name, expected]);
    for (const path of ['model.gguf', './hf:o/r', 'HF:o/r', 'C:\\model.gguf', 'file:///a'])
      expect(isModelName(path)).toBe(false);
  });

  test('that are none are refused', () => {
    const wrong = [
      'hf:',
      'hf:model',
      'hf:a/b/c',
      'hf:../b',
      'hf:a/..',
      'hf:a/b--c',
      'hf:a/-b',
      'hf:a/b@',
      'hf:a/b@../x',
      'hf:a/b@a//b',
      'hf:a b/c',
      'hf:a/b?x',
      'hf:a/b#x',
      `hf:a/${'b'.repeat(97)}`,
      'hf:a/b@x.lock',
      'ollama:',
      'ollama:..',
      'ollama:a/../b',
      'ollama:a/b/c/d',
      'ollama:a:..',
      'ollama:../b/c',
      'lmstudio:a',
      'lmstudio:../b',
      'lmstudio:a\\b/c',
      'gemma',
    ];
    for (const name of wrong) {
      let error: unknown;
      try {
        parseModelName(name);
      } catch (thrown) {
        error = thrown;
      }
      expect([name, error]).toEqual([name, expect.any(TypeError)]);
    }
    for (const name of [
      'hf:a/b:',
      'hf:a/b:../x',
      'hf:a/b:/etc/passwd',
      'hf:a/b:a\\b',
      'hf:a/b:C:/x',
      'lmstudio:a/b/../c',
      'lmstudio:a/b//c',
    ]) {
      expect(() => parseModelName(name)).toThrow(
        expect.objectContaining({ code: 'ERR_DOWNLOAD', detail: 'PATH_REJECTED' }),
      );
    }
  });

  test('of files are those that every system can have', () => {
    for (const path of ['a', 'a/b.c', '.gitattributes', 'ä ö.gguf'])
      expect([path, isSafePath(path)]).toEqual([path, true]);
    for (const path of [
      '',
      '/',
      '.',
      '..',
      'a/',
      '/a',
      'a//b',
      'a/../b',
      'a\\b',
      'a:b',
      'a\nb',
      'NUL',
      'com1.gguf',
      'a.',
      'a ',
      'a*',
      'x'.repeat(201),
      'x/'.repeat(600),
    ]) {
      expect([path, isSafePath(path)]).toEqual([path, false]);
    }
  });

  test('with options that are none', async () => {
    const wrong: [unknown, unknown][] = [
      ['hf:a/b', { tokens: 'x' }],
      ['hf:a/b', { token: 5 }],
      ['hf:a/b', { token: 'a\nb' }],
      ['hf:a/b', { offline: 'yes' }],
      ['hf:a/b', { cacheDir: 5 }],
      ['hf:a/b', { check: 1 }],
      ['hf:a/b', { mmproj: 'x' }],
      ['hf:a/b', { onProgress: 1 }],
      ['hf:a/b', { signal: 1 }],
      ['hf:a/b', { endpoint: 'huggingface.co' }],
      ['hf:a/b', { endpoint: 'ftp://x' }],
      ['hf:a/b', { endpoint: 'https://user:word@x' }],
      ['ollama:a', {}],
      ['model.gguf', {}],
      [5, {}],
    ];
    for (const [name, options] of wrong) {
      expect([options, await rejection(Gemma.pull(name as string, options as object))]).toEqual([
        options,
        expect.any(TypeError),
      ]);
    }
    for (const call of [Gemma.load, Gemma.estimate, Gemma.inspect] as ((m: string, o: object) => Promise<unknown>)[]) {
      const error = (await rejection(call('hf:a/b', { hub: { check: false } }))) as Error;
      expect(error).toBeInstanceOf(TypeError);
      expect(error.message).toMatch(/check/);
    }
    expect(await rejection(Gemma.localModels({ x: 1 } as object))).toBeInstanceOf(TypeError);
  });
});

describe('what is chosen', () => {
  const files = (...names: string[]) => names.map((name, i) => ({ name, bytes: i }));
  const choose = (names: string[], selector?: string, mmproj = true) => {
    try {
      const { kind, model, mmproj: encoder } = selectFiles(files(...names), selector, 'hf:o/r', { mmproj });
      return [kind, model.map(({ name }) => name).join(' '), ...(encoder ? [encoder.name] : [])].join(' | ');
    } catch (error) {
      if (!(error instanceof GemmaError)) throw error;
      return `${error.detail}: ${error.message}`;
    }
  };
  const bartowski = [
    'google_gemma-3-4b-it-Q8_0.gguf',
    'google_gemma-3-4b-it-Q4_K_M.gguf',
    'google_gemma-3-4b-it-Q4_K_S.gguf',
    'google_gemma-3-4b-it-IQ4_XS.gguf',
    'google_gemma-3-4b-it-bf16.gguf',
    'google_gemma-3-4b-it-imatrix.gguf',
    'mmproj-google_gemma-3-4b-it-f16.gguf',
    'mmproj-google_gemma-3-4b-it-bf16.gguf',
    'README.md',
  ];
  const unsloth = [
    'gemma-3-4b-it-UD-Q4_K_XL.gguf',
    'gemma-3-4b-it-Q4_K_M.gguf',
    'gemma-3-4b-it-UD-Q8_K_XL.gguf',
    'BF16/gemma-3-4b-it-BF16-00001-of-00002.gguf',
    'BF16/gemma-3-4b-it-BF16-00002-of-00002.gguf',
    'mmproj-BF16.gguf',
    'mmproj-F16.gguf',
    'mmproj-F32.gguf',
    'config.json',
  ];
  const google = ['gemma-3-4b-it-q4_0.gguf', 'mmproj-model-f16-4B.gguf', 'README.md'];

  test('in repositories as they are published', () => {
    const q4 = 'google_gemma-3-4b-it-Q4_K_M.gguf';
    const encoder = 'mmproj-google_gemma-3-4b-it-f16.gguf';
    expect(choose(bartowski)).toBe(`gguf | ${q4} | ${encoder}`);
    expect(choose(bartowski, undefined, false)).toBe(`gguf | ${q4}`);
    expect(choose(bartowski, 'q8_0')).toBe(`gguf | google_gemma-3-4b-it-Q8_0.gguf | ${encoder}`);
    expect(choose(bartowski, 'BF16')).toBe(`gguf | google_gemma-3-4b-it-bf16.gguf | ${encoder}`);
    expect(choose(bartowski, 'iq4_xs')).toBe(`gguf | google_gemma-3-4b-it-IQ4_XS.gguf | ${encoder}`);
    expect(choose(bartowski, q4)).toBe(`gguf | ${q4} | ${encoder}`);
    expect(choose(bartowski, q4.toLowerCase().replace('.gguf', ''))).toBe(`gguf | ${q4} | ${encoder}`);
    expect(choose(bartowski, 'mmproj-google_gemma-3-4b-it-bf16.gguf')).toBe(
      'gguf | mmproj-google_gemma-3-4b-it-bf16.gguf',
    );
    expect(choose(bartowski, 'Q4_K')).toMatch(/^AMBIGUOUS_MODEL: hf:o\/r: several files fit Q4_K: .*Q4_K_M.*Q4_K_S/);
    expect(choose(bartowski, 'Q5_K_M')).toMatch(/^NOT_FOUND: hf:o\/r: no file fits Q5_K_M; there are .*Q4_K_M/);
    expect(choose(unsloth)).toBe('gguf | gemma-3-4b-it-Q4_K_M.gguf | mmproj-F16.gguf');
    expect(choose(unsloth, 'UD-Q4_K_XL')).toBe('gguf | gemma-3-4b-it-UD-Q4_K_XL.gguf | mmproj-F16.gguf');
    expect(choose(unsloth, 'q8_k_xl')).toBe('gguf | gemma-3-4b-it-UD-Q8_K_XL.gguf | mmproj-F16.gguf');
    expect(choose(unsloth, 'bf16')).toBe(`gguf | ${unsloth[3]} ${unsloth[4]} | mmproj-F16.gguf`);
    expect(choose(unsloth, unsloth[3])).toBe(`gguf | ${unsloth[3]} ${unsloth[4]} | mmproj-F16.gguf`);
    expect(choose(google)).toBe('gguf | gemma-3-4b-it-q4_0.gguf | mmproj-model-f16-4B.gguf');
  });

  test('or not, with what there is', () => {
    expect(choose(['gemma-3-1b-it-Q4_0.gguf', 'gemma-3-4b-it-Q4_0.gguf'])).toMatch(
      /^AMBIGUOUS_MODEL: hf:o\/r: holds several models: gemma-3-1b-it-Q4_0.gguf, gemma-3-4b-it-Q4_0.gguf/,
    );
    expect(choose(['gemma-3-1b-it-Q4_0.gguf', 'gemma-3-4b-it-Q4_0.gguf'], 'Q4_0')).toMatch(/^AMBIGUOUS_MODEL/);
    expect(choose(['gemma-3-1b-it-Q4_0.gguf', 'gemma-3-4b-it-Q4_0.gguf'], '4b-it-Q4_0')).toMatch(/^gguf \| gemma-3-4b/);
    expect(choose(['m-Q2_K.gguf', 'm-Q3_K_L.gguf'])).toMatch(/^AMBIGUOUS_MODEL/);
    expect(choose(['a/m-Q4_0.gguf', 'b/m-Q4_0.gguf'])).toMatch(/^AMBIGUOUS_MODEL/);
    expect(choose(['a/m-Q4_0.gguf', 'b/m-Q4_0.gguf'], 'b/m-Q4_0.gguf')).toBe('gguf | b/m-Q4_0.gguf');
    expect(choose(['m-Q4_0-00001-of-00003.gguf', 'm-Q4_0-00003-of-00003.gguf'])).toMatch(
      /^NOT_FOUND.*not all of its parts/,
    );
    expect(choose(['m-Q8_0-00001-of-00002.gguf', 'm-Q4_0.gguf'])).toBe('gguf | m-Q4_0.gguf');
    expect(choose(['README.md'])).toMatch(/^NOT_FOUND: .*found README.md/);
    expect(choose([])).toMatch(/^NOT_FOUND: .*found no files/);
    expect(choose(['mmproj-f16.gguf'])).toMatch(/^NOT_FOUND/);
    expect(ggufModels(files(...unsloth, 'x-00001-of-00002.gguf')).map(({ model }) => model.length)).toEqual([
      1, 1, 1, 2,
    ]);
  });

  test('of a checkpoint: what belongs to it', () => {
    const small = [
      'config.json',
      'generation_config.json',
      'tokenizer.json',
      'tokenizer_config.json',
      'chat_template.jinja',
      'preprocessor_config.json',
      'model.safetensors.index.json',
    ];
    const weights = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
    const other = [
      'README.md',
      'original/model.safetensors',
      'consolidated.safetensors',
      'pytorch_model.bin',
      '.gitattributes',
    ];
    expect(choose([...small, ...weights, ...other])).toBe(`checkpoint | ${[...small, ...weights].join(' ')}`);
    expect(choose([...small, weights[0]!])).toMatch(/^NOT_FOUND: .*expected 2 parts/);
    const embedding = [
      'config.json',
      'modules.json',
      '1_Pooling/config.json',
      '2_Dense/config.json',
      '2_Dense/model.safetensors',
      'model.safetensors',
    ];
    expect(choose(embedding)).toBe(`checkpoint | ${embedding.join(' ')}`);
    expect(choose([...embedding, 'm-Q8_0.gguf'])).toBe('gguf | m-Q8_0.gguf');
    expect(choose([...embedding, 'm-Q8_0.gguf'], 'safetensors')).toBe(`checkpoint | ${embedding.join(' ')}`);
    expect(choose(embedding, 'Q8_0')).toMatch(/^NOT_FOUND/);
    expect(choose(['model.safetensors'])).toMatch(/^NOT_FOUND/);
    expect(choose(['adapter_config.json', 'adapter_model.safetensors', 'README.md'])).toBe(
      'checkpoint | adapter_config.json adapter_model.safetensors',
    );
  });
});

test('proxies are those of the environment', () => {
  const https_proxy = 'http://proxy:8080';
  const of = (url: string, env: NodeJS.ProcessEnv) => proxyFor(new URL(url), env)?.href;
  expect(of('https://huggingface.co/x', {})).toBeUndefined();
  expect(of('https://huggingface.co/x', { https_proxy })).toBe('http://proxy:8080/');
  expect(of('https://huggingface.co/x', { HTTPS_PROXY: 'proxy:8080' })).toBe('http://proxy:8080/');
  expect(of('https://huggingface.co/x', { http_proxy: 'http://proxy' })).toBeUndefined();
  expect(of('http://mirror/x', { HTTP_PROXY: 'http://u:p@proxy' })).toBe('http://u:p@proxy/');
  expect(of('https://huggingface.co/x', { ALL_PROXY: 'https://proxy' })).toBe('https://proxy/');
  for (const no_proxy of [
    '*',
    'huggingface.co',
    'a, .co',
    'HuggingFace.co:443',
    '.huggingface.co',
    '*.huggingface.co',
  ]) {
    expect([no_proxy, of('https://huggingface.co/x', { https_proxy, no_proxy })]).toEqual([no_proxy, undefined]);
  }
  for (const no_proxy of ['face.co', 'huggingface.co:80', 'huggingface.com', '']) {
    expect([no_proxy, of('https://huggingface.co/x', { https_proxy, no_proxy })]).toEqual([
      no_proxy,
      'http://proxy:8080/',
    ]);
  }
  expect(of('https://127.0.0.1/', { https_proxy, no_proxy: '127.0.0.1' })).toBeUndefined();
  expect(of('https://[::1]:5/', { https_proxy, no_proxy: '::1' })).toBeUndefined();
  expect(() => of('https://x', { https_proxy: 'socks5://proxy' })).toThrow(TypeError);
});
