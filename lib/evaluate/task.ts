// Tasks of an evaluation: examples from JSON lines, all looked at before any model is loaded.
import { open } from 'node:fs/promises';
import { isBlank, parseLine, readLines } from '../batch-lines.js';
import type { BatchGenerateOptions } from '../batch.js';
import { fileError } from '../batch-output.js';
import { GemmaError } from '../errors.js';
import { localPath } from '../local-file.js';
import type { ImageInput } from '../media.js';
import type { Message } from '../messages.js';
import { booleans, elsewhere, integers, known, or, strings, valuesOf, type TableOf } from '../option-table.js';
import { ANY_SIZE, integer, plain, reasonOf, show, text } from '../values.js';
import { checkReadable } from '../permission.js';
import { Pace } from '../turns.js';
import { basename, extname } from 'node:path';
import { answerScorer, type AnswerScorer, type ScorerOption } from './scorers.js';

/** A line of a task. What it has says what it is: `text`, or a question with `choices`, or one with an `answer`. */
export interface EvaluationExample {
  /** Default: its number, from 1. */
  id?: string | number;
  /** A text whose perplexity is computed, or a part of the corpus whose memorisation is measured. */
  text?: string;
  /** The question, as text; pictures of `images` stand before it. */
  prompt?: string;
  images?: readonly ImageInput[];
  /** The question as a conversation, pictures among its parts. */
  messages?: readonly Message[];
  /** Of multiple choice: what there is to choose from, two or more. */
  choices?: readonly string[];
  /**
   * What is right. Of multiple choice the index of a choice, from 0, or the choice. Of an answer that is generated what the scorer takes: a text
   * or several (one of them), for `'json'` a value.
   */
  answer?: unknown;
  /** What stands as the answer where the example is shown to the model (`fewShot`). Default: the choice, the first text, for `'json'` the value; for
   * `'regex'` it has to be given. */
  shown?: string;
}

/** Examples that are shown before each question. */
export interface FewShotOptions {
  /** How many, 0 to 64. */
  n: number;
  /** Path or `file:` URL of JSON lines, or examples. Default: those of the task, without the one that is asked. */
  examples?: string | URL | readonly EvaluationExample[];
  /** Draws them anew for each question, the same ones for the same seed. Default: always the first. */
  seed?: number;
}

export interface MemorizationOptions {
  /** Samples of 100 tokens that are drawn from the corpus, 1 to 100,000. Default: 1000. All, where there are no more. */
  samples?: number;
  /** Default 0. */
  seed?: number;
}

/** What models are asked, and how their answers are judged. */
export interface EvaluationTask {
  /** Default: the name of the file, or `'task 1'`. */
  name?: string;
  /** Path or `file:` URL of JSON lines, or examples, all of one kind. */
  data: string | URL | readonly EvaluationExample[];
  /** Only the first so many examples. */
  limit?: number;
  /** How answers that are generated are judged. Default `'exact'`. */
  scorer?: ScorerOption;
  /** An instruction: the system message of a conversation, the beginning of raw text. */
  system?: string;
  fewShot?: FewShotOptions;
  /** True puts questions as text to continue, false as a conversation. Default: as the model was trained (`gemma.info.instructionTuned`). */
  raw?: boolean;
  /** Between question and answer. Default: a space in raw text (before a choice and in shown examples), nothing in a conversation. */
  delimiter?: string;
  /**
   * Options of `generate`. Default: greedy (`temperature: 0`), at most 256 tokens, and in raw text to the first blank line (`stopSequences:
   * ['\n\n']`). What may be read (`allowLocal`, `allowRemote`, limits) counts for multiple choice too.
   */
  generate?: BatchGenerateOptions;
  /** Tokens of a chunk for perplexity, as in `gemma.perplexity`. Default 512. */
  contextSize?: number;
  /** The texts are a corpus, of which is measured how much the model continues by heart. */
  memorization?: MemorizationOptions | true;
}

export type EvaluationKind = 'perplexity' | 'choice' | 'generation' | 'memorization';

const TASK = {
  name: strings,
  data: elsewhere,
  limit: or(integers(1, ANY_SIZE), Infinity),
  scorer: elsewhere,
  system: strings,
  fewShot: elsewhere,
  raw: booleans,
  delimiter: strings,
  generate: elsewhere,
  contextSize: integers(2),
  memorization: elsewhere,
} as const satisfies TableOf<EvaluationTask>;

const FEW_SHOT = {
  n: or(integers(0, 64), 0),
  examples: elsewhere,
  seed: integers(0, ANY_SIZE),
} as const satisfies TableOf<FewShotOptions>;

const MEMORIZATION = {
  samples: or(integers(1, 100_000), 1000),
  seed: or(integers(0, ANY_SIZE), 0),
} as const satisfies TableOf<MemorizationOptions>;

const MAX_LINE_BYTES = 16 << 20;
const MAX_DATA_BYTES = 1 << 30; // of a task: its examples are held
const MAX_ID = 1000;
const MAX_CHOICES = 1000;

const EXAMPLE_KEYS = ['id', 'text', 'prompt', 'images', 'messages', 'choices', 'answer', 'shown'];

/** An example that was looked at. */
export interface Example extends Omit<EvaluationExample, 'id' | 'answer' | 'shown'> {
  id: string | number;
  /** of multiple choice the index */
  answer: unknown;
  /** undefined: it cannot be shown */
  shown: string | undefined;
  /** for messages: `questions.jsonl:12` */
  place: string;
}

/** A task that was looked at, with its examples. */
export interface Task extends Pick<EvaluationTask, 'system' | 'raw' | 'delimiter' | 'contextSize'> {
  name: string;
  kind: EvaluationKind;
  examples: readonly Example[];
  scorer: AnswerScorer | undefined;
  fewShot: { n: number; seed?: number; examples: readonly Example[] };
  generate: BatchGenerateOptions;
  memorization: Required<MemorizationOptions> | undefined;
  /** what its results depend on beside the examples, for the output */
  settings: unknown;
}

function badLine(place: string, error: unknown): GemmaError {
  const detail = error instanceof GemmaError && error.detail === 'BAD_REGEX' ? 'BAD_REGEX' : 'BAD_LINE';
  return new GemmaError('ERR_INVALID_ARGUMENT', `${place}: ${reasonOf(error)}`, detail);
}

/** The kind that an example's keys say. */
function kindOf(example: Record<string, unknown>): Exclude<EvaluationKind, 'memorization'> {
  for (const key of Object.keys(example)) {
    if (!EXAMPLE_KEYS.includes(key)) {
      throw new TypeError(`${plain(key, 60)}: no such key; there are ${EXAMPLE_KEYS.join(', ')}`);
    }
  }
  const has = (key: string) => example[key] !== undefined;
  if (has('text')) {
    const other = ['prompt', 'images', 'messages', 'choices', 'answer'].find(has);
    if (other !== undefined) throw new TypeError(`expected text or ${other}, found both`);
    return 'perplexity';
  }
  if (has('prompt') === has('messages')) {
    throw new TypeError(`expected one of text, prompt, messages, found ${has('prompt') ? 'two' : 'none'} of them`);
  }
  if (!has('answer')) throw new TypeError('answer: missing; it says what is right');
  return has('choices') ? 'choice' : 'generation';
}

function answerIndex(choices: unknown, answer: unknown): number {
  if (!Array.isArray(choices)) throw new TypeError(`choices: expected an array of texts, found ${show(choices)}`);
  if (choices.length < 2 || choices.length > MAX_CHOICES) {
    throw new RangeError(`choices: expected 2 to ${MAX_CHOICES}, found ${choices.length}`);
  }
  const texts = choices.map((choice, i) => text(`choices[${i}]`, choice));
  const empty = texts.indexOf('');
  if (empty >= 0) throw new RangeError(`choices[${empty}]: expected some text, found none`);
  if (typeof answer === 'number') return integer('answer', answer, 0, texts.length - 1);
  const at = texts.indexOf(text('answer', answer));
  if (at < 0) throw new RangeError(`answer: expected the index of a choice or one of them, found ${show(answer)}`);
  return at;
}

async function exampleOf(
  given: unknown,
  number: number,
  place: string,
  scorer: AnswerScorer,
): Promise<{ kind: Exclude<EvaluationKind, 'memorization'>; example: Example }> {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw new TypeError(`expected an object of ${EXAMPLE_KEYS.join(', ')}, found ${show(given)}`);
  }
  const kind = kindOf(given as Record<string, unknown>);
  const { id = number, text: whole, prompt, images, messages, choices, answer, shown } = given as EvaluationExample;
  if (typeof id !== 'string' && !Number.isFinite(id)) {
    throw new TypeError(`id: expected a string or a number, found ${show(id)}`);
  }
  if (String(id).length > MAX_ID) throw new RangeError(`id: expected at most ${MAX_ID} characters`);
  if (kind === 'perplexity' && text('text', whole) === '') throw new RangeError('text: expected some text, found none');
  if (prompt !== undefined) text('prompt', prompt);
  if (messages !== undefined && (!Array.isArray(messages) || messages.length === 0)) {
    throw new TypeError(`messages: expected an array of messages, found ${show(messages)}`);
  }
  if (images !== undefined && (!Array.isArray(images) || prompt === undefined)) {
    throw new TypeError('images: expected an array beside prompt; in messages a picture is a part');
  }
  const right = kind === 'choice' ? answerIndex(choices, answer) : answer;
  if (kind === 'generation') await scorer.check(answer);
  const chosen = kind === 'choice' ? choices?.[right as number] : kind === 'generation' ? scorer.shown(answer) : '';
  const example: Example = {
    id,
    place,
    answer: right,
    shown: shown === undefined ? chosen : text('shown', shown),
    ...(whole !== undefined && { text: whole }),
    ...(prompt !== undefined && { prompt }),
    ...(images !== undefined && { images }),
    ...(messages !== undefined && { messages }),
    ...(choices !== undefined && { choices }),
  };
  return { kind, example };
}

interface Given {
  value: unknown;
  place: string;
  number: number;
}

/** The lines of a file, or what stands in an array, in turns of the event loop. */
async function* given(
  data: EvaluationTask['data'],
  name: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<Given> {
  const pace = new Pace(signal);
  if (Array.isArray(data)) {
    for (const [i, value] of data.entries()) {
      if (pace.due) await pace.turn();
      yield { value, place: `${name}[${i}]`, number: i + 1 };
    }
    return;
  }
  const path = localPath(data as string | URL, name, { allowLocal: true }, 'ERR_FILE');
  checkReadable(path);
  const file = await open(path, 'r').catch((error: unknown) => {
    throw fileError(error, path, 'the examples cannot be read');
  });
  try {
    let bytes = 0;
    for await (const line of readLines(file, MAX_LINE_BYTES)) {
      if (pace.due) await pace.turn();
      if ((bytes += line.size) > MAX_DATA_BYTES) {
        throw new GemmaError('ERR_INVALID_ARGUMENT', `${plain(path)}: more than ${MAX_DATA_BYTES} bytes`, 'TOO_LARGE');
      }
      if (isBlank(line)) continue;
      const place = `${plain(path)}:${line.number}`;
      let value: unknown;
      try {
        value = parseLine(line, MAX_LINE_BYTES);
      } catch (error) {
        throw badLine(place, error);
      }
      yield { value, place, number: line.number };
    }
  } catch (error) {
    throw fileError(error, path, 'the examples cannot be read');
  } finally {
    await file.close();
  }
}

/** Examples of one kind, with ids that differ. */
async function examplesOf(
  data: EvaluationTask['data'],
  name: string,
  scorer: AnswerScorer,
  limit: number,
  signal: AbortSignal | undefined,
): Promise<{ kind: Exclude<EvaluationKind, 'memorization'>; examples: Example[] }> {
  const examples: Example[] = [];
  const ids = new Set<string>();
  let kind: Exclude<EvaluationKind, 'memorization'> | undefined;
  for await (const { value, place, number } of given(data, name, signal)) {
    if (examples.length === limit) break;
    try {
      const found = await exampleOf(value, number, place, scorer);
      kind ??= found.kind;
      if (found.kind !== kind) {
        throw new TypeError(`expected an example of ${kind} as those before it, found one of ${found.kind}`);
      }
      const id = JSON.stringify(found.example.id);
      if (ids.has(id)) throw new RangeError(`id: ${plain(id, 60)} stands a second time`);
      ids.add(id);
      examples.push(found.example);
    } catch (error) {
      throw badLine(place, error);
    }
  }
  if (!kind)
    throw new GemmaError('ERR_INVALID_ARGUMENT', `${name}: expected at least one example, found none`, 'EMPTY');
  return { kind, examples };
}

function memorizationOf(value: EvaluationTask['memorization']): Required<MemorizationOptions> | undefined {
  if (value === undefined) return undefined;
  const options = value === true ? {} : value;
  known(MEMORIZATION, options, 'memorization');
  return valuesOf(MEMORIZATION, options, 'memorization.');
}

const MAX_NAME = 200;

function nameOf({ name, data }: EvaluationTask, i: number): string {
  const isFile = typeof data === 'string' || data instanceof URL;
  const found = name ?? (isFile ? basename(String(data), extname(String(data))) : `task ${i + 1}`);
  if (found === '' || found.length > MAX_NAME) {
    throw new RangeError(`tasks[${i}].name: expected 1 to ${MAX_NAME} characters, found ${found.length}`);
  }
  return found;
}

/**
 * Reads a task.
 *
 * @throws TypeError, RangeError for its options; GemmaError `ERR_INVALID_ARGUMENT` (`BAD_LINE`, `BAD_REGEX`: a line, which the message
 * names with its file; `EMPTY`, `TOO_LARGE`), `ERR_FILE`
 */
export async function readTask(task: EvaluationTask, i: number, signal: AbortSignal | undefined): Promise<Task> {
  known(TASK, task, `tasks[${i}]`);
  const { limit, ...options } = valuesOf(TASK, task, `tasks[${i}].`);
  const name = nameOf(task, i);
  const scorer = answerScorer(task.scorer ?? 'exact');
  const { data } = task;
  if (typeof data !== 'string' && !(data instanceof URL) && !Array.isArray(data)) {
    throw new TypeError(`tasks[${i}].data: expected a path, a file: URL or an array of examples, found ${show(data)}`);
  }
  const { kind, examples } = await examplesOf(data, `tasks[${i}].data`, scorer, limit, signal);
  const memorization = memorizationOf(task.memorization);
  if (memorization && kind !== 'perplexity') {
    throw new TypeError(`tasks[${i}].memorization: expected examples with text, found those of ${kind}`);
  }
  const { fewShot = { n: 0 } } = task;
  known(FEW_SHOT, fewShot, `tasks[${i}].fewShot`);
  const { n, seed } = valuesOf(FEW_SHOT, fewShot, `tasks[${i}].fewShot.`);
  if (n > 0 && kind === 'perplexity') throw new TypeError(`tasks[${i}].fewShot: only of questions`);
  const others =
    fewShot.examples === undefined
      ? undefined
      : await examplesOf(fewShot.examples, `tasks[${i}].fewShot.examples`, scorer, Infinity, signal);
  if (others && others.kind !== kind) {
    throw new TypeError(`tasks[${i}].fewShot.examples: expected examples of ${kind}, found those of ${others.kind}`);
  } // prettier-ignore
  const pool = others?.examples ?? examples;
  const available = others ? pool.length : pool.length - 1;
  if (n > available)
    throw new RangeError(
      `tasks[${i}].fewShot.n: expected at most ${available}, the examples that there are, found ${n}`,
    );
  const hidden = n > 0 ? pool.find(({ shown }) => shown === undefined) : undefined;
  if (hidden)
    throw badLine(hidden.place, new TypeError('shown: missing; a pattern cannot stand as the answer of an example'));
  const { name: _, ...settings } = options;
  const generate = { ...task.generate };
  return {
    ...settings,
    name,
    kind: memorization ? 'memorization' : kind,
    examples,
    scorer: kind === 'generation' ? scorer : undefined,
    fewShot: { n, examples: pool, ...(seed !== undefined && { seed }) },
    generate,
    memorization,
    settings: { ...settings, scorer: task.scorer, fewShot: { n, seed }, generate, memorization },
  };
}
