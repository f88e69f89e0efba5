// Candidates of gemma.score: from texts or ids to what native code takes, and from log-probabilities to results.
import { GemmaError } from './errors.js';
import type { NativeModel, NativeModelInfo } from './native.js';
import { decodeTokens, encodeParts, plainIds, tokenIds } from './token-text.js';
import { Pace } from './turns.js';
import { show } from './values.js';

/** How likely one candidate is after the input. Logarithms are natural, and of the model's own distribution. */
export interface CandidateScore {
  /** as given; of token ids what they stand for */
  text: string;
  /** ids that were scored, an end token of `includeEnd` among them */
  tokens: number[];
  /** of all tokens together: the sum of `tokenLogprobs` */
  logprob: number;
  /** of each token after the input and the tokens before it */
  tokenLogprobs: number[];
  /** every token is the likeliest at its place: what temperature 0 would have written */
  greedy: boolean;
  /** with `normalize`: `logprob` for each token or byte */
  normalized?: number;
  /** among the candidates of this call: the softmax of `logprob`, or of `normalized` where asked for; they add up to 1 */
  probability: number;
  /** 1 for the best, by the same number; equal ones in the order given */
  rank: number;
}

export type Normalize = 'none' | 'tokens' | 'bytes';

/** Candidates as native code takes them. */
export interface Candidates {
  texts: string[];
  /** of all, one after the other */
  tokens: Int32Array;
  /** tokens of each */
  lengths: Int32Array;
}

// As native code has them.
const MAX_CANDIDATES = 16384;
const MAX_CANDIDATE_TOKENS = 262144;

/** The list, when it is one. The candidates themselves are looked at later, with turns of the event loop in between. */
export function candidateList(candidates: unknown): readonly unknown[] {
  if (!Array.isArray(candidates)) {
    throw new TypeError(
      `candidates: expected an array of strings or of arrays of token ids, found ${show(candidates)}`,
    );
  }
  const { length } = candidates;
  if (length === 0) throw new RangeError('candidates: expected at least one, found none');
  if (length > MAX_CANDIDATES) {
    throw new RangeError(`candidates: expected at most ${MAX_CANDIDATES}, found ${length}`);
  }
  return candidates.slice() as unknown[];
}

/** The token that ends a turn of a conversation, or a text. */
export function endToken(model: NativeModel, ofTurn: boolean): number {
  const endOfTurn = ofTurn ? model.findToken('<end_of_turn>') : -1;
  const id = endOfTurn >= 0 ? endOfTurn : model.markers().eos;
  if (id >= 0) return id;
  throw new GemmaError('ERR_UNSUPPORTED_MODEL', "includeEnd: the model's vocabulary has no end token", 'NO_MARKER');
}

/**
 * Tokenises candidates, each apart from the prompt and from the others.
 *
 * @param end token that is put behind each
 * @throws TypeError, RangeError; GemmaError `ERR_CONTEXT_FULL` for a text that no context of the model's size can hold
 */
export async function encodeCandidates(
  model: NativeModel,
  list: readonly unknown[],
  info: Pick<NativeModelInfo, 'contextSize' | 'longestToken'>,
  end: number | undefined,
  signal: AbortSignal,
): Promise<Candidates> {
  const texts: string[] = [];
  const all: Int32Array[] = [];
  const pace = new Pace(signal);
  let total = 0;
  for (const [i, candidate] of list.entries()) {
    const name = `candidates[${i}]`;
    let ids: Int32Array;
    if (typeof candidate === 'string') {
      if (candidate.length > info.contextSize * info.longestToken) {
        throw new GemmaError(
          'ERR_CONTEXT_FULL',
          `${name}: ${candidate.length} characters cannot fit into the context of ${info.contextSize} positions`,
          'CONTEXT_OVERFLOW',
        );
      }
      ids = candidate === '' ? new Int32Array() : await encodeParts(model, [candidate], { signal });
      texts.push(candidate);
    } else {
      if (!Array.isArray(candidate)) {
        throw new TypeError(`${name}: expected a string or an array of token ids, found ${show(candidate)}`);
      }
      checkTotal(total + candidate.length);
      ids = await tokenIds(name, candidate, signal);
      texts.push(ids.length === 0 ? '' : await decodeTokens(model, ids, { special: true, signal }));
    }
    if (end !== undefined) ids = Int32Array.of(...ids, end);
    if (ids.length === 0) throw new RangeError(`${name}: expected at least one token, found none`);
    checkTotal((total += ids.length));
    all.push(ids);
    if (pace.due) await pace.turn();
  }
  const tokens = new Int32Array(total);
  let n = 0;
  for (const ids of all) {
    tokens.set(ids, n);
    n += ids.length;
  }
  return { texts, tokens, lengths: Int32Array.from(all, ({ length }) => length) };
}

function checkTotal(total: number): void {
  if (total <= MAX_CANDIDATE_TOKENS) return;
  throw new RangeError(`candidates: expected at most ${MAX_CANDIDATE_TOKENS} tokens in all, found more`);
}

function lengthFor(normalize: Normalize, text: string, tokens: number): number {
  if (normalize === 'bytes') return Math.max(1, Buffer.byteLength(text));
  return normalize === 'tokens' ? tokens : 1;
}

/**
 * The results of candidates, in their order.
 *
 * @param logprobs of all their tokens
 * @param likeliest of all their tokens: 1 where there is no likelier one
 */
export async function scoresOf(
  { texts, tokens, lengths }: Candidates,
  logprobs: Float64Array,
  likeliest: Uint8Array,
  normalize: Normalize,
  signal: AbortSignal,
): Promise<CandidateScore[]> {
  const scores: CandidateScore[] = [];
  const ranked: { value: number; i: number }[] = [];
  const pace = new Pace(signal);
  let begin = 0;
  for (const [i, length] of lengths.entries()) {
    const end = begin + length;
    const tokenLogprobs = Array.from(logprobs.subarray(begin, end));
    const logprob = tokenLogprobs.reduce((sum, x) => sum + x, 0);
    const text = texts[i] ?? '';
    const normalized = logprob / lengthFor(normalize, text, length);
    ranked.push({ value: normalized, i });
    scores.push({
      text,
      tokens: await plainIds(tokens.subarray(begin, end), signal),
      logprob,
      tokenLogprobs,
      greedy: likeliest.subarray(begin, end).every((is) => is === 1),
      ...(normalize !== 'none' && { normalized }),
      probability: 0,
      rank: 0,
    });
    begin = end;
    if (pace.due) await pace.turn();
  }
  ranked.sort((a, b) => b.value - a.value);
  const best = ranked[0]?.value ?? 0;
  const sum = ranked.reduce((total, { value }) => total + Math.exp(value - best), 0);
  for (const [at, { value, i }] of ranked.entries()) {
    const score = scores[i] as CandidateScore;
    score.probability = Math.exp(value - best) / sum;
    score.rank = at + 1;
  }
  return scores;
}
