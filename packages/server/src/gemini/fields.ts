// The parameters of Google's interface. Names are taken in both of protobuf's spellings, generationConfig and generation_config; what cannot
// be done here is refused by its name.
import { z } from 'zod';
import { list } from '../fields.js';

const MAX_CONTENTS = 4096;
const MAX_PARTS = 1024;
const MAX_TOOLS = 128;

/** A member that there is in Google's interface and cannot be here. */
const refused = (reason: string) => z.never({ error: reason }).optional();

const camelCase = (name: string) => name.replace(/_+([a-z])/g, (_, letter: string) => letter.toUpperCase());

// A name in both spellings is left as it is, and so refused.
function camelKeys(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  const entries = Object.entries(value).map(([key, item]): [string, unknown] => {
    const name = camelCase(key);
    return [name !== key && Object.hasOwn(value, name) ? key : name, item];
  });
  return Object.fromEntries(entries);
}

/** An object of these members and no others. */
function message<T extends z.ZodRawShape>(shape: T) {
  return z.preprocess(camelKeys, z.strictObject(shape));
}

const anything = z.record(z.string(), z.unknown());

const part = message({
  text: z.string().optional(),
  inlineData: message({ mimeType: z.string().max(200), data: z.string() }).optional(),
  functionCall: message({ id: z.string().nullish(), name: z.string(), args: anything.nullish() }).optional(),
  functionResponse: message({ id: z.string().nullish(), name: z.string(), response: anything }).optional(),
  thought: z.literal(false, { error: 'Gemma 3 has no thoughts' }).optional(),
  fileData: refused('this server keeps no files; send the picture as inlineData'),
  executableCode: refused('this server runs no code'),
  codeExecutionResult: refused('this server runs no code'),
}).refine(
  (value) =>
    [value.text, value.inlineData, value.functionCall, value.functionResponse].filter((x) => x !== undefined).length ===
    1,
  'expected one of text, inlineData, functionCall, functionResponse',
);

const parts = list(part, MAX_PARTS, 1);

const content = message({ role: z.enum(['user', 'model', 'function']).nullish(), parts });
const instruction = message({ role: z.string().nullish(), parts });

export type Content = z.output<typeof content>;
export type Part = z.output<typeof part>;

const UNSPECIFIED = (name: string) => z.literal(`${name}_UNSPECIFIED`).optional();

export const generationConfig = message({
  temperature: z.number().min(0).max(2).nullish(),
  topP: z.number().gt(0).max(1).nullish(),
  topK: z.int().min(0).nullish(),
  candidateCount: z.int().min(1).nullish(),
  maxOutputTokens: z.int().min(1).nullish(),
  stopSequences: list(z.string(), 256).nullish(),
  seed: z.int().min(0).nullish(),
  presencePenalty: z.number().min(-2).max(2).nullish(),
  frequencyPenalty: z.number().min(-2).max(2).nullish(),
  responseMimeType: z.enum(['text/plain', 'application/json', 'text/x.enum']).nullish(),
  responseSchema: anything.nullish(),
  responseJsonSchema: z.union([anything, z.boolean()]).nullish(),
  responseLogprobs: z.boolean().nullish(),
  logprobs: z.int().min(0).max(20).nullish(),
  responseModalities: z
    .tuple([z.enum(['TEXT', 'Text', 'text'])], { error: 'expected TEXT alone: Gemma 3 writes nothing else' })
    .nullish(),
  thinkingConfig: message({
    thinkingBudget: z.literal(0, { error: 'Gemma 3 does not think before it answers; 0 is accepted' }).optional(),
    includeThoughts: z.literal(false, { error: 'Gemma 3 has no thoughts; false is accepted' }).optional(),
  }).nullish(),
  mediaResolution: UNSPECIFIED('MEDIA_RESOLUTION'),
});

export type GenerationConfig = z.output<typeof generationConfig>;

const declaration = message({
  name: z.string(),
  description: z.string().nullish(),
  parameters: anything.nullish(),
  parametersJsonSchema: anything.nullish(),
  behavior: z.enum(['UNSPECIFIED', 'BLOCKING'], { error: 'expected BLOCKING: calls end an answer' }).optional(),
});

export type Declaration = z.output<typeof declaration>;

const onlyFunctions = refused('there are no tools here but functionDeclarations');

const tool = message({
  functionDeclarations: list(declaration, MAX_TOOLS).optional(),
  googleSearch: onlyFunctions,
  googleSearchRetrieval: onlyFunctions,
  googleMaps: onlyFunctions,
  codeExecution: onlyFunctions,
  urlContext: onlyFunctions,
  fileSearch: onlyFunctions,
  computerUse: onlyFunctions,
});

const toolConfig = message({
  functionCallingConfig: message({
    mode: z.enum(['MODE_UNSPECIFIED', 'AUTO', 'ANY', 'NONE', 'VALIDATED']).nullish(),
    allowedFunctionNames: list(z.string(), MAX_TOOLS).nullish(),
  }).nullish(),
});

const safety = message({
  category: z.string(),
  method: z.string().optional(),
  threshold: z.enum(['BLOCK_NONE', 'OFF', 'HARM_BLOCK_THRESHOLD_UNSPECIFIED'], {
    error: 'this server blocks no answers; BLOCK_NONE and OFF are accepted',
  }),
});

const asked = {
  model: z.string().nullish(),
  contents: list(content, MAX_CONTENTS, 1),
  systemInstruction: instruction.nullish(),
  generationConfig: generationConfig.nullish(),
  tools: list(tool, MAX_TOOLS).nullish(),
  toolConfig: toolConfig.nullish(),
  safetySettings: list(safety, 100).nullish(),
  cachedContent: refused('this server keeps no contents; prompts that begin alike are computed once all the same'),
};

/** The bodies of requests. Exported for tests, which make wrong ones of them. */
export const generateBody = message(asked);
export type GenerateBody = z.output<typeof generateBody>;

export const countBody = message({
  model: z.string().nullish(),
  contents: list(content, MAX_CONTENTS, 1).optional(),
  generateContentRequest: generateBody.optional(),
}).refine(
  ({ contents, generateContentRequest }) => (contents === undefined) !== (generateContentRequest === undefined),
  'expected one of contents and generateContentRequest',
);

const embedded = message({ role: z.string().nullish(), parts: list(message({ text: z.string() }), MAX_PARTS, 1) });

const TASKS = [
  'TASK_TYPE_UNSPECIFIED',
  'RETRIEVAL_QUERY',
  'RETRIEVAL_DOCUMENT',
  'SEMANTIC_SIMILARITY',
  'CLASSIFICATION',
  'CLUSTERING',
  'QUESTION_ANSWERING',
  'FACT_VERIFICATION',
  'CODE_RETRIEVAL_QUERY',
] as const;

const embedding = {
  model: z.string().nullish(),
  content: embedded,
  taskType: z.enum(TASKS).nullish(),
  title: z.string().nullish(),
  outputDimensionality: z.int().min(1).nullish(),
};

export const embedBody = message(embedding);
export type EmbedBody = z.output<typeof embedBody>;

export const batchEmbedBody = (maxInputs: number) => message({ requests: list(embedBody, maxInputs, 1) });

/** Of the list of models. */
export const listQuery = z.strictObject({
  key: z.string().optional(),
  pageSize: z.coerce.number().int().min(0).optional(),
  pageToken: z
    .string()
    .regex(/^\d{1,9}$/, 'expected the nextPageToken of an answer')
    .optional(),
});

/** Of everything else. */
export const callQuery = z.strictObject({ key: z.string().optional(), alt: z.enum(['json', 'sse']).optional() });

/** How gemma-native's options are called here, for errors. */
export const NAMES: Readonly<Record<string, string>> = {
  messages: 'contents',
  maxOutputTokens: 'generationConfig.maxOutputTokens',
  temperature: 'generationConfig.temperature',
  topK: 'generationConfig.topK',
  topP: 'generationConfig.topP',
  seed: 'generationConfig.seed',
  stopSequences: 'generationConfig.stopSequences',
  presencePenalty: 'generationConfig.presencePenalty',
  frequencyPenalty: 'generationConfig.frequencyPenalty',
  schema: 'generationConfig.responseSchema',
  choices: 'generationConfig.responseSchema',
  toolChoice: 'toolConfig.functionCallingConfig',
  texts: 'content',
  dimensions: 'outputDimensionality',
};
