// Tools as callers pass them: their types, and the one place where they and the options beside them are read.
import { GemmaError } from './errors.js';
import type { Message } from './messages.js';
import { CopyLimits } from './json-schema.js';
import { prepareSchema, type PreparedSchema, type SharedLimits } from './schema.js';
import type { Force, ToolFormatName } from './tool-formats/format.js';
import { TOOL_FORMATS } from './tool-formats/formats.js';
import { Allowance } from './turns.js';
import { integer, oneOf, plain, show, text } from './values.js';

/** What `execute` gets beside the arguments. */
export interface ToolExecution {
  /** of the call */
  toolCallId: string;
  /** the conversation up to the call's answer */
  messages: readonly Message[];
  /** aborted when the call of `generate` or `stream` is, or when the reader leaves the stream */
  signal: AbortSignal;
}

/** A function that the model may call. */
export interface Tool {
  /** What it does and when to call it, for the model. At most 16384 characters. */
  description?: string;
  /** Of its arguments, an object: JSON Schema, or anything with the Standard JSON Schema interface (zod 4, valibot, arktype). */
  inputSchema: object;
  /**
   * Computes the result: plain data, a promise of it, or undefined for null. What it throws goes to the model as the result
   * `{ error: message }`. Without it the answer ends with the call (`finishReason: 'tool-calls'`).
   */
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- what fits the schema: callers declare the type they know it has
  execute?: (input: any, execution: ToolExecution) => unknown;
}

/** By their names: letters, digits, `_`, `-` and `.`, at most 64, no two equal but for upper and lower case. */
export type Tools = Readonly<Record<string, Tool>>;

/** Whether the model decides, must not call, must call some tool, or must call this one, once. */
export type ToolChoice = 'auto' | 'none' | 'required' | { readonly tool: string };

/** A call that the model made. */
export interface ToolCall {
  /** nine letters and digits */
  id: string;
  name: string;
  /** arguments: they fit the tool's schema */
  input: unknown;
}

/** The result of a call. */
export interface ToolResult {
  id: string;
  name: string;
  /** plain data; `{ error }` where the tool failed */
  output: unknown;
  isError: boolean;
}

/** What looked like a call and is none; it is in the text of the answer as well. */
export interface MalformedCall {
  text: string;
  /** what is wrong with it */
  reason: string;
}

/** What the options of one call of generate come to. */
export interface ToolSettings {
  /** those that the model is told of */
  tools: readonly PreparedTool[];
  format?: ToolFormatName;
  /** of these, those that it may call in its first answer */
  callable: readonly PreparedTool[];
  force: Force;
  maxSteps: number;
}

export interface PreparedTool {
  readonly name: string;
  readonly description: string;
  readonly schema: PreparedSchema;
  readonly execute: Tool['execute'];
}

const MAX_TOOLS = 128;
const MAX_DESCRIPTION = 1 << 14;
const MAX_DECLARED = 1 << 20; // characters of all of them
const MAX_VALUES = 40_000; // of all their schemas
const DEFAULT_STEPS = 8;

// What was probably meant by keys that other libraries have.
const HINTS: Readonly<Record<string, string>> = {
  parameters: 'inputSchema',
  input_schema: 'inputSchema',
  schema: 'inputSchema',
  handler: 'execute',
  run: 'execute',
  function: 'execute',
};

function wrong(message: string, detail: string): GemmaError {
  return new GemmaError('ERR_INVALID_ARGUMENT', message, detail);
}

// Arguments are an object, whatever a schema leaves open.
function objectSchema(given: unknown, where: string, limits: SharedLimits): PreparedSchema {
  if ((typeof given !== 'object' && typeof given !== 'function') || given === null || Array.isArray(given)) {
    throw new TypeError(`${where}: expected a JSON Schema or an object with one (~standard), found ${show(given)}`);
  }
  const prepared = prepareSchema(given, where, limits);
  const { schema } = prepared;
  const { type } = (typeof schema === 'object' && schema !== null ? schema : {}) as { type?: unknown };
  if (type !== 'object') {
    throw wrong(
      `${where}: expected a schema of type 'object', as arguments are one, found ${show(type)}`,
      'BAD_SCHEMA',
    );
  }
  return prepared;
}

function readTool(name: string, value: unknown, limits: SharedLimits): PreparedTool {
  const where = `tools.${plain(name, 64)}`;
  if (!/^[A-Za-z0-9_.-]{1,64}$/.test(name)) {
    throw wrong(`${where}: expected a name of at most 64 letters, digits, _, - and .`, 'BAD_TOOL');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`${where}: expected { description, inputSchema, execute }, found ${show(value)}`);
  }
  for (const key of Object.keys(value)) {
    if (key in HINTS) throw new TypeError(`${where}.${key}: no such key; ${HINTS[key]} is meant`);
    if (!['description', 'inputSchema', 'execute'].includes(key)) {
      throw new TypeError(`${where}.${plain(key, 40)}: no such key; there are description, inputSchema, execute`);
    }
  }
  const {
    description = '',
    inputSchema,
    execute,
  } = value as { description?: unknown; inputSchema?: unknown; execute?: unknown };
  const { length } = text(`${where}.description`, description);
  if (length > MAX_DESCRIPTION) {
    throw new RangeError(`${where}.description: expected at most ${MAX_DESCRIPTION} characters, found ${length}`);
  }
  if (execute !== undefined && typeof execute !== 'function') {
    throw new TypeError(`${where}.execute: expected a function, found ${show(execute)}`);
  }
  const schema = objectSchema(inputSchema, `${where}.inputSchema`, limits);
  return { name, description: description as string, schema, execute: execute as Tool['execute'] };
}

function readTools(value: unknown): PreparedTool[] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(
      `tools: expected an object, a tool { description, inputSchema, execute } for each name, found ${show(value)}`,
    );
  }
  const entries = Object.entries(value);
  if (entries.length > MAX_TOOLS) {
    throw new RangeError(`tools: expected at most ${MAX_TOOLS}, found ${entries.length}`);
  }
  const names = new Map<string, string>();
  const limits = { copies: new CopyLimits(MAX_VALUES, MAX_DECLARED), allowance: new Allowance() };
  const tools = entries.map(([name, tool]) => {
    const twin = names.get(name.toLowerCase());
    if (twin !== undefined) {
      throw wrong(
        `tools: ${plain(twin, 64)} and ${plain(name, 64)} differ only in upper and lower case`,
        'DUPLICATE_TOOL',
      );
    }
    names.set(name.toLowerCase(), name);
    return readTool(name, tool, limits);
  });
  const characters = tools.reduce(
    (sum, { description, schema }) => sum + description.length + JSON.stringify(schema.schema).length,
    0,
  );
  if (characters > MAX_DECLARED) {
    throw new RangeError(
      `tools: expected descriptions and schemas of at most ${MAX_DECLARED} characters, found ${characters}`,
    );
  }
  return tools;
}

function readChoice(value: unknown, tools: readonly PreparedTool[]): { force: Force | 'none'; tool?: PreparedTool } {
  if (typeof value === 'object' && value !== null) {
    const { tool: name } = value as { tool?: unknown };
    const tool = tools.find((each) => each.name === name);
    if (typeof name !== 'string') {
      throw new TypeError(`toolChoice: expected 'auto', 'none', 'required' or { tool: name }, found ${show(value)}`);
    }
    if (tools.length === 0) throw new TypeError('toolChoice: expected tools beside it, found none');
    if (!tool) {
      throw new RangeError(
        `toolChoice.tool: expected one of ${tools.map((each) => each.name).join(', ')}, found ${show(name)}`,
      );
    }
    return { force: 'one', tool };
  }
  return { force: oneOf('toolChoice', value, ['auto', 'none', 'required'] as const) };
}

/** The options of tools, as they are passed. */
export interface ToolOptionValues {
  tools?: unknown;
  toolChoice?: unknown;
  maxSteps?: unknown;
  toolFormat?: unknown;
}

/**
 * Reads the options of tools. Undefined where there are none.
 *
 * @throws TypeError, RangeError; GemmaError `ERR_INVALID_ARGUMENT` (`BAD_TOOL`, `DUPLICATE_TOOL`, `BAD_SCHEMA`)
 */
export function toolSettings({
  tools: given,
  toolChoice = 'auto',
  maxSteps,
  toolFormat,
}: ToolOptionValues): ToolSettings | undefined {
  const tools = given === undefined ? [] : readTools(given);
  const { force, tool } = readChoice(toolChoice, tools);
  const steps = maxSteps === undefined ? DEFAULT_STEPS : integer('maxSteps', maxSteps, 1, 1000);
  const format = toolFormat === undefined ? undefined : oneOf('toolFormat', toolFormat, TOOL_FORMATS);
  if (tools.length === 0 && force !== 'auto' && force !== 'none') {
    throw new TypeError(`toolChoice: expected tools beside it, found none`);
  }
  if (given === undefined && format === undefined) return undefined;
  const told = force === 'none' ? [] : tools;
  return {
    tools: told,
    callable: tool ? [tool] : told,
    force: force === 'none' ? 'auto' : force,
    maxSteps: steps,
    ...(format && { format }),
  };
}
