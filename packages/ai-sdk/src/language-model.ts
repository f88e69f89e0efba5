// A language model of the AI SDK (specification v4) over a Gemma: settings and tools to options of `generate`, results and streams back.
import { randomUUID } from 'node:crypto';
import type {
  JSONObject,
  LanguageModelV4,
  LanguageModelV4CallOptions,
  LanguageModelV4Content,
  LanguageModelV4FinishReason,
  LanguageModelV4GenerateResult,
  LanguageModelV4StreamPart,
  LanguageModelV4StreamResult,
  LanguageModelV4Usage,
  SharedV4ProviderMetadata,
  SharedV4Warning,
} from '@ai-sdk/provider';
import {
  GemmaError,
  type Gemma,
  type GenerateOptions,
  type GenerateResult,
  type Message,
  type StreamPart,
  type Tool,
  type ToolCall,
} from 'gemma-native';
import { providerError } from './errors.js';
import type { ModelHandle } from './models.js';
import { languageOptions, languageSettings, type GemmaLanguageModelSettings } from './options.js';
import { messagesOf } from './prompt.js';

/** What is asked of a Gemma for one call. */
interface Question {
  gemma: Gemma;
  messages: Message[];
  options: GenerateOptions;
  /**
   * Where the answer is to be JSON and tools may be called before: how it is asked for when none was called. A grammar holds an answer to
   * one of both, so the first answer decides which it is to be, and its text is dropped.
   */
  bound?: GenerateOptions;
  warnings: SharedV4Warning[];
}

type Stream = AsyncIterator<StreamPart, void, undefined>;

function toolsOf(
  { tools = [], toolChoice }: LanguageModelV4CallOptions,
  warnings: SharedV4Warning[],
): Pick<GenerateOptions, 'tools' | 'toolChoice'> {
  const known: [string, Tool][] = [];
  for (const tool of tools) {
    if (tool.type === 'provider') {
      warnings.push({ type: 'unsupported', feature: `provider-defined tool ${tool.id}` });
      continue;
    }
    const { name, description, inputSchema, inputExamples } = tool;
    if (inputExamples?.length) {
      const details = 'The AI SDK has addToolInputExamplesMiddleware, which puts them into the description.';
      warnings.push({ type: 'unsupported', feature: `inputExamples of tool ${name}`, details });
    }
    known.push([name, { ...(description !== undefined && { description }), inputSchema }]);
  }
  if (known.length === 0) return {};
  const choice = toolChoice?.type === 'tool' ? { tool: toolChoice.toolName } : toolChoice?.type;
  return { tools: Object.fromEntries(known), ...(choice && { toolChoice: choice }) };
}

function settingsOf(options: LanguageModelV4CallOptions): GenerateOptions {
  const { maxOutputTokens, temperature, topP, topK, presencePenalty, frequencyPenalty, seed, stopSequences } = options;
  const given = { maxOutputTokens, temperature, topP, topK, presencePenalty, frequencyPenalty, seed, stopSequences };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}

/** @internal */
export function reasoningWarnings(reasoning: LanguageModelV4CallOptions['reasoning']): SharedV4Warning[] {
  if (reasoning === undefined || reasoning === 'none' || reasoning === 'provider-default') return [];
  return [{ type: 'unsupported', feature: 'reasoning', details: 'Gemma 3 answers without.' }];
}

function warnOf({ reasoning, prompt }: LanguageModelV4CallOptions, warnings: SharedV4Warning[]): void {
  warnings.push(...reasoningWarnings(reasoning));
  const inMessages = prompt.some(
    ({ content, providerOptions }) =>
      providerOptions?.gemma ??
      (typeof content === 'string' ? [] : content).some(
        (part) => 'providerOptions' in part && part.providerOptions?.gemma,
      ),
  );
  if (inMessages) {
    const details = 'They hold for a whole call: give them beside the prompt.';
    warnings.push({ type: 'unsupported', feature: 'providerOptions.gemma of messages and parts', details });
  }
}

function finishOf({ finishReason }: Pick<GenerateResult, 'finishReason'>): LanguageModelV4FinishReason {
  return { unified: finishReason, raw: finishReason };
}

function usageOf(results: readonly GenerateResult[]): LanguageModelV4Usage {
  const raw = { inputTokens: 0, cachedInputTokens: 0, imageTokens: 0, outputTokens: 0 };
  for (const { usage } of results) for (const key of Object.keys(raw) as (keyof typeof raw)[]) raw[key] += usage[key];
  const { inputTokens, cachedInputTokens, outputTokens } = raw;
  return {
    inputTokens: {
      total: inputTokens,
      noCache: inputTokens - cachedInputTokens,
      cacheRead: cachedInputTokens,
      cacheWrite: undefined,
    },
    outputTokens: { total: outputTokens, text: outputTokens, reasoning: 0 },
    raw,
  };
}

const UNKNOWN_USAGE: LanguageModelV4Usage = {
  inputTokens: { total: undefined, noCache: undefined, cacheRead: undefined, cacheWrite: undefined },
  outputTokens: { total: undefined, text: undefined, reasoning: undefined },
};

function metadataOf({
  seed,
  timings,
  usage,
  stopSequence,
  logprobs,
  malformedCalls,
}: GenerateResult): SharedV4ProviderMetadata {
  const found = {
    seed,
    timings,
    imageTokens: usage.imageTokens,
    ...(stopSequence !== undefined && { stopSequence }),
    ...(logprobs && { logprobs }),
    ...(malformedCalls && { malformedCalls }),
  };
  return { gemma: found as unknown as JSONObject };
}

function callOf({ id, name, input }: ToolCall): Extract<LanguageModelV4Content, { type: 'tool-call' }> {
  return { type: 'tool-call', toolCallId: id, toolName: name, input: JSON.stringify(input) };
}

/** The parts of a stream, text in blocks: whatever is no text ends the block before it. */
class Blocks {
  #n = 0;
  #open: string | undefined;

  *text(delta: string): Generator<LanguageModelV4StreamPart> {
    if (delta === '') return;
    if (this.#open === undefined) {
      this.#open = String(this.#n++);
      yield { type: 'text-start', id: this.#open };
    }
    yield { type: 'text-delta', id: this.#open, delta };
  }

  *end(): Generator<LanguageModelV4StreamPart> {
    if (this.#open !== undefined) yield { type: 'text-end', id: this.#open };
    this.#open = undefined;
  }

  *part(part: StreamPart): Generator<LanguageModelV4StreamPart> {
    if (part.type === 'text') {
      yield* this.text(part.text);
    } else if (part.type === 'tool-call') {
      // A call is whole when it is known to be one: its input is one piece.
      const call = callOf(part);
      yield* this.end();
      yield { type: 'tool-input-start', id: call.toolCallId, toolName: call.toolName };
      yield { type: 'tool-input-delta', id: call.toolCallId, delta: call.input };
      yield { type: 'tool-input-end', id: call.toolCallId };
      yield call;
    }
  }
}

/** @internal */
export class GemmaLanguageModel implements LanguageModelV4 {
  readonly specificationVersion = 'v4';
  readonly provider = 'gemma';
  readonly modelId: string;
  /**
   * Pictures at http(s) URLs are fetched by gemma-native, which looks at the addresses that names resolve to; the AI SDK would fetch them
   * without. Where fetching is not allowed they are refused here, not fetched there.
   */
  readonly supportedUrls: Record<string, RegExp[]>;
  readonly #handle: ModelHandle;
  readonly #settings: GemmaLanguageModelSettings;

  constructor(handle: ModelHandle, settings: GemmaLanguageModelSettings | undefined) {
    this.modelId = handle.modelId;
    this.#handle = handle;
    this.#settings = { allowRemote: true, allowLocal: false, ...languageSettings(settings) };
    this.supportedUrls = { 'image/*': [this.#settings.allowLocal ? /^(?:https?|file):/i : /^https?:/i] };
  }

  async doGenerate(options: LanguageModelV4CallOptions): Promise<LanguageModelV4GenerateResult> {
    return this.#convertingErrors(options, async () => {
      const { gemma, messages, options: asked, bound, warnings } = await this.#question(options);
      const response = this.#response();
      const first = await gemma.generate(messages, asked);
      const results = [first];
      if (bound && !first.toolCalls?.length) results.push(await gemma.generate(messages, bound));
      const last = results.at(-1) ?? first;
      const content: LanguageModelV4Content[] = [
        ...(last.text === '' ? [] : [{ type: 'text' as const, text: last.text }]),
        ...(last.toolCalls ?? []).map(callOf),
      ];
      return {
        content,
        finishReason: finishOf(last),
        usage: usageOf(results),
        providerMetadata: metadataOf(last),
        response,
        warnings,
      };
    });
  }

  /**
   * Resolves when the first piece of the answer is there, so that what is wrong with a prompt is a rejection; what fails later is a part of
   * type `error`, with `finish` behind it. Who cancels the stream ends the work.
   */
  async doStream(options: LanguageModelV4CallOptions): Promise<LanguageModelV4StreamResult> {
    return this.#convertingErrors(options, async () => {
      const question = await this.#question(options);
      const response = this.#response();
      const reading = new Reading(question);
      await reading.begin();
      const parts = this.#parts(reading, question, response, options);
      const stream = new ReadableStream<LanguageModelV4StreamPart>(
        {
          pull: async (controller) => {
            try {
              const { done, value } = await parts.next();
              if (done) controller.close();
              else controller.enqueue(value);
            } catch (error) {
              controller.error(error); // the reason of an abort
            }
          },
          cancel: () => reading.leave(),
        },
        { highWaterMark: 0 }, // the engine waits for readers, and runs ahead of them by itself
      );
      return { stream };
    });
  }

  async *#parts(
    reading: Reading,
    { warnings }: Question,
    response: { id: string; timestamp: Date; modelId: string },
    options: LanguageModelV4CallOptions,
  ): AsyncGenerator<LanguageModelV4StreamPart, void, undefined> {
    yield { type: 'stream-start', warnings };
    yield { type: 'response-metadata', ...response };
    const blocks = new Blocks();
    try {
      for await (const part of reading.parts()) {
        if (options.includeRawChunks) yield { type: 'raw', rawValue: part };
        yield* blocks.part(part);
      }
      const results = await reading.results();
      const last = results.at(-1) as GenerateResult;
      yield* blocks.end();
      yield {
        type: 'finish',
        finishReason: finishOf(last),
        usage: usageOf(results),
        providerMetadata: metadataOf(last),
      };
    } catch (error) {
      if (options.abortSignal?.aborted) throw error;
      yield* blocks.end();
      yield { type: 'error', error: providerError(error, { modelId: this.modelId, input: options.prompt }) };
      const raw = error instanceof GemmaError ? error.code : undefined;
      yield { type: 'finish', finishReason: { unified: 'error', raw }, usage: UNKNOWN_USAGE };
    }
  }

  async #question(call: LanguageModelV4CallOptions): Promise<Question> {
    const warnings: SharedV4Warning[] = [];
    const own = languageOptions(call.providerOptions);
    const messages = messagesOf(call.prompt, warnings);
    const tools = toolsOf(call, warnings);
    warnOf(call, warnings);
    const base: GenerateOptions = {
      ...this.#settings,
      ...settingsOf(call),
      ...own,
      ...(call.abortSignal && { signal: call.abortSignal }),
    };
    const gemma = await this.#handle.get(call.abortSignal);
    const { responseFormat: format } = call;
    if (format?.type !== 'json') return { gemma, messages, options: { ...base, ...tools }, warnings };
    const json: GenerateOptions = { ...base, ...(format.schema ? { schema: format.schema } : { json: true }) };
    if (!tools.tools || tools.toolChoice === 'none') return { gemma, messages, options: json, warnings };
    const isForced = tools.toolChoice !== undefined && tools.toolChoice !== 'auto';
    return { gemma, messages, options: { ...base, ...tools }, ...(!isForced && { bound: json }), warnings };
  }

  #response() {
    return { id: `gemma-${randomUUID()}`, timestamp: new Date(), modelId: this.modelId };
  }

  async #convertingErrors<T>(options: LanguageModelV4CallOptions, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw providerError(error, { modelId: this.modelId, input: options.prompt }, options.abortSignal);
    }
  }
}

/** The parts of the one or two generations of a question, as of one. */
class Reading {
  readonly #question: Question;
  readonly #results: Promise<GenerateResult>[] = [];
  #stream: Stream;
  #first: IteratorResult<StreamPart, void> | undefined;
  #left = false;
  #result: () => Promise<GenerateResult>;

  constructor(question: Question) {
    this.#question = question;
    const { gemma, messages, options } = question;
    const stream = gemma.stream(messages, options);
    this.#stream = stream[Symbol.asyncIterator]();
    this.#result = () => stream.result;
  }

  /** Waits for the first part. Rejects where there will be none. */
  async begin(): Promise<void> {
    this.#first = await this.#stream.next();
  }

  async leave(): Promise<void> {
    this.#left = true;
    await this.#stream.return?.();
  }

  async *parts(): AsyncGenerator<StreamPart, void, undefined> {
    const { gemma, messages, bound } = this.#question;
    if (!bound) {
      yield* this.#read();
      return;
    }
    // Text before a call is told with it; text without one is not the answer.
    let held: StreamPart[] | undefined = [];
    for await (const part of this.#read()) {
      if (held && part.type !== 'tool-call') {
        held.push(part);
        continue;
      }
      if (held) yield* held;
      held = undefined;
      yield part;
    }
    if (!held || this.#left) return;
    const stream = gemma.stream(messages, bound);
    this.#stream = stream[Symbol.asyncIterator]();
    this.#result = () => stream.result;
    yield* this.#read();
  }

  async *#read(): AsyncGenerator<StreamPart, void, undefined> {
    const stream = this.#stream;
    for (let next = this.#first ?? (await stream.next()); !next.done; next = await stream.next()) {
      this.#first = undefined;
      yield next.value;
    }
    this.#first = undefined;
    this.#results.push(this.#result());
  }

  /** Of all generations, when their parts were read. */
  results(): Promise<GenerateResult[]> {
    return Promise.all(this.#results);
  }
}
