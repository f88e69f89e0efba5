// Messages of Ollama to those of gemma-native.
import type { Message } from 'gemma-native';
import { pictureOfBase64 } from '../content.js';
import { HttpError } from '../errors.js';
import { resultOf } from '../openai/common.js';
import type { OllamaMessage } from './fields.js';

/** A call that no result answered yet. */
interface OpenCall {
  id: string;
  name: string;
}

export function picturesOf(images: readonly string[] | null | undefined, where: string): string[] {
  return (images ?? []).map((image, i) => pictureOfBase64(image, `${where}[${i}]`));
}

/**
 * The messages, in the same order; instructions at the beginning are one message, as Gemma takes one. Calls need no ids here: a result
 * belongs to the first call of its tool that has none.
 *
 * @throws HttpError 400
 */
export function messagesOf(messages: readonly OllamaMessage[]): Message[] {
  const result: Message[] = [];
  const open: OpenCall[] = [];
  messages.forEach((message, i) => {
    const where = `messages[${i}]`;
    switch (message.role) {
      case 'system': {
        const last = result.at(-1);
        if (last?.role === 'system' && result.length === 1) {
          result[0] = { role: 'system', content: `${last.content as string}\n\n${message.content}` };
        } else {
          result.push({ role: 'system', content: message.content });
        }
        return;
      }
      case 'user': {
        const pictures = picturesOf(message.images, `${where}.images`);
        const parts = pictures.map((image) => ({ type: 'image' as const, image }));
        const { content } = message;
        result.push({
          role: 'user',
          content: parts.length > 0 ? [...parts, { type: 'text', text: content }] : content,
        });
        return;
      }
      case 'assistant': {
        const calls = (message.tool_calls ?? []).map(({ id, function: { name, arguments: input } }, k) => ({
          id: id ?? `call_${i}_${k}`,
          name,
          input,
        }));
        open.push(...calls);
        result.push({ role: 'assistant', content: message.content, ...(calls.length > 0 && { toolCalls: calls }) });
        return;
      }
      case 'tool': {
        const { tool_call_id: id, tool_name: name } = message;
        const at = open.findIndex(
          (call) => (id === undefined || call.id === id) && (name === undefined || call.name === name),
        );
        const [call] = at < 0 ? [] : open.splice(at, 1);
        if (!call) {
          throw new HttpError(
            400,
            'invalid_value',
            `${where}: the result of no call that the assistant has made before it`,
            {
              param: where,
            },
          );
        }
        result.push({ role: 'tool', toolCallId: call.id, content: resultOf(message.content) });
        return;
      }
    }
  });
  return result;
}
