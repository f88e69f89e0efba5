// From the AI SDK's prompt to messages of gemma-native.
import {
  UnsupportedFunctionalityError,
  type LanguageModelV4FilePart,
  type LanguageModelV4Message,
  type LanguageModelV4Prompt,
  type LanguageModelV4ToolResultOutput,
  type SharedV4FileData,
  type SharedV4Warning,
} from '@ai-sdk/provider';
import type { ContentPart, ImageInput, Message, ToolCall, TurnMessage } from 'gemma-native';

type Of<Role extends LanguageModelV4Message['role']> = Extract<LanguageModelV4Message, { role: Role }>;

function unsupported(functionality: string, message: string): UnsupportedFunctionalityError {
  return new UnsupportedFunctionalityError({ functionality, message });
}

export function text(value: string): ContentPart {
  return { type: 'text', text: value };
}

/** Texts in a row as one, as templates write them: cut in two, a word would be other tokens. */
export function contentOf(parts: readonly ContentPart[]): TurnMessage['content'] {
  const merged: ContentPart[] = [];
  for (const part of parts) {
    const last = merged.at(-1);
    if (part.type === 'text' && last?.type === 'text') merged[merged.length - 1] = text(last.text + part.text);
    else merged.push(part);
  }
  const [first] = merged;
  return first?.type === 'text' && merged.length === 1 ? first.text : merged;
}

// The picture as gemma-native takes one. Base64 stands in a data: URL, so that it can be nothing but a picture: a string by itself
// could be a path.
function imageOf(data: SharedV4FileData): ImageInput {
  switch (data.type) {
    case 'data':
      return typeof data.data === 'string' ? `data:;base64,${data.data}` : data.data;
    case 'url':
      return data.url;
    default:
      throw unsupported(
        `file data of type ${data.type}`,
        'pictures are bytes, base64 or URLs; nothing else is uploaded',
      );
  }
}

function textOf(data: SharedV4FileData): string | undefined {
  if (data.type === 'text') return data.text;
  if (data.type !== 'data') return undefined;
  const bytes = typeof data.data === 'string' ? Buffer.from(data.data, 'base64') : data.data;
  return new TextDecoder().decode(bytes);
}

/** @throws UnsupportedFunctionalityError for what is neither a picture nor text */
export function filePart({ data, mediaType }: Pick<LanguageModelV4FilePart, 'data' | 'mediaType'>): ContentPart {
  const [kind] = mediaType.toLowerCase().split('/');
  if (kind === 'image') return { type: 'image', image: imageOf(data) };
  if (kind === 'text' || data.type === 'text') {
    const found = textOf(data);
    if (found !== undefined) return text(found);
  }
  throw unsupported(`files of type ${mediaType}`, `the model reads pictures and text, not files of type ${mediaType}`);
}

/** The result of a tool as plain data, and the pictures in it, which no result can hold. */
function resultOf(output: LanguageModelV4ToolResultOutput): { content: unknown; pictures: ContentPart[] } {
  switch (output.type) {
    case 'text':
    case 'json':
      return { content: output.value, pictures: [] };
    case 'error-text':
    case 'error-json':
      return { content: { error: output.value }, pictures: [] };
    case 'execution-denied':
      return { content: { error: output.reason ?? 'The user did not allow this call.' }, pictures: [] };
    case 'content': {
      const pictures: ContentPart[] = [];
      const content = output.value.map((part) => {
        if (part.type === 'custom')
          throw unsupported('custom parts of tool results', 'results of tools hold text and files');
        const found = part.type === 'text' ? text(part.text) : filePart(part);
        if (found.type === 'text') return found.text;
        pictures.push(found);
        return `(picture ${pictures.length}, shown below)`;
      });
      return { content: content.length === 1 ? content[0] : content, pictures };
    }
  }
}

function assistantTurn({ content }: Of<'assistant'>, warnings: SharedV4Warning[]): TurnMessage {
  let said = '';
  const toolCalls: ToolCall[] = [];
  for (const part of content) {
    switch (part.type) {
      case 'text':
        said += part.text;
        break;
      case 'tool-call':
        if (part.providerExecuted)
          throw unsupported('calls executed by a provider', 'this model executes no tools itself');
        toolCalls.push({ id: part.toolCallId, name: part.toolName, input: part.input });
        break;
      case 'reasoning':
      case 'reasoning-file':
      case 'custom': // of another provider's model, which took part in the conversation before
        warnings.push({
          type: 'unsupported',
          feature: `${part.type} parts of the assistant`,
          details: 'They are left out.',
        });
        break;
      default:
        throw unsupported(`${part.type} parts of the assistant`, "the assistant's messages hold text and calls");
    }
  }
  return { role: 'assistant', content: said, ...(toolCalls.length > 0 && { toolCalls }) };
}

/** The results, and a turn with the pictures in them. */
function toolTurns({ content }: Of<'tool'>): Message[] {
  const results: Message[] = [];
  const shown: ContentPart[] = [];
  for (const part of content) {
    if (part.type !== 'tool-result') continue; // an approval: its call has been answered, or is denied in its result
    const { content: output, pictures } = resultOf(part.output);
    results.push({ role: 'tool', toolCallId: part.toolCallId, content: output });
    pictures.forEach((picture, i) => shown.push(text(`Picture ${i + 1} of ${part.toolName}:`), picture));
  }
  return shown.length > 0 ? [...results, { role: 'user', content: shown }] : results;
}

const partsOf = ({ content }: TurnMessage) => (typeof content === 'string' ? [text(content)] : content);

// Gemma's users and assistants take turns, and its system message is one. The AI SDK leaves that open.
function joined(first: TurnMessage, second: TurnMessage): TurnMessage {
  const calls = [...(first.toolCalls ?? []), ...(second.toolCalls ?? [])];
  const content =
    typeof first.content === 'string' && typeof second.content === 'string'
      ? [first.content, second.content].filter((said) => said !== '').join('\n\n')
      : contentOf([...partsOf(first), text('\n\n'), ...partsOf(second)]);
  return { role: first.role, content, ...(calls.length > 0 && { toolCalls: calls }) };
}

/**
 * The messages of a prompt. Messages of one role in a row become one. Pictures in results of tools stand in a user's turn behind them.
 *
 * @param warnings what is left out is added to them
 * @throws UnsupportedFunctionalityError
 */
export function messagesOf(prompt: LanguageModelV4Prompt, warnings: SharedV4Warning[]): Message[] {
  const turns: Message[] = [];
  for (const message of prompt) {
    if (message.role === 'tool') {
      turns.push(...toolTurns(message));
      continue;
    }
    const turn: TurnMessage =
      message.role === 'assistant'
        ? assistantTurn(message, warnings)
        : message.role === 'system'
          ? { role: 'system', content: message.content }
          : {
              role: 'user',
              content: contentOf(
                message.content.map((part) => (part.type === 'text' ? text(part.text) : filePart(part))),
              ),
            };
    const last = turns.at(-1);
    const isNext = last?.role === turn.role && !('toolCalls' in last && last.toolCalls);
    if (isNext) turns[turns.length - 1] = joined(last, turn);
    else turns.push(turn);
  }
  return turns;
}
