// Questions with a fixed set of answers: how they are asked, and what the log-probabilities of the answers say.
//
// An answer is scored as the beginning of the model's own, so P(answer) is that of all texts that begin so; where one answer is the
// beginning of another one (1 and 10), all are scored with the token that ends them.
import { inParallel, type Cancellation } from './cancellation.js';
import type { Answer, AskedQuestion } from './decision-options.js';
import type { RawImage } from './media.js';
import type { NativeModel, NativeModelInfo } from './native.js';
import type { PromptSettings } from './options.js';
import type { Input, Prompt, PromptBuilder } from './prompt.js';
import type { Candidates } from './score.js';
import { Pace } from './turns.js';
import { show } from './values.js';

const lazy = {
  get score() {
    return require('./score.js') as typeof import('./score.js');
  },
};

interface Decided {
  /** the likeliest answer's probability, among the answers */
  probability: number;
  /**
   * How likely the model was to give one of the answers at all, before these were made to add up to 1 and without `calibrate` and
   * `temperature`. Far below 1: it would have said something else, and the probabilities mean little.
   */
  coverage: number;
}

export interface BooleanDecision extends Decided {
  value: boolean;
  /** they add up to 1 */
  probabilities: { true: number; false: number };
}

export interface ChoiceDecision<T extends string = string> extends Decided {
  /** the likeliest choice; of equally likely ones the first */
  value: T;
  /** they add up to 1 */
  probabilities: Record<T, number>;
}

export interface ScoreDecision extends Decided {
  /** the mean of the distribution: rarely an integer */
  value: number;
  /** from the lowest number to the highest; the probabilities add up to 1 */
  distribution: { value: number; level?: string; probability: number }[];
}

export type Decision = BooleanDecision | ChoiceDecision | ScoreDecision;

/** What deciding needs of a model. */
export interface Scorer {
  readonly prompts: PromptBuilder;
  readonly info: Pick<NativeModelInfo, 'contextSize' | 'longestToken'>;
  /** the model, or throws when it was disposed */
  readonly live: () => NativeModel;
  /** Whether an input is a turn of a conversation, and no text to continue. */
  isTurn(input: Input, settings: PromptSettings): boolean;
  /** Log-probabilities of all tokens of candidates. */
  score(
    prompt: Prompt,
    candidates: Candidates,
    cancellation: Cancellation,
    onProgress?: (fraction: number) => void,
  ): Promise<Float64Array>;
}

/** Prompts that are computed side by side: enough to fill a step, and few enough that others have their turn. */
export const PROMPTS_AT_ONCE = 16;

// As in the paper, section 4.
const CONTENT_FREE = ['N/A', '[MASK]', ''];
const GREY: RawImage = { data: new Uint8Array(3).fill(128), width: 1, height: 1 };

const sum = (values: Iterable<number>) => {
  let total = 0;
  for (const value of values) total += value;
  return total;
};

/** exp of each, made to add up to 1. */
export function softmax(logs: readonly number[]): number[] {
  const most = logs.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = logs.map((x) => Math.exp(x - most));
  const total = sum(weights);
  return weights.map((weight) => weight / total);
}

/** What stands behind an input: the question and what may be answered to it. */
function questionText({ question, instruction, answers }: AskedQuestion, isTurn: boolean): string {
  const lines = answers.flatMap(({ line }) => line ?? []);
  return [...(question === undefined ? [] : [question]), instruction, ...lines, ...(isTurn ? [] : ['Answer:'])].join(
    '\n',
  );
}

/** Whether one of them is the beginning of another one. */
function someBeginAlike({ tokens, lengths }: Candidates): boolean {
  const all = new Set<string>();
  const beginnings = new Set<string>();
  let first = 0;
  for (const length of lengths) {
    let key = '';
    for (const [i, token] of tokens.subarray(first, first + length).entries()) {
      if (i > 0) beginnings.add(key);
      key += `${token} `;
    }
    all.add(key);
    first += length;
  }
  return all.size < lengths.length || [...all].some((key) => beginnings.has(key));
}

/**
 * The answers as they are scored.
 *
 * @param isTurn they are answers in a conversation, which begin without a space
 */
export async function encodeAnswers(
  { info, live }: Scorer,
  labels: readonly string[],
  { isTurn, isContinued }: { isTurn: boolean; isContinued: boolean },
  signal: AbortSignal,
): Promise<Candidates> {
  const texts = isContinued ? labels.map((label) => (/^\s/.test(label) ? label : ` ${label}`)) : labels;
  const encoded = await lazy.score.encodeCandidates(live(), texts, info, undefined, signal);
  if (!someBeginAlike(encoded)) return encoded;
  return lazy.score.encodeCandidates(live(), texts, info, lazy.score.endToken(live(), isTurn), signal);
}

/** Log-probabilities of whole candidates. */
export function wholeLogprobs({ lengths }: Candidates, logprobs: Float64Array): number[] {
  let first = 0;
  return Array.from(lengths, (length) => sum(logprobs.subarray(first, (first += length))));
}

interface Asking {
  input: Input;
  settings: PromptSettings;
}

/** What is asked: the input, then the inputs without content. */
function askings(input: Input, { calibrate, verbatim, prompt }: AskedQuestion): Asking[] {
  const asked = { input, settings: prompt };
  if (calibrate === undefined) return [asked];
  if (calibrate === true && (typeof input !== 'string' || verbatim)) {
    const what = typeof input === 'string' ? 'a verbatim text, which holds the question too,' : 'messages or token ids';
    throw new TypeError(`calibrate: true replaces a text; for ${what} give an array of inputs without content`);
  }
  const settings = { ...prompt, images: prompt.images.map(() => GREY) };
  const inputs = calibrate === true ? CONTENT_FREE : calibrate;
  return [asked, ...inputs.map((free) => ({ input: free, settings: typeof free === 'string' ? settings : prompt }))];
}

function decisionOf(
  { kind, temperature }: AskedQuestion,
  logprobs: readonly number[],
  prior: readonly number[],
): Decision {
  const probabilities = softmax(logprobs.map((x, i) => (x - Math.log(prior[i] ?? 1)) / temperature));
  const probability = Math.max(...probabilities);
  const best = probabilities.indexOf(probability);
  const decided = { probability, coverage: Math.min(1, sum(logprobs.map(Math.exp))) };
  switch (kind.type) {
    case 'boolean': {
      const [yes = NaN, no = NaN] = probabilities;
      return { value: best === 0, ...decided, probabilities: { true: yes, false: no } };
    }
    case 'choice': {
      const { names } = kind;
      const byName = Object.fromEntries(names.map((name, i) => [name, probabilities[i] ?? NaN]));
      return { value: names[best] ?? '', ...decided, probabilities: byName };
    }
    case 'score': {
      const { min, levels } = kind;
      const distribution = probabilities.map((p, i) => {
        const level = levels?.[i];
        return { value: min + i, ...(level !== undefined && { level }), probability: p };
      });
      return { value: sum(distribution.map(({ value, probability: p }) => value * p)), ...decided, distribution };
    }
  }
}

/** Asks a question about an input, and of inputs without content where that is wanted. */
export async function decide(
  scorer: Scorer,
  input: Input,
  asked: AskedQuestion,
  cancellation: Cancellation,
): Promise<Decision> {
  const isTurn = scorer.isTurn(input, asked.prompt);
  const isText = typeof input === 'string';
  if (!asked.verbatim && Array.isArray(input) && typeof input[0] === 'number') {
    throw new TypeError('input: token ids are taken as they are, with verbatim: true');
  }
  const isContinued = !isTurn && isText && !(asked.verbatim && /\s$/.test(input));
  const labels = asked.answers.map(({ label }: Answer) => label);
  const candidates = await encodeAnswers(scorer, labels, { isTurn, isContinued }, cancellation.signal);
  const longest = candidates.lengths.reduce((most, n) => Math.max(most, n), 0);
  const question = asked.verbatim ? undefined : questionText(asked, isTurn);
  const logprobs = await inParallel(
    askings(input, asked),
    PROMPTS_AT_ONCE,
    async ({ input: of, settings }, _, each) => {
      const { signal } = each;
      if (scorer.isTurn(of, settings) !== isTurn) {
        throw new TypeError(`calibrate: expected inputs of the same kind as the input, found ${show(of)}`);
      }
      const layout = await scorer.prompts.layOut(of, settings, {
        maxOutputTokens: longest,
        fits: true,
        signal,
        ...(question !== undefined && { question }),
      });
      const prompt = await scorer.prompts.fill(layout, each, () => {});
      return wholeLogprobs(candidates, await scorer.score(prompt, candidates, each));
    },
    cancellation,
  );
  const [ofInput = [], ...ofNothing] = logprobs;
  const priors = ofNothing.map(softmax);
  const prior = labels.map((_, i) => (priors.length === 0 ? 1 : sum(priors.map((p) => p[i] ?? NaN)) / priors.length));
  return decisionOf(asked, ofInput, prior);
}

/** A decision whose right answer is known: for `boolean` `'true'` or `'false'`, for `score` the number. */
export interface LabelledDecision {
  decision: Decision;
  answer: string | number | boolean;
}

// Of the option `temperature`.
const LEAST = 0.01;
const MOST = 100;

function logsAndPlace({ decision, answer }: LabelledDecision, i: number): { logs: number[]; right: number } {
  const entries: [string, number][] =
    'distribution' in decision
      ? decision.distribution.map(({ value, probability }) => [String(value), probability])
      : Object.entries(decision.probabilities as Record<string, number>);
  const right = entries.findIndex(([name]) => name === String(answer));
  if (right < 0)
    throw new RangeError(`examples[${i}].answer: expected one of the decision's answers, found ${show(answer)}`);
  return { logs: entries.map(([, p]) => Math.log(Math.max(p, Number.MIN_VALUE))), right };
}

/**
 * The `temperature` that makes the probabilities of decisions fit best how often they are right (temperature scaling, Guo et al. 2017): of
 * decisions that were made with temperature 1 and otherwise the same options, about inputs whose answers are known. Some dozens are
 * enough. It changes no answer but the mean of a scale.
 *
 * @throws RangeError for an empty list, or an answer that the decision does not know
 */
export async function fitTemperature(examples: readonly LabelledDecision[]): Promise<number> {
  if (!Array.isArray(examples)) throw new TypeError(`examples: expected an array, found ${show(examples)}`);
  if (examples.length === 0) throw new RangeError('examples: expected at least one, found none');
  const known = (examples as readonly LabelledDecision[]).map(logsAndPlace);
  const pace = new Pace();
  // The negative log-likelihood is convex in 1 / T, so it has one minimum in log T too.
  const loss = async (logT: number) => {
    const beta = Math.exp(-logT);
    let total = 0;
    for (const { logs, right } of known) {
      total -= Math.log(Math.max(softmax(logs.map((x) => x * beta))[right] ?? NaN, Number.MIN_VALUE));
      if (pace.due) await pace.turn();
    }
    return total;
  };
  const ratio = (Math.sqrt(5) - 1) / 2;
  let [low, high] = [Math.log(LEAST), Math.log(MOST)];
  let [a, b] = [high - ratio * (high - low), low + ratio * (high - low)];
  let [lossA, lossB] = [await loss(a), await loss(b)];
  while (high - low > 1e-4) {
    if (lossA <= lossB) {
      [high, b, lossB] = [b, a, lossA];
      a = high - ratio * (high - low);
      lossA = await loss(a);
    } else {
      [low, a, lossA] = [a, b, lossB];
      b = low + ratio * (high - low);
      lossB = await loss(b);
    }
  }
  return Math.exp((low + high) / 2);
}
