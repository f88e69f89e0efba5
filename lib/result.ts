// What a finished generation was: the public types, and how they come from the engine's last event.
import type { Message } from './messages.js';
import type { NativeGenerateEvent, TokenScore } from './native.js';
import type { MalformedCall, ToolCall, ToolResult } from './tools.js';

/**
 * `stop`: the model ended its answer, or a stop sequence came; `length`: `maxOutputTokens` or the context's end; `tool-calls`: it
 * called tools, and a result of them is missing; `other`: the reader left the stream. (`error` is for later versions; errors reject.)
 */
export type FinishReason = 'stop' | 'length' | 'tool-calls' | 'error' | 'other';

export interface Usage {
  inputTokens: number;
  outputTokens: number;
  /** of the input tokens, those of images */
  imageTokens: number;
  /** of the input tokens, those that were not computed again */
  cachedInputTokens: number;
}

export interface Timings {
  /** waiting for other calls */
  queueMs: number;
  /** from the first prompt token to the first logits */
  prefillMs: number;
  /** after the first token */
  decodeMs: number;
  /** of the input tokens that were computed: those in `usage.cachedInputTokens` do not count */
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
  /** tokens guessed ahead (option `draft`), and how many of them were right: those came without a step of their own */
  draftedTokens: number;
  acceptedTokens: number;
}

/** A generated token with its log-probability and the likeliest alternatives, best first. */
export interface TokenLogprobs extends TokenScore {
  top: TokenScore[];
}

export interface GenerateResult<T = unknown> {
  /**
   * Whole characters. An answer that ends within one, by `maxOutputTokens`, the context's end or because its reader left, ends
   * before it. Bytes of the model's that are no character are U+FFFD.
   */
  text: string;
  finishReason: FinishReason;
  /**
   * With `schema`, `json` or `choices`: the value that the answer is. Absent where the answer was cut off: by `maxOutputTokens` or the
   * context's end (`finishReason` `'length'`), by a stop sequence, or because its reader left.
   */
  object?: T;
  usage: Usage;
  timings: Timings;
  /** ids generated, an end token and those of a character that was cut off included */
  tokens: number[];
  /** gives the same text again */
  seed: number;
  /** the stop sequence that ended the text, if one did */
  stopSequence?: string;
  /** one entry a token, when asked for */
  logprobs?: TokenLogprobs[];
  /** with tools: what the answer calls; text beside calls is in `text` */
  toolCalls?: ToolCall[];
  /** of these calls, the results that there are */
  toolResults?: ToolResult[];
  /** what looked like a call and is none; it stands in `text` too */
  malformedCalls?: MalformedCall[];
  /** where tools were run and the model was asked again: each answer. `usage` and the times are sums, all else is the last one's */
  steps?: GenerateStep[];
  /** with tools: what to put behind the conversation, answers and results of tools */
  messages?: Message[];
  /** of a conversation: what did not fit into the context and is no longer part of it (`onOverflow`) */
  dropped?: Message[];
}

/** One answer of several. */
export type GenerateStep = Omit<GenerateResult, 'steps' | 'messages'>;

/** The engine's last event of a generation. */
export type FinishEvent = Extract<NativeGenerateEvent, { kind: 'finish' }>;

function rate(tokens: number, ms: number): number {
  return ms > 0 ? (tokens * 1000) / ms : 0;
}

/** What one generation gathers until its last event. */
export interface Gathered {
  text: string;
  tokens: number[];
  /** absent: not asked for */
  logprobs?: TokenLogprobs[];
  imageTokens: number;
  seed: number;
}

/** The result of a generation that ended without an error. */
export function resultOf(event: FinishEvent, { text, tokens, logprobs, imageTokens, seed }: Gathered): GenerateResult {
  return {
    text,
    finishReason: event.reason === 'cancelled' ? 'other' : event.reason,
    usage: {
      inputTokens: event.inputTokens,
      outputTokens: event.outputTokens,
      imageTokens,
      cachedInputTokens: event.cachedInputTokens,
    },
    timings: {
      queueMs: event.queueMs,
      prefillMs: event.prefillMs,
      decodeMs: event.decodeMs,
      prefillTokensPerSecond: rate(event.inputTokens - event.cachedInputTokens, event.prefillMs),
      decodeTokensPerSecond: rate(Math.max(0, event.outputTokens - 1), event.decodeMs),
      draftedTokens: event.draftedTokens,
      acceptedTokens: event.acceptedTokens,
    },
    tokens,
    seed,
    ...(event.stopSequence !== undefined && { stopSequence: event.stopSequence }),
    ...(logprobs && { logprobs }),
  };
}

/** Of a generation that was left before it began. */
export function emptyResult(seed: number): GenerateResult {
  return {
    text: '',
    finishReason: 'other',
    usage: { inputTokens: 0, outputTokens: 0, imageTokens: 0, cachedInputTokens: 0 },
    timings: {
      queueMs: 0,
      prefillMs: 0,
      decodeMs: 0,
      prefillTokensPerSecond: 0,
      decodeTokensPerSecond: 0,
      draftedTokens: 0,
      acceptedTokens: 0,
    },
    tokens: [],
    seed,
  };
}
