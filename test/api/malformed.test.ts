// Files of strangers: checkpoints, tokenizers and adapters with one thing wrong, each of which has its error and none of which takes
// memory or the process; then small files with every byte changed and cut at every length, which load or have an error of their own.
import { spawn } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { findAdapter } from '../../lib/adapters.js';
import { GemmaError } from '../../lib/index.js';
import { root } from './helpers.js';
import { malformedFiles } from './malformed.js';
import { soundAdapterTensors } from './malformed-adapter.js';
import { base, type Case } from './malformed-maker.js';

interface Result {
  loaded?: true;
  died?: string;
  name?: string;
  code?: string;
  detail?: string;
  message?: string;
}

const { folder, cases } = malformedFiles();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Opens files in processes of their own, another one after each death. What takes a minute hangs. */
async function openAll(files: readonly { kind: Case['kind']; path: string }[]): Promise<Result[]> {
  const results: Result[] = [];
  while (results.length < files.length) {
    const list = join(folder, 'list');
    const rest = files.slice(results.length);
    writeFileSync(list, rest.map(({ kind, path }) => `${kind} ${path}\n`).join(''));
    const child = spawn(process.execPath, [join(root, 'test', 'faults', 'open.cjs'), root, base, list], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let opening = false;
    let hangs = false;
    let watch: NodeJS.Timeout | undefined;
    const closed = new Promise<string>((resolve) =>
      child.once('close', (code, signal) => resolve(hangs ? 'hangs' : `ended with ${signal ?? code}`)),
    );
    for await (const line of createInterface(child.stdout)) {
      const result = JSON.parse(line) as Result & { opens?: true };
      clearTimeout(watch);
      opening = result.opens === true;
      if (!opening) results.push(result);
      else {
        watch = setTimeout(() => {
          hangs = true;
          child.kill('SIGKILL');
        }, 60_000);
      }
    }
    clearTimeout(watch);
    const end = await closed;
    if (opening) results.push({ died: end });
    else if (results.length < files.length) throw new Error(`the process that opens files ${end}`);
  }
  return results;
}

describe('malformed files', () => {
  let results: Map<Case, Result>;
  beforeAll(async () => {
    const found = await openAll(cases);
    results = new Map(cases.map((one, i) => [one, found[i] ?? {}]));
  }, 300_000);

  const groups = [...new Set(cases.map(({ group }) => group))];

  test(`${cases.length} cases in ${groups.length} classes`, () => {
    expect(cases.length).toBeGreaterThan(150);
    expect(groups.length).toBeGreaterThan(20);
    expect(new Set(cases.map(({ group, name }) => `${group}: ${name}`)).size).toBe(cases.length);
  });

  test.each(groups)('%s', (group) => {
    const wrong = cases.filter((one) => one.group === group).flatMap((one) => {
      const { name, code, detail, message = '', ...rest } = results.get(one) ?? {};
      const isRight =
        name === 'GemmaError' &&
        code === one.code &&
        (one.detail === undefined ? detail === undefined : one.detail.split('|').includes(detail ?? '')) &&
        one.words.every((word) => word.split('|').some((either) => message.includes(either))) &&
        /^[\x20-\x7e\u00a0-\uffff]{1,1024}$/.test(message);
      return isRight ? [] : [{ case: one.name, expected: [one.code, one.detail, ...one.words], found: { name, code, detail, message, ...rest } }];
    }); // prettier-ignore
    expect(wrong).toEqual([]);
  });
});

// The readers in native code have their sweeps in test/native/hostile_test.cpp.
describe('adapter_config.json', () => {
  const CONFIG = JSON.stringify({
    peft_type: 'LORA',
    r: 2,
    lora_alpha: 4.5,
    rank_pattern: { 'q_proj|v.*': 2 },
    alpha_pattern: {},
    modules_to_save: ['norm'],
    trainable_token_indices: { embed_tokens: [1, 20] },
    use_dora: false,
    init_lora_weights: true,
  });

  /** How many of these load. The others have an error of theirs. */
  async function open(contents: Iterable<string>): Promise<number> {
    const path = join(folder, 'swept');
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, 'adapter_model.safetensors'), soundAdapterTensors());
    let n = 0;
    for (const content of contents) {
      writeFileSync(join(path, 'adapter_config.json'), Buffer.from(content, 'latin1'));
      try {
        await findAdapter('stranger', path);
        ++n;
      } catch (error) {
        if (!(error instanceof GemmaError) || error.code !== 'ERR_ADAPTER_INVALID')
          throw new Error(content, { cause: error });
      }
    }
    return n;
  }

  test('cut at every length', async () => {
    expect(await open([CONFIG])).toBe(1);
    expect(await open(Array.from({ length: CONFIG.length }, (_, i) => CONFIG.slice(0, i)))).toBe(0);
  });

  test('every byte changed', async () => {
    const others = ['\0', '\xff', '"', '{', ']', ',', '-', '0', '9', '(', '\\', 'e'];
    function* changed(): Generator<string> {
      for (let i = 0; i < CONFIG.length; ++i) {
        for (const turn of [0, 5]) {
          yield CONFIG.slice(0, i) + others[(i + turn) % others.length] + CONFIG.slice(i + 1);
        }
      }
    }
    // Some are another number, another module or another pattern; most are none.
    const n = await open(changed());
    expect(n).toBeGreaterThan(10);
    expect(n).toBeLessThan(CONFIG.length);
  });
});
