// Options of Gemma.finetune: described here and nowhere else, as in options.ts.
import { randomInt } from 'node:crypto';
import type { HubOptions } from '../hub-options.js';
import type { CropOptions, ImageOptions } from '../media-options.js';
import {
  booleans,
  callbacks,
  checked,
  choices,
  custom,
  elsewhere,
  integers,
  numbers,
  or,
  signals,
  strings,
  type TableOf,
  type Values,
} from '../option-table.js';
import { ANY_SIZE, number, show } from '../values.js';

/** The matrices of a layer that can be trained, by their names in transformers. */
export const TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;
export type FinetuneTarget = (typeof TARGETS)[number];

/** After a step of training, and after an evaluation. */
export interface FinetuneProgress {
  /** done, of all */
  step: number;
  steps: number;
  /** passes through the data so far: 1.5 is in the middle of the second one */
  epoch: number;
  /** of this step's examples, before the step */
  loss: number;
  /** where this step was followed by an evaluation */
  validationLoss?: number;
  learningRate: number;
  /** norm of all gradients together, before clipping */
  gradientNorm: number;
  /** of this run, without evaluations */
  tokensPerSecond: number;
  secondsLeft: number;
  /** loss `'dpo'`: how often the chosen answer was preferred */
  rewardAccuracy?: number;
}

export interface FinetuneOptions {
  /** What is trained on, as `load` takes it; weights of any stored type, which stay as they are. */
  model: string | URL;
  /**
   * A file of examples, path or `file:` URL: JSON lines `{ messages }` (the assistant's are learned), `{ prompt, completion }`, `{ text }`
   * (all of it), or for the loss `'dpo'` `{ prompt, chosen, rejected }`. See the guide to fine-tuning.
   */
  data: string | URL;
  /** The folder that the adapter is written to, path or `file:` URL. While training goes on it is `OUTPUT.part`. */
  output: string | URL;

  /** Of the adapter's matrices, 1 to 4096. Default 8. */
  rank?: number;
  /** The adapter's change counts `alpha / rank` times. Default: twice the rank. */
  alpha?: number;
  /** True: `alpha / sqrt(rank)` (rank-stabilised LoRA), for large ranks. Default false. */
  rslora?: boolean;
  /** Share of an adapter's inputs that a step leaves out, 0 to 0.9. Default 0. */
  dropout?: number;
  /** Which matrices of a layer are trained. Default: all seven. */
  targets?: readonly FinetuneTarget[];
  /** Which layers are trained, from 0. Default: all. */
  layers?: readonly number[];
  /** Training goes on from this adapter, of the same rank and targets: a folder of PEFT's or a GGUF file. */
  adapter?: string | URL;

  /**
   * What is minimised: `'next-token'` (default); `'distillation'`: the distance from a teacher's distribution (default with `teacher`);
   * `'dpo'`: preferences, with the model without its adapter as the reference.
   */
  loss?: 'next-token' | 'distillation' | 'dpo';
  /** Of `'distillation'`: a model with the same vocabulary, as `load` takes it. Without it lines store what their teacher says. */
  teacher?: string | URL;
  /** So many of a teacher's likeliest tokens are learned for each token, 1 to 1000. Default 64. */
  teacherTopK?: number;
  /** Of `'distillation'`: what both distributions are divided by. Above 0, default 1. */
  temperature?: number;
  /** Of `'distillation'`: how much the teacher counts beside the examples' own tokens, 0 to 1. Default 1. */
  teacherShare?: number;
  /** Of `'dpo'`: how much differences from the reference count. Above 0, default 0.1. */
  beta?: number;

  /** Passes through the data. Default 3. */
  epochs?: number;
  /** Steps, instead of `epochs`. */
  steps?: number;
  /** Examples of a step. Default 8. */
  batchSize?: number;
  /** Tokens of an example at most, 8 to 131072. Default 512. */
  maxLength?: number;
  /**
   * What becomes of longer examples: `'error'` (default), `'cut'` at their end (those with pictures and pairs are left out), or `'skip'`.
   */
  tooLong?: 'error' | 'cut' | 'skip';
  /** Default true: several examples are computed together in a row of at most `maxLength` tokens. The result is the same. */
  packing?: boolean;
  /** The highest. Default 2e-4; `'dpo'`: 2e-5. */
  learningRate?: number;
  /** What becomes of it: `'cosine'` (default) and `'linear'` fall to 0, `'constant'` stays. */
  schedule?: 'constant' | 'cosine' | 'linear';
  /** Steps in which it rises: a share below 1, or a number of steps. Default 0.03. */
  warmup?: number;
  /** Default `'adamw'`. */
  optimizer?: 'adamw' | 'sgd';
  /** Default 0.01. */
  weightDecay?: number;
  /** Gradients are shortened to this norm; 0: never. Default 1. */
  clip?: number;
  /** Of initial values, order and dropout: the same seed gives the same adapter. Default: a new one, which the result tells. */
  seed?: number;

  /** Examples that are not learned but tell how well others are: a share of the data below 1, or a file. Default 0: none. */
  validation?: number | string | URL;
  /** Steps between evaluations. Default: once in each pass through the data. */
  evaluateEvery?: number;
  /** Ends training after so many evaluations in a row without a better one. Default: never. What is kept is the best in any case. */
  patience?: number;
  /** Steps between checkpoints, from which a run that was ended goes on. Default 50. */
  checkpointEvery?: number;
  /** Default true: a run that was interrupted is gone on from, to the same adapter. False: begins anew. */
  resume?: boolean;
  /** Default false: an output that is there is `ERR_FILE` (`FILE_EXISTS`). */
  overwrite?: boolean;
  /** Also write the adapter as llama.cpp takes it, `adapter.gguf` in the output. Default false. */
  gguf?: boolean;
  /** What `adapter_config.json` names as the base model, for PEFT. Default: the model's name on the hub, else the
   * last part of its path: an adapter that is passed on tells nothing of this machine's folders. */
  baseModel?: string;

  /** Threads that compute. Default: the physical cores this process may use, but for one. */
  threads?: number;
  /** Forces an instruction set, as in `load`. */
  isa?: string;
  /** Memory for what is kept of the forward pass, in bytes; what does not fit is computed twice. Default 256 MiB. */
  activationBytes?: number;
  /** A longer line is an error. Default 16 MiB. */
  maxLineBytes?: number;
  /** How pictures in examples are read and cut, as in `generate`. */
  images?: ImageOptions & CropOptions;
  /** As in `load`. */
  mmproj?: string | URL | false;
  chatTemplate?: string;
  mmap?: boolean;
  hub?: HubOptions;
  /** Called after each step. */
  onProgress?: (progress: FinetuneProgress) => void;
  /** Aborting ends training after a checkpoint, then rejects with the signal's reason. The same call goes on from there. */
  signal?: AbortSignal;
}

const positive = (most: number) => numbers(`a number above 0, at most ${most}`, (n) => n > 0 && n <= most);
const share = (most: number) => numbers(`a number from 0 to ${most}`, (n) => n >= 0 && n <= most);

const FINETUNE = {
  model: elsewhere,
  data: elsewhere,
  output: elsewhere,
  rank: or(integers(1, 4096), 8),
  alpha: positive(1e6),
  rslora: or(booleans, false),
  dropout: or(share(0.9), 0),
  targets: custom((name, value) => {
    if (!Array.isArray(value) || value.length === 0) {
      throw new TypeError(`${name}: expected some of ${TARGETS.join(', ')}, found ${show(value)}`);
    }
    return [...new Set(value.map((item: unknown, i) => choices(...TARGETS).check(`${name}[${i}]`, item)))].sort();
  }),
  layers: custom((name, value) => {
    if (!Array.isArray(value) || value.length === 0 || value.length > 1000) {
      throw new TypeError(`${name}: expected the numbers of layers, found ${show(value)}`);
    }
    const layers = value.map((item: unknown, i) => integers(0, 1000).check(`${name}[${i}]`, item));
    return [...new Set(layers)].sort((a, b) => a - b);
  }),
  adapter: elsewhere,
  loss: choices('next-token', 'distillation', 'dpo'),
  teacher: elsewhere,
  teacherTopK: or(integers(1, 1000), 64),
  temperature: or(positive(1000), 1),
  teacherShare: or(share(1), 1),
  beta: or(positive(1000), 0.1),
  epochs: or(integers(1, 1_000_000), 3),
  steps: integers(1, 1_000_000_000),
  batchSize: or(integers(1, 65536), 8),
  maxLength: or(integers(8, 131072), 512),
  tooLong: or(choices('error', 'cut', 'skip'), 'error'),
  packing: or(booleans, true),
  learningRate: positive(1000),
  schedule: or(choices('constant', 'cosine', 'linear'), 'cosine'),
  warmup: or(
    numbers('a share from 0 to 1, or a number of steps', (n) => n >= 0 && (n < 1 || Number.isInteger(n))),
    0.03,
  ),
  optimizer: or(choices('adamw', 'sgd'), 'adamw'),
  weightDecay: or(share(1000), 0.01),
  clip: or(share(1e9), 1),
  seed: or(integers(0, ANY_SIZE), () => randomInt(2 ** 32)),
  validation: custom((name, value): number | string | URL => {
    if (typeof value !== 'number') return value as string | URL;
    return number(name, value, (n) => n >= 0 && n < 1, 'a share from 0 to 1, or a file');
  }),
  evaluateEvery: integers(1),
  patience: integers(1),
  checkpointEvery: or(integers(1), 50),
  resume: or(booleans, true),
  overwrite: or(booleans, false),
  gguf: or(booleans, false),
  baseModel: strings,
  threads: integers(1, 1024),
  isa: strings,
  activationBytes: or(integers(0, ANY_SIZE), 256 << 20),
  maxLineBytes: or(integers(1, 1 << 28), 16 << 20),
  images: elsewhere,
  mmproj: elsewhere,
  chatTemplate: strings,
  mmap: booleans,
  hub: elsewhere,
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<FinetuneOptions>;

type Given = Values<typeof FINETUNE>;

/** Options with their defaults, those that depend on others too. */
export interface FinetuneSettings extends Given {
  alpha: number;
  loss: 'next-token' | 'distillation' | 'dpo';
  learningRate: number;
  validation: number | string | URL;
}

/** @throws TypeError, RangeError */
export function finetuneSettings(options: FinetuneOptions): FinetuneSettings {
  const given = checked(FINETUNE, options);
  const loss = given.loss ?? (options.teacher === undefined ? 'next-token' : 'distillation');
  if (options.teacher !== undefined && loss !== 'distillation') {
    throw new TypeError("teacher: only with the loss 'distillation'");
  }
  if (given.steps !== undefined && options.epochs !== undefined) {
    throw new TypeError('epochs: the option steps says how long; give one of them');
  }
  const validation = given.validation ?? 0;
  if (given.patience !== undefined && validation === 0) {
    throw new TypeError('patience: needs the option validation, by which it is decided');
  }
  return {
    ...given,
    loss,
    validation,
    alpha: given.alpha ?? 2 * given.rank,
    learningRate: given.learningRate ?? (loss === 'dpo' ? 2e-5 : 2e-4),
  };
}
