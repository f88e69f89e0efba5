// The options of a conversation: those of generate as defaults for all its turns, and a few of its own. Laid out as options.ts is.
import type { Message } from './messages.js';
import { booleans, choices, custom, elsewhere, known, or, strings, valuesOf, type Table } from './option-table.js';
import {
  GENERATE,
  generateOptions,
  STRUCTURED,
  type AnswerParams,
  type GenerateOptions,
  type PromptSettings,
} from './options.js';
import type { StandardSchema } from './schema.js';
import { show } from './values.js';

/** What no longer fits into the context. */
export interface Overflow {
  /** the oldest turns, which are to go */
  dropped: Message[];
  /** tokens of the prompt with them */
  tokens: number;
  contextSize: number;
  /** aborted with the turn */
  signal: AbortSignal;
}

/**
 * Makes room: the messages it returns stand in place of those that go. It may ask the model, but not this conversation, whose turn
 * waits for it.
 */
export type SummarizeOverflow = (overflow: Overflow) => readonly Message[] | Promise<readonly Message[]>;

interface OverflowOption {
  /**
   * When a prompt and its answer (`maxOutputTokens`; without it an eighth of the context, at most 512 tokens) do not fit into the
   * context: `'error'` (default) is `ERR_CONTEXT_FULL`, `'truncate'` ends the answer where the context ends, `'shift'` drops the oldest
   * turns, whole, until a quarter of the context is free; a function is given these and returns messages that stand in their
   * place. The system message and the question stay. `result.dropped` says what has gone.
   */
  onOverflow?: 'error' | 'truncate' | 'shift' | SummarizeOverflow;
}

/** Options of `gemma.chat`: those of `generate` are defaults for all turns. */
export interface ChatOptions extends Omit<GenerateOptions, 'raw' | 'bos' | 'images' | 'onOverflow'>, OverflowOption {
  /** The system message. */
  system?: string;
  /**
   * Messages the conversation begins with, at most 20,000 with their parts. A system message may be the first, where `system` is not
   * given.
   */
  history?: readonly Message[];
}

/** Options of `gemma.restoreChat`: defaults in place of saved ones, and the functions, which are not saved. */
export type RestoreChatOptions = Omit<ChatOptions, 'system' | 'history'>;

/** Options of one turn, in place of the conversation's defaults. */
export interface TurnOptions extends Omit<GenerateOptions, 'raw' | 'bos' | 'onOverflow'>, OverflowOption {
  /** The beginning of the answer, which the model continues; part of the message then, but not of `result.text`. */
  prefill?: string;
  /** True asks this instead of the last question: that and its answer go when the new answer is there. Default false. */
  replace?: boolean;
}

/** Options of a turn whose schema tells the type of `result.object`. */
export interface TurnBySchema<S extends StandardSchema> extends Omit<TurnOptions, 'schema'> {
  schema: S;
}

/** Options of a turn whose choices tell the type of `result.object`. */
export interface TurnByChoices<T extends string> extends Omit<TurnOptions, 'choices'> {
  choices: readonly T[];
}

const overflows = custom((name, value): 'error' | 'truncate' | 'shift' | SummarizeOverflow =>
  typeof value === 'function' ? (value as SummarizeOverflow) : choices('error', 'truncate', 'shift').check(name, value),
);

function without(table: Table, ...names: readonly string[]): Table {
  return Object.fromEntries(Object.entries(table).filter(([name]) => !names.includes(name)));
}

const OWN = { onOverflow: or(overflows, 'error') } as const;
const CHAT: Table = { ...without(GENERATE, 'raw', 'bos', 'images'), ...OWN, system: strings, history: elsewhere };
const RESTORE: Table = without(CHAT, 'system', 'history');
const TURN_OWN = { ...OWN, prefill: strings, replace: or(booleans, false) } as const;
const TURN: Table = { ...without(GENERATE, 'raw', 'bos'), ...TURN_OWN };

/** Defaults as they were given, checked. */
export type ChatDefaults = RestoreChatOptions;

// Options that are given: undefined leaves a default as it is.
function given<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T;
}

// Of options of a conversation those that generate has as well.
function ofGenerate({ onOverflow, ...options }: ChatDefaults & TurnOptions): GenerateOptions {
  const known = Object.entries(options).filter(([name]) => Object.hasOwn(GENERATE, name));
  return { ...Object.fromEntries(known), onOverflow: onOverflow === 'truncate' ? 'truncate' : 'error' };
}

function checkedDefaults(options: ChatDefaults): ChatDefaults {
  valuesOf(OWN, options);
  generateOptions(ofGenerate(options));
  return given(options);
}

/** @throws TypeError, RangeError; GemmaError `ERR_UNSUPPORTED_INPUT` */
export function chatOptions(options: ChatOptions): {
  system?: string;
  history: readonly Message[];
  defaults: ChatDefaults;
} {
  known(CHAT, options);
  const { system, history = [], ...defaults } = options;
  const values = valuesOf({ system: strings }, { system });
  if (!Array.isArray(history)) throw new TypeError(`history: expected an array of messages, found ${show(history)}`);
  return { ...values, history: history as readonly Message[], defaults: checkedDefaults(defaults) };
}

/** @throws as `chatOptions` */
export function restoreChatOptions(options: RestoreChatOptions): ChatDefaults {
  known(RESTORE, options);
  return checkedDefaults(options);
}

/** What a turn is computed with. */
export interface TurnSettings {
  options: GenerateOptions;
  params: AnswerParams;
  prompt: PromptSettings;
  stallTimeoutMs: number;
  onOverflow: 'error' | 'truncate' | 'shift' | SummarizeOverflow;
  prefill?: string;
  replace: boolean;
}

/** @throws as `chatOptions` */
export function turnOptions(defaults: ChatDefaults, options: TurnOptions): TurnSettings {
  known(TURN, options);
  const mine = given(options);
  // What one of these says of an answer, it says instead of the others.
  const isStructured = Object.keys(STRUCTURED).some((name) => Object.hasOwn(mine, name));
  const others = Object.entries(defaults).filter(([name]) => !(isStructured && Object.hasOwn(STRUCTURED, name)));
  const merged = { ...(Object.fromEntries(others) as ChatDefaults), ...mine };
  const generate = ofGenerate(merged);
  return { ...valuesOf(TURN_OWN, merged), options: generate, ...generateOptions(generate) };
}
