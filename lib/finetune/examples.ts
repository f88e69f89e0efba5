// Lines to token ids. What is learned is, to the token, what `generate` sends and what the model would answer: prompts are laid out by the
// same code, and an answer is followed by the token that ends it.
import { createHash } from 'node:crypto';
import type { Cancellation } from '../cancellation.js';
import { GemmaError } from '../errors.js';
import type { Turn } from '../messages.js';
import { MARKER_BOS, type NativeModel, type NativeModelInfo } from '../native.js';
import { countOptions, type CountTokensOptions, type PromptSettings } from '../options.js';
import type { Layout, PromptBuilder } from '../prompt.js';
import { endToken } from '../score.js';
import { encodeParts } from '../token-text.js';
import { inSlices, Pace } from '../turns.js';
import { plain } from '../values.js';
import { atLine, trainingLines, type NumberedLine, type StoredLogits, type TrainingLine } from './lines.js';

/** A loaded model, as far as its prompts go. */
export interface PromptSource {
  prompts: PromptBuilder;
  info: Pick<NativeModelInfo, 'config'> & { endTokens: readonly number[] };
  live: () => NativeModel;
  /** a string is a turn of a conversation */
  isTurn: boolean;
}

/** Of a teacher, for each token that counts: the likeliest tokens with their logits. */
export interface TeacherRows {
  k: number;
  /** [tokens that count, k] */
  ids: Int32Array;
  logits: Float32Array;
}

/** Tokens in their order; those of the spans are learned, each from all before it. */
export interface Sequence {
  tokens: Int32Array;
  /** begin and end of each stretch that counts: [begin, end, begin, end, ...] */
  spans: readonly number[];
  /** what its pictures are shown by; absent without any */
  turns?: { turns: readonly Turn[]; settings: PromptSettings };
  teacher?: TeacherRows;
}

/** What is learned together: one sequence, or two of which the first is preferred. */
export interface Example {
  /** of the file */
  line: number;
  sequences: readonly Sequence[];
  /** of all sequences */
  tokens: number;
  /** that count */
  targets: number;
}

export interface ExampleOptions {
  maxLength: number;
  maxLineBytes: number;
  tooLong: 'error' | 'cut' | 'skip';
  loss: 'next-token' | 'distillation' | 'dpo';
  /** a file's lines must store what the teacher makes of them */
  needsStored: boolean;
  /** what pictures are read with */
  media: CountTokensOptions;
}

export interface ExampleSet {
  examples: Example[];
  /** examples that were left out, and that were cut */
  skipped: number;
  cut: number;
  /** of all that is learned */
  hash: string;
}

// Together they are held in memory: 1 GiB.
const MAX_TOKENS = 1 << 28;

export function targetsOf(spans: readonly number[]): number {
  let n = 0;
  for (let i = 0; i < spans.length; i += 2) n += (spans[i + 1] ?? 0) - (spans[i] ?? 0);
  return n;
}

function startsWith(tokens: Int32Array, beginning: Int32Array): boolean {
  return tokens.length >= beginning.length && beginning.every((id, i) => id === tokens[i]);
}

function joined(...parts: readonly (Int32Array | readonly number[])[]): Int32Array {
  const tokens = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let n = 0;
  for (const part of parts) {
    tokens.set(part, n);
    n += part.length;
  }
  return tokens;
}

function badTurns(message: string): GemmaError {
  return new GemmaError('ERR_INVALID_ARGUMENT', message, 'BAD_EXAMPLE');
}

/** Turns lines into tokens. */
class ExampleEncoder {
  readonly #source: PromptSource;
  readonly #options: ExampleOptions;
  readonly #signal: AbortSignal;
  readonly #ends: ReadonlySet<number>;

  constructor(source: PromptSource, options: ExampleOptions, signal: AbortSignal) {
    this.#source = source;
    this.#options = options;
    this.#signal = signal;
    this.#ends = new Set(source.info.endTokens);
  }

  /** The sequences of a line: of a conversation several where its template writes earlier turns otherwise later on. */
  async sequences(line: TrainingLine): Promise<Sequence[][]> {
    const wanted = this.#options.loss === 'dpo' ? 'preference' : 'other';
    if ((line.kind === 'preference') !== (wanted === 'preference')) {
      throw new TypeError(
        wanted === 'preference'
          ? 'expected { prompt or messages, chosen, rejected }, which the loss dpo learns from'
          : "chosen and rejected: only with the option loss: 'dpo'",
      );
    }
    switch (line.kind) {
      case 'text':
        return [[await this.#text(line.text)]];
      case 'completion':
        return [[await this.#answer(line.prompt, line.completion, undefined)]];
      case 'messages': {
        const { settings, turns } = await this.#read(line.messages, line.tools);
        return (await this.#conversation(turns, settings)).map((sequence) => [sequence]);
      }
      case 'preference':
        return [
          [
            await this.#answer(line.prompt, line.chosen, line.tools),
            await this.#answer(line.prompt, line.rejected, line.tools),
          ],
        ];
    }
  }

  async #read(messages: readonly unknown[], tools: unknown): Promise<{ settings: PromptSettings; turns: Turn[] }> {
    const given = tools === undefined ? {} : ({ tools } as CountTokensOptions);
    const settings = countOptions({ ...this.#options.media, ...given });
    return { settings, turns: await inSlices(this.#source.prompts.read(messages)) };
  }

  #layOut(turns: readonly Turn[], settings: PromptSettings): Promise<Layout> {
    return this.#source.prompts.layOutTurns(turns, settings, { signal: this.#signal });
  }

  #encode(text: string): Promise<Int32Array> {
    return encodeParts(this.#source.live(), [text], { signal: this.#signal });
  }

  // <bos>, the text, <eos>.
  async #text(text: string): Promise<Sequence> {
    const model = this.#source.live();
    const body = text === '' ? new Int32Array() : await this.#encode(text);
    if (body.length === 0) throw new RangeError('text: expected at least one token, found none');
    const bos = await encodeParts(model, [MARKER_BOS]);
    const tokens = joined(bos, body, [endToken(model, false)]);
    return { tokens, spans: [Math.max(1, bos.length), tokens.length] }; // nothing stands before a first token
  }

  async #answer(prompt: string | readonly unknown[], answer: string, tools: unknown): Promise<Sequence> {
    if (answer.trim() === '') throw new RangeError('expected an answer of at least one token, found none');
    if (typeof prompt === 'string' && !this.#source.isTurn) {
      const model = this.#source.live();
      const before = joined(await encodeParts(model, [MARKER_BOS]), prompt === '' ? [] : await this.#encode(prompt));
      const tokens = joined(before, await this.#encode(answer), [endToken(model, false)]);
      return { tokens, spans: [Math.max(1, before.length), tokens.length] };
    }
    const messages = typeof prompt === 'string' ? [{ role: 'user', content: prompt }] : prompt;
    const { settings, turns } = await this.#read(messages, tools);
    if (turns.at(-1)?.role === 'assistant') {
      throw new TypeError("messages: expected the last message to be the user's, found the assistant's");
    }
    return this.#turn(turns, { role: 'assistant', content: answer, fields: {} }, settings);
  }

  // The prompt of turns, one answer behind it, and the token that ends it.
  async #turn(turns: readonly Turn[], answer: Turn, settings: PromptSettings): Promise<Sequence> {
    const prompt = await this.#layOut(turns, settings);
    const whole = await this.#layOut([...turns, answer], settings);
    if (!startsWith(whole.tokens, prompt.tokens)) {
      throw new GemmaError(
        'ERR_CHAT_TEMPLATE',
        'the chat template does not put an answer behind the prompt that it is an answer to, so it cannot be learned with it',
        'TEMPLATE_ANSWER',
      );
    }
    const from = prompt.tokens.length;
    if (whole.tokens.length === from) throw badTurns('expected an answer of at least one token, found none');
    const tokens = joined(whole.tokens, [endToken(this.#source.live(), true)]);
    return this.#shown({ tokens, spans: [from, tokens.length] }, whole, [...turns, answer], settings);
  }

  #shown(sequence: Sequence, layout: Layout, turns: readonly Turn[], settings: PromptSettings): Sequence {
    return layout.pictures.length === 0 ? sequence : { ...sequence, turns: { turns, settings } };
  }

  // All turns of the assistant in one sequence, where each prompt is the beginning of it; else a sequence for each.
  async #conversation(turns: readonly Turn[], settings: PromptSettings): Promise<Sequence[]> {
    const answers = turns.flatMap(({ role }, i) => (role === 'assistant' ? [i] : []));
    if (answers.length === 0) throw badTurns('messages: expected at least one message of the assistant, found none');
    const last = (answers.at(-1) ?? 0) + 1;
    const open = turns[last - 1]?.calls ?? [];
    // What calls are followed by until their results come is not a prompt; results of no content stand in for it.
    const closed = turns.length > last ? turns : [...turns, ...open.map(({ id }) => emptyResult(id))];
    const whole = await this.#layOut(open.length > 0 ? closed : turns.slice(0, last), settings);
    const tokens = open.length > 0 ? whole.tokens : joined(whole.tokens, [endToken(this.#source.live(), true)]);
    const spans: number[] = [];
    let isOne = true;
    for (const i of answers) {
      const prompt = (await this.#layOut(turns.slice(0, i), settings)).tokens;
      const end = startsWith(tokens, prompt) ? this.#endOfAnswer(tokens, prompt.length) : undefined;
      if (end === undefined || end - prompt.length < 2) {
        isOne = false;
        break;
      }
      spans.push(prompt.length, end);
    }
    if (isOne) {
      const cut = tokens.subarray(0, spans.at(-1));
      return [this.#shown({ tokens: cut, spans }, whole, turns.slice(0, last), settings)];
    }
    const each: Sequence[] = [];
    for (const i of answers) each.push(await this.#turn(turns.slice(0, i), turns[i] as Turn, settings));
    return each;
  }

  // Text never becomes a token that ends an answer, so the first one is the end.
  #endOfAnswer(tokens: Int32Array, from: number): number | undefined {
    const at = tokens.subarray(from).findIndex((id) => this.#ends.has(id));
    return at < 0 ? undefined : from + at + 1;
  }
}

function emptyResult(id: string): Turn {
  return { role: 'tool', content: undefined, fields: {}, reply: { id, name: '', output: '' } };
}

/** Rows of as many tokens each, the likeliest; -inf stands where a row has fewer. */
function teacherRows(stored: StoredLogits, targets: number, n_vocabulary: number): TeacherRows {
  if (stored.tokens.length !== targets) {
    throw new RangeError(
      `teacher: expected ${targets} rows, one for each token that counts, found ${stored.tokens.length}`,
    );
  }
  const k = stored.tokens.reduce((most, row) => Math.max(most, row.length), 0);
  const ids = new Int32Array(targets * k);
  const logits = new Float32Array(targets * k).fill(-Infinity);
  for (const [i, row] of stored.tokens.entries()) {
    const past = row.find((id) => id >= n_vocabulary);
    if (past !== undefined) {
      throw new RangeError(`teacher.tokens[${i}]: expected ids below ${n_vocabulary}, found ${past}`);
    }
    ids.set(row, i * k);
    logits.set(stored.logits[i] ?? [], i * k);
  }
  return { k, ids, logits };
}

function cutTo({ tokens, spans, ...rest }: Sequence, length: number): Sequence {
  const kept = spans.map((at) => Math.min(at, length));
  const cut: number[] = [];
  for (let i = 0; i < kept.length; i += 2) {
    const [begin = 0, end = 0] = kept.slice(i, i + 2);
    if (begin < end) cut.push(begin, end);
  }
  const { teacher } = rest;
  const n = targetsOf(cut);
  return {
    ...rest,
    tokens: tokens.subarray(0, length),
    spans: cut,
    ...(teacher && {
      teacher: {
        k: teacher.k,
        ids: teacher.ids.subarray(0, n * teacher.k),
        logits: teacher.logits.subarray(0, n * teacher.k),
      },
    }),
  };
}

/**
 * Reads a file of examples. What is held is their tokens; pictures stay where they are.
 *
 * @throws GemmaError with file and line: `ERR_INVALID_ARGUMENT` (`BAD_EXAMPLE`; `EXAMPLE_TOO_LONG`; `NO_EXAMPLES` for a file without any),
 * what prompts throw; `ERR_FILE`
 */
export async function readExamples(
  data: string | URL,
  name: string,
  source: PromptSource,
  options: ExampleOptions,
  { signal }: Cancellation,
): Promise<ExampleSet> {
  const encoder = new ExampleEncoder(source, options, signal);
  const hash = createHash('sha256');
  const examples: Example[] = [];
  const pace = new Pace(signal);
  const shown = plain(String(data));
  let skipped = 0;
  let cut = 0;
  let total = 0;

  const add = ({ number, teacher }: NumberedLine, sequences: Sequence[]) => {
    let kept = sequences.map((sequence): Sequence => {
      if (!teacher) return sequence;
      return {
        ...sequence,
        teacher: teacherRows(teacher, targetsOf(sequence.spans), source.info.config.vocabularySize),
      };
    });
    const longest = kept.reduce((most, { tokens }) => Math.max(most, tokens.length), 0);
    if (longest > options.maxLength) {
      if (options.tooLong === 'error') {
        throw new GemmaError(
          'ERR_INVALID_ARGUMENT',
          `${longest} tokens, more than the ${options.maxLength} that an example may have (option maxLength; option tooLong ` +
            "says 'cut' or 'skip')",
          'EXAMPLE_TOO_LONG',
        );
      }
      // A picture cannot be cut, and of a pair that is cut nothing says that what is left is better than the other.
      const whole = kept.some(({ turns }) => turns) || kept.length > 1;
      kept = options.tooLong === 'cut' && !whole ? kept.map((one) => cutTo(one, options.maxLength)) : [];
      if (kept.length === 0 || kept.some(({ spans }) => spans.length === 0)) {
        ++skipped;
        return;
      }
      ++cut;
    }
    const tokens = kept.reduce((sum, one) => sum + one.tokens.length, 0);
    if ((total += tokens) > MAX_TOKENS) {
      throw new GemmaError('ERR_OUT_OF_MEMORY', `expected at most ${MAX_TOKENS} tokens in all examples, found more`);
    }
    for (const one of kept) {
      hash.update(Int32Array.of(one.tokens.length, ...one.spans)).update(one.tokens);
      if (one.teacher) hash.update(one.teacher.ids).update(one.teacher.logits);
    }
    examples.push({
      line: number,
      sequences: kept,
      tokens,
      targets: kept.reduce((sum, one) => sum + targetsOf(one.spans), 0),
    });
  };

  for await (const numbered of trainingLines(data, name, options.maxLineBytes)) {
    signal.throwIfAborted();
    try {
      if (options.needsStored && !numbered.teacher) {
        throw new TypeError('expected teacher: { tokens, logits }, or the option teacher, for the loss distillation');
      }
      if (numbered.teacher && options.loss !== 'distillation') {
        throw new TypeError("teacher: only with the option loss: 'distillation'");
      }
      const all = await encoder.sequences(numbered.line);
      if (numbered.teacher && all.length > 1) {
        throw new TypeError(
          'teacher: the chat template makes several examples of this conversation; store one answer in a line',
        );
      }
      for (const sequences of all) add(numbered, sequences);
    } catch (error) {
      signal.throwIfAborted();
      throw atLine(String(data), numbered.number, error);
    }
    if (pace.due) await pace.turn();
  }
  if (examples.length === 0) {
    const left = skipped > 0 ? `: all ${skipped} are longer than maxLength` : '';
    throw new GemmaError(
      'ERR_INVALID_ARGUMENT',
      `${shown}: expected at least one example, found none${left}`,
      'NO_EXAMPLES',
    );
  }
  return { examples, skipped, cut, hash: hash.digest('hex') };
}

/** The rows of a sequence's pictures, encoded. */
export async function picturesOf(
  { turns }: Sequence,
  { prompts }: PromptSource,
  cancellation: Cancellation,
): Promise<{ first: number; rows: Float32Array }[]> {
  if (!turns) return [];
  const layout = await prompts.layOutTurns(turns.turns, turns.settings, { signal: cancellation.signal });
  const rows = await prompts.see(layout, cancellation, () => {});
  return rows.map((embedding, i) => ({ first: layout.firsts[i] ?? 0, rows: embedding }));
}
