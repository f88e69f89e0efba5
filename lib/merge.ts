// Models that are made of several: adapters that are put into the weights, and means of two checkpoints.
import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { MAX_ADAPTERS, MAX_SCALE, findAdapter } from './adapters.js';
import { abortableWriting } from './cancellation.js';
import { findModelFile } from './model-files.js';
import { checkOutputs, filesOfModel, runWork, type Written } from './model-work.js';
import { addon, type NativeMergeOptions } from './native.js';
import { choices, custom, elsewhere, known, numbers, or, valuesOf, type TableOf } from './option-table.js';
import { MAX_OVERRIDES, MAX_PATTERN, prepareWrite, WRITE, type QuantizeResult, type WriteOptions } from './quantize.js';
import { number, plain, show } from './values.js';

/** An adapter by path or `file:` URL, and how much of it is added: default 1. */
export type MergedAdapter = string | URL | { path: string | URL; scale?: number };

/** Another model of the same shape, and how the two become one. */
export interface MergeWith {
  /** as `load` takes it */
  model: string | URL;
  /** Of the other, 0 to 1. Default: 0.5. */
  weight?: number;
  /** Other weights for some tensors, by patterns as in `overrides`; of several that name a tensor the first counts. */
  weights?: Readonly<Record<string, number>>;
  /**
   * Default `linear`: (1 - weight) a + weight b. `slerp`: on the arc between the two, each tensor as a whole; tensors that are nearly
   * parallel linearly. Norms count as checkpoints store them, without the 1 that is added to them.
   */
  method?: 'linear' | 'slerp';
}

export interface MergeOptions extends WriteOptions {
  /** What is put into the weights, in this order; what comes out computes what a model with them loaded does. */
  adapters?: readonly MergedAdapter[];
  /** What the model is mixed with, instead of adapters. */
  with?: MergeWith;
  /**
   * The vision encoder of a GGUF file, path or `file:` URL, for adapters that change it: it is written to `mmprojOutput`. A folder's is in
   * the folder.
   */
  mmproj?: string | URL;
}

export interface MergeResult extends QuantizeResult {
  /** tensors with other values than the model's */
  changedTensors: number;
}

const isWeight = (value: number) => value >= 0 && value <= 1;
const weights = numbers('a number from 0 to 1', isWeight);

const WITH = {
  model: elsewhere,
  weight: weights,
  weights: custom((name, value) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new TypeError(`${name}: expected an object of weights by tensor, found ${show(value)}`);
    }
    const entries = Object.entries(value as Record<string, unknown>);
    if (entries.length > MAX_OVERRIDES) {
      throw new RangeError(`${name}: expected at most ${MAX_OVERRIDES}, found ${entries.length}`);
    }
    return entries.map(([pattern, weight]) => {
      if (pattern === '' || pattern.length > MAX_PATTERN) {
        throw new RangeError(`${name}: expected patterns of 1 to ${MAX_PATTERN} characters, found ${pattern.length}`);
      }
      return { pattern, weight: weights.check(`${name}[${plain(pattern, 60)}]`, weight) };
    });
  }),
  method: or(choices('linear', 'slerp'), 'linear'),
} satisfies TableOf<MergeWith>;

const MERGE = {
  ...WRITE,
  adapters: custom((name, value) => {
    if (!Array.isArray(value)) throw new TypeError(`${name}: expected a list of adapters, found ${show(value)}`);
    if (value.length === 0 || value.length > MAX_ADAPTERS) {
      throw new RangeError(`${name}: expected 1 to ${MAX_ADAPTERS} adapters, found ${value.length}`);
    }
    return value.map((item: unknown, i) => {
      const where = `${name}[${i}]`;
      if (typeof item === 'string' || item instanceof URL) return { path: item, scale: 1 };
      known({ path: elsewhere, scale: elsewhere }, item, where);
      const { path, scale = 1 } = item as { path: string | URL; scale?: number };
      const expected = `a number from -${MAX_SCALE} to ${MAX_SCALE}`;
      return { path, scale: number(`${where}.scale`, scale, (of) => Math.abs(of) <= MAX_SCALE, expected) };
    });
  }),
  with: custom((name, value) => {
    known(WITH, value, name);
    const { model } = value as MergeWith;
    return { model, ...valuesOf(WITH, value as object, `${name}.`) };
  }),
  mmproj: elsewhere,
} satisfies TableOf<MergeOptions>;

// What is read of adapters: their files, and of a folder its configuration.
async function filesOfAdapter(path: string, isFolder: boolean): Promise<string[]> {
  if (!isFolder) return [path];
  return (await readdir(dirname(path)).catch(() => [])).map((name) => join(dirname(path), name));
}

/** As `Gemma.merge`. */
export async function merge(model: string | URL, output: string | URL, options: MergeOptions): Promise<MergeResult> {
  known(MERGE, options);
  const { adapters, with: other } = valuesOf(MERGE, options);
  if (!adapters === !other) {
    throw new TypeError(`expected the option adapters, or the option with, found ${adapters ? 'both' : 'neither'}`);
  }
  if (options.mmproj !== undefined && other) {
    throw new TypeError('mmproj: goes with adapters; two vision encoders are mixed like two models, by their files');
  }
  return abortableWriting(options.signal, async (cancellation) => {
    const path = await findModelFile(model);
    const mmproj = options.mmproj === undefined ? undefined : await findModelFile(options.mmproj, 'mmproj');
    const { work, inputs, outputs } = await prepareWrite(path, output, options, mmproj !== undefined);
    const merged: NativeMergeOptions = work;
    if (mmproj !== undefined) {
      merged.mmproj = mmproj;
      inputs.push(mmproj);
    }
    if (adapters) {
      const sources: NonNullable<NativeMergeOptions['adapters']> = [];
      for (const { path: file, scale } of adapters) sources.push({ ...(await findAdapter('adapters', file)), scale });
      merged.adapters = sources;
      for (const { path: file, peft } of sources) inputs.push(...(await filesOfAdapter(file, peft !== undefined)));
    }
    if (other) {
      merged.other = await findModelFile(other.model, 'with.model');
      merged.blend = other.method;
      if (other.weight !== undefined) merged.weight = other.weight;
      if (other.weights) merged.weights = other.weights;
      inputs.push(...(await filesOfModel(merged.other)));
    }
    await checkOutputs(outputs, inputs);
    const native = addon();
    const result = await runWork<Written<MergeResult>>(
      (listener) => native.merge(merged, listener),
      native,
      cancellation,
      options.onProgress,
    );
    return { path: work.output, ...result };
  });
}
