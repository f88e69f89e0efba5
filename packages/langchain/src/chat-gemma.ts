// A chat model of LangChain over a Gemma in the process.
import type { CallbackManagerForLLMRun } from '@langchain/core/callbacks/manager';
import { ContextOverflowError, stampRetryable } from '@langchain/core/errors';
import type { BaseLanguageModelInput, StructuredOutputMethodOptions } from '@langchain/core/language_models/base';
import {
  BaseChatModel,
  type BaseChatModelCallOptions,
  type BaseChatModelParams,
  type BindToolsInput,
  type LangSmithParams,
  type ToolChoice,
} from '@langchain/core/language_models/chat_models';
import type { ModelProfile } from '@langchain/core/language_models/profile';
import {
  assembleStructuredOutputPipeline,
  createContentParser,
  createFunctionCallingParser,
} from '@langchain/core/language_models/structured_output';
import {
  AIMessage,
  AIMessageChunk,
  type BaseMessage,
  type MessageContent,
  type UsageMetadata,
} from '@langchain/core/messages';
import { ChatGenerationChunk, type ChatResult } from '@langchain/core/outputs';
import type { Runnable } from '@langchain/core/runnables';
import { toJsonSchema } from '@langchain/core/utils/json_schema';
import { isSerializableSchema, type SerializableSchema } from '@langchain/core/utils/standard_schema';
import { getSchemaDescription, isInteropZodSchema, type ZodV3Like, type ZodV4Like } from '@langchain/core/utils/types';
import { Gemma, GemmaError, type GenerateOptions, type GenerateResult, type StreamPart } from 'gemma-native';
import { messagesOf } from './messages.js';
import { callSettingsOf, SETTINGS, settingsOf, type GemmaCallSettings, type GemmaSettings } from './settings.js';
import { ModelSource, type ModelFields } from './source.js';
import { declared, toolOptions } from './tools.js';

export interface ChatGemmaFields extends BaseChatModelParams, ModelFields, GemmaSettings {}

export interface ChatGemmaCallOptions extends BaseChatModelCallOptions, GemmaCallSettings {
  /** What the model may call; `bindTools` sets it. */
  tools?: BindToolsInput[];
  /** `'auto'`, `'none'`, `'any'` or `'required'`, or the name of a tool. */
  tool_choice?: ToolChoice;
  /** A JSON Schema that the answer meets; `withStructuredOutput` sets it. */
  schema?: Record<string, unknown>;
}

/** A schema of zod, arktype or valibot, whose type is that of the answer, or a JSON Schema. */
type Schema<T = unknown> = SerializableSchema<T> | ZodV4Like<T> | ZodV3Like<T> | Record<string, unknown>;
type Structured = Runnable<BaseLanguageModelInput, Record<string, unknown>>;

function usageOf({ usage }: GenerateResult): UsageMetadata {
  const { inputTokens, outputTokens, cachedInputTokens, imageTokens } = usage;
  return {
    input_tokens: inputTokens,
    output_tokens: outputTokens,
    total_tokens: inputTokens + outputTokens,
    input_token_details: { cache_read: cachedInputTokens, image: imageTokens },
  };
}

// Under exactOptionalPropertyTypes the type of this field is undefined in LangChain's constructors.
function withUsage<T extends AIMessage | AIMessageChunk>(message: T, usage: UsageMetadata): T {
  return Object.assign(message, { usage_metadata: usage });
}

function invalidCallsOf({ malformedCalls = [] }: GenerateResult) {
  return malformedCalls.map(({ text, reason }) => ({ type: 'invalid_tool_call' as const, args: text, error: reason }));
}

/**
 * Gemma 3 in the process, as a chat model: text, pictures, tools, structured output, streams. Calls side by side (`batch`) are computed
 * together. Nothing is loaded before the first call.
 *
 * Errors are `GemmaError`s, `TypeError` or `RangeError` for wrong options, ContextOverflowError for what does not fit into the context
 * (its `cause` says more), and the signal's reason after an abort. Only `ERR_QUEUE_FULL` is marked as worth another try.
 */
export class ChatGemma extends BaseChatModel<ChatGemmaCallOptions, AIMessageChunk> {
  /** The model's name, as it was given. */
  readonly model: string;
  readonly #source: ModelSource;
  readonly #settings: GemmaSettings;

  static override lc_name(): string {
    return 'ChatGemma';
  }

  constructor(fields: ChatGemmaFields) {
    super(fields);
    this.#source = new ModelSource(fields);
    this.#settings = settingsOf(fields);
    this.model = this.#source.name;
    this.disableStreaming = fields.disableStreaming === true;
    // A Gemma that is loaded cannot be written down; a name can.
    this.lc_serializable = !(fields.model instanceof Gemma);
    this._addVersion('gemma-native-langchain', '0.1.0');
  }

  override get lc_serializable_keys(): string[] {
    return ['model', 'load', ...SETTINGS, 'cache', 'verbose', 'tags', 'metadata', 'disableStreaming', 'outputVersion'];
  }

  override get lc_secrets(): Record<string, string> {
    return { 'load.hub.token': 'HF_TOKEN' };
  }

  override get callKeys(): string[] {
    return [...super.callKeys, ...SETTINGS, 'tools', 'tool_choice', 'schema'];
  }

  override _llmType(): string {
    return 'gemma-native';
  }

  /** The model's name and what its answers depend on; caches go by it. */
  override _identifyingParams(): Record<string, unknown> {
    return { model_name: this.model, ...this.#settings };
  }

  /** The options of `gemma.generate` that a call comes to, but for its signal. */
  override invocationParams(options?: this['ParsedCallOptions']): GenerateOptions {
    const { tools, tool_choice: choice, schema, stop, ...given } = options ?? {};
    const settings = { ...this.#settings, ...callSettingsOf(given) };
    return {
      ...settings,
      ...toolOptions(tools, choice),
      ...(stop && { stopSequences: stop }),
      ...(schema && { schema }),
    } as GenerateOptions;
  }

  override getLsParams(options: this['ParsedCallOptions']): LangSmithParams {
    const { temperature, maxOutputTokens, stopSequences } = this.invocationParams(options);
    return {
      ls_provider: 'gemma-native',
      ls_model_name: this.model,
      ls_model_type: 'chat',
      ...(temperature !== undefined && { ls_temperature: temperature }),
      ...(maxOutputTokens !== undefined && { ls_max_tokens: maxOutputTokens }),
      ...(stopSequences && { ls_stop: [...stopSequences] }),
    };
  }

  /** What the model can do; its context and whether it sees are known of a Gemma that is loaded. */
  override get profile(): ModelProfile {
    const info = this.#source.loaded?.info;
    const sees = info && info.vision !== undefined;
    return {
      toolCalling: true,
      toolChoice: true,
      structuredOutput: true,
      audioInputs: false,
      videoInputs: false,
      pdfInputs: false,
      reasoningOutput: false,
      ...(info && { maxInputTokens: info.contextSize }),
      ...(sees !== undefined && { imageInputs: sees, imageUrlInputs: sees, imageToolMessage: sees }),
    };
  }

  /** The Gemma behind it, loaded if it is not yet. */
  gemma(): Promise<Gemma> {
    return this.#source.get();
  }

  /** Frees the model if it was loaded here; calls under way reject. A Gemma that was given stays. */
  dispose(): Promise<void> {
    return this.#source.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  /** By the model's own tokens, in this process. */
  override async getNumTokens(content: MessageContent): Promise<number> {
    const texts =
      typeof content === 'string'
        ? [content]
        : content.map((block) => ('text' in block && typeof block.text === 'string' ? block.text : ''));
    const gemma = await this.#source.get();
    return (await gemma.tokenize(texts.join(''))).length;
  }

  override bindTools(
    tools: BindToolsInput[],
    kwargs?: Partial<ChatGemmaCallOptions>,
  ): Runnable<BaseLanguageModelInput, AIMessageChunk, ChatGemmaCallOptions> {
    return this.withConfig({ ...kwargs, tools: tools.map(declared) });
  }

  /**
   * Answers as objects that meet a schema: `'jsonSchema'` (default) holds the answer to it while it is written, `'functionCalling'` has it
   * as the arguments of a call, `'jsonMode'` as any JSON.
   */
  override withStructuredOutput<RunOutput extends Record<string, unknown> = Record<string, unknown>>(
    outputSchema: Schema<RunOutput>,
    config?: StructuredOutputMethodOptions<false>,
  ): Runnable<BaseLanguageModelInput, RunOutput>;
  override withStructuredOutput<RunOutput extends Record<string, unknown> = Record<string, unknown>>(
    outputSchema: Schema<RunOutput>,
    config?: StructuredOutputMethodOptions<true>,
  ): Runnable<BaseLanguageModelInput, { raw: BaseMessage; parsed: RunOutput }>;
  override withStructuredOutput(outputSchema: Schema, config: StructuredOutputMethodOptions<boolean> = {}): Structured {
    const { method = 'jsonSchema', includeRaw = false, name } = config;
    const known = isInteropZodSchema(outputSchema) || isSerializableSchema(outputSchema);
    const schema = known ? toJsonSchema(outputSchema) : outputSchema;
    const runName = includeRaw ? 'StructuredOutputRunnable' : 'StructuredOutput';
    const format = { ls_structured_output_format: { kwargs: { method }, schema } };
    if (method === 'functionCalling') {
      const own = 'name' in schema && typeof schema.name === 'string' ? schema.name : undefined;
      const called = name ?? (known ? undefined : own) ?? 'extract';
      const description = getSchemaDescription(outputSchema) ?? 'Gives the answer.';
      const tool = { type: 'function' as const, function: { name: called, description, parameters: schema } };
      const bound = this.bindTools([tool], { tool_choice: called, ...format });
      return assembleStructuredOutputPipeline(
        bound,
        createFunctionCallingParser(outputSchema, called),
        includeRaw,
        runName,
      );
    }
    const options = method === 'jsonMode' ? { json: true } : { schema };
    const bound = this.withConfig({ ...options, ...format });
    return assembleStructuredOutputPipeline(bound, createContentParser(outputSchema), includeRaw, runName);
  }

  override async _generate(messages: BaseMessage[], options: this['ParsedCallOptions']): Promise<ChatResult> {
    return this.#convertingErrors(async () => {
      const { signal } = options;
      const params = this.invocationParams(options);
      const gemma = await this.#source.get(signal);
      const result = await gemma.generate(messagesOf(messages), { ...params, ...(signal && { signal }) });
      const { text, toolCalls = [] } = result;
      const usage = usageOf(result);
      const fields = {
        content: text,
        tool_calls: toolCalls.map(({ id, name, input }) => ({
          type: 'tool_call' as const,
          id,
          name,
          args: input as Record<string, unknown>,
        })),
        invalid_tool_calls: invalidCallsOf(result),
        response_metadata: this.#metadataOf(result),
      };
      const message = withUsage(new AIMessage(fields), usage);
      const { input_tokens: promptTokens, output_tokens: completionTokens, total_tokens: totalTokens } = usage;
      return {
        generations: [{ text, message }],
        llmOutput: { tokenUsage: { promptTokens, completionTokens, totalTokens } },
      };
    });
  }

  override async *_streamResponseChunks(
    messages: BaseMessage[],
    options: this['ParsedCallOptions'],
    runManager?: CallbackManagerForLLMRun,
  ): AsyncGenerator<ChatGenerationChunk> {
    const { signal } = options;
    const begun = await this.#convertingErrors(async () => {
      const params = this.invocationParams(options);
      const gemma = await this.#source.get(signal);
      return gemma.stream(messagesOf(messages), { ...params, ...(signal && { signal }) });
    });
    const parts = begun[Symbol.asyncIterator]();
    let nCalls = 0;
    try {
      for (;;) {
        const { done, value } = await this.#convertingErrors(() => parts.next());
        if (done) break;
        const chunk = chunkOf(value, nCalls);
        if (!chunk) continue;
        if (value.type === 'tool-call') ++nCalls;
        yield chunk;
        await runManager?.handleLLMNewToken(chunk.text, undefined, undefined, undefined, undefined, { chunk });
      }
    } finally {
      await parts.return(); // of a reader who left
    }
    const result = await this.#convertingErrors(() => begun.result);
    const last = new AIMessageChunk({ content: '', response_metadata: this.#metadataOf(result) });
    yield new ChatGenerationChunk({ text: '', message: withUsage(last, usageOf(result)) });
  }

  override _combineLLMOutput(...outputs: ChatResult['llmOutput'][]): Record<string, unknown> {
    const sum = { promptTokens: 0, completionTokens: 0, totalTokens: 0 };
    for (const output of outputs) {
      const { tokenUsage } = (output ?? {}) as { tokenUsage?: Partial<typeof sum> };
      for (const key of Object.keys(sum) as (keyof typeof sum)[]) sum[key] += tokenUsage?.[key] ?? 0;
    }
    return { tokenUsage: sum };
  }

  #metadataOf({ finishReason, seed, timings, stopSequence, logprobs }: GenerateResult): Record<string, unknown> {
    return {
      model_provider: 'gemma-native',
      model_name: this.model,
      finish_reason: finishReason,
      seed,
      timings,
      ...(stopSequence !== undefined && { stop_sequence: stopSequence }),
      ...(logprobs && { logprobs }),
    };
  }

  async #convertingErrors<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof GemmaError)) throw error;
      if (error.code === 'ERR_CONTEXT_FULL') throw ContextOverflowError.fromError(error);
      throw stampRetryable(error, error.code === 'ERR_QUEUE_FULL');
    }
  }
}

/** @param nCalls before it in the answer */
function chunkOf(part: StreamPart, nCalls: number): ChatGenerationChunk | undefined {
  if (part.type === 'text') {
    return new ChatGenerationChunk({ text: part.text, message: new AIMessageChunk({ content: part.text }) });
  }
  if (part.type !== 'tool-call') return undefined;
  const { id, name, input } = part;
  const call = { type: 'tool_call_chunk' as const, id, name, args: JSON.stringify(input), index: nCalls };
  return new ChatGenerationChunk({ text: '', message: new AIMessageChunk({ content: '', tool_call_chunks: [call] }) });
}
