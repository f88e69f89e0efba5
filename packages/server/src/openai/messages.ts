// Messages of chat completions to those of gemma-native.
import type { ContentPart, Message } from 'gemma-native';
import { z } from 'zod';
import { pictureOfUrl, type PictureLimits } from '../content.js';
import { HttpError } from '../errors.js';
import { list } from '../fields.js';
import { argumentsOf, resultOf } from './common.js';

const MAX_MESSAGES = 4096;
const MAX_PARTS = 1024;

const textPart = z.strictObject({ type: z.literal('text'), text: z.string() });
const imagePart = z.strictObject({
  type: z.literal('image_url'),
  image_url: z.strictObject({
    url: z.string(),
    // A picture is seen once, whole; how it is cut is said for all of them (panAndScan, tile).
    detail: z.enum(['auto', 'low']).nullish(),
  }),
});
const texts = z.union([z.string(), list(textPart, MAX_PARTS, 1)]);

const instruction = { content: texts };
const call = z.strictObject({
  id: z.string(),
  type: z.literal('function'),
  // Python's client sends back what it has read of the arguments, beside them.
  function: z.strictObject({ name: z.string(), arguments: z.string(), parsed_arguments: z.unknown().optional() }),
});

// Answers are sent back as they came, with the members that are always empty here, and what Python's client has read of the content.
const echoed = {
  refusal: z.null().optional(),
  audio: z.null().optional(),
  function_call: z.null().optional(),
  annotations: z.array(z.never()).nullish(),
  parsed: z.unknown().optional(),
};

const message = z.discriminatedUnion('role', [
  z.strictObject({ role: z.literal('system'), ...instruction }),
  z.strictObject({ role: z.literal('developer'), ...instruction }),
  z.strictObject({
    role: z.literal('user'),
    content: z.union([z.string(), list(z.discriminatedUnion('type', [textPart, imagePart]), MAX_PARTS, 1)]),
  }),
  z.strictObject({
    role: z.literal('assistant'),
    content: texts.nullish(),
    tool_calls: list(call, 128).nullish(),
    ...echoed,
  }),
  // The call says which tool it was; LangChain says it once more.
  z.strictObject({ role: z.literal('tool'), tool_call_id: z.string(), content: texts, name: z.string().nullish() }),
]);

export const chatMessages = list(message, MAX_MESSAGES, 1);

type ChatMessage = z.output<typeof message>;

function plainText(content: z.output<typeof texts>): string {
  return typeof content === 'string' ? content : content.map(({ text }) => text).join('');
}

/**
 * The messages, in the same order; instructions at the beginning are one message, as Gemma takes one.
 *
 * @throws HttpError 400
 */
export function messagesOf(messages: readonly ChatMessage[], limits: PictureLimits): Message[] {
  const instructions: string[] = [];
  const others: Message[] = [];
  messages.forEach((each, i) => {
    const where = `messages[${i}]`;
    if (each.role !== 'system' && each.role !== 'developer') {
      others.push(messageOf(each, where, limits));
    } else if (others.length === 0) {
      instructions.push(plainText(each.content));
    } else {
      const param = `${where}.role`;
      throw new HttpError(400, 'invalid_value', `${param}: instructions stand at the beginning`, { param });
    }
  });
  const first: Message[] = instructions.length > 0 ? [{ role: 'system', content: instructions.join('\n\n') }] : [];
  return [...first, ...others];
}

type Turn = Exclude<ChatMessage, { role: 'system' | 'developer' }>;

function messageOf(given: Turn, where: string, limits: PictureLimits): Message {
  switch (given.role) {
    case 'user': {
      const { content } = given;
      if (typeof content === 'string') return { role: 'user', content };
      const parts = content.map((part, k): ContentPart => {
        if (part.type === 'text') return part;
        const place = `${where}.content[${k}].image_url.url`;
        return { type: 'image', image: pictureOfUrl(part.image_url.url, place, limits) };
      });
      return { role: 'user', content: parts };
    }
    case 'assistant': {
      const calls = given.tool_calls ?? [];
      if (given.content == null && calls.length === 0) {
        throw new HttpError(400, 'invalid_value', `${where}.content: expected some text, or tool_calls beside it`, {
          param: `${where}.content`,
        });
      }
      const toolCalls = calls.map(({ id, function: { name, arguments: json } }, k) => ({
        id,
        name,
        input: argumentsOf(json, `${where}.tool_calls[${k}].function.arguments`),
      }));
      return { role: 'assistant', content: plainText(given.content ?? ''), ...(toolCalls.length > 0 && { toolCalls }) };
    }
    case 'tool':
      return { role: 'tool', toolCallId: given.tool_call_id, content: resultOf(plainText(given.content)) };
  }
}
