// What a training does in which step: all of it follows from the seed and the number of the step, so nothing of it has to be saved.
import { seededRandom } from '../random.js';
import type { Example } from './examples.js';
import type { FinetuneSettings } from './options.js';

/** 0 .. n - 1 in an order that a seed and a number decide: that of an epoch from 0 on; -1: what is set apart. */
export function shuffled(n: number, seed: number, number: number): Uint32Array {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  const random = seededRandom(
    (seed % 2 ** 32) ^ Math.imul(Math.floor(seed / 2 ** 32), 0x9e3779b1) ^ Math.imul(number + 2, 0x85ebca6b),
  );
  for (let i = n - 1; i > 0; --i) {
    const k = Math.floor(random() * (i + 1));
    [order[i], order[k]] = [order[k] ?? 0, order[i] ?? 0];
  }
  return order;
}

/**
 * Sets a share of the examples apart, at least one and never all of them. The others keep their order.
 *
 * @returns undefined where there are not enough
 */
export function split<T>(
  all: readonly T[],
  share: number,
  seed: number,
): { training: T[]; validation: T[] } | undefined {
  if (share === 0) return { training: [...all], validation: [] };
  if (all.length < 2) return undefined;
  const n = Math.min(all.length - 1, Math.max(1, Math.round(share * all.length)));
  const apart = new Set(shuffled(all.length, seed, -1).subarray(0, n));
  return {
    training: all.filter((_, i) => !apart.has(i)),
    validation: all.filter((_, i) => apart.has(i)),
  };
}

/** First fit: each example goes into the first row that has room for it, else begins a new one. Rows and examples keep their order. */
export function packed(examples: readonly Example[], rowLength: number, packing: boolean): Example[][] {
  const rows: { left: number; examples: Example[] }[] = [];
  for (const example of examples) {
    const row = packing ? rows.find(({ left }) => left >= example.tokens) : undefined;
    if (row) {
      row.left -= example.tokens;
      row.examples.push(example);
    } else {
      rows.push({ left: rowLength - example.tokens, examples: [example] });
    }
  }
  return rows.map((row) => row.examples);
}

/** Which examples a training takes, and at which rate. */
export class TrainingPlan {
  readonly steps: number;
  readonly stepsPerEpoch: number;
  readonly #n: number;
  readonly #settings: FinetuneSettings;
  readonly #warmup: number;
  #epoch = -1;
  #order: Uint32Array = new Uint32Array();

  /** @param n examples that are learned */
  constructor(n: number, settings: FinetuneSettings) {
    const { steps, epochs, batchSize, warmup } = settings;
    this.#n = n;
    this.#settings = settings;
    this.stepsPerEpoch = Math.ceil(n / batchSize);
    this.steps = steps ?? epochs * this.stepsPerEpoch;
    this.#warmup = Math.min(this.steps, warmup < 1 ? Math.ceil(warmup * this.steps) : warmup);
  }

  /** Passes through the data when so many steps are done. */
  epochs(step: number): number {
    const whole = Math.floor(step / this.stepsPerEpoch);
    return whole + Math.min(1, ((step % this.stepsPerEpoch) * this.#settings.batchSize) / this.#n);
  }

  /** Numbers of the examples of a step, from 0 on; each is taken once in an epoch. */
  batch(step: number): number[] {
    const { batchSize, seed } = this.#settings;
    const epoch = Math.floor(step / this.stepsPerEpoch);
    if (epoch !== this.#epoch) {
      this.#epoch = epoch;
      this.#order = shuffled(this.#n, seed, epoch);
    }
    const from = (step % this.stepsPerEpoch) * batchSize;
    return Array.from(this.#order.subarray(from, from + batchSize));
  }

  /** Of a step, from 0 on. */
  learningRate(step: number): number {
    const { learningRate, schedule } = this.#settings;
    if (step < this.#warmup) return (learningRate * (step + 1)) / this.#warmup;
    const done = (step - this.#warmup) / Math.max(1, this.steps - this.#warmup);
    if (schedule === 'constant') return learningRate;
    return learningRate * (schedule === 'linear' ? 1 - done : (1 + Math.cos(Math.PI * done)) / 2);
  }
}
