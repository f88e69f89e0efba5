// Answers with tools: the model is asked, what it calls is run, its results are put behind the conversation, and it is asked again.
import type { Cancellation } from './cancellation.js';
import type { Sink } from './generation.js';
import { compileGrammar } from './grammar-compiler.js';
import { plainData, type Message } from './messages.js';
import type { NativeGrammar, NativeModel } from './native.js';
import type { PartAssembler } from './parts.js';
import type { PromptSettings } from './options.js';
import type { Input, PromptBuilder } from './prompt.js';
import type { GenerateResult, GenerateStep } from './result.js';
import type { BoundTool, Force, MarkerId, ToolFormat } from './tool-formats/format.js';
import { ToolAssembler } from './tool-parts.js';
import type { PreparedTool, ToolCall, ToolResult, ToolSettings } from './tools.js';
import { Pace } from './turns.js';
import { reasonOf, show } from './values.js';

/** What an answer is bound to, and who looks for parts in it. */
export interface Bound {
  grammar?: NativeGrammar;
  assembler?: PartAssembler;
}

/** Asks the model once. `added`: messages since it was asked before: its answer, and the results of what that called. */
export type AskModel = (added: readonly Message[], bound: Bound, sink: Sink | undefined) => Promise<GenerateResult>;

const MAX_OUTPUT_VALUES = 10_000;
const MAX_OUTPUT_CHARACTERS = 1 << 19;

/**
 * Compiles what an answer is bound to.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT` as `compileGrammar`
 */
async function grammarOf(
  model: NativeModel,
  format: ToolFormat,
  tools: readonly PreparedTool[],
  force: Force,
  tokenId: MarkerId,
  signal: AbortSignal,
): Promise<NativeGrammar> {
  const bound: BoundTool[] = [];
  const pace = new Pace();
  for (const tool of tools) {
    bound.push({ ...tool, bound: JSON.parse(await tool.schema.grammar()) as unknown });
    if (pace.due) await pace.turn();
  }
  const structure = format.structure(bound, force, tokenId);
  const text = JSON.stringify({ type: 'structural_tag', format: structure });
  return compileGrammar(model, { kind: 'structuralTag', text }, signal);
}

async function run(
  { id, name, input }: ToolCall,
  { execute, schema }: PreparedTool,
  messages: readonly Message[],
  signal: AbortSignal,
): Promise<ToolResult> {
  try {
    const value: unknown = await execute?.(await schema.parse(input), { toolCallId: id, messages, signal });
    const output = plainData(value ?? null, `the result of ${name}`, MAX_OUTPUT_VALUES, MAX_OUTPUT_CHARACTERS);
    return { id, name, output, isError: false };
  } catch (error) {
    return { id, name, output: { error: reasonOf(error) }, isError: true };
  }
}

/** The parts of several generations to one reader, who acknowledges them in order. */
class StepSink implements Sink {
  readonly #sink: Sink;
  #unread = 0;
  #stale = 0; // of these, those of generations that have ended
  #acknowledge: (events: number) => void = () => {};

  constructor(sink: Sink) {
    this.#sink = sink;
    sink.started((events) => {
      this.#unread -= events;
      const old = Math.min(events, this.#stale);
      this.#stale -= old;
      if (events > old) this.#acknowledge(events - old);
    });
  }

  started(acknowledge: (events: number) => void): void {
    this.#stale = this.#unread;
    this.#acknowledge = acknowledge;
  }

  part(...[part, events]: Parameters<Sink['part']>): void {
    this.#unread += events;
    this.#sink.part(part, events);
  }
}

function assistant(text: string, toolCalls: ToolCall[]): Message {
  return { role: 'assistant', content: text, ...(toolCalls.length > 0 && { toolCalls }) };
}

// Of several steps: the last one's answer, and what all of them took.
function joined(steps: readonly GenerateStep[], last: GenerateStep, messages: Message[]): GenerateResult {
  if (steps.length < 2) return { ...last, messages };
  const usage = { ...last.usage };
  const timings = { ...last.timings };
  for (const step of steps.slice(0, -1)) {
    for (const key of Object.keys(usage) as (keyof typeof usage)[]) usage[key] += step.usage[key];
    for (const key of ['queueMs', 'prefillMs', 'decodeMs', 'draftedTokens', 'acceptedTokens'] as const) {
      timings[key] += step.timings[key];
    }
  }
  return { ...last, usage, timings, steps: [...steps], messages };
}

/**
 * What is asked, as messages.
 *
 * @throws TypeError for token ids and raw text
 */
export function conversationOf(input: Input, { raw, images }: PromptSettings): readonly Message[] {
  if (raw) throw new TypeError('tools: raw text is no conversation, which tools need');
  if (typeof input === 'string') return [{ role: 'user', content: input, ...(images.length > 0 && { images }) }];
  if (!Array.isArray(input)) throw new TypeError(`input: expected a string or messages, found ${show(input)}`);
  if (typeof input[0] === 'number') {
    throw new TypeError('input: expected a string or messages, which tools need, found token ids');
  }
  if (images.length > 0) {
    throw new TypeError('images: a conversation has its pictures in its messages, as parts { type: "image", image }');
  }
  return input as readonly Message[];
}

/**
 * Asks until an answer calls nothing, calls a tool without `execute`, or `maxSteps` answers were made. Forced calls are forced in
 * the first answer only. Tools of one answer run side by side; nobody waits for those of a call that was cancelled.
 */
export async function answerWithTools(
  input: readonly Message[],
  { tools, callable, force, maxSteps, format: given }: ToolSettings,
  prompts: PromptBuilder,
  model: NativeModel,
  ask: AskModel,
  cancellation: Cancellation,
  sink?: Sink,
): Promise<GenerateResult> {
  const format = prompts.toolFormat(given);
  const tokenId = (spelling: string) => prompts.controlToken(spelling);
  const markers = new Map(format.markers.map((spelling) => [tokenId(spelling), spelling]));
  const conversation: Message[] = [...input];
  let asked = input.length; // so many of them
  const steps: GenerateStep[] = [];
  const stepSink = sink && new StepSink(sink);
  for (;;) {
    const isFirst = steps.length === 0;
    const bound = isFirst ? callable : tools;
    const grammar = await grammarOf(model, format, bound, isFirst ? force : 'auto', tokenId, cancellation.signal);
    cancellation.signal.throwIfAborted();
    const assembler = new ToolAssembler(format, markers, bound);
    const answer = await ask(conversation.slice(asked), { grammar, assembler }, stepSink);
    asked = conversation.length;
    const { calls, malformed } = assembler;
    const isCalling = calls.length > 0 && answer.finishReason === 'stop';
    const step: GenerateStep = {
      ...answer,
      ...(isCalling && { finishReason: 'tool-calls' as const }),
      toolCalls: calls,
      ...(malformed.length > 0 && { malformedCalls: malformed }),
    };
    steps.push(step);
    conversation.push(assistant(answer.text, calls));
    const end = () => joined(steps, step, conversation.slice(input.length));
    const before = conversation.slice(0, -1);
    const runnable = calls.flatMap((call) => {
      const tool = tools.find(({ name }) => name === call.name);
      return tool?.execute ? [{ call, tool }] : [];
    });
    if (!isCalling || steps.length >= maxSteps || runnable.length === 0) return end();
    const running = runnable.map(async ({ call, tool }) => {
      const result = await run(call, tool, before, cancellation.signal);
      if (!cancellation.cancelled) stepSink?.part({ type: 'tool-result', ...result, text: '', tokens: [] }, 0);
      return result;
    });
    const results = await Promise.race([Promise.all(running), cancelled(cancellation.signal)]);
    if (!results) return { ...end(), finishReason: 'other' };
    step.toolResults = results;
    for (const { id, output } of results) conversation.push({ role: 'tool', toolCallId: id, content: output });
    if (runnable.length < calls.length) return end();
  }
}

function cancelled(signal: AbortSignal): Promise<undefined> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined);
    else signal.addEventListener('abort', () => resolve(undefined), { once: true });
  });
}
