// gemma.batch: a file of requests, a line each, to a file of results. Lines are read as there is room for them, so memory does not grow
// with the file; many are worked on at once, as the engine computes calls together.
import { setMaxListeners } from 'node:events';
import { open, type FileHandle } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isBlank, parseLine, readLines, type Line } from './batch-lines.js';
import { BatchOutput, fileError, lockPath } from './batch-output.js';
import { GemmaError } from './errors.js';
import type { Gemma } from './gemma.js';
import type { Embeddings } from './embed.js';
import { isSameFile, localPath, replaceablePath } from './local-file.js';
import type { ImageInput } from './media.js';
import { CROP } from './media-options.js';
import type { Input } from './prompt.js';
import type { GenerateResult } from './result.js';
import {
  booleans,
  callbacks,
  checked,
  elsewhere,
  integers,
  known,
  or,
  signals,
  type Table,
  type TableOf,
} from './option-table.js';
import {
  EMBED,
  EMBED_IMAGE,
  GENERATE,
  STRUCTURED,
  type EmbedImageOptions,
  type EmbedOptions,
  type GenerateOptions,
} from './options.js';
import { checkReadable, checkWritable } from './permission.js';
import { Pace } from './turns.js';
import { plain, reasonOf, show } from './values.js';

/** What a batch has done so far. Rates are those of this call, without what was there before. */
export interface BatchProgress {
  /** that have a result, those of earlier runs among them */
  lines: number;
  /** of these, those of earlier runs */
  resumedLines: number;
  /** of this run's, those whose result is an error */
  failedLines: number;
  inputTokens: number;
  outputTokens: number;
  /** of the input, those of lines that have a result */
  bytes: number;
  /** of the input, when the batch began */
  totalBytes: number;
  linesPerSecond: number;
  /** input and output together */
  tokensPerSecond: number;
  /** by the bytes that are left */
  secondsLeft: number;
}

export interface BatchResult {
  /** of the output */
  path: string;
  /** of the input: each has one result */
  lines: number;
  /** that earlier runs had done */
  resumedLines: number;
  /** of this run's, those whose result is an error */
  failedLines: number;
  /** of this run */
  usage: { inputTokens: number; outputTokens: number };
}

/** Options of `generate` that hold for every line. */
export type BatchGenerateOptions = Omit<GenerateOptions, 'images' | 'onProgress' | 'signal' | 'stallTimeoutMs'>;

export interface BatchOptions {
  /** For lines with `prompt` or `messages`: options of `generate`. A line's own come before these. */
  generate?: BatchGenerateOptions;
  /** For lines with `embed`: options of `embed`. */
  embed?: Omit<EmbedOptions, 'onProgress' | 'signal'>;
  /** For lines with `embedImage`: options of `embedImage`; the result is the mean of a picture's rows. */
  embedImage?: Omit<EmbedImageOptions, 'pooling' | 'onProgress' | 'signal'>;
  /** Lines that are worked on at once, 1 to 512. Default: 64, as many as are computed together. */
  concurrency?: number;
  /** Default true: results in the order of the lines. False: as they come, so a long answer holds up no other. */
  ordered?: boolean;
  /** A longer line has an error as its result. 1 to 2^28. Default: 16 MiB. */
  maxLineBytes?: number;
  /** Default false: an output that is there is gone on from. True: it is begun anew. */
  overwrite?: boolean;
  /** Called when lines have got their results. */
  onProgress?: (progress: BatchProgress) => void;
  /** Aborting rejects with the signal's reason, once the output is closed. What is done stays: the same call goes on from it. */
  signal?: AbortSignal;
}

const BATCH = {
  generate: elsewhere,
  embed: elsewhere,
  embedImage: elsewhere,
  concurrency: or(integers(1, 512), 64),
  ordered: or(booleans, true),
  maxLineBytes: or(integers(1, 1 << 28), 16 << 20),
  overwrite: or(booleans, false),
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<BatchOptions>;

/** What lines may set: how they are answered. What may be read, and how much of it, is the caller's. */
const without = (table: Table, ...names: string[]): Table =>
  Object.fromEntries(Object.entries(table).filter(([name, row]) => !names.includes(name) || row.isLater));

const PERMISSIONS = [
  'allowRemote',
  'allowLocal',
  'maxImageBytes',
  'maxImagePixels',
  'remoteTimeoutMs',
  'maxVideoSeconds',
  'maxVideoBytes',
  'videoTimeoutMs',
];
const NOT_IN_FILES = ['images', 'onProgress', 'signal', 'stallTimeoutMs'];
const ANSWER = without(GENERATE, ...NOT_IN_FILES, ...PERMISSIONS);
const EMBEDDING = without(EMBED, ...NOT_IN_FILES);
const PICTURE = without(EMBED_IMAGE, ...NOT_IN_FILES, ...PERMISSIONS, 'pooling');

const KINDS = ['prompt', 'messages', 'embed', 'embedImage'] as const;
type Kind = (typeof KINDS)[number];
const LINE_KEYS = ['id', ...KINDS, 'images', 'options'];

const MAX_ID = 1000;
const MAX_TEXTS = 256;

// Of lines that are worked on, all together: pictures as text are large.
const MAX_INPUT_BYTES = 256 << 20;
// Of results that wait for one before them.
const MAX_WAITING_CHARACTERS = 64 << 20;
// How many lines may be without a written result, as a multiple of those that are worked on: a long answer holds up those behind it.
const WINDOW = 8;

const QUEUE_FULL_MS = 50;

/** A line that was understood. */
interface Request {
  id: string | number | null;
  kind: Kind;
  value: unknown;
  images: unknown;
  options: Record<string, unknown>;
}

/** Settings of a batch, checked. */
interface BatchSettings extends Required<Pick<BatchOptions, 'concurrency' | 'ordered' | 'maxLineBytes' | 'overwrite'>> {
  generate: BatchGenerateOptions;
  embed: Omit<EmbedOptions, 'onProgress' | 'signal'>;
  embedImage: Omit<EmbedImageOptions, 'pooling' | 'onProgress' | 'signal'>;
}

/**
 * Looks at the options, but for those of the calls themselves.
 *
 * @throws TypeError, RangeError
 */
export function batchOptions(options: BatchOptions): BatchSettings {
  const settings = checked(BATCH, options);
  const { generate = {}, embed = {}, embedImage = {} } = options;
  known(without(GENERATE, ...NOT_IN_FILES), generate, 'generate');
  known(EMBEDDING, embed, 'embed');
  known(without(EMBED_IMAGE, ...NOT_IN_FILES, 'pooling'), embedImage, 'embedImage');
  return { ...settings, generate: { ...generate }, embed: { ...embed }, embedImage: { ...embedImage } };
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function idOf(line: unknown): string | number | null {
  const id = isObject(line) ? (line.id ?? null) : null;
  if (id === null || (typeof id === 'number' && Number.isFinite(id))) return id;
  if (typeof id !== 'string') throw new TypeError(`id: expected a string or a number, found ${show(id)}`);
  if (id.length > MAX_ID) throw new RangeError(`id: expected at most ${MAX_ID} characters, found ${id.length}`);
  return id;
}

/** @throws TypeError, RangeError */
function requestOf(line: unknown): Request {
  const id = idOf(line);
  if (!isObject(line)) throw new TypeError(`expected an object of ${LINE_KEYS.join(', ')}, found ${show(line)}`);
  for (const key of Object.keys(line)) {
    if (!LINE_KEYS.includes(key)) {
      throw new TypeError(`${plain(key, 60)}: no such key; there are ${LINE_KEYS.join(', ')}`);
    }
  }
  const [kind, second] = KINDS.filter((name) => line[name] !== undefined);
  if (!kind || second) {
    const found = kind ? `${kind} and ${second}` : 'none of them';
    throw new TypeError(`expected one of ${KINDS.join(', ')}, found ${found}`);
  }
  const { images, options = {} } = line;
  if (kind === 'messages' && !Array.isArray(line.messages)) {
    throw new TypeError(`messages: expected an array, found ${show(line.messages)}`);
  }
  if (kind === 'prompt' && typeof line.prompt !== 'string') {
    throw new TypeError(`prompt: expected a string, found ${show(line.prompt)}`);
  }
  if (images !== undefined && kind !== 'prompt') {
    throw new TypeError("images: only beside prompt; in messages a picture is a part { type: 'image', image }");
  }
  known(kind === 'embed' ? EMBEDDING : kind === 'embedImage' ? PICTURE : ANSWER, options);
  return { id, kind, value: line[kind], images, options: options as Record<string, unknown> };
}

/** Numbers in turns, where they are many. */
async function rowsOf({ data, shape: [n, dimensions] }: Embeddings, pace: Pace): Promise<string[]> {
  const rows: string[] = [];
  for (let i = 0; i < n; ++i) {
    rows.push(JSON.stringify(Array.from(data.subarray(i * dimensions, (i + 1) * dimensions))));
    if (pace.due) await pace.turn();
  }
  return rows;
}

/** What of an answer is written. */
function answerOf(result: GenerateResult): object {
  const { text, finishReason, object, toolCalls, toolResults, malformedCalls, logprobs, stopSequence, usage, seed } =
    result;
  return {
    text,
    finishReason,
    ...(object !== undefined && { object }),
    ...(toolCalls && { toolCalls }),
    ...(toolResults && { toolResults }),
    ...(malformedCalls && { malformedCalls }),
    ...(stopSequence !== undefined && { stopSequence }),
    ...(logprobs && { logprobs }),
    usage,
    seed,
  };
}

/** An error as a result tells it. */
export function failureOf(error: unknown): { code: string; message: string; detail?: string } {
  if (error instanceof GemmaError) {
    const { code, message, detail } = error;
    return { code, message, ...(detail !== undefined && { detail }) };
  }
  const isArgument = error instanceof TypeError || error instanceof RangeError || error instanceof SyntaxError;
  return { code: isArgument ? 'ERR_INVALID_ARGUMENT' : 'ERR_INTERNAL', message: plain(reasonOf(error), 1000) };
}

/** Whether every other line would fail the same way. */
export function endsAll(error: unknown): boolean {
  return error instanceof GemmaError && (error.code === 'ERR_DISPOSED' || error.detail === 'FILE_CHANGED');
}

/** Asks a model again and again while its queue is full: somebody else uses it as well. */
export async function whenThereIsRoom<T>(ask: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof GemmaError && error.code === 'ERR_QUEUE_FULL')) throw error;
    }
    await sleep(QUEUE_FULL_MS, undefined, { signal });
  }
}

/** A result: what stands behind the line's number and id, as JSON, and what it cost. */
interface Answered {
  id: string | number | null;
  /** members of an object, without its braces */
  members: string;
  failed: boolean;
  inputTokens: number;
  outputTokens: number;
}

export const membersOf = (value: object): string => JSON.stringify(value).slice(1, -1);

// Options that exclude each other: one of a line takes the place of all of them among the defaults.
const EXCLUSIVE = [Object.keys(STRUCTURED), Object.keys(CROP)];

function combined<T extends object>(defaults: T, own: Record<string, unknown>): T {
  const replaced = EXCLUSIVE.filter((names) => names.some((name) => name in own)).flat();
  const kept = Object.entries(defaults).filter(([name]) => !replaced.includes(name));
  return { ...Object.fromEntries(kept), ...own } as T;
}

/** A line with its result, as it is written. */
interface Done {
  line: Line;
  text: string;
  answered: Answered;
}

/** One run of a batch. */
class Batch {
  readonly #gemma: Gemma;
  readonly #settings: BatchSettings;
  readonly #output: BatchOutput;
  readonly #onProgress: ((progress: BatchProgress) => void) | undefined;
  readonly #totalBytes: number;
  readonly #stop = new AbortController();
  readonly #start = performance.now();
  #failure: { error: unknown } | undefined;
  #wake = () => {};
  // Lines that have no written result yet.
  #working = 0;
  #workingBytes = 0;
  #unwritten = 0;
  #order: number[] = []; // in which results are written
  readonly #waiting = new Map<number, Done>(); // for a line before them
  #waitingCharacters = 0;
  // What was done.
  #resumedLines = 0;
  #resumedBytes = 0;
  #lines = 0;
  #bytes = 0;
  #failedLines = 0;
  #inputTokens = 0;
  #outputTokens = 0;

  constructor(gemma: Gemma, settings: BatchSettings, output: BatchOutput, totalBytes: number, options: BatchOptions) {
    this.#gemma = gemma;
    this.#settings = settings;
    this.#output = output;
    this.#totalBytes = totalBytes;
    this.#onProgress = options.onProgress;
    setMaxListeners(0, this.#stop.signal); // each call listens
  }

  /** Does every line. */
  async run(input: FileHandle, signal: AbortSignal | undefined): Promise<Omit<BatchResult, 'path'>> {
    const abort = () => this.#fail(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      const nLines = await this.#beginAll(input);
      while (this.#unwritten > 0 && !this.#failure) await this.#change();
      if (this.#failure) throw this.#failure.error;
      const { highest } = this.#output.done;
      if (highest > nLines) this.#output.refuseInput(`line ${highest} has a result, the input ${nLines} lines`);
      return {
        lines: nLines,
        resumedLines: this.#resumedLines,
        failedLines: this.#failedLines,
        usage: { inputTokens: this.#inputTokens, outputTokens: this.#outputTokens },
      };
    } catch (error) {
      this.#fail(error);
      throw error;
    } finally {
      while (this.#working > 0) await this.#change(); // no call outlives the batch
      signal?.removeEventListener('abort', abort);
    }
  }

  // Returns how many lines there are.
  async #beginAll(input: FileHandle): Promise<number> {
    const pace = new Pace(this.#stop.signal);
    let nLines = 0;
    let blankBytes = 0; // of lines behind that one: at the end of a file they are none
    for await (const line of readLines(input, this.#settings.maxLineBytes)) {
      if (pace.due) await pace.turn();
      if (isBlank(line)) {
        blankBytes += line.size;
        continue;
      }
      while (++nLines < line.number) {
        await this.#begin({ number: nLines, bytes: new Uint8Array(), size: blankBytes, ended: true });
        blankBytes = 0;
        if (pace.due) await pace.turn();
      }
      await this.#begin(line);
    }
    return nLines;
  }

  #fail(error: unknown): void {
    if (this.#failure) return;
    this.#failure = { error };
    this.#stop.abort(error);
    this.#wake();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => (this.#wake = resolve));
  }

  #hasRoom({ size }: Line): boolean {
    const { concurrency } = this.#settings;
    return (
      this.#unwritten === 0 ||
      (this.#working < concurrency &&
        this.#unwritten < WINDOW * concurrency &&
        this.#workingBytes + size <= MAX_INPUT_BYTES &&
        this.#waitingCharacters < MAX_WAITING_CHARACTERS)
    );
  }

  // Resolves when the line is being worked on, or need not be.
  async #begin(line: Line): Promise<void> {
    if (this.#output.done.has(line.number)) return this.#skip(line);
    while (!this.#hasRoom(line) && !this.#failure) await this.#change();
    if (this.#failure) throw this.#failure.error;
    ++this.#working;
    ++this.#unwritten;
    this.#workingBytes += line.size;
    if (this.#settings.ordered) this.#order.push(line.number);
    void this.#do(line);
  }

  #skip(line: Line): void {
    let id: string | number | null = null;
    try {
      id = idOf(parseLine(line, this.#settings.maxLineBytes));
    } catch {
      // its result is an error without an id
    }
    this.#output.checkId(line.number, JSON.stringify(id));
    ++this.#lines;
    ++this.#resumedLines;
    this.#bytes += line.size;
    this.#resumedBytes += line.size;
  }

  // Never rejects: what is no result of the line ends the batch.
  async #do(line: Line): Promise<void> {
    try {
      const answered = await this.#answer(line);
      const text = `{"line":${line.number},"id":${JSON.stringify(answered.id)},${answered.members}}\n`;
      this.#release({ line, text, answered });
    } catch (error) {
      this.#fail(error);
    }
    --this.#working;
    this.#workingBytes -= line.size;
    this.#wake();
  }

  // Has results written, in their order where they have one.
  #release(done: Done): void {
    if (!this.#settings.ordered) return void this.#write(done);
    this.#waiting.set(done.line.number, done);
    this.#waitingCharacters += done.text.length;
    let next: Done | undefined;
    while ((next = this.#waiting.get(this.#order[0] ?? 0))) {
      this.#order.shift();
      this.#waiting.delete(next.line.number);
      this.#waitingCharacters -= next.text.length;
      void this.#write(next);
    }
  }

  async #write({ line, text, answered }: Done): Promise<void> {
    try {
      await this.#output.write(text);
      --this.#unwritten;
      ++this.#lines;
      this.#bytes += line.size;
      this.#failedLines += Number(answered.failed);
      this.#inputTokens += answered.inputTokens;
      this.#outputTokens += answered.outputTokens;
      if (!this.#failure) this.#report();
    } catch (error) {
      this.#fail(error);
    }
    this.#wake();
  }

  #report(): void {
    if (!this.#onProgress) return;
    const seconds = Math.max(1, performance.now() - this.#start) / 1000;
    const bytesPerSecond = (this.#bytes - this.#resumedBytes) / seconds;
    this.#onProgress({
      lines: this.#lines,
      resumedLines: this.#resumedLines,
      failedLines: this.#failedLines,
      inputTokens: this.#inputTokens,
      outputTokens: this.#outputTokens,
      bytes: this.#bytes,
      totalBytes: this.#totalBytes,
      linesPerSecond: (this.#lines - this.#resumedLines) / seconds,
      tokensPerSecond: (this.#inputTokens + this.#outputTokens) / seconds,
      secondsLeft: Math.max(0, this.#totalBytes - this.#bytes) / bytesPerSecond,
    });
  }

  // The result of a line, an error as well, but for what ends the batch.
  async #answer(line: Line): Promise<Answered> {
    let id: string | number | null = null;
    try {
      const parsed = parseLine(line, this.#settings.maxLineBytes);
      id = idOf(parsed);
      const request = requestOf(parsed);
      return { id, failed: false, ...(await whenThereIsRoom(() => this.#ask(request), this.#stop.signal)) };
    } catch (error) {
      if (this.#failure || endsAll(error)) throw error;
      return { id, failed: true, members: membersOf({ error: failureOf(error) }), inputTokens: 0, outputTokens: 0 };
    }
  }

  async #ask({ kind, value, images, options }: Request): Promise<Omit<Answered, 'id' | 'failed'>> {
    const { signal } = this.#stop;
    if (kind === 'embed') {
      if (Array.isArray(value) && value.length > MAX_TEXTS) {
        throw new RangeError(`embed: expected at most ${MAX_TEXTS} texts, found ${value.length}`);
      }
      const embeddings = await this.#gemma.embed(value as string, {
        ...combined(this.#settings.embed, options),
        signal,
      });
      const rows = await rowsOf(embeddings, new Pace(signal));
      const { usage } = embeddings;
      const found = Array.isArray(value) ? `"embeddings":[${rows.join(',')}]` : `"embedding":${rows.join('')}`;
      return { members: `${found},${membersOf({ usage })}`, inputTokens: usage.inputTokens, outputTokens: 0 };
    }
    if (kind === 'embedImage') {
      const { data, crops } = await this.#gemma.embedImage(value as string, {
        ...combined(this.#settings.embedImage, options),
        pooling: 'mean',
        signal,
      });
      return { members: membersOf({ embedding: Array.from(data), crops }), inputTokens: 0, outputTokens: 0 };
    }
    const result = await this.#gemma.generate(value as Input, {
      ...combined(this.#settings.generate, options),
      ...(images !== undefined && { images: images as ImageInput[] }),
      signal,
    });
    const { inputTokens, outputTokens } = result.usage;
    return { members: membersOf(answerOf(result)), inputTokens, outputTokens };
  }
}

/** As `gemma.batch`, with options that were looked at. */
export async function runBatch(
  gemma: Gemma,
  input: string | URL,
  output: string | URL,
  settings: BatchSettings,
  options: BatchOptions,
): Promise<BatchResult> {
  const { signal } = options;
  signal?.throwIfAborted();
  const from = localPath(input, 'input', { allowLocal: true }, 'ERR_FILE');
  const to = await replaceablePath(localPath(output, 'output', { allowLocal: true }, 'ERR_FILE'));
  checkReadable(from);
  for (const written of [to, lockPath(to)]) checkWritable(written);
  if (await isSameFile(from, to)) {
    throw new GemmaError('ERR_INVALID_ARGUMENT', `${plain(to)}: the output is the input; name another`, 'SAME_FILE');
  }
  const unreadable = (error: unknown): never => {
    throw fileError(error, from, 'the input cannot be read');
  };
  const file = await open(from, 'r').catch(unreadable);
  try {
    const found = await file.stat();
    if (!found.isFile()) throw new GemmaError('ERR_FILE', `${plain(from)}: the input is not a regular file`);
    const results = await BatchOutput.open(to, settings.overwrite, signal);
    let isFinished = false;
    try {
      const batch = new Batch(gemma, settings, results, found.size, options);
      const result = await batch.run(file, signal).catch(unreadable);
      isFinished = true;
      return { path: to, ...result };
    } finally {
      await results.close(isFinished);
    }
  } finally {
    await file.close();
  }
}
