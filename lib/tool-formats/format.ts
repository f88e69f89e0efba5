// What a format of tool calls is: how calls are written, how the model is bound to them, and how its output is read. Each format is
// a module of its own beside this file; formats.ts knows them all.
import type { PreparedSchema } from '../schema.js';

/** How calls are written; README of each in docs/guides/tools.md. */
export type ToolFormatName = 'functiongemma' | 'gemma' | 'llama' | 'hermes' | 'mistral';

/** A tool as it was read from the caller's options. */
export interface DeclaredTool {
  readonly name: string;
  readonly description: string;
  readonly schema: PreparedSchema;
}

/** A tool with the schema that its calls are bound to: what the grammar's library takes for it. */
export interface BoundTool extends DeclaredTool {
  readonly bound: unknown;
}

/** What was found in a model's output, in order. */
export type Found =
  | { readonly type: 'text'; readonly text: string }
  /** `written`: as the model wrote it */
  | { readonly type: 'call'; readonly name: string; readonly input: unknown; readonly written: string }
  /** what looked like a call, as the model wrote it, and what is wrong with it */
  | { readonly type: 'broken'; readonly text: string; readonly reason: string };

/** Finds calls in output that comes piece by piece. What has been returned does not change any more. */
export interface CallParser {
  /** @param marker the control token whose place is behind the text: one of the format's `markers` */
  push(text: string, marker?: string): Found[];
  /** The output has ended. */
  end(): Found[];
}

/** The id of a control token, -1 where the vocabulary has none of this text. */
export type MarkerId = (spelling: string) => number;

/** How many calls an answer may or must have. */
export type Force = 'auto' | 'required' | 'one';

export interface ToolFormat {
  readonly name: ToolFormatName;
  /** texts that calls are made of and that may be control tokens, which show in no text */
  readonly markers: readonly string[];
  /** A call as the model writes it. */
  writeCall(name: string, input: unknown): string;
  /**
   * The grammar of answers, a format object of XGrammar's structural tags: any text in which calls, where they begin, fit
   * their tool's schema (`auto`); calls alone (`required`); one call alone (`one`).
   */
  structure(tools: readonly BoundTool[], force: Force, markerId: MarkerId): object;
  parser(): CallParser;
}
