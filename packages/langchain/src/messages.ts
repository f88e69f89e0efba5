// From LangChain's messages to those of gemma-native.
import {
  AIMessage,
  HumanMessage,
  SystemMessage,
  ToolMessage,
  type BaseMessage,
  type ContentBlock,
} from '@langchain/core/messages';
import type { ContentPart, ImageInput, Message, ToolCall, TurnMessage } from 'gemma-native';

function text(value: string): ContentPart {
  return { type: 'text', text: value };
}

// Base64 stands in a data: URL and a URL in an object, so that no text is taken for a path: `allowLocal` decides about those.
function imageOf(block: { readonly [field: string]: unknown }, where: string): ImageInput {
  const { url, data } = block;
  if (data instanceof Uint8Array) return data;
  if (typeof data === 'string') return `data:;base64,${data}`;
  if (typeof url === 'string' && url !== '') return url.startsWith('data:') || !URL.canParse(url) ? url : new URL(url);
  throw new TypeError(
    `${where}: expected a picture with data or a url, found neither; files of other services are not here`,
  );
}

function partOf(block: ContentBlock, where: string): ContentPart {
  const { type, ...fields } = block as { type: string; text?: unknown; image_url?: unknown; [field: string]: unknown };
  switch (type) {
    case 'text':
    case 'text-plain': {
      const { data } = fields;
      const found = fields.text ?? (data instanceof Uint8Array ? new TextDecoder().decode(data) : data);
      if (typeof found !== 'string') throw new TypeError(`${where}: expected a text`);
      return text(found);
    }
    case 'image':
      return { type: 'image', image: imageOf(fields, where) };
    case 'image_url': {
      const { image_url: given } = fields;
      return {
        type: 'image',
        image: imageOf(typeof given === 'string' ? { url: given } : { ...(given as object) }, where),
      };
    }
    default:
      throw new TypeError(`${where}: expected a text or a picture, found a block of type ${type.slice(0, 40)}`);
  }
}

function partsOf(message: BaseMessage, where: string): ContentPart[] {
  return message.contentBlocks.map((block, i) => partOf(block, `${where}.content[${i}]`));
}

// Texts in a row as one, as templates write them: cut in two, a word would be other tokens.
function contentOf(parts: readonly ContentPart[]): TurnMessage['content'] {
  const merged: ContentPart[] = [];
  for (const part of parts) {
    const last = merged.at(-1);
    if (part.type === 'text' && last?.type === 'text') merged[merged.length - 1] = text(last.text + part.text);
    else merged.push(part);
  }
  const [first] = merged;
  if (first === undefined) return '';
  return first.type === 'text' && merged.length === 1 ? first.text : merged;
}

// The model's own words; thoughts of other models and calls, which stand beside, are left out of them.
function assistantTurn(message: AIMessage, where: string): TurnMessage {
  const said = message.contentBlocks.flatMap((block, i) =>
    ['text', 'image', 'image_url'].includes(block.type) ? [partOf(block, `${where}.content[${i}]`)] : [],
  );
  const toolCalls = (message.tool_calls ?? []).map(({ id, name, args }, k): ToolCall => {
    if (id === undefined) throw new TypeError(`${where}.tool_calls[${k}]: expected an id, which its result names`);
    return { id, name, input: args };
  });
  return { role: 'assistant', content: contentOf(said), ...(toolCalls.length > 0 && { toolCalls }) };
}

// Whoever runs a tool writes what it returns as JSON; the model is to see the data, not text with quotes in it.
function dataOf(said: string): unknown {
  try {
    return JSON.parse(said) as unknown;
  } catch {
    return said;
  }
}

/** The result, and a turn with the pictures in it, which no result can hold. */
function toolTurns(message: ToolMessage, where: string): Message[] {
  const pictures: ContentPart[] = [];
  const said = partsOf(message, where).map((part) => {
    if (part.type === 'text') return dataOf(part.text);
    pictures.push(part);
    return `(picture ${pictures.length}, shown below)`;
  });
  const output = said.length === 1 ? said[0] : said.length === 0 ? '' : said;
  const result: Message = {
    role: 'tool',
    toolCallId: message.tool_call_id,
    content: message.status === 'error' ? { error: output } : output,
  };
  if (pictures.length === 0) return [result];
  const shown = pictures.flatMap((picture, i) => [
    text(`Picture ${i + 1} of ${message.name ?? 'the result'}:`),
    picture,
  ]);
  return [result, { role: 'user', content: contentOf(shown) }];
}

function turnsOf(message: BaseMessage, where: string): Message[] {
  if (SystemMessage.isInstance(message)) return [{ role: 'system', content: contentOf(partsOf(message, where)) }];
  if (HumanMessage.isInstance(message)) return [{ role: 'user', content: contentOf(partsOf(message, where)) }];
  if (AIMessage.isInstance(message)) return [assistantTurn(message, where)];
  if (ToolMessage.isInstance(message)) return toolTurns(message, where);
  throw new TypeError(`${where}: expected a system, human, AI or tool message, found one of type ${message.getType()}`);
}

const listOf = ({ content }: TurnMessage) => (typeof content === 'string' ? [text(content)] : content);

// Gemma's users and assistants take turns, and its system message is one. LangChain leaves that open.
function joined(first: TurnMessage, second: TurnMessage): TurnMessage {
  const { role, toolCalls } = second;
  const content = contentOf([...listOf(first), text('\n\n'), ...listOf(second)]);
  return { role, content, ...(toolCalls && { toolCalls }) };
}

/**
 * Messages as gemma-native takes them. Messages of one role in a row become one. Pictures in results of tools stand in a user's turn
 * behind them.
 *
 * @throws TypeError that names the place
 */
export function messagesOf(messages: readonly BaseMessage[]): Message[] {
  const turns: Message[] = [];
  const late: Message[] = []; // pictures wait until all results of an answer's calls are there
  for (const [i, message] of messages.entries()) {
    const [turn, ...shown] = turnsOf(message, `messages[${i}]`);
    if (!turn) continue;
    if (turn.role !== 'tool') add(turns, late.splice(0));
    add(turns, [turn]);
    late.push(...shown);
  }
  add(turns, late);
  return turns;
}

function add(turns: Message[], added: readonly Message[]): void {
  for (const turn of added) {
    const last = turns.at(-1);
    const isNext = turn.role !== 'tool' && last?.role === turn.role && !last.toolCalls;
    if (isNext) turns[turns.length - 1] = joined(last, turn);
    else turns.push(turn);
  }
}
