// evaluate: tasks put to models, one model after the other, many examples at once. The output, a line for each example, is the state of an
// evaluation, as it is of a batch: what has a result is not computed again.
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import type { AdapterOption } from '../adapters.js';
import { endsAll, failureOf, membersOf, whenThereIsRoom } from '../batch.js';
import { BatchOutput, lockPath } from '../batch-output.js';
import { Cancellation, inParallel } from '../cancellation.js';
import { Gemma } from '../gemma.js';
import { localPath, replaceablePath } from '../local-file.js';
import { CROP, IMAGE, VIDEO, type CropOptions, type ImageOptions, type VideoOptions } from '../media-options.js';
import type { Message } from '../messages.js';
import {
  booleans,
  callbacks,
  checked,
  elsewhere,
  integers,
  or,
  signals,
  strings,
  type TableOf,
} from '../option-table.js';
import { generateOptions, type GenerateOptions, type LoadOptions } from '../options.js';
import { checkWritable } from '../permission.js';
import { Pace } from '../turns.js';
import { seededRandom } from '../random.js';
import { plain, show } from '../values.js';
import { memorized, PREFIX_TOKENS, SAMPLE_TOKENS } from './memorization.js';
import { scoresFrom, type MetricName, type Outcome, type WrittenScore } from './outcome.js';
import { summarize, type EvaluationResult } from './report.js';
import { draw } from './statistics.js';
import { readTask, type EvaluationTask, type Example, type Task } from './task.js';

/** A model of an evaluation, with the adapters that it is evaluated with. */
export interface EvaluationModel {
  /** Default: the name of the file, with the names of the adapters behind it. */
  name?: string;
  /** As `Gemma.load` takes it: then it is loaded when its turn comes, and freed before the next. Or a model that is loaded, which stays so. */
  model: string | URL | Gemma;
  /** Options of `Gemma.load`. */
  load?: Omit<LoadOptions, 'onProgress' | 'signal'>;
  /** As in `generate`, by the names that `load` gives. */
  adapter?: AdapterOption;
}

export interface EvaluationProgress {
  /** whose turn it is */
  model: string;
  /** examples with a result, all models together, those of earlier runs among them */
  done: number;
  resumed: number;
  /** at most: a corpus may have fewer samples than are asked for */
  total: number;
  /** of this run */
  failed: number;
  secondsLeft: number;
}

/** What a scan has found in a text. */
export interface PersonalDataFinding {
  /** such as `'email'` */
  kind: string;
}

export interface EvaluateOptions {
  /**
   * Path or `file:` URL of the results, JSON lines, one for each example of each model. A file that is there is gone on from: what has a
   * result is not computed again. Default: none are written.
   */
  output?: string | URL;
  /** Begin the output anew. Default false. */
  overwrite?: boolean;
  /** Examples that are worked on at once, 1 to 512. Default: 64, as many as are computed together. */
  concurrency?: number;
  /** Looks for personal data in what models write, for the metric `personal_data`: `scanText` of the package gemma-native-privacy. */
  scan?: (text: string) => readonly PersonalDataFinding[] | Promise<readonly PersonalDataFinding[]>;
  onProgress?: (progress: EvaluationProgress) => void;
  /** Aborting rejects with the signal's reason; what is done stays in the output. */
  signal?: AbortSignal;
}

const OPTIONS = {
  output: elsewhere,
  overwrite: or(booleans, false),
  concurrency: or(integers(1, 512), 64),
  scan: callbacks,
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<EvaluateOptions>;

const MODEL = {
  name: strings,
  model: elsewhere,
  load: elsewhere,
  adapter: elsewhere,
} as const satisfies TableOf<EvaluationModel>;

const MAX_MODELS = 100;
const MAX_TASKS = 1000;
const MAX_NAME = 300;
const DEFAULT_MAX_TOKENS = 256;

interface NamedModel extends EvaluationModel {
  name: string;
}

function adapterNames(adapter: AdapterOption | undefined): string[] {
  if (adapter === undefined) return [];
  if (typeof adapter === 'string') return [adapter];
  return Object.entries(adapter).map(([name, scale]) => (scale === 1 ? name : `${name}*${scale}`));
}

function namedModels(models: unknown): NamedModel[] {
  if (!Array.isArray(models) || models.length === 0 || models.length > MAX_MODELS) {
    const found = Array.isArray(models) ? models.length : show(models);
    throw new TypeError(`models: expected an array of 1 to ${MAX_MODELS} models, found ${found}`);
  }
  const names = new Set<string>();
  return (models as (string | URL | Gemma | EvaluationModel)[]).map((given, i) => {
    const isBare = typeof given === 'string' || given instanceof URL || given instanceof Gemma;
    const entry = isBare ? { model: given } : given;
    if (typeof entry !== 'object' || (entry as unknown) === null) {
      throw new TypeError(`models[${i}]: expected a model or { model, ... }, found ${show(entry)}`);
    }
    checked(MODEL, entry);
    const { model, adapter } = entry;
    if (typeof model !== 'string' && !(model instanceof URL) && !(model instanceof Gemma)) {
      throw new TypeError(`models[${i}].model: expected a path, a URL or a Gemma, found ${show(model)}`);
    }
    const own = model instanceof Gemma ? `model ${i + 1}` : basename(String(model)).replace(/\.gguf$/i, '');
    const name = entry.name ?? [own, ...adapterNames(adapter)].join(' + ');
    if (name === '' || name.length > MAX_NAME) {
      throw new RangeError(`models[${i}].name: expected 1 to ${MAX_NAME} characters, found ${name.length}`);
    }
    if (names.has(name)) throw new RangeError(`models[${i}].name: ${show(name)} stands a second time; name the models`);
    names.add(name);
    return { ...entry, name };
  });
}

/** What an example is worth: scores by metric, and what else stands in its result. */
interface Judged {
  scores: Partial<Record<MetricName, WrittenScore>>;
  details: object;
}

/** One example of one model. */
interface Job {
  task: number;
  line: number;
  id: string;
  place: string;
  /** what the result depends on, as a hash */
  settings: string;
  run: (signal: AbortSignal) => Promise<Judged>;
}

const PICTURE_OPTIONS = Object.keys({ ...IMAGE, ...CROP, ...VIDEO });

/** Of options of `generate` those that say what may be read and how pictures are cut. */
function readingOptions(options: GenerateOptions): ImageOptions & CropOptions & VideoOptions {
  return Object.fromEntries(Object.entries(options).filter(([name]) => PICTURE_OPTIONS.includes(name)));
}

const wordsOf = (text: string): number => Math.max(1, text.split(/\s+/).length); // as lm-evaluation-harness counts them

/** The examples that are shown before the one at `index`. */
function shotsOf({ fewShot: { n, seed, examples }, examples: asked }: Task, index: number): readonly Example[] {
  const own = examples === asked ? index : Infinity; // is not shown
  const count = examples.length - Number(own < Infinity);
  const chosen =
    seed === undefined || n === 0
      ? Array.from({ length: n }, (_, i) => i)
      : draw(n, count, seededRandom(Math.imul(seed >>> 0, 0x9e3779b1) ^ index));
  return chosen.map((i) => examples[i < own ? i : i + 1] as Example);
}

const turnsOf = ({ messages, prompt = '', images }: Example): readonly Message[] =>
  messages ?? [
    {
      role: 'user',
      content: images
        ? [...images.map((image) => ({ type: 'image' as const, image })), { type: 'text' as const, text: prompt }]
        : prompt,
    },
  ];

/** A question as it is put to a model. */
interface Question {
  input: string | Message[];
  options: Pick<GenerateOptions, 'raw' | 'images'>;
  /** stands before an answer */
  delimiter: string;
}

function questionOf(task: Task, index: number, isRaw: boolean): Question {
  const example = task.examples[index] as Example;
  const shots = shotsOf(task, index);
  const isConversation = !isRaw || example.messages !== undefined;
  const delimiter = task.delimiter ?? (isConversation ? '' : ' ');
  if (isConversation) {
    const shown = shots.flatMap((shot) => [
      ...turnsOf(shot),
      { role: 'assistant' as const, content: `${delimiter}${shot.shown ?? ''}` },
    ]);
    const system = task.system === undefined ? [] : [{ role: 'system' as const, content: task.system }];
    return { input: [...system, ...shown, ...turnsOf(example)], options: {}, delimiter };
  }
  const pictured = [example, ...shots].find(({ images, messages }) => images || messages);
  if (pictured && shots.length > 0) {
    throw new TypeError('fewShot: in raw text examples are texts without pictures; use raw: false');
  }
  const shown = shots.map(({ prompt = '', shown = '' }) => `${prompt}${delimiter}${shown}`);
  const parts = [...(task.system === undefined ? [] : [task.system]), ...shown, example.prompt ?? ''];
  return {
    input: parts.join('\n\n'),
    options: { raw: true, ...(example.images && { images: example.images }) },
    delimiter,
  };
}

// The first of the largest, as numpy's argmax.
const argmax = (values: readonly number[]): number => values.indexOf(Math.max(...values));

/** Puts tasks to one model. */
class Asker {
  readonly #gemma: Gemma;
  readonly #adapter: { adapter?: AdapterOption };
  readonly #scan: EvaluateOptions['scan'];

  constructor(gemma: Gemma, { adapter }: EvaluationModel, scan: EvaluateOptions['scan']) {
    this.#gemma = gemma;
    this.#adapter = adapter === undefined ? {} : { adapter };
    this.#scan = scan;
  }

  async judge(task: Task, index: number, signal: AbortSignal): Promise<Judged> {
    const example = task.examples[index] as Example;
    if (task.kind === 'perplexity') return this.#perplexity(task, example, signal);
    const question = questionOf(task, index, task.raw ?? !this.#gemma.info.instructionTuned);
    return task.kind === 'choice'
      ? this.#choice(task, example, question, signal)
      : this.#answer(task, example, question, signal);
  }

  async #perplexity({ contextSize = 512 }: Task, { text = '' }: Example, signal: AbortSignal): Promise<Judged> {
    const { nll, tokens } = await this.#gemma.perplexity(text, {
      contextSize: Math.min(contextSize, this.#gemma.info.contextSize),
      ...this.#adapter,
      signal,
    });
    const sum = nll * tokens;
    return {
      scores: {
        perplexity: [sum, tokens],
        word_perplexity: [sum, wordsOf(text)],
        bits_per_byte: [sum / Math.LN2, Buffer.byteLength(text)],
      },
      details: {},
    };
  }

  async #choice(
    { generate }: Task,
    { choices = [], answer }: Example,
    { input, options, delimiter }: Question,
    signal: AbortSignal,
  ): Promise<Judged> {
    const scored = await this.#gemma.score(
      input,
      choices.map((choice) => `${delimiter}${choice}`),
      { ...readingOptions(generate), ...options, ...this.#adapter, signal },
    );
    const logprobs = scored.map(({ logprob }) => logprob);
    // Characters as Python counts them.
    const normalized = logprobs.map((logprob, i) => logprob / [...(choices[i] ?? '')].length);
    const chosen = argmax(logprobs);
    return {
      scores: { acc: Number(chosen === answer), acc_norm: Number(argmax(normalized) === answer) },
      details: { chosen, logprobs },
    };
  }

  async #answer(
    { generate, scorer }: Task,
    { answer }: Example,
    { input, options }: Question,
    signal: AbortSignal,
  ): Promise<Judged> {
    const { text, finishReason } = await this.#gemma.generate(input, {
      temperature: 0,
      maxOutputTokens: DEFAULT_MAX_TOKENS,
      seed: 0,
      ...(options.raw && { stopSequences: ['\n\n'] }),
      ...generate,
      ...options,
      ...this.#adapter,
      signal,
    });
    const scores = (await scorer?.score(text, answer)) ?? {};
    const { found, score } = await this.#personalData(text);
    return { scores: { ...scores, ...score }, details: { output: text, finishReason, ...found } };
  }

  // In what was written.
  async #personalData(text: string): Promise<{ found: object; score: Judged['scores'] }> {
    if (!this.#scan) return { found: {}, score: {} };
    const kinds = [...new Set((await this.#scan(text)).map(({ kind }) => kind))];
    return {
      found: kinds.length > 0 ? { personalData: kinds } : {},
      score: { personal_data: Number(kinds.length > 0) },
    };
  }

  /**
   * The samples of a corpus: its texts cut into pieces of 100 tokens, of which so many are drawn. The same ones for the same tokenizer, seed
   * and corpus.
   */
  async samples({ examples, memorization }: Task, signal: AbortSignal): Promise<Sample[]> {
    const { samples = 0, seed = 0 } = memorization ?? {};
    const first: number[] = []; // piece of each text among all
    let n = 0;
    for (const { text = '' } of examples) {
      first.push(n);
      n += Math.floor((await this.#gemma.tokenize(text, { signal })).length / SAMPLE_TOKENS);
    }
    const drawn = draw(samples, n, seededRandom(seed)).sort((a, b) => a - b);
    const found: Sample[] = [];
    for (const [i, example] of examples.entries()) {
      const end = first[i + 1] ?? n;
      if ((drawn[found.length] ?? Infinity) >= end) continue;
      const tokens = await this.#gemma.tokenize(example.text ?? '', { signal });
      for (let piece = drawn[found.length]; piece !== undefined && piece < end; piece = drawn[found.length]) {
        const at = (piece - (first[i] ?? 0)) * SAMPLE_TOKENS;
        found.push({ example, at, tokens: Int32Array.from(tokens.slice(at, at + SAMPLE_TOKENS)) });
      }
    }
    return found;
  }

  async memorization({ at, tokens }: Sample, signal: AbortSignal): Promise<Judged> {
    const prefix = [...(await this.#gemma.tokenize('', { bos: true, signal })), ...tokens.subarray(0, PREFIX_TOKENS)];
    const suffix = [...tokens.subarray(PREFIX_TOKENS)];
    const result = await this.#gemma.generate(prefix, {
      temperature: 0,
      maxOutputTokens: suffix.length,
      ...this.#adapter,
      signal,
    });
    const { exact, approximate, distance } = memorized(result.tokens, suffix);
    const { found, score } = await this.#personalData(result.text);
    return {
      scores: { memorized_exact: Number(exact), memorized_approximate: Number(approximate), ...score },
      details: { at, distance, output: result.text, ...found },
    };
  }
}

/** A piece of a corpus. */
interface Sample {
  example: Example;
  /** its first token in the text */
  at: number;
  tokens: Int32Array;
}

/** The settings that a result depends on, as a short hash: a result of others counts as one of another input. */
function fingerprint(value: unknown): string {
  const text = JSON.stringify(value, (_, part: unknown) => {
    if (part instanceof URL) return part.href;
    if (part instanceof Uint8Array) return createHash('sha256').update(part).digest('hex');
    return typeof part === 'bigint' ? String(part) : part;
  });
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}

/** One run of an evaluation. */
class Evaluation {
  readonly #models: readonly NamedModel[];
  readonly #tasks: readonly Task[];
  readonly #options: EvaluateOptions;
  readonly #concurrency: number;
  readonly #outcomes: Outcome[][][];
  readonly #lines = new Map<number, Outcome & { fingerprint: string; message: string | undefined }>(); // of the output
  readonly #offsets: number[] = []; // of tasks among the lines of a model
  readonly #linesPerModel: number;
  readonly #start = performance.now();
  readonly #failures = new Map<string, EvaluationResult['failures'][number]>();
  #output: BatchOutput | undefined;
  #done = 0;
  #resumed = 0;
  #total: number;
  #failed = 0;

  constructor(models: readonly NamedModel[], tasks: readonly Task[], options: EvaluateOptions, concurrency: number) {
    this.#models = models;
    this.#tasks = tasks;
    this.#options = options;
    this.#concurrency = concurrency;
    this.#outcomes = models.map(() => tasks.map(() => []));
    let n = 0;
    for (const { examples, memorization } of tasks) {
      this.#offsets.push(n);
      n += memorization?.samples ?? examples.length;
    }
    this.#linesPerModel = n;
    this.#total = n * models.length;
  }

  /** A result of the output, as JSON. What it says is looked at when its example's turn comes. */
  read(line: number, bytes: Uint8Array): void {
    try {
      const result = JSON.parse(Buffer.from(bytes).toString()) as Record<string, unknown>;
      const { id, settings, scores, error } = result;
      this.#lines.set(line, {
        id: typeof id === 'string' ? id : '',
        fingerprint: typeof settings === 'string' ? settings : '',
        scores: scoresFrom(scores),
        message: (error as { message?: string } | undefined)?.message,
      });
    } catch {
      this.#lines.set(line, { id: '', fingerprint: '', scores: undefined, message: '' });
    }
  }

  async run(output: BatchOutput | undefined, cancellation: Cancellation): Promise<EvaluationResult> {
    this.#output = output;
    const last = output?.done.highest ?? 0;
    if (last > this.#total) output?.refuseInput(`line ${last} has a result, there are ${this.#total} examples at most`);
    for (const m of this.#models.keys()) await this.#ask(m, cancellation);
    const names = this.#models.map(({ name }) => name);
    const tasks = this.#tasks.map(({ name, kind, examples }, t) => ({
      name,
      kind,
      examples: kind === 'memorization' ? Math.max(...this.#outcomes.map((of) => of[t]?.length ?? 0)) : examples.length,
    }));
    return {
      models: names,
      tasks,
      ...summarize(names, tasks.map(({ name }) => name), this.#outcomes),
      failures: [...this.#failures.values()],
      examples: this.#done,
      resumed: this.#resumed,
    }; // prettier-ignore
  }

  // All tasks to one model.
  async #ask(m: number, cancellation: Cancellation): Promise<void> {
    const entry = this.#models[m] as NamedModel;
    const isDone = this.#tasks.every(({ memorization, examples }, t) => {
      if (memorization) return false; // how many samples there are, its tokenizer says
      return examples.every((_, i) => this.#lines.has(this.#lineOf(m, t, i)));
    });
    const { model, load } = entry;
    const { signal } = cancellation;
    const gemma = isDone ? undefined : model instanceof Gemma ? model : await Gemma.load(model, { ...load, signal });
    try {
      const asker = gemma && new Asker(gemma, entry, this.#options.scan);
      const jobs = await this.#jobs(m, asker, signal);
      await inParallel(jobs, this.#concurrency, (job, _, each) => this.#do(m, job, each), cancellation);
    } finally {
      if (gemma && gemma !== model) await gemma.dispose();
    }
  }

  #lineOf(m: number, t: number, i: number): number {
    return 1 + m * this.#linesPerModel + (this.#offsets[t] ?? 0) + i;
  }

  // What is left to do; what the output has is taken from it.
  async #jobs(m: number, asker: Asker | undefined, signal: AbortSignal): Promise<Job[]> {
    const jobs: Job[] = [];
    const pace = new Pace(signal);
    const { name, load, adapter, model } = this.#models[m] as NamedModel;
    const ofModel = { model: model instanceof Gemma ? '' : String(model), load, adapter };
    const hashes = new Map<Example, string>();
    const hashOf = (example: Example): string => {
      const { place: _, ...asked } = example;
      const known = hashes.get(example) ?? fingerprint(asked);
      hashes.set(example, known);
      return known;
    };
    for (const [t, task] of this.#tasks.entries()) {
      const ofTask = fingerprint({ ...ofModel, task: task.settings, scan: !!this.#options.scan });
      const add = async (i: number, example: Example, suffix: string, judge: Job['run']) => {
        if (pace.due) await pace.turn();
        const id = `${name}/${task.name}/${example.id}${suffix}`;
        const settings = fingerprint([ofTask, hashOf(example), shotsOf(task, i).map(hashOf)]);
        const line = this.#lineOf(m, t, i);
        if (this.#resume(m, t, line, id, settings)) return;
        jobs.push({ task: t, line, id, place: example.place, settings, run: judge });
      };
      if (task.memorization) {
        const samples = (await asker?.samples(task, signal)) ?? [];
        this.#total -= task.memorization.samples - samples.length;
        for (const [i, sample] of samples.entries()) {
          await add(i, sample.example, `@${sample.at}`, (each) => (asker as Asker).memorization(sample, each));
        }
      } else {
        for (const [i, example] of task.examples.entries()) {
          await add(i, example, '', (each) => (asker as Asker).judge(task, i, each));
        }
      }
    }
    return jobs;
  }

  // Whether the output has it.
  #resume(m: number, t: number, line: number, id: string, settings: string): boolean {
    const known = this.#lines.get(line);
    if (!known) return false;
    if (known.id !== id) this.#output?.refuseInput(`the result of line ${line} is of ${plain(known.id, 60)}, now it is ${plain(id, 60)}`);
    if (known.fingerprint !== settings) this.#output?.refuseInput(`the result of line ${line}, ${plain(id, 60)}, was made with other settings`);
    ++this.#resumed;
    this.#record(m, t, id, known.scores, known.message ?? '');
    return true;
  } // prettier-ignore

  #record(m: number, t: number, id: string, scores: Outcome['scores'], message: string): void {
    const model = this.#models[m]?.name ?? '';
    const task = this.#tasks[t]?.name ?? '';
    // Across models an example has the same name.
    this.#outcomes[m]?.[t]?.push({ id: id.slice(model.length), scores });
    ++this.#done;
    if (scores) return;
    const key = `${m} ${t}`;
    const failure = this.#failures.get(key);
    if (failure) ++failure.failed;
    else this.#failures.set(key, { model, task, failed: 1, message });
  }

  async #do(m: number, { task, line, id, place, settings, run }: Job, cancellation: Cancellation): Promise<void> {
    const { signal } = cancellation;
    let members: string;
    let scores: Outcome['scores'];
    let message = '';
    try {
      const judged = await whenThereIsRoom(() => run(signal), signal);
      scores = scoresFrom(judged.scores);
      members = membersOf({ settings, ...judged.details, scores: judged.scores });
    } catch (error) {
      if (cancellation.cancelled || endsAll(error)) throw error;
      const failure = failureOf(error);
      message = `${place}: ${failure.message}`;
      members = membersOf({ settings, error: { ...failure, message } });
      ++this.#failed;
    }
    await this.#output?.write(`{"line":${line},"id":${JSON.stringify(id)},${members}}\n`);
    this.#record(m, task, id, scores, message);
    this.#report(m);
  }

  #report(m: number): void {
    const done = this.#done;
    const seconds = Math.max(1, performance.now() - this.#start) / 1000;
    this.#options.onProgress?.({
      model: this.#models[m]?.name ?? '',
      done,
      resumed: this.#resumed,
      total: this.#total,
      failed: this.#failed,
      secondsLeft: ((this.#total - done) * seconds) / Math.max(1, done - this.#resumed),
    });
  }
}

/** See `evaluate` in index.ts. */
export async function runEvaluation(
  models: readonly (string | URL | Gemma | EvaluationModel)[],
  tasks: readonly EvaluationTask[],
  options: EvaluateOptions = {},
): Promise<EvaluationResult> {
  const { overwrite, concurrency } = checked(OPTIONS, options);
  const named = namedModels(models);
  if (!Array.isArray(tasks) || tasks.length === 0 || tasks.length > MAX_TASKS) {
    throw new TypeError(`tasks: expected an array of 1 to ${MAX_TASKS} tasks, found ${show(tasks)}`);
  }
  for (const task of tasks as readonly EvaluationTask[]) generateOptions(task.generate ?? {});
  const { signal } = options;
  signal?.throwIfAborted();
  // What is rejected with an abort's reason has closed its output, so that the next call can go on with it.
  const cancellation = new Cancellation();
  const abort = () => cancellation.cancel(signal?.reason);
  signal?.addEventListener('abort', abort, { once: true });
  try {
    return await run(named, tasks, options, { overwrite, concurrency }, cancellation);
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

async function run(
  models: readonly NamedModel[],
  tasks: readonly EvaluationTask[],
  options: EvaluateOptions,
  { overwrite, concurrency }: { overwrite: boolean; concurrency: number },
  cancellation: Cancellation,
): Promise<EvaluationResult> {
  const { signal } = cancellation;
  const read: Task[] = [];
  for (const [i, task] of tasks.entries()) {
    const found = await readTask(task, i, signal);
    if (read.some(({ name }) => name === found.name)) {
      throw new RangeError(`tasks[${i}].name: ${show(found.name)} stands a second time; name the tasks`);
    }
    read.push(found);
  }
  const evaluation = new Evaluation(models, read, options, concurrency);
  if (options.output === undefined) return evaluation.run(undefined, cancellation);
  const path = await replaceablePath(localPath(options.output, 'output', { allowLocal: true }, 'ERR_FILE'));
  for (const written of [path, lockPath(path)]) checkWritable(written);
  const output = await BatchOutput.open(path, overwrite, signal, (line, bytes) => evaluation.read(line, bytes));
  let isFinished = false;
  try {
    const result = await evaluation.run(output, cancellation);
    isFinished = true;
    return { ...result, path };
  } finally {
    await output.close(isFinished);
  }
}
