// The room of a conversation in the context, and what goes when there is none: the oldest turns, whole, each with its pictures and
// with the calls of tools and their results.
import { abortable, type Cancellation } from './cancellation.js';
import type { TurnSettings } from './chat-options.js';
import { GemmaError } from './errors.js';
import type { Sink } from './generation.js';
import type { KeptTurn } from './kept-tokens.js';
import { isMedia, messageOf, type Turn } from './messages.js';
import type { NativeModel } from './native.js';
import type { GenerateOptions, AnswerParams } from './options.js';
import type { Layout, Prompt, PromptBuilder } from './prompt.js';
import type { GenerateResult } from './result.js';
import type { Bound } from './tool-loop.js';
import { inSlices } from './turns.js';

/** What a conversation needs of its model. */
export interface Asker {
  readonly prompts: PromptBuilder;
  readonly contextSize: number;
  /** the model, or throws when it was disposed */
  live(): NativeModel;
  /** Runs a call that computes, when not too many are under way already. */
  call<T>(work: () => Promise<T>, cancellation: Cancellation): Promise<T>;
  generate(
    prompt: Prompt,
    params: AnswerParams,
    options: GenerateOptions,
    bound: Bound,
    cancellation: Cancellation,
    sink?: Sink,
  ): Promise<GenerateResult>;
}

/** A turn as it is kept: how many messages there are with its answer, and how its answer was begun. */
export interface Kept extends KeptTurn {
  readonly end: number;
  readonly begun: string;
}

/** A conversation at one moment; never changed. */
export interface State {
  readonly turns: readonly Turn[];
  readonly kept: readonly Kept[];
}

/** What a turn asks: what there is before it, what is said, and how the answer begins. */
export interface Asked {
  readonly base: State;
  readonly said: readonly Turn[];
  readonly begun?: string;
}

// What a prompt may fill of the room that is left beside the answer, when turns have been dropped: each time that the beginning
// of a prompt changes it is read anew, so that is not to happen every turn.
const FILLED = 0.75;

/** The first messages of a conversation, without those behind them and what was kept of these. */
export function beginning(n: number, { turns, kept }: State): State {
  return { turns: turns.slice(0, n), kept: kept.filter(({ end }) => end <= n) };
}

/** Where the last question is; the number of messages where there is none. */
export function lastQuestion(turns: readonly Turn[]): number {
  const at = turns.findLastIndex(({ role }) => role === 'user');
  return at < 0 ? turns.length : at;
}

function isFull(error: unknown): boolean {
  return error instanceof GemmaError && error.code === 'ERR_CONTEXT_FULL';
}

function isUnseen({ content }: Turn): boolean {
  return typeof content === 'object' && content.some((part) => isMedia(part.type) && !part.loaded);
}

function begunTurn(begun: string | undefined): Turn[] {
  return begun === undefined ? [] : [{ role: 'assistant', content: begun, fields: {} }];
}

/** Where turns begin before which others may go: at questions, up to the one that is asked. */
function borders({ base: { turns }, said }: Asked): number[] {
  const asked = said[0]?.role === 'user' ? turns.length : lastQuestion(turns);
  const questions = [...turns.keys()].filter((i) => turns[i]?.role === 'user' && i < asked);
  return [...questions, asked].filter((i) => i > 0);
}

/** Lays out the prompts of one turn, from different messages on. */
class Fitting {
  readonly #prompts: PromptBuilder;
  readonly #head: readonly Turn[];
  readonly #asked: Asked;
  readonly #settings: TurnSettings;
  readonly #signal: AbortSignal;

  constructor(
    prompts: PromptBuilder,
    head: readonly Turn[],
    asked: Asked,
    settings: TurnSettings,
    { signal }: Cancellation,
  ) {
    this.#prompts = prompts;
    this.#head = head;
    this.#asked = asked;
    this.#settings = settings;
    this.#signal = signal;
  }

  /** The prompt after these turns. */
  layOut({ turns, kept }: State): Promise<Layout> {
    const { said, begun } = this.#asked;
    return this.#write([...turns, ...said, ...begunTurn(begun)], kept);
  }

  /** The number of tokens of the prompt without the messages before a place. */
  async countFrom(from: number): Promise<number> {
    try {
      return (await this.layOut({ turns: this.#asked.base.turns.slice(from), kept: [] })).tokens.length;
    } catch (error) {
      if (isFull(error)) return Infinity;
      throw error;
    }
  }

  /** The conversation with other messages in place of those before a place. Answers keep their ids. */
  async replaced(from: number, summary: readonly Turn[]): Promise<State> {
    const { turns, kept } = this.#asked.base;
    const left = kept
      .filter(({ end }) => end > from)
      .map((turn) => ({ ...turn, end: turn.end - from + summary.length }));
    const state = { turns: [...summary, ...turns.slice(from)], kept: left };
    const [oldest, ...later] = left;
    if (!oldest) return state;
    // Of what is left, the oldest answer has another prompt now.
    const prompt = [...state.turns.slice(0, oldest.end - 1), ...begunTurn(oldest.begun || undefined)];
    const { last } = await this.#write(prompt, []);
    return { ...state, kept: [{ ...oldest, ...last }, ...later] };
  }

  #write(turns: readonly Turn[], kept: readonly KeptTurn[]): Promise<Layout> {
    const { prompt, params } = this.#settings;
    return this.#prompts.layOutTurns([...this.#head, ...turns], prompt, {
      maxOutputTokens: params.maxOutputTokens,
      kept,
      signal: this.#signal,
      fits: true,
    });
  }
}

/**
 * The prompt of a turn, and the conversation that it belongs to when what does not fit has been dropped.
 *
 * @throws GemmaError `ERR_CONTEXT_FULL` where the last question does not fit by itself, or nothing may be dropped; what a function
 * that is `onOverflow` throws
 */
export async function withRoom(
  { prompts, contextSize }: Asker,
  head: readonly Turn[],
  asked: Asked,
  settings: TurnSettings,
  cancellation: Cancellation,
  onImages: (fraction: number) => void,
): Promise<{ layout: Layout; base: State; dropped: readonly Turn[] }> {
  const { onOverflow, params } = settings;
  const { base } = asked;
  const fitting = new Fitting(prompts, head, asked, settings, cancellation);
  const mayGo = onOverflow === 'error' || onOverflow === 'truncate' ? [] : borders(asked);
  const last = mayGo.at(-1);
  if (last === undefined) return { layout: await fitting.layOut(base), base, dropped: [] };

  // New pictures get the room that they would have without what may go, and are opened once.
  if (asked.said.some(isUnseen)) {
    await prompts.see(await fitting.layOut({ turns: base.turns.slice(last), kept: [] }), cancellation, onImages);
  }
  const room = contextSize - prompts.roomForAnswer(params.maxOutputTokens);
  const layout = await fitting.layOut(base).catch((error: unknown) => {
    if (!isFull(error)) throw error;
    return undefined;
  });
  if (layout && layout.tokens.length <= room) return { layout, base, dropped: [] };

  let [least, most] = [0, mayGo.length - 1]; // the first border from which on little enough is left
  while (least < most) {
    const middle = (least + most) >> 1;
    if ((await fitting.countFrom(mayGo[middle] ?? 0)) <= room * FILLED) most = middle;
    else least = middle + 1;
  }
  const from = mayGo[least] ?? last;
  const alone = await fitting.layOut({ turns: base.turns.slice(from), kept: [] });
  const needed = alone.tokens.length + Math.max(1, params.maxOutputTokens);
  if (needed > contextSize) {
    throw new GemmaError(
      'ERR_CONTEXT_FULL',
      `the last question and its answer take ${needed} tokens without the turns before, and the context has room for ${contextSize}: ` +
        'shorten it, lower maxOutputTokens or load with a larger contextSize',
      'CONTEXT_OVERFLOW',
    );
  }
  const dropped = base.turns.slice(0, from);
  let summary: Turn[] = [];
  if (typeof onOverflow === 'function') {
    const overflow = {
      dropped: dropped.map(messageOf),
      tokens: layout?.tokens.length ?? (await fitting.countFrom(0)),
      contextSize,
      signal: cancellation.signal,
    };
    const messages = await abortable(cancellation.signal, async () => onOverflow(overflow));
    summary = await inSlices(prompts.read(messages, 'onOverflow'));
  }
  const left = await fitting.replaced(from, summary);
  return { layout: await fitting.layOut(left), base: left, dropped };
}
