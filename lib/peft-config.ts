// adapter_config.json of Hugging Face PEFT (LoraConfig): which rank and scale each module of an adapter has. Whatever changes what an
// adapter means and is not supported is refused by its name; keys that are unknown are refused as soon as they say anything.
import { isUtf8 } from 'node:buffer';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { GemmaError } from './errors.js';
import type { NativePeftSettings } from './native.js';
import { PatternError, Patterns, type Language } from './pattern.js';
import { inSlices, Pace } from './turns.js';
import { plain, reasonOf, show } from './values.js';

const MAX_BYTES = 1 << 20;
const MAX_PATTERNS = 1000;
const MAX_RANK = 4096;
const MAX_TOKENS = 1 << 16;

/** Say how an adapter was trained, or what was trained: the tensors tell the same. */
const INERT = [
  'auto_mapping',
  'base_model_name_or_path',
  'corda_config',
  'ensure_weight_tying',
  'eva_config',
  'exclude_modules',
  'inference_mode',
  'layers_pattern',
  'layers_to_transform',
  'loftq_config',
  'lora_dropout',
  'lora_ga_config',
  'megatron_config',
  'megatron_core',
  'peft_version',
  'qalora_group_size',
  'revision',
  'runtime_config',
  'target_modules',
  'task_type',
  'tokenizer_version',
];
const READ = [
  'alpha_pattern',
  'bias',
  'init_lora_weights',
  'lora_alpha',
  'lora_bias',
  'modules_to_save',
  'peft_type',
  'r',
  'rank_pattern',
  'trainable_token_indices',
  'use_dora',
  'use_rslora',
];
// Beginnings that change the base model's weights too.
const OTHER_BASE = /^(pissa|olora|corda|loftq|lora_ga)/;

type Fields = Readonly<Record<string, unknown>>;

// To open a pipe is to wait for who writes it, unless told otherwise. Windows has no such flag.
const { O_RDONLY, O_NONBLOCK = 0 } = constants as typeof constants & { O_NONBLOCK?: number };

/** A file's bytes; of one that is longer undefined. */
async function readSmall(path: string): Promise<Buffer | undefined> {
  const file = await open(path, O_RDONLY | O_NONBLOCK).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT')
      throw new GemmaError('ERR_FILE', `${plain(path)}: cannot be opened (${reasonOf(error)})`);
    throw new GemmaError(
      'ERR_ADAPTER_INVALID',
      `${plain(path)}: missing; it says how the tensors beside it are to be read`,
      'NO_CONFIG',
    );
  });
  try {
    const status = await file.stat();
    if (!status.isFile()) throw new GemmaError('ERR_FILE', `${plain(path)}: not a regular file`);
    if (status.size > MAX_BYTES) return undefined;
    const bytes = Buffer.alloc(status.size);
    let n = 0;
    for (;;) {
      const { bytesRead } = await file.read(bytes, n, bytes.length - n, n);
      if (bytesRead === 0) break;
      n += bytesRead;
    }
    return bytes.subarray(0, n);
  } finally {
    await file.close();
  }
}

class ConfigReader {
  readonly #path: string;
  readonly #fields: Fields;

  constructor(path: string, fields: Fields) {
    this.#path = path;
    this.#fields = fields;
  }

  fail(key: string, message: string, detail = 'BAD_CONFIG'): never {
    throw new GemmaError('ERR_ADAPTER_INVALID', `${plain(this.#path)}: ${plain(key, 60)}: ${message}`, detail);
  }

  #value(key: string): unknown {
    return Object.hasOwn(this.#fields, key) ? (this.#fields[key] ?? undefined) : undefined;
  }

  flag(key: string): boolean {
    const value = this.#value(key) ?? false;
    if (typeof value !== 'boolean') this.fail(key, `expected true or false, found ${show(value)}`);
    return value;
  }

  text(key: string): string | undefined {
    const value = this.#value(key);
    if (value !== undefined && typeof value !== 'string') this.fail(key, `expected a string, found ${show(value)}`);
    return value;
  }

  number(key: string, value = this.#value(key)): number {
    if (typeof value !== 'number' || !Number.isFinite(value)) this.fail(key, `expected a number, found ${show(value)}`);
    return value;
  }

  rank(key: string, value = this.#value(key)): number {
    const rank = this.number(key, value);
    if (!Number.isInteger(rank) || rank < 1 || rank > MAX_RANK) {
      this.fail(key, `expected a rank from 1 to ${MAX_RANK}, found ${rank}`);
    }
    return rank;
  }

  texts(key: string): string[] {
    const value = this.#value(key) ?? [];
    if (!Array.isArray(value) || !value.every((item) => typeof item === 'string')) {
      this.fail(key, `expected a list of names, found ${show(value)}`);
    }
    return value;
  }

  /** Ids of tokens whose rows are trained, ascending as their rows are saved. */
  tokens(key: string): Int32Array {
    const value = this.#value(key) ?? [];
    let ids: unknown = value;
    if (typeof value !== 'object') this.fail(key, `expected token ids, found ${show(value)}`);
    if (!Array.isArray(value)) {
      const names = Object.keys(value);
      if (names.length !== 1 || names[0] !== 'embed_tokens') {
        this.fail(
          key,
          `expected embed_tokens and no other module, found ${names.map((name) => plain(name, 60)).join(', ')}`,
          'UNSUPPORTED',
        );
      }
      ids = (value as Fields).embed_tokens;
    }
    const isId = (id: unknown) => Number.isInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 31;
    if (!Array.isArray(ids) || ids.length > MAX_TOKENS || !ids.every(isId)) {
      this.fail(key, `expected at most ${MAX_TOKENS} token ids`);
    }
    const list = ids as number[];
    if (list.some((id, i) => i > 0 && id <= (list[i - 1] as number))) {
      this.fail(key, 'expected ids in ascending order, each once', 'UNSUPPORTED');
    }
    return Int32Array.from(list);
  }

  /** A value for modules whose names a pattern matches, as PEFT's get_pattern_key does: the first that matches counts. */
  async patterns(
    key: string,
    check: (name: string, value: unknown) => number,
  ): Promise<(module: string) => Promise<number | undefined>> {
    const value = this.#value(key) ?? {};
    if (typeof value !== 'object' || Array.isArray(value)) this.fail(key, `expected patterns, found ${show(value)}`);
    const entries = Object.entries(value as Fields);
    if (entries.length > MAX_PATTERNS)
      this.fail(key, `expected at most ${MAX_PATTERNS} patterns, found ${entries.length}`);
    const patterns = new Patterns();
    const compiled: [Language, number][] = [];
    for (const [pattern, found] of entries) {
      const name = `${key}[${plain(pattern, 60)}]`;
      try {
        const language = await inSlices(patterns.whole(`(?:.*\\.)?(?:${pattern})`));
        compiled.push([language, check(name, found)]);
      } catch (error) {
        if (!(error instanceof PatternError)) throw error;
        this.fail(name, `not a pattern that can be used here: ${error.message}`, 'UNSUPPORTED');
      }
    }
    return async (module) => {
      try {
        for (const [language, value] of compiled) {
          if (await inSlices(patterns.has(language, module))) return value;
        }
        return undefined;
      } catch (error) {
        if (!(error instanceof PatternError)) throw error;
        this.fail(key, `its patterns cannot be used here: ${error.message}`, 'UNSUPPORTED');
      }
    };
  }

  /** Refuses what an adapter may not have. */
  checkOthers(): void {
    const type = this.text('peft_type');
    if (type !== 'LORA') this.fail('peft_type', `expected "LORA", found ${show(type)}`, 'BAD_KIND');
    const bias = this.text('bias') ?? 'none';
    if (bias !== 'none') this.fail('bias', `expected "none", found ${show(bias)}`, 'UNSUPPORTED');
    const start = this.#value('init_lora_weights');
    if (typeof start === 'string' && OTHER_BASE.test(start)) {
      this.fail(
        'init_lora_weights',
        `${show(start)} changes the base model too: save the adapter as plain LoRA (PEFT's path_initial_model_for_weight_conversion)`,
        'UNSUPPORTED',
      );
    }
    for (const [key, value] of Object.entries(this.#fields)) {
      if (INERT.includes(key) || READ.includes(key)) continue;
      const isEmpty = typeof value === 'object' && value !== null && Object.keys(value).length === 0;
      if (value !== null && value !== false && !isEmpty)
        this.fail(key, `${show(value)} is not supported`, 'UNSUPPORTED');
    }
  }
}

/**
 * Reads a configuration: what it says of an adapter that has pairs for these modules.
 *
 * @throws GemmaError `ERR_ADAPTER_INVALID`: `NO_CONFIG`; `BAD_CONFIG`; `BAD_KIND` for adapters that are not LoRA; `UNSUPPORTED`, with
 * the key; `ERR_FILE`
 */
export async function readPeftConfig(
  path: string,
): Promise<(modules: readonly string[]) => Promise<NativePeftSettings>> {
  const bytes = await readSmall(path);
  const invalid = (message: string) =>
    new GemmaError('ERR_ADAPTER_INVALID', `${plain(path)}: ${message}`, 'BAD_CONFIG');
  if (bytes === undefined) throw invalid('expected at most 1 MiB');
  if (!isUtf8(bytes)) throw invalid('expected JSON: it is not valid UTF-8');
  let fields: unknown;
  try {
    fields = JSON.parse(bytes.toString());
  } catch (error) {
    throw invalid(`expected JSON: ${reasonOf(error)}`);
  }
  if (typeof fields !== 'object' || fields === null || Array.isArray(fields)) throw invalid('expected an object');
  const reader = new ConfigReader(path, fields as Fields);
  reader.checkOthers();
  const rank = reader.rank('r');
  const alpha = reader.number('lora_alpha');
  const isRs = reader.flag('use_rslora');
  const rankOf = await reader.patterns('rank_pattern', (name, value) => reader.rank(name, value));
  const alphaOf = await reader.patterns('alpha_pattern', (name, value) => reader.number(name, value));
  const rest = {
    saved: reader.texts('modules_to_save'),
    tokens: reader.tokens('trainable_token_indices'),
    dora: reader.flag('use_dora'),
    bias: reader.flag('lora_bias'),
  };
  return async (modules) => {
    const ranks = new Int32Array(modules.length);
    const scales = new Float64Array(modules.length);
    const pace = new Pace();
    for (const [i, module] of modules.entries()) {
      const r = (await rankOf(module)) ?? rank;
      ranks[i] = r;
      scales[i] = ((await alphaOf(module)) ?? alpha) / (isRs ? Math.sqrt(r) : r);
      if (pace.due) await pace.turn();
    }
    return { ...rest, modules: [...modules], ranks, scales };
  };
}
