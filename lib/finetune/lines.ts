// The lines of training data: JSON objects, one in each line, of one of four forms. A line is read, checked and handed on before the next
// one is looked at; what is wrong is reported with the file and the number of the line.
import { open } from 'node:fs/promises';
import { fileError } from '../batch-output.js';
import { isBlank, parseLine, readLines } from '../batch-lines.js';
import { GemmaError } from '../errors.js';
import { localPath } from '../local-file.js';
import { checkReadable } from '../permission.js';
import { plain, reasonOf, show } from '../values.js';

/** What a line asks to learn. */
export type TrainingLine =
  | { kind: 'messages'; messages: readonly unknown[]; tools?: unknown }
  | { kind: 'completion'; prompt: string; completion: string }
  | { kind: 'text'; text: string }
  | { kind: 'preference'; prompt: string | readonly unknown[]; chosen: string; rejected: string; tools?: unknown };

/** What a teacher makes of each token that counts, as a line stores it: the likeliest tokens and their natural logits. */
export interface StoredLogits {
  tokens: readonly (readonly number[])[];
  logits: readonly (readonly number[])[];
}

export interface NumberedLine {
  /** of the file, from 1 */
  number: number;
  line: TrainingLine;
  teacher?: StoredLogits;
}

const FORMS = '{ messages }, { prompt, completion }, { text } or { prompt or messages, chosen, rejected }';
const KEYS = ['messages', 'prompt', 'completion', 'text', 'chosen', 'rejected', 'tools', 'teacher', 'id', 'metadata'];
const HINTS: Readonly<Record<string, string>> = {
  input: 'prompt is meant',
  instruction: 'prompt is meant',
  question: 'prompt is meant',
  output: 'completion is meant',
  response: 'completion is meant',
  answer: 'completion is meant',
  conversations: 'messages is meant, [{ role, content }]',
  conversation: 'messages is meant, [{ role, content }]',
  content: 'text is meant',
};

// Of the numbers that one line stores of a teacher.
const MAX_STORED = 1 << 20;

function texts<K extends string>(line: Record<string, unknown>, ...keys: readonly K[]): Record<K, string> {
  const found: Partial<Record<K, string>> = {};
  for (const key of keys) {
    const value = line[key];
    if (typeof value !== 'string') throw new TypeError(`${key}: expected a string, found ${show(value)}`);
    found[key] = value;
  }
  return found as Record<K, string>;
}

function messagesOf({ messages }: Record<string, unknown>): readonly unknown[] {
  if (!Array.isArray(messages)) throw new TypeError(`messages: expected an array, found ${show(messages)}`);
  return messages;
}

function rowsOf(name: string, value: unknown, accepts: (number: number) => boolean): number[][] {
  if (!Array.isArray(value)) throw new TypeError(`${name}: expected an array of arrays, found ${show(value)}`);
  let n = 0;
  for (const [i, row] of (value as unknown[]).entries()) {
    if (!Array.isArray(row)) throw new TypeError(`${name}[${i}]: expected an array of numbers, found ${show(row)}`);
    if ((n += row.length) > MAX_STORED) throw new RangeError(`${name}: expected at most ${MAX_STORED} numbers`);
    const wrong = (row as unknown[]).find((item) => typeof item !== 'number' || !accepts(item));
    if (wrong !== undefined) throw new TypeError(`${name}[${i}]: expected numbers, found ${show(wrong)}`);
  }
  return value as number[][];
}

function storedLogits(value: unknown): StoredLogits {
  if (typeof value !== 'object' || value === null) {
    throw new TypeError(`teacher: expected { tokens, logits }, found ${show(value)}`);
  }
  const { tokens, logits } = value as Record<string, unknown>;
  const ids = rowsOf('teacher.tokens', tokens, (id) => Number.isInteger(id) && id >= 0 && id < 2 ** 31);
  const scores = rowsOf('teacher.logits', logits, Number.isFinite);
  if (ids.length !== scores.length || ids.some((row, i) => row.length !== scores[i]?.length || row.length === 0)) {
    throw new RangeError('teacher: expected as many logits as tokens in each row, and one at least');
  }
  if (ids.some((row) => new Set(row).size !== row.length)) {
    throw new RangeError('teacher.tokens: expected each token once in a row');
  }
  return { tokens: ids, logits: scores };
}

/** @throws TypeError, RangeError */
function lineOf(value: unknown): Omit<NumberedLine, 'number'> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`expected an object, ${FORMS}, found ${show(value)}`);
  }
  const line = value as Record<string, unknown>;
  for (const key of Object.keys(line)) {
    if (KEYS.includes(key)) continue;
    const hint = Object.hasOwn(HINTS, key) ? `${HINTS[key]}. ` : '';
    throw new TypeError(`${plain(key, 60)}: no such key; ${hint}Expected ${FORMS}, with id, metadata and tools beside`);
  }
  const has = (key: string) => line[key] !== undefined;
  const beside = {
    ...(has('tools') && { tools: line.tools }),
    ...(has('teacher') && { teacher: storedLogits(line.teacher) }),
  };
  const exclusive = (...keys: string[]) => {
    const found = keys.find(has);
    if (found !== undefined) throw new TypeError(`${found}: does not go with the other keys; expected ${FORMS}`);
  };
  const { teacher, tools } = beside;
  const besides = { ...(teacher && { teacher }) };
  if (has('chosen') || has('rejected')) {
    exclusive('completion', 'text', 'teacher');
    if (has('prompt')) exclusive('messages');
    const prompt = has('messages') ? messagesOf(line) : texts(line, 'prompt').prompt;
    return {
      line: { kind: 'preference', prompt, ...texts(line, 'chosen', 'rejected'), ...(has('tools') && { tools }) },
    };
  }
  if (has('messages')) {
    exclusive('prompt', 'completion', 'text');
    return { line: { kind: 'messages', messages: messagesOf(line), ...(has('tools') && { tools }) }, ...besides };
  }
  exclusive('tools');
  if (has('prompt') || has('completion')) {
    exclusive('text');
    return { line: { kind: 'completion', ...texts(line, 'prompt', 'completion') }, ...besides };
  }
  if (has('text')) return { line: { kind: 'text', ...texts(line, 'text') }, ...besides };
  throw new TypeError(`expected ${FORMS}, found ${Object.keys(line).length === 0 ? 'no key' : 'none of them'}`);
}

/** An error that names the file and the line. A GemmaError keeps its code. */
export function atLine(path: string, number: number, error: unknown, detail = 'BAD_EXAMPLE'): GemmaError {
  const known = error instanceof GemmaError;
  const message = `${plain(path)}: line ${number}: ${reasonOf(error)}`;
  return new GemmaError(known ? error.code : 'ERR_INVALID_ARGUMENT', message, known ? error.detail : detail);
}

const isOwn = (error: unknown) =>
  error instanceof TypeError || error instanceof RangeError || error instanceof SyntaxError;

/**
 * Reads lines as they come. `data`: path or `file:` URL; `name` of the option.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_EXAMPLE`) with file and line; `ERR_FILE`
 */
export async function* trainingLines(
  data: string | URL,
  name: string,
  maxLineBytes: number,
): AsyncGenerator<NumberedLine, void, undefined> {
  const path = localPath(data, name, { allowLocal: true }, 'ERR_FILE');
  checkReadable(path);
  const file = await open(path, 'r').catch((error: unknown) => {
    throw fileError(error, path, 'the data cannot be opened');
  });
  try {
    if (!(await file.stat()).isFile()) throw new GemmaError('ERR_FILE', `${plain(path)}: not a regular file`);
    for await (const line of readLines(file, maxLineBytes)) {
      if (isBlank(line)) continue;
      let read: Omit<NumberedLine, 'number'>;
      try {
        read = lineOf(parseLine(line, maxLineBytes));
      } catch (error) {
        throw isOwn(error) ? atLine(path, line.number, error) : error;
      }
      yield { number: line.number, ...read };
    }
  } finally {
    await file.close();
  }
}
