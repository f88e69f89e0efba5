// The options of decide, rerank and classifyImage; laid out as in options.ts.
import type { AdapterOption } from './adapters.js';
import type { ImageEmbedding, ImageInput } from './media.js';
import {
  CROP,
  IMAGE,
  imageLimits,
  VIDEO,
  type CropOptions,
  type ImageLimits,
  type ImageOptions,
  type VideoOptions,
} from './media-options.js';
import {
  booleans,
  callbacks,
  checked,
  choices,
  custom,
  elsewhere,
  integers,
  known,
  numbers,
  or,
  signals,
  valuesOf,
  type TableOf,
} from './option-table.js';
import { promptSettings, RAW, type Priority, type PromptSettings } from './options.js';
import type { Input } from './prompt.js';
import { oneOf, plain, show, text } from './values.js';

/** What all kinds of questions have in common. */
export interface QuestionOptions extends ImageOptions, CropOptions, VideoOptions {
  /** What is asked about the input; it stands behind it. At most 100,000 characters. Default: the input asks it itself. */
  question?: string;
  /**
   * True puts nothing behind the input, neither the question nor the possible answers: the input says all of it, in the words that
   * the model knows best. Default false.
   */
  verbatim?: boolean;
  /**
   * Divides by how likely each answer is anyway (contextual calibration, Zhao et al. 2021): the question is asked again of inputs
   * without content, and what is answered to these counts as the model's prejudice. `true`: of `'N/A'`, `'[MASK]'` and an empty text
   * in place of a text, a grey picture in place of each picture; an array: of these inputs, 1 to 16. Conversations, token ids and
   * `verbatim` need the array. Default false.
   */
  calibrate?: boolean | readonly Input[];
  /** Divides the logarithms of the probabilities: above 1 less sure, below 1 surer. 0.01 to 100. Default 1. */
  temperature?: number;
  /** As in `generate`. */
  raw?: boolean;
  /** As in `generate`. */
  bos?: boolean;
  /** As in `generate`: pictures before an input that is no conversation. */
  images?: readonly (ImageInput | ImageEmbedding)[];
  /** As in `generate`. */
  adapter?: AdapterOption;
  /** As in `generate`. */
  priority?: Priority;
  signal?: AbortSignal;
}

export interface BooleanQuestion extends QuestionOptions {
  type: 'boolean';
  /** The words for both answers, in the language of the question. Default `{ true: 'Yes', false: 'No' }`. */
  labels?: { true?: string; false?: string };
}

export interface ChoiceQuestion<T extends string = string> extends QuestionOptions {
  type: 'choice';
  /** What there is to choose from, 2 to 1000: names, or names with a description of each, which the model is told. */
  choices: readonly T[] | Readonly<Record<T, string>>;
  /**
   * How the model answers: with the name of a choice (`'names'`, default) or with the letter before it (`'letters'`, at most 26
   * choices). Letters are all of one length and equally common; small models mix them up.
   */
  answers?: 'names' | 'letters';
}

export interface ScoreQuestion extends QuestionOptions {
  type: 'score';
  /** The lowest number. Default 0 with `levels`; required without. From -1000 on. */
  min?: number;
  /** The highest number, above `min`, at most 1000; not beside `levels`. */
  max?: number;
  /** What each number means, from `min` on; 2 to 1000. */
  levels?: readonly string[];
}

export type Question = BooleanQuestion | ChoiceQuestion | ScoreQuestion;

export interface RerankOptions {
  /** What makes a document relevant. Default: that it helps to answer the query. At most 100,000 characters. */
  instruction?: string;
  /** So many of the best only, 1 or more. Default: all. */
  topN?: number;
  /**
   * Cut the end off documents that do not fit into the context. Default false: such a document is `ERR_CONTEXT_FULL`
   * (`CONTEXT_OVERFLOW`).
   */
  truncate?: boolean;
  /** As in `generate`. */
  raw?: boolean;
  /** As in `generate`. */
  adapter?: AdapterOption;
  /** As in `generate`. */
  priority?: Priority;
  /** Called with the fraction of the documents that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

/** ShieldGemma 2's own policies. */
export type ImagePolicy = 'dangerous' | 'sexual' | 'violence';

export interface ClassifyImageOptions extends ImageOptions {
  /** Which of the model's own policies are asked for. Default: all three; `[]`: only those of `customPolicies`. */
  policies?: readonly ImagePolicy[];
  /**
   * Policies by names of your own, at most 64: each says what an image must not show, worded like the model's own (see the guide), at
   * most 10,000 characters. One named like one of the model's own takes its place.
   */
  customPolicies?: Readonly<Record<string, string>>;
  /** `violates` from this probability on; 0 to 1. Default 0.5. */
  threshold?: number;
  /** Ask a model that does not call itself ShieldGemma. Default false. */
  force?: boolean;
  /** Id of the token that means "violates". Default: that of the word `Yes`. */
  yesToken?: number;
  /** Id of the token that means "does not violate". Default: that of the word `No`. */
  noToken?: number;
  /** Called with the fraction that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

const MAX_TEXT = 100_000;
const MAX_CHOICES = 1000;
const MAX_LABEL = 1000;
const MAX_DESCRIPTION = 10_000;
const MAX_LETTERS = 26;
const MAX_SCORE = 1000;
const MAX_CONTENT_FREE = 16;
const MAX_POLICIES = 64;
const MAX_DOCUMENTS = 10_000;

function textUpTo(most: number) {
  return custom((name, value) => {
    const { length } = text(name, value);
    if (length > most) throw new RangeError(`${name}: expected at most ${most} characters, found ${length}`);
    return value as string;
  });
}

/** A label: what the model may answer. */
function label(name: string, value: unknown): string {
  const found = textUpTo(MAX_LABEL).check(name, value);
  if (found.trim() === '') throw new RangeError(`${name}: expected some text, found ${show(value)}`);
  return found;
}

function distinct(name: string, labels: readonly string[]): void {
  const seen = new Set<string>();
  for (const found of labels) {
    if (seen.has(found)) throw new RangeError(`${name}: expected different ones, found ${show(found)} twice`);
    seen.add(found);
  }
}

function countOf(name: string, length: number, min: number, max: number): void {
  if (length >= min && length <= max) return;
  throw new RangeError(`${name}: expected ${min} to ${max}, found ${length}`);
}

function arrayOf(name: string, value: unknown, of: string): readonly unknown[] {
  if (!Array.isArray(value)) throw new TypeError(`${name}: expected an array of ${of}, found ${show(value)}`);
  return value as readonly unknown[];
}

const contentFree = custom((name, value): true | readonly Input[] | undefined => {
  if (typeof value === 'boolean') return value || undefined;
  if (!Array.isArray(value)) {
    throw new TypeError(`${name}: expected true, false or an array of inputs without content, found ${show(value)}`);
  }
  countOf(name, value.length, 1, MAX_CONTENT_FREE);
  return [...(value as readonly Input[])];
});

const temperatures = numbers('a number from 0.01 to 100', (n) => n >= 0.01 && n <= 100);

const QUESTION = {
  ...RAW,
  ...IMAGE,
  ...CROP,
  ...VIDEO,
  question: textUpTo(MAX_TEXT),
  verbatim: or(booleans, false),
  calibrate: contentFree,
  temperature: or(temperatures, 1),
  signal: signals,
} as const satisfies TableOf<QuestionOptions>;

const LABELS = {
  true: or(custom(label), 'Yes'),
  false: or(custom(label), 'No'),
} as const;

const BOOLEAN = {
  ...QUESTION,
  type: elsewhere,
  labels: or(
    custom((name, value) => {
      known(LABELS, value, name);
      const labels = valuesOf(LABELS, value as object, `${name}.`);
      distinct(name, [labels.true, labels.false]);
      return labels;
    }),
    () => valuesOf(LABELS, {}),
  ),
} as const satisfies TableOf<BooleanQuestion>;

/** What may be answered: by which name in the results, and how the model is told of it. */
export interface Choice {
  name: string;
  description?: string;
}

const CHOICE = {
  ...QUESTION,
  type: elsewhere,
  choices: custom((name, value): readonly Choice[] => {
    const isList = Array.isArray(value);
    if (typeof value !== 'object' || value === null) {
      throw new TypeError(
        `${name}: expected an array of names or an object of descriptions by name, found ${show(value)}`,
      );
    }
    const given = isList ? (value as readonly unknown[]).map((item) => [item, '']) : Object.entries(value);
    countOf(name, given.length, 2, MAX_CHOICES);
    const found = given.map(([item, said], i) => {
      const choice = label(`${name}[${isList ? i : show(item)}]`, item);
      const description = textUpTo(MAX_DESCRIPTION).check(`${name}[${show(item)}]`, said);
      return { name: choice, ...(description.trim() !== '' && { description }) };
    });
    distinct(
      name,
      found.map((choice) => choice.name),
    );
    return found;
  }),
  answers: or(choices('names', 'letters'), 'names'),
} as const satisfies TableOf<ChoiceQuestion>;

const SCORE = {
  ...QUESTION,
  type: elsewhere,
  min: integers(-MAX_SCORE, MAX_SCORE),
  max: integers(-MAX_SCORE, MAX_SCORE),
  levels: custom((name, value) => {
    const levels = arrayOf(name, value, 'texts');
    countOf(name, levels.length, 2, MAX_CHOICES);
    return levels.map((level, i) => label(`${name}[${i}]`, level));
  }),
} as const satisfies TableOf<ScoreQuestion>;

/** What may be answered to a question. */
export interface Answer {
  /** what the model writes */
  label: string;
  /** how it is told of it; undefined: not in a list */
  line?: string;
}

/** A question as it is asked. */
export interface AskedQuestion {
  kind:
    | { type: 'boolean' }
    | { type: 'choice'; names: readonly string[] }
    | { type: 'score'; min: number; levels?: readonly string[] };
  answers: readonly Answer[];
  /** how to answer */
  instruction: string;
  question?: string;
  verbatim: boolean;
  calibrate?: true | readonly Input[];
  temperature: number;
  prompt: PromptSettings;
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ';

function booleanQuestion(options: BooleanQuestion): Pick<AskedQuestion, 'kind' | 'answers' | 'instruction'> {
  const { labels } = checked(BOOLEAN, options);
  return {
    kind: { type: 'boolean' },
    answers: [{ label: labels.true }, { label: labels.false }],
    instruction: `Answer with ${labels.true} or ${labels.false}.`,
  };
}

function choiceQuestion(options: ChoiceQuestion): Pick<AskedQuestion, 'kind' | 'answers' | 'instruction'> {
  const { choices: given, answers: how } = checked(CHOICE, options);
  if (!given) throw new TypeError('choices: missing; expected what there is to choose from');
  if (how === 'letters') countOf("choices: with answers: 'letters'", given.length, 2, MAX_LETTERS);
  const kind = { type: 'choice', names: given.map(({ name }) => name) } as const;
  const told = ({ name, description }: Choice) => (description === undefined ? name : `${name}: ${description}`);
  return how === 'letters'
    ? {
        kind,
        answers: given.map((choice, i) => ({
          label: LETTERS.charAt(i),
          line: `${LETTERS.charAt(i)}. ${told(choice)}`,
        })),
        instruction: 'Answer with the letter of the best answer:',
      }
    : {
        kind,
        answers: given.map((choice) => ({ label: choice.name, line: `- ${told(choice)}` })),
        instruction: 'Answer with one of these:',
      };
}

function scoreQuestion(options: ScoreQuestion): Pick<AskedQuestion, 'kind' | 'answers' | 'instruction'> {
  const { min: lowest, max: highest, levels } = checked(SCORE, options);
  if (levels && highest !== undefined) throw new TypeError('max: follows from min and levels; leave it out');
  const min = lowest ?? (levels ? 0 : undefined);
  if (min === undefined || (!levels && highest === undefined)) {
    throw new TypeError('score: expected min and max, or levels');
  }
  const max = levels ? min + levels.length - 1 : (highest as number);
  if (max <= min) throw new RangeError(`max: expected more than min (${min}), found ${max}`);
  const answers = Array.from({ length: max - min + 1 }, (_, i): Answer => {
    const number = String(min + i);
    const level = levels?.[i];
    return { label: number, ...(level !== undefined && { line: `${number}: ${level}` }) };
  });
  return {
    kind: { type: 'score', min, ...(levels && { levels }) },
    answers,
    instruction: levels ? 'Answer with the number of what fits best:' : `Answer with a number from ${min} to ${max}.`,
  };
}

/** @throws TypeError, RangeError */
export function questionOptions(options: Question): AskedQuestion {
  if (typeof options !== 'object' || (options as unknown) === null) {
    throw new TypeError(`options: expected an object with the type of the question, found ${show(options)}`);
  }
  const type = oneOf('type', options.type, ['boolean', 'choice', 'score']);
  const asked =
    type === 'boolean'
      ? booleanQuestion(options as BooleanQuestion)
      : type === 'choice'
        ? choiceQuestion(options as ChoiceQuestion)
        : scoreQuestion(options as ScoreQuestion);
  const { question, verbatim, calibrate, temperature } = valuesOf(QUESTION, options);
  if (verbatim && question !== undefined) throw new TypeError('question: with verbatim the input asks it');
  return {
    ...asked,
    ...(question !== undefined && { question }),
    verbatim,
    ...(calibrate !== undefined && { calibrate }),
    temperature,
    prompt: promptSettings(options),
  };
}

const RERANK = {
  instruction: textUpTo(MAX_TEXT),
  topN: integers(1),
  truncate: or(booleans, false),
  raw: booleans,
  adapter: RAW.adapter,
  priority: RAW.priority,
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<RerankOptions>;

/** @throws TypeError, RangeError */
export function rerankOptions(options: RerankOptions): {
  instruction?: string;
  topN?: number;
  truncate: boolean;
  prompt: PromptSettings;
} {
  const { raw, adapter, priority, ...values } = checked(RERANK, options);
  return { ...values, prompt: { ...promptSettings(raw === undefined ? {} : { raw }), adapter, priority } };
}

/** What is ranked, when it is texts. */
export function documentList(query: unknown, documents: unknown): readonly string[] {
  textUpTo(MAX_TEXT).check('query', query);
  const list = arrayOf('documents', documents, 'texts');
  countOf('documents', list.length, 0, MAX_DOCUMENTS);
  return list.map((document, i) => text(`documents[${i}]`, document));
}

const POLICIES = ['dangerous', 'sexual', 'violence'] as const satisfies readonly ImagePolicy[];

const CLASSIFY = {
  ...IMAGE,
  policies: or(
    custom((name, value) => {
      const found = arrayOf(name, value, 'names').map((policy, i) => oneOf(`${name}[${i}]`, policy, POLICIES));
      distinct(name, found);
      return found;
    }),
    () => [...POLICIES],
  ),
  customPolicies: or(
    custom((name, value) => {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        throw new TypeError(`${name}: expected an object of texts by name, found ${show(value)}`);
      }
      const entries = Object.entries(value);
      countOf(name, entries.length, 0, MAX_POLICIES);
      return entries.map(([policy, said]): readonly [string, string] => {
        const at = `${name}.${plain(policy, 60)}`;
        if (policy.trim() === '' || policy.length > MAX_LABEL) {
          throw new RangeError(`${name}: expected names of 1 to ${MAX_LABEL} characters, found ${show(policy)}`);
        }
        const found = textUpTo(MAX_DESCRIPTION).check(at, said);
        if (found.trim() === '') throw new RangeError(`${at}: expected what an image must not show, found no text`);
        return [policy, found];
      });
    }),
    () => [],
  ),
  threshold: or(
    numbers('a number from 0 to 1', (n) => n >= 0 && n <= 1),
    0.5,
  ),
  force: or(booleans, false),
  yesToken: integers(0),
  noToken: integers(0),
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<ClassifyImageOptions>;

/** @throws TypeError, RangeError */
export function classifyOptions(options: ClassifyImageOptions): {
  policies: readonly ImagePolicy[];
  customPolicies: readonly (readonly [string, string])[];
  threshold: number;
  force: boolean;
  yesToken?: number;
  noToken?: number;
  limits: ImageLimits;
} {
  const { policies, customPolicies, threshold, force, yesToken, noToken } = checked(CLASSIFY, options);
  if (policies.length + customPolicies.length === 0) {
    throw new RangeError('policies: expected at least one, here or in customPolicies');
  }
  if (yesToken !== undefined && yesToken === noToken) {
    throw new RangeError(`noToken: expected another one than yesToken (${yesToken})`);
  }
  return {
    policies,
    customPolicies,
    threshold,
    force,
    ...(yesToken !== undefined && { yesToken }),
    ...(noToken !== undefined && { noToken }),
    limits: imageLimits(options),
  };
}
