// What is asked in Google's form to what gemma-native is asked.
import type { ContentPart, GenerateOptions, Message, ToolCall, Tools } from 'gemma-native';
import { pictureOfBase64 } from '../content.js';
import { HttpError } from '../errors.js';
import { given } from '../fields.js';
import type { Content, Declaration, GenerateBody, GenerationConfig, Part } from './fields.js';
import { jsonSchemaOf } from './schema.js';

function wrong(param: string, message: string): HttpError {
  return new HttpError(400, 'invalid_value', `${param}: ${message}`, { param });
}

/** A call that no result answered yet. */
interface OpenCall {
  id: string;
  name: string;
}

/** What one role says up to the next, which clients send in one piece or in several. */
interface Turn {
  role: 'user' | 'model';
  parts: { part: Part; where: string }[];
}

function turnsOf(contents: readonly Content[]): Turn[] {
  const turns: Turn[] = [];
  contents.forEach(({ role, parts }, i) => {
    const name = role === 'model' ? 'model' : 'user'; // results of functions are the user's turn too
    const placed = parts.map((part, k) => ({ part, where: `contents[${i}].parts[${k}]` }));
    const last = turns.at(-1);
    if (last?.role === name) last.parts.push(...placed);
    else turns.push({ role: name, parts: placed });
  });
  return turns;
}

function modelMessage({ parts }: Turn, n: number, open: OpenCall[]): Message {
  const toolCalls: ToolCall[] = [];
  let text = '';
  for (const { part, where } of parts) {
    if (part.text !== undefined) text += part.text;
    else if (part.functionCall) {
      const { id, name, args } = part.functionCall;
      // Clients need not say an id: results are told by the function's name then.
      toolCalls.push({ id: id ?? `call_${n}_${toolCalls.length}`, name, input: args ?? {} });
    } else throw wrong(where, 'expected text or functionCall of the model');
  }
  open.push(...toolCalls.map(({ id, name }) => ({ id, name })));
  return { role: 'assistant', content: text, ...(toolCalls.length > 0 && { toolCalls }) };
}

function userMessages({ parts }: Turn, open: OpenCall[]): Message[] {
  const results: Message[] = [];
  const said: ContentPart[] = [];
  for (const { part, where } of parts) {
    if (part.text !== undefined) {
      said.push({ type: 'text', text: part.text });
    } else if (part.inlineData) {
      const { mimeType, data } = part.inlineData;
      if (!mimeType.startsWith('image/')) throw wrong(`${where}.inlineData.mimeType`, 'expected image/...');
      said.push({ type: 'image', image: pictureOfBase64(data, `${where}.inlineData.data`, mimeType) });
    } else if (part.functionResponse) {
      const { id, name, response } = part.functionResponse;
      const at = open.findIndex((call) => (id == null || call.id === id) && call.name === name);
      const [call] = at < 0 ? [] : open.splice(at, 1);
      if (!call) throw wrong(`${where}.functionResponse`, 'the result of no call that the model has made before it');
      results.push({ role: 'tool', toolCallId: call.id, content: response });
    } else {
      throw wrong(where, 'functionCall: only the model makes calls');
    }
  }
  const [first] = said;
  const isText = said.length === 1 && first?.type === 'text';
  return [...results, ...(first ? [{ role: 'user' as const, content: isText ? first.text : said }] : [])];
}

/** The conversation. Throws HttpError 400. */
export function messagesOf({
  contents,
  systemInstruction,
}: Pick<GenerateBody, 'contents' | 'systemInstruction'>): Message[] {
  const open: OpenCall[] = [];
  const messages = turnsOf(contents).flatMap((turn, i) =>
    turn.role === 'model' ? [modelMessage(turn, i, open)] : userMessages(turn, open),
  );
  if (!systemInstruction) return messages;
  const texts = systemInstruction.parts.map(({ text }, k) => {
    if (text === undefined) throw wrong(`systemInstruction.parts[${k}]`, 'expected text');
    return text;
  });
  return [{ role: 'system', content: texts.join('') }, ...messages];
}

function inputSchemaOf({ parameters, parametersJsonSchema }: Declaration, where: string): object {
  if (parameters != null && parametersJsonSchema != null) {
    throw wrong(where, 'only one of parameters and parametersJsonSchema can be given');
  }
  if (parametersJsonSchema != null) return parametersJsonSchema;
  if (parameters != null) return jsonSchemaOf(parameters, `${where}.parameters`);
  return { type: 'object', properties: {}, additionalProperties: false };
}

/** Functions and how they may be called. Throws HttpError 400. */
export function toolOptions({ tools, toolConfig }: GenerateBody): Pick<GenerateOptions, 'tools' | 'toolChoice'> {
  const found = new Map<string, Tools[string]>();
  (tools ?? []).forEach((tool, i) => {
    (tool.functionDeclarations ?? []).forEach((declaration, k) => {
      const where = `tools[${i}].functionDeclarations[${k}]`;
      const { name, description } = declaration;
      if (found.has(name)) throw wrong(where, `two are called ${JSON.stringify(name.slice(0, 64))}`);
      found.set(name, { inputSchema: inputSchemaOf(declaration, where), ...(description != null && { description }) });
    });
  });
  const where = 'toolConfig.functionCallingConfig';
  const { mode, allowedFunctionNames: allowed } = toolConfig?.functionCallingConfig ?? {};
  const isNarrowed = allowed != null && allowed.length > 0;
  if (isNarrowed && mode !== 'ANY' && mode !== 'VALIDATED') {
    throw wrong(`${where}.allowedFunctionNames`, 'expected the mode ANY or VALIDATED beside it');
  }
  for (const name of allowed ?? []) {
    if (!found.has(name))
      throw wrong(`${where}.allowedFunctionNames`, `there is no function ${JSON.stringify(name.slice(0, 64))}`);
  }
  if (found.size === 0) {
    if (mode === 'ANY') throw wrong(`${where}.mode`, 'expected functions beside ANY');
    return {};
  }
  // Of functions that must not be called the model is not told.
  const usable = [...found].filter(([name]) => !isNarrowed || allowed.includes(name));
  return {
    tools: Object.fromEntries(usable),
    toolChoice: mode === 'ANY' ? 'required' : mode === 'NONE' ? 'none' : 'auto',
  };
}

/** What the answer is held to. Throws HttpError 400. */
function formatOf(config: GenerationConfig): Pick<GenerateOptions, 'json' | 'schema' | 'choices'> {
  const { responseMimeType: mimeType, responseSchema, responseJsonSchema } = config;
  const where = 'generationConfig.responseSchema';
  if (responseSchema != null && responseJsonSchema != null) {
    throw wrong(where, 'only one of responseSchema and responseJsonSchema can be given');
  }
  const hasSchema = responseSchema != null || responseJsonSchema != null;
  if (mimeType === 'text/x.enum') {
    const { enum: texts } = responseSchema ?? (typeof responseJsonSchema === 'object' ? responseJsonSchema : {}) ?? {};
    if (!Array.isArray(texts) || !texts.every((text) => typeof text === 'string')) {
      throw wrong(where, 'expected { type: STRING, enum: [...] } for text/x.enum');
    }
    return { choices: texts };
  }
  if (hasSchema && mimeType !== 'application/json') {
    throw wrong('generationConfig.responseMimeType', 'expected application/json beside a schema');
  }
  if (responseSchema != null) return { schema: jsonSchemaOf(responseSchema, where) };
  if (typeof responseJsonSchema === 'object' && responseJsonSchema !== null) return { schema: responseJsonSchema };
  if (responseJsonSchema === false) throw wrong('generationConfig.responseJsonSchema', 'no answer meets it');
  return mimeType === 'application/json' ? { json: true } : {};
}

/** How tokens are chosen, and what the answer is held to. Throws HttpError 400. */
export function answerOptions(config: GenerationConfig): GenerateOptions {
  const { responseLogprobs, logprobs } = config;
  if (logprobs != null && !responseLogprobs) {
    throw wrong('generationConfig.logprobs', 'expected responseLogprobs: true beside it');
  }
  const { maxOutputTokens, temperature, topK, topP, seed, stopSequences, presencePenalty, frequencyPenalty } = config;
  return {
    ...given({ maxOutputTokens, temperature, topK, topP, seed, stopSequences, presencePenalty, frequencyPenalty }),
    ...(responseLogprobs && { logprobs: Math.max(1, logprobs ?? 0) }),
    ...formatOf(config),
    onOverflow: 'truncate', // maxOutputTokens is how much there may be, not how much there must be room for
  };
}
