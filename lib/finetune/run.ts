// Gemma.finetune: from options to a folder with an adapter. What is computed is native code's (native/train/), a step at a time on a
// thread of its own; this decides which examples a step has, when the result is looked at, kept and written.
import { findAdapter } from '../adapters.js';
import { Cancellation } from '../cancellation.js';
import { fileIdentity } from '../embedding-cache.js';
import { GemmaError } from '../errors.js';
import { availableMemory } from '../memory.js';
import { runWork } from '../model-work.js';
import {
  addon,
  type NativeAddon,
  type NativeTraining,
  type NativeTrainingBatch,
  type NativeTrainingExample,
  type NativeTrainingInfo,
  type NativeWorkEvent,
  type TokenScore,
} from '../native.js';
import { countOptions, type LoadOptions } from '../options.js';
import { Pace } from '../turns.js';
import { plain, show } from '../values.js';
import { lossChart } from './chart.js';
import {
  picturesOf,
  readExamples,
  type Example,
  type ExampleOptions,
  type ExampleSet,
  type PromptSource,
  type Sequence,
} from './examples.js';
import { finetuneSettings, type FinetuneOptions, type FinetuneProgress, type FinetuneSettings } from './options.js';
import { modelPrefix, peftConfig } from './peft-output.js';
import { packed, split, TrainingPlan } from './plan.js';
import { WorkFolder, type Fingerprint, type LogEntry } from './work-folder.js';

export interface FinetuneResult {
  /** of the output, a folder that `loadAdapter` takes */
  path: string;
  /** steps that were done, those of earlier runs among them */
  steps: number;
  /** of these, those of earlier runs */
  resumedSteps: number;
  /** passes through the data */
  epochs: number;
  /** mean loss of the last pass through the data */
  loss: number;
  /** the best one, and the step after which it was measured: what was kept */
  validationLoss?: number;
  bestStep?: number;
  /** the validation loss stopped falling (option `patience`) */
  stoppedEarly: boolean;
  examples: { training: number; validation: number; skipped: number; cut: number };
  /** numbers that were trained */
  parameters: number;
  /** of this run: tokens that went through the model in training, and how long all of it took */
  tokens: number;
  seconds: number;
  seed: number;
}

/** A training under way: a promise of its result that can be held up. */
export interface FinetuneRun extends Promise<FinetuneResult> {
  /** Holds training up after the step that is being computed. Memory stays. */
  pause(): void;
  resume(): void;
  readonly isPaused: boolean;
}

/** A loaded model as training uses it. */
export interface LoadedModel {
  path: string;
  source: PromptSource;
  hasVision: boolean;
  /** the likeliest tokens behind each one */
  likeliest(tokens: readonly number[], top: number, signal: AbortSignal): Promise<TokenScore[][]>;
  dispose(): Promise<void>;
}

export type LoadModel = (model: string | URL, options: LoadOptions) => Promise<LoadedModel>;

/** Where the loop stands, as a checkpoint has it beside the trainer's state. */
interface Standing {
  step: number;
  best?: { step: number; loss: number };
  /** evaluations since the best one */
  worse: number;
  /** of the last step, where what follows it (an evaluation, its line in the log) was not done */
  pending?: LogEntry;
}

// Of the numbers that are kept of a teacher, all together.
const MAX_TEACHER = 1 << 27;

class Gate {
  #open: Promise<void> | undefined;
  #release = () => {};

  get isClosed(): boolean {
    return this.#open !== undefined;
  }
  close(): void {
    this.#open ??= new Promise((resolve) => (this.#release = resolve));
  }
  open(): void {
    this.#release();
    this.#open = undefined;
  }
  async pass(signal: AbortSignal): Promise<void> {
    if (!this.#open) return;
    const aborted = () => this.open();
    signal.addEventListener('abort', aborted, { once: true });
    await this.#open;
    signal.removeEventListener('abort', aborted);
  }
}

/** The trainer of native code. Each call rejects with the signal's reason after a cancellation. */
class NativeTrainer {
  readonly info: NativeTrainingInfo;
  readonly #native: NativeAddon;
  readonly #cancellation: Cancellation;

  constructor(info: NativeTrainingInfo, native: NativeAddon, cancellation: Cancellation) {
    this.info = info;
    this.#native = native;
    this.#cancellation = cancellation;
  }

  get #training(): NativeTraining {
    return this.info.training;
  }

  step(batch: NativeTrainingBatch, learningRate: number) {
    const { finetuneStep } = this.#native;
    return this.#run(finetuneStep, { training: this.#training, batch, learningRate });
  }

  evaluate(batch: NativeTrainingBatch, useAdapter = true) {
    const { finetuneEvaluate } = this.#native;
    return this.#run(finetuneEvaluate, { training: this.#training, batch, useAdapter });
  }

  // Files are written to their end whatever was cancelled.
  async save(path: string, metadata: Standing): Promise<void> {
    const { finetuneSave } = this.#native;
    const options = { training: this.#training, path, metadata: JSON.stringify(metadata) };
    await this.#run(finetuneSave, options, new Cancellation());
  }

  async restore(path: string): Promise<Standing> {
    const { finetuneRestore } = this.#native;
    const { metadata } = await this.#run(finetuneRestore, { training: this.#training, path });
    return JSON.parse(metadata) as Standing;
  }

  async write(options: { path: string; modelPrefix: string; gguf?: string; name: string }): Promise<void> {
    const { finetuneWrite } = this.#native;
    await this.#run(finetuneWrite, { training: this.#training, ...options }, new Cancellation());
  }

  close(): void {
    this.#native.closeFinetuning(this.#training);
  }

  async #run<Options, Result extends object>(
    work: (options: Options, onEvent: (event: NativeWorkEvent<Result>) => void) => number,
    options: Options,
    cancellation = this.#cancellation,
  ): Promise<Result> {
    cancellation.signal.throwIfAborted();
    try {
      return await runWork<Result>((onEvent) => work(options, onEvent), this.#native, cancellation);
    } catch (error) {
      cancellation.signal.throwIfAborted();
      throw error;
    }
  }
}

function weightsOf({ tokens, spans }: Sequence): Float32Array {
  const weights = new Float32Array(tokens.length);
  for (let i = 0; i < spans.length; i += 2) weights.fill(1, spans[i], spans[i + 1]);
  return weights;
}

/** One training, from the files to the files. */
class Finetuning {
  readonly #settings: FinetuneSettings;
  readonly #options: FinetuneOptions;
  readonly #cancellation: Cancellation;
  readonly #gate: Gate;
  readonly #load: LoadModel;
  readonly #references = new Map<Sequence, number>();
  #source: PromptSource | undefined;

  constructor(options: FinetuneOptions, cancellation: Cancellation, gate: Gate, load: LoadModel) {
    this.#settings = finetuneSettings(options);
    countOptions(options.images ?? {});
    this.#options = options;
    this.#cancellation = cancellation;
    this.#gate = gate;
    this.#load = load;
  }

  get #signal(): AbortSignal {
    return this.#cancellation.signal;
  }

  async run(): Promise<FinetuneResult> {
    const start = performance.now();
    const work = await WorkFolder.take(this.#options.output, this.#settings.overwrite);
    try {
      const model = await this.#open();
      try {
        return await this.#train(work, model, start);
      } finally {
        await model.dispose();
      }
    } finally {
      await work.close();
    }
  }

  // The model as it reads prompts; training has its own view of the file.
  async #open(): Promise<LoadedModel> {
    const { maxLength, chatTemplate, mmap, isa } = this.#settings;
    const { mmproj, hub, model } = this.#options;
    const loaded = await this.#load(model, {
      device: 'cpu',
      screenLogits: false,
      prefixCacheBytes: 0,
      threads: await this.#threads(),
      signal: this.#signal,
      ...(mmproj !== undefined && { mmproj }),
      ...(hub && { hub }),
      ...(chatTemplate !== undefined && { chatTemplate }),
      ...(mmap !== undefined && { mmap }),
      ...(isa !== undefined && { isa }),
    });
    this.#source = loaded.source;
    const { trainedContext } = loaded.source.info.config;
    if (maxLength > trainedContext) {
      await loaded.dispose();
      throw new RangeError(`maxLength: expected at most ${trainedContext}, the model's context, found ${maxLength}`);
    }
    return loaded;
  }

  // All but one core: an application stays usable.
  async #threads(): Promise<number> {
    const { threads } = this.#settings;
    if (threads !== undefined) return threads;
    const [cpu] = await addon().devices();
    return Math.max(1, (cpu?.cores ?? 1) - 1);
  }

  #read(data: string | URL, name: string, source: PromptSource): Promise<ExampleSet> {
    const { maxLength, maxLineBytes, tooLong, loss } = this.#settings;
    const { teacher, images = {} } = this.#options;
    const options: ExampleOptions = {
      maxLength,
      maxLineBytes,
      tooLong,
      loss,
      needsStored: loss === 'distillation' && teacher === undefined,
      media: images,
    };
    return readExamples(data, name, source, options, this.#cancellation);
  }

  async #train(work: WorkFolder, model: LoadedModel, start: number): Promise<FinetuneResult> {
    const settings = this.#settings;
    const all = await this.#read(this.#options.data, 'data', model.source);
    const apart =
      typeof settings.validation === 'number'
        ? undefined
        : await this.#read(settings.validation, 'validation', model.source);
    const fingerprint = await this.#fingerprint(all, apart, model);
    const earlier = settings.resume ? await work.earlier() : undefined;
    const seed = this.#seedOf(earlier, fingerprint, work);
    const decided = { ...settings, seed };
    const parts = apart
      ? { training: all.examples, validation: apart.examples }
      : split(all.examples, settings.validation as number, seed);
    if (!parts) {
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `${plain(String(this.#options.data))}: expected at least two examples, of which some are set apart (option validation)`,
        'NO_EXAMPLES',
      );
    }
    await this.#askTeacher([...parts.training, ...parts.validation], model);
    const hasPictures = [...parts.training, ...parts.validation].some(({ sequences }) =>
      sequences.some(({ turns }) => turns),
    );
    if (!hasPictures) await model.dispose();

    const trainer = await this.#trainer(decided, model.path);
    try {
      await this.#askReference(trainer, [...parts.training, ...parts.validation]);
      const loop = new TrainingLoop(trainer, work, decided, parts, {
        onProgress: this.#options.onProgress ?? (() => {}),
        batch: (examples) => this.#batch(examples),
        signal: this.#signal,
        gate: this.#gate,
        prefix: modelPrefix(model.source.info.config, model.hasVision),
      });
      if (earlier) await loop.restore();
      else await work.begin({ ...fingerprint, seed });
      const done = await loop.run();
      const { targets, parameters } = trainer.info;
      const prefix = modelPrefix(model.source.info.config, model.hasVision);
      await work.finish(
        {
          'adapter_config.json': peftConfig(decided, targets, this.#baseModel(), prefix !== 'model.'),
          'loss.svg': lossChart(done.entries),
        },
        settings.gguf,
      );
      const { entries: _, ...told } = done;
      return {
        path: work.path,
        ...told,
        examples: {
          training: parts.training.length,
          validation: parts.validation.length,
          skipped: all.skipped + (apart?.skipped ?? 0),
          cut: all.cut + (apart?.cut ?? 0),
        },
        parameters,
        seconds: (performance.now() - start) / 1000,
        seed,
      };
    } catch (error) {
      // Going on from a checkpoint would end the same way.
      if (error instanceof GemmaError && error.code === 'ERR_NON_FINITE') await work.discard();
      throw error;
    } finally {
      trainer.close();
    }
  }

  #baseModel(): string {
    const { baseModel } = this.#settings;
    if (baseModel !== undefined) return baseModel;
    const name = String(this.#options.model);
    return /^hf:([^@:]+)/.exec(name)?.[1] ?? name;
  }

  // Of all that the adapter's bits follow from, but for the seed.
  async #fingerprint(all: ExampleSet, apart: ExampleSet | undefined, { path }: LoadedModel): Promise<Fingerprint> {
    const { rank, alpha, rslora, dropout, targets, layers, loss, teacherTopK, temperature, teacherShare, beta } =
      this.#settings;
    const {
      epochs,
      steps,
      batchSize,
      packing,
      maxLength,
      learningRate,
      schedule,
      warmup,
      optimizer,
      weightDecay,
      clip,
    } = this.#settings;
    const { evaluateEvery, patience, validation, gguf } = this.#settings;
    const identityOf = async (file: string | URL | undefined) =>
      file === undefined ? null : await fileIdentity(String(file)).catch(() => String(file));
    return {
      model: await fileIdentity(path),
      data: all.hash,
      validation: apart?.hash ?? (validation as number),
      adapter: await identityOf(this.#options.adapter),
      teacher: await identityOf(this.#options.teacher),
      ...{ rank, alpha, rslora, dropout, targets: targets ?? null, layers: layers ?? null },
      ...{ loss, teacherTopK, temperature, teacherShare, beta },
      ...{ epochs, steps: steps ?? null, batchSize, packing, maxLength, learningRate, schedule, warmup },
      ...{ optimizer, weightDecay, clip, evaluateEvery: evaluateEvery ?? null, patience: patience ?? null, gguf },
    };
  }

  /** @throws GemmaError `ERR_FILE`, `OTHER_RUN` where the earlier run was of something else */
  #seedOf(earlier: Fingerprint | undefined, now: Fingerprint, { folder }: WorkFolder): number {
    const { seed } = this.#settings;
    if (!earlier) return seed;
    const found = earlier.seed;
    const asked = this.#options.seed === undefined ? {} : { seed };
    for (const [name, value] of Object.entries({ ...now, ...asked })) {
      if (JSON.stringify(earlier[name]) === JSON.stringify(value)) continue;
      const short = ['model', 'data', 'validation', 'adapter', 'teacher'].includes(name);
      const difference = short ? 'is another' : `was ${show(earlier[name] ?? null)}, is ${show(value)}`;
      throw new GemmaError(
        'ERR_FILE',
        `${plain(folder)}: holds a training that was interrupted and cannot be gone on from: ${name} ${difference}; set resume to ` +
          'false to begin anew, or name another output',
        'OTHER_RUN',
      );
    }
    return typeof found === 'number' ? found : seed;
  }

  async #trainer(settings: FinetuneSettings, path: string): Promise<NativeTrainer> {
    const native = addon();
    const { maxLength, loss, rank, alpha, rslora, dropout, targets, layers, optimizer, weightDecay, clip } = settings;
    const { temperature, teacherShare, beta, isa, mmap, activationBytes, seed } = settings;
    const { adapter } = this.#options;
    const source = adapter === undefined ? undefined : await findAdapter('adapter', adapter);
    const options = {
      path,
      threads: await this.#threads(),
      maxRows: loss === 'dpo' ? 2 * maxLength : maxLength,
      ...{ loss, rank, alpha, rslora, dropout, optimizer, weightDecay, clip, activationBytes, seed },
      ...{ temperature, teacherShare, beta },
      ...(targets && { targets }),
      ...(layers && { layers }),
      ...(isa !== undefined && { isa }),
      ...(mmap !== undefined && { mmap }),
      ...(source && { adapter: source }),
    };
    const info = await runWork<NativeTrainingInfo>(
      (onEvent) => native.openFinetuning(options, onEvent),
      native,
      this.#cancellation,
    );
    const trainer = new NativeTrainer(info, native, this.#cancellation);
    const needed = info.activationBytes + info.workspaceBytes;
    const available = availableMemory();
    if (needed > available) {
      trainer.close();
      const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
      throw new GemmaError(
        'ERR_OUT_OF_MEMORY',
        `training takes ${gib(needed)} beside the model, and ${gib(available)} are free; a smaller maxLength, activationBytes or rank ` +
          'takes less',
        'NO_ROOM',
      );
    }
    return trainer;
  }

  /** What native code is told of examples, in rows. */
  async #batch(examples: readonly Example[]): Promise<NativeTrainingExample[][]> {
    const { maxLength, loss, packing } = this.#settings;
    const rows: NativeTrainingExample[][] = [];
    for (const row of packed(examples, loss === 'dpo' ? 2 * maxLength : maxLength, packing)) {
      const converted: NativeTrainingExample[] = [];
      for (const sequence of row.flatMap(({ sequences }) => sequences)) {
        const reference = this.#references.get(sequence);
        const pictures = sequence.turns
          ? await picturesOf(sequence, this.#source as PromptSource, this.#cancellation)
          : [];
        const modelDim = this.#source?.info.config.modelDim ?? 1;
        converted.push({
          tokens: sequence.tokens,
          weights: weightsOf(sequence),
          ...(pictures.length > 0 && {
            images: pictures.map(({ first, rows: embedding }) => ({
              first,
              n: embedding.length / modelDim,
              rows: embedding,
            })),
          }),
          ...(sequence.teacher && { teacher: sequence.teacher }),
          ...(reference !== undefined && { reference }),
        });
      }
      rows.push(converted);
    }
    return rows;
  }

  // Of the loss dpo: what the model without its adapter thinks of each answer, which does not change.
  async #askReference(trainer: NativeTrainer, examples: readonly Example[]): Promise<void> {
    if (this.#settings.loss !== 'dpo') return;
    for (const example of examples) {
      const batch = await this.#batch([example]);
      const { logProbs } = await trainer.evaluate(batch, false);
      for (const [i, sequence] of example.sequences.entries()) this.#references.set(sequence, logProbs[i] ?? NaN);
    }
  }

  // Of the loss distillation with a teacher at hand: what it thinks of each token that counts.
  async #askTeacher(examples: readonly Example[], student: LoadedModel): Promise<void> {
    const { teacher: named } = this.#options;
    if (named === undefined) return;
    const { teacherTopK: k } = this.#settings;
    const numbers = examples.reduce((sum, { targets }) => sum + targets * k, 0);
    if (numbers > MAX_TEACHER) {
      throw new GemmaError(
        'ERR_OUT_OF_MEMORY',
        `what the teacher says of all examples is ${numbers} logits, at most ${MAX_TEACHER} are kept; set teacherTopK lower`,
      );
    }
    const teacher = await this.#load(named, { prefixCacheBytes: 0, screenLogits: false, signal: this.#signal });
    try {
      const [theirs, ours] = [teacher, student].map(({ source }) => source.info.config.vocabularySize);
      if (theirs !== ours) {
        throw new GemmaError(
          'ERR_UNSUPPORTED_MODEL',
          `teacher: expected a vocabulary of ${ours} tokens like the model's, found ${theirs}`,
          'TEACHER_VOCABULARY',
        );
      }
      const pace = new Pace(this.#signal);
      for (const { sequences, line } of examples) {
        for (const sequence of sequences) {
          if (sequence.turns) {
            throw new GemmaError(
              'ERR_UNSUPPORTED_INPUT',
              `line ${line}: examples with pictures cannot be learned from a teacher`,
            );
          }
          const rows = await teacher.likeliest(Array.from(sequence.tokens), k, this.#signal);
          const targets = weightsOf(sequence);
          const ids: number[] = [];
          const logits: number[] = [];
          for (const [i, weight] of targets.entries()) {
            if (weight === 0) continue;
            for (const { token, logit } of rows[i - 1] ?? []) {
              ids.push(token);
              logits.push(logit);
            }
          }
          sequence.teacher = { k, ids: Int32Array.from(ids), logits: Float32Array.from(logits) };
          if (pace.due) await pace.turn();
        }
      }
    } finally {
      await teacher.dispose();
    }
  }
}

interface LoopHooks {
  onProgress: (progress: FinetuneProgress) => void;
  batch: (examples: readonly Example[]) => Promise<NativeTrainingExample[][]>;
  signal: AbortSignal;
  gate: Gate;
  prefix: string;
}

/** The steps of a training. */
class TrainingLoop {
  readonly #trainer: NativeTrainer;
  readonly #work: WorkFolder;
  readonly #settings: FinetuneSettings;
  readonly #training: readonly Example[];
  readonly #validation: readonly Example[];
  readonly #hooks: LoopHooks;
  readonly #plan: TrainingPlan;
  #standing: Standing = { step: 0, worse: 0 };
  #entries: LogEntry[] = [];
  #savedStep = 0;
  #resumedSteps = 0;
  // Of this run.
  #tokens = 0;
  #trainingMs = 0;

  constructor(
    trainer: NativeTrainer,
    work: WorkFolder,
    settings: FinetuneSettings,
    { training, validation }: { training: readonly Example[]; validation: readonly Example[] },
    hooks: LoopHooks,
  ) {
    this.#trainer = trainer;
    this.#work = work;
    this.#settings = settings;
    this.#training = training;
    this.#validation = validation;
    this.#hooks = hooks;
    this.#plan = new TrainingPlan(training.length, settings);
  }

  async restore(): Promise<void> {
    this.#standing = await this.#trainer.restore(this.#work.checkpoint);
    this.#resumedSteps = this.#savedStep = this.#standing.step;
    this.#entries = await this.#work.goOn(this.#standing.step);
  }

  async run() {
    const { checkpointEvery } = this.#settings;
    const { signal, gate } = this.#hooks;
    const start = performance.now();
    try {
      if (this.#standing.pending) await this.#endStep(this.#standing.pending, start);
      while (!this.#isDone()) {
        await gate.pass(signal);
        await this.#step(start);
        if (this.#standing.step - this.#savedStep >= checkpointEvery) await this.#save();
      }
    } catch (error) {
      // What was aborted in native code left the trainer as it was before.
      const isOwn = error instanceof GemmaError && !signal.aborted;
      if (!isOwn && this.#standing.step > this.#savedStep) await this.#save();
      throw error;
    }
    if (this.#validation.length === 0) await this.#keep();
    const { step, best } = this.#standing;
    const last = this.#entries.slice(-this.#plan.stepsPerEpoch);
    return {
      steps: step,
      resumedSteps: this.#resumedSteps,
      epochs: this.#plan.epochs(step),
      loss: last.reduce((sum, { loss }) => sum + loss, 0) / Math.max(1, last.length),
      ...(best && { validationLoss: best.loss, bestStep: best.step }),
      stoppedEarly: step < this.#plan.steps,
      tokens: this.#tokens,
      entries: this.#entries,
    };
  }

  #isDone(): boolean {
    const { patience = Infinity } = this.#settings;
    return this.#standing.step >= this.#plan.steps || this.#standing.worse >= patience;
  }

  async #step(start: number): Promise<void> {
    const { step } = this.#standing;
    const examples = this.#plan.batch(step).map((i) => this.#training[i] as Example);
    const learningRate = this.#plan.learningRate(step);
    const batch = await this.#hooks.batch(examples);
    const before = performance.now();
    const stats = await this.#trainer.step(batch, learningRate);
    this.#trainingMs += performance.now() - before;
    this.#tokens += examples.reduce((sum, { tokens }) => sum + tokens, 0);
    const isDpo = this.#settings.loss === 'dpo';
    const entry: LogEntry = {
      step: step + 1,
      epoch: this.#plan.epochs(step + 1),
      loss: stats.loss,
      learningRate,
      gradientNorm: stats.gradientNorm,
      tokens: stats.tokens,
      seconds: (performance.now() - start) / 1000,
      ...(isDpo && { rewardAccuracy: stats.rewardAccuracy }),
    };
    this.#standing = { ...this.#standing, step: step + 1, pending: entry };
    await this.#endStep(entry, start);
  }

  async #endStep(entry: LogEntry, start: number): Promise<void> {
    const validationLoss = await this.#evaluate();
    const whole = { ...entry, ...(validationLoss !== undefined && { validationLoss }) };
    await this.#work.log(whole);
    this.#entries.push(whole);
    const { pending: _, ...standing } = this.#standing;
    this.#standing = standing;
    this.#report(whole, start);
  }

  #report({ tokens: _, seconds: __, ...entry }: LogEntry, start: number): void {
    const { steps } = this.#plan;
    const done = entry.step - this.#resumedSteps;
    const seconds = (performance.now() - start) / 1000;
    this.#hooks.onProgress({
      steps,
      ...entry,
      tokensPerSecond: this.#tokens / (this.#trainingMs / 1000),
      secondsLeft: (seconds / done) * (steps - entry.step),
    });
  }

  // Where this step is followed by one.
  async #evaluate(): Promise<number | undefined> {
    const { step, best } = this.#standing;
    const every = this.#settings.evaluateEvery ?? this.#plan.stepsPerEpoch;
    if (this.#validation.length === 0 || (step % every !== 0 && step < this.#plan.steps)) return undefined;
    const { batchSize } = this.#settings;
    let sum = 0;
    let weight = 0;
    for (let i = 0; i < this.#validation.length; i += batchSize) {
      const batch = await this.#hooks.batch(this.#validation.slice(i, i + batchSize));
      const part = await this.#trainer.evaluate(batch);
      sum += part.loss * part.weight;
      weight += part.weight;
    }
    const loss = sum / weight;
    if (!Number.isFinite(loss)) {
      throw new GemmaError('ERR_NON_FINITE', `the validation loss after step ${step} is not finite`, 'LOSS');
    }
    if (!best || loss < best.loss) {
      await this.#keep();
      this.#standing = { ...this.#standing, best: { step, loss }, worse: 0 };
    } else {
      this.#standing = { ...this.#standing, worse: this.#standing.worse + 1 };
    }
    return loss;
  }

  // The adapter as it is now becomes the one that is kept.
  async #keep(): Promise<void> {
    const { path, gguf } = this.#work.best;
    await this.#trainer.write({
      path,
      modelPrefix: this.#hooks.prefix,
      name: 'adapter',
      ...(this.#settings.gguf && { gguf }),
    });
  }

  async #save(): Promise<void> {
    await this.#work.sync();
    await this.#trainer.save(this.#work.checkpoint, this.#standing);
    this.#savedStep = this.#standing.step;
  }
}

/** As `Gemma.finetune`. */
export function startFinetuning(options: FinetuneOptions, load: LoadModel): FinetuneRun {
  const gate = new Gate();
  const cancellation = new Cancellation();
  const run = async (): Promise<FinetuneResult> => {
    const { signal } = options;
    const abort = () => cancellation.cancel(signal?.reason);
    const training = new Finetuning(options, cancellation, gate, load);
    signal?.throwIfAborted();
    signal?.addEventListener('abort', abort, { once: true });
    try {
      return await training.run();
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  };
  return Object.defineProperties(run(), {
    pause: { value: () => gate.close() },
    resume: { value: () => gate.open() },
    isPaused: { get: () => gate.isClosed },
  }) as FinetuneRun;
}
