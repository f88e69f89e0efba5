// Whether an answer is right.
import { isDeepStrictEqual } from 'node:util';
import { GemmaError } from '../errors.js';
import { booleans, choices, custom, known, numbers, or, valuesOf, type Table } from '../option-table.js';
import { PatternError, Patterns, type Language } from '../pattern.js';
import { inSlices } from '../turns.js';
import { oneOf, plain, show, text } from '../values.js';
import { finalAnswer, isSameAnswer } from './math-answer.js';

/**
 * How answers are judged, by name or with options:
 *
 * - `'exact'`: the answer is one of the expected texts. `normalize`: `'whitespace'` (default; runs of it become a space, none at the
 *   ends), `'squad'` (the SQuAD script's: lower case, no ASCII punctuation, no articles a, an, the, whitespace), `'none'`.
 * - `'contains'`: one of the expected texts stands in it. `ignoreCase`: default false.
 * - `'regex'`: one of the expected patterns finds something in it (ECMAScript, flag u; the time is linear, so there are no back references, no
 *   lookbehinds and no word boundaries).
 * - `'number'`: its final answer, as MATH and GSM8K have them, is the expected one. `tolerance`: relative, default 0.
 * - `'json'`: it is JSON, alone or in one fence of Markdown, and equals the expected value. `paths`: JSON Pointers (RFC 6901) of what is compared;
 *   default: of an object each of its keys, of anything else all of it.
 */
export type ScorerOption =
  | ScorerName
  | { type: 'exact'; normalize?: 'none' | 'whitespace' | 'squad' }
  | { type: 'contains'; ignoreCase?: boolean }
  | { type: 'regex' }
  | { type: 'number'; tolerance?: number }
  | { type: 'json'; paths?: readonly string[] };

export type ScorerName = 'exact' | 'contains' | 'regex' | 'number' | 'json';

/** What a scorer says of one answer, by metric: 1 and 0 for right and wrong, or a part of it. */
export type Scores = Record<string, number>;

/** Judges answers. */
export interface AnswerScorer {
  /** Looks at what is expected, before any model is asked. Throws TypeError, RangeError. */
  check: (expected: unknown) => Promise<void> | void;
  /** What is expected as a model would write it; undefined: that cannot be said. */
  shown: (expected: unknown) => string | undefined;
  score: (answer: string, expected: unknown) => Promise<Scores> | Scores;
}

const MAX_EXPECTED = 1000;

function textsOf(expected: unknown): readonly string[] {
  const list: unknown = Array.isArray(expected) ? expected : [expected];
  const texts = list as unknown[];
  if (texts.length === 0 || texts.length > MAX_EXPECTED) {
    throw new RangeError(`answer: expected 1 to ${MAX_EXPECTED} texts, found ${texts.length}`);
  }
  return texts.map((value, i) => {
    if (typeof value === 'number' && Number.isFinite(value)) return String(value);
    return text(texts.length === 1 ? 'answer' : `answer[${i}]`, value);
  });
}

const firstText = (expected: unknown): string | undefined => textsOf(expected)[0];

const collapsed = (answer: string): string => answer.trim().replace(/\s+/g, ' ');

const ASCII_PUNCTUATION = /[!-/:-@[-`{-~]/g;

/** As the SQuAD evaluation script's normalize_answer. */
function squad(answer: string): string {
  return collapsed(
    answer
      .toLowerCase()
      .replace(ASCII_PUNCTUATION, '')
      .replace(/(?<![\p{L}\p{N}_])(?:a|an|the)(?![\p{L}\p{N}_])/gu, ' '),
  );
}

const NORMALIZERS = { none: (answer: string) => answer, whitespace: collapsed, squad };

function exact(normalize: keyof typeof NORMALIZERS): AnswerScorer {
  const normal = NORMALIZERS[normalize];
  return {
    check: (expected) => void textsOf(expected),
    shown: firstText,
    score: (answer, expected) => ({
      exact_match: Number(textsOf(expected).some((wanted) => normal(wanted) === normal(answer))),
    }),
  };
}

function contains(ignoreCase: boolean): AnswerScorer {
  const cased = (value: string) => (ignoreCase ? value.toLowerCase() : value);
  return {
    check: (expected) => {
      if (textsOf(expected).includes('')) throw new RangeError('answer: expected some text, found none');
    },
    shown: firstText,
    score: (answer, expected) => ({
      contains: Number(textsOf(expected).some((wanted) => cased(answer).includes(cased(wanted)))),
    }),
  };
}

// A fresh set of sets after so many patterns: what they have made stays with them.
const PATTERNS_KEPT = 64;

function regex(): AnswerScorer {
  let patterns = new Patterns();
  let languages = new Map<string, Language>();
  const languageOf = async (pattern: string): Promise<Language> => {
    const found = languages.get(pattern);
    if (found) return found;
    if (languages.size >= PATTERNS_KEPT) [patterns, languages] = [new Patterns(), new Map<string, Language>()];
    const made = await inSlices(patterns.search(pattern));
    languages.set(pattern, made);
    return made;
  };
  const named = (error: unknown, pattern: string): unknown =>
    error instanceof PatternError
      ? new GemmaError('ERR_INVALID_ARGUMENT', `the pattern has ${error.message} (${show(pattern)})`, 'BAD_REGEX')
      : error;
  // One at a time: an automaton is worked on in turns of the event loop.
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const result = last.then(work);
    last = result.catch(() => undefined);
    return result;
  };
  return {
    check: (expected) =>
      inTurn(async () => {
        for (const pattern of textsOf(expected)) {
          try {
            await languageOf(pattern);
          } catch (error) {
            throw named(error, pattern);
          }
        }
      }),
    shown: () => undefined,
    score: (answer, expected) =>
      inTurn(async () => {
        for (const pattern of textsOf(expected)) {
          try {
            const language = await languageOf(pattern);
            if (await inSlices(patterns.has(language, answer))) return { regex: 1 };
          } catch (error) {
            throw named(error, pattern);
          }
        }
        return { regex: 0 };
      }),
  };
}

function number(tolerance: number): AnswerScorer {
  return {
    check: (expected) => void textsOf(expected),
    shown: firstText,
    score: (answer, expected) => {
      const found = finalAnswer(answer);
      // What is expected may be a worked solution itself, as in MATH and GSM8K.
      const isSame = (wanted: string) =>
        found !== undefined &&
        isSameAnswer(found, /\\boxed|\\fbox|####/.test(wanted) ? (finalAnswer(wanted) ?? wanted) : wanted, tolerance);
      return { number: Number(textsOf(expected).some(isSame)) };
    },
  };
}

const MISSING = Symbol('missing');

/** The value at a JSON Pointer, of own properties only. */
function at(value: unknown, pointer: string): unknown {
  let found = value;
  for (const escaped of pointer.split('/').slice(1)) {
    const key = escaped.replaceAll('~1', '/').replaceAll('~0', '~');
    if (typeof found !== 'object' || found === null) return MISSING;
    if (Array.isArray(found) && !/^(?:0|[1-9]\d*)$/.test(key)) return MISSING;
    if (!Object.hasOwn(found, key)) return MISSING;
    found = (found as Record<string, unknown>)[key];
  }
  return found;
}

function parsed(answer: string): unknown {
  const fenced = /^[^`]*```(?:json)?[ \t]*\r?\n([^`]*)```[^`]*$/i.exec(answer);
  try {
    return JSON.parse(fenced?.[1] ?? answer);
  } catch {
    return MISSING;
  }
}

function pointers(name: string, value: unknown): readonly string[] {
  if (!Array.isArray(value) || value.length === 0) {
    throw new TypeError(`${name}: expected an array of JSON Pointers, found ${show(value)}`);
  }
  return value.map((pointer, i) => {
    const found = text(`${name}[${i}]`, pointer);
    if (!/^(?:\/(?:[^~/]|~[01])*)*$/.test(found)) {
      throw new RangeError(`${name}[${i}]: expected a JSON Pointer such as /address/city, found ${show(found)}`);
    }
    return found;
  });
}

function json(paths: readonly string[] | undefined): AnswerScorer {
  const isRecord = (value: unknown): value is object =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  const pathsOf = (expected: unknown) => {
    if (paths) return paths;
    const keys = isRecord(expected) ? Object.keys(expected) : [];
    return keys.length > 0 ? keys.map((key) => `/${key.replaceAll('~', '~0').replaceAll('/', '~1')}`) : [''];
  };
  return {
    check: (expected) => {
      for (const path of pathsOf(expected)) {
        if (at(expected, path) === MISSING) throw new RangeError(`answer: there is nothing at ${plain(path, 60)}`);
      }
    },
    shown: (expected) => JSON.stringify(expected),
    score: (answer, expected) => {
      const value = parsed(answer);
      const compared = pathsOf(expected);
      const right = compared.filter((path) => isDeepStrictEqual(at(value, path), at(expected, path))).length;
      return { json: Number(value !== MISSING && right === compared.length), json_fields: right / compared.length };
    },
  };
}

const SCORERS = {
  exact: { normalize: or(choices('none', 'whitespace', 'squad'), 'whitespace') },
  contains: { ignoreCase: or(booleans, false) },
  regex: {},
  number: { tolerance: or(numbers('a number from 0 to 1', (n) => n >= 0 && n <= 1), 0) }, // prettier-ignore
  json: { paths: custom(pointers) },
} as const satisfies Record<ScorerName, Table>;

export const SCORER_NAMES = Object.keys(SCORERS) as ScorerName[];

/** @throws TypeError, RangeError */
export function answerScorer(option: ScorerOption): AnswerScorer {
  const given: unknown = typeof option === 'string' ? { type: option } : option;
  if (typeof given !== 'object' || given === null) {
    throw new TypeError(`scorer: expected a name or { type, ... }, found ${show(given)}`);
  }
  const type = oneOf('scorer', (given as { type?: unknown }).type, SCORER_NAMES);
  known({ type: choices(...SCORER_NAMES), ...SCORERS[type] }, given, 'scorer');
  switch (type) {
    case 'exact':
      return exact(valuesOf(SCORERS.exact, given, 'scorer.').normalize);
    case 'contains':
      return contains(valuesOf(SCORERS.contains, given, 'scorer.').ignoreCase);
    case 'regex':
      return regex();
    case 'number':
      return number(valuesOf(SCORERS.number, given, 'scorer.').tolerance);
    case 'json':
      return json(valuesOf(SCORERS.json, given, 'scorer.').paths);
  }
}
