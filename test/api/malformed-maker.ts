// Makes malformed files of sound ones: each case changes one thing, and says which error names it.
import { linkSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkpointOf, file, writeCheckpoint } from './checkpoint.js';
import { data } from './helpers.js';

export const adapters = join(data, 'adapters');
/** What folders of models are made of, and what adapters are loaded with. */
export const base = join(adapters, 'text-f16.gguf');

export interface Case {
  group: string;
  name: string;
  /** what it is given to */
  kind: 'model' | 'adapter';
  /** the file or folder */
  path: string;
  code: string;
  detail: string | undefined;
  /** all of them stand in the message: the file, what is wrong, what was expected, what was found */
  words: readonly string[];
}

/** A folder's files by name; a function makes something that is no file. */
export type Files = Map<string, Buffer | ((path: string) => void)>;
export type Outcome = readonly [code: string, detail: string | undefined, ...words: string[]];
export type Words = readonly string[];

export const INVALID = 'ERR_SAFETENSORS_INVALID';
export const UNSUPPORTED = 'ERR_UNSUPPORTED_MODEL';
export const ADAPTER = 'ERR_ADAPTER_INVALID';
export const GGUF = 'ERR_GGUF_INVALID';

export class Maker {
  readonly cases: Case[] = [];
  readonly checkpoint = checkpointOf(base, undefined, { layout: 'text' });
  readonly sound: Files;
  readonly sharded: Files;
  readonly adapter: Files;
  readonly #folder: string;
  readonly #soundFolders = new Map<Files, string>();

  constructor(folder: string) {
    this.#folder = folder;
    this.sound = this.#read(writeCheckpoint(join(folder, 'sound'), this.checkpoint), [
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    this.sharded = this.#read(writeCheckpoint(join(folder, 'sharded'), this.checkpoint, 3), [
      ...[...this.sound.keys()].filter((name) => name !== 'model.safetensors'),
      'model.safetensors.index.json',
      ...[1, 2, 3].map(shardName),
    ]);
    const adapter = join(folder, 'adapter');
    mkdirSync(adapter);
    for (const name of ['adapter_config.json', 'adapter_model.safetensors']) {
      writeFileSync(join(adapter, name), readFileSync(join(adapters, 'qv-layer0', name)));
    }
    this.adapter = this.#read(adapter, ['adapter_config.json', 'adapter_model.safetensors']);
  }

  #read(folder: string, names: readonly string[]): Files {
    const files: Files = new Map(names.map((name) => [name, readFileSync(join(folder, name))]));
    this.#soundFolders.set(files, folder);
    return files;
  }

  /** A copy of sound files with a change. */
  add(group: string, name: string, kind: Case['kind'], sound: Files, outcome: Outcome, change: (files: Files) => void) {
    const path = join(this.#folder, String(this.cases.length));
    const files: Files = new Map(sound);
    change(files);
    mkdirSync(path);
    const from = this.#soundFolders.get(sound) ?? '';
    for (const [file, content] of files) {
      const to = join(path, file);
      if (typeof content === 'function') content(to);
      else if (content === sound.get(file)) linkSync(join(from, file), to);
      else writeFileSync(to, content);
    }
    this.#push(group, name, kind, path, outcome);
  }

  /** A file alone. */
  addFile(group: string, name: string, kind: Case['kind'], fileName: string, outcome: Outcome, content: Buffer) {
    const path = join(this.#folder, `${this.cases.length}-${fileName}`);
    writeFileSync(path, content);
    this.#push(group, name, kind, path, outcome);
  }

  #push(group: string, name: string, kind: Case['kind'], path: string, [code, detail, ...words]: Outcome) {
    this.cases.push({ group, name, kind, path, code, detail, words });
  }
}

export function bytesOf(files: Files, name: string): Buffer {
  const content = files.get(name);
  if (!(content instanceof Buffer)) throw new Error(`${name} is no file`);
  return content;
}

/** Puts text in the place of other text, which must be there. */
export function replace(text: string, from: string | RegExp, to: string): string {
  const edited = text.replace(from, () => to);
  if (edited === text) throw new Error(`${String(from)} is not there`);
  return edited;
}

export function edit(files: Files, name: string, from: string | RegExp, to: string): void {
  files.set(name, Buffer.from(replace(bytesOf(files, name).toString('latin1'), from, to), 'latin1'));
}

export function editJson(files: Files, name: string, change: (value: Record<string, unknown>) => void): void {
  const value = JSON.parse(bytesOf(files, name).toString()) as Record<string, unknown>;
  change(value);
  files.set(name, Buffer.from(JSON.stringify(value)));
}

/** The header of a safetensors file as text, and what is behind it. */
export function parts(bytes: Buffer): { header: string; rest: Buffer } {
  const end = 8 + Number(bytes.readBigUInt64LE());
  return { header: bytes.toString('latin1', 8, end), rest: bytes.subarray(end) };
}

export function editHeader(files: Files, name: string, from: string | RegExp, to: string): void {
  const { header, rest } = parts(bytesOf(files, name));
  files.set(name, file(Buffer.from(replace(header, from, to), 'latin1'), rest));
}

/** Files of a checkpoint and of an adapter. */
export const CONFIG = 'config.json';
export const GENERATION = 'generation_config.json';
export const TOKENIZER = 'tokenizer.json';
export const TOKENIZER_CONFIG = 'tokenizer_config.json';
export const WEIGHTS = 'model.safetensors';
export const PEFT_CONFIG = 'adapter_config.json';
export const PEFT_TENSORS = 'adapter_model.safetensors';
export const shardName = (i: number): string => `model-0000${i}-of-00003.safetensors`;
