// The turns of a conversation in which tools are called: that each result answers a call, and how they are written for a model
// whose template knows nothing of tools.
import { GemmaError } from './errors.js';
import type { Turn } from './messages.js';
import { strip } from './python-text.js';
import type { DeclaredTool, ToolFormat, ToolFormatName } from './tool-formats/format.js';
import { plain } from './values.js';

// Loaded with the first call that needs them: a program that asks a model for text is not to wait for them.
const lazy = {
  get schemas() {
    return require('./tool-formats/functiongemma-schema.js') as typeof import('./tool-formats/functiongemma-schema.js');
  },
  get jsonText() {
    return require('./tool-formats/json-text.js') as typeof import('./tool-formats/json-text.js');
  },
};

function wrong(message: string, detail: string): GemmaError {
  return new GemmaError('ERR_INVALID_ARGUMENT', message, detail);
}

/**
 * The same turns, with the name of the tool at each result.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT`: `UNKNOWN_CALL` for a result of a call that was not made just before or has its result,
 * `UNANSWERED_CALL` where the conversation goes on or ends without a call's result
 */
export function withAnswers(turns: readonly Turn[]): readonly Turn[] {
  if (!turns.some(({ calls, reply }) => calls ?? reply)) return turns;
  const open = new Map<string, string>();
  const unanswered = (where: string) => {
    const [id = '', name = ''] = [...open].at(0) ?? [];
    return wrong(
      `${where}: expected the result of call ${plain(id, 64)} (${name}) before, found none`,
      'UNANSWERED_CALL',
    );
  };
  const named = turns.map((turn, i) => {
    const { calls, reply } = turn;
    if (reply) {
      const name = open.get(reply.id);
      if (name === undefined) {
        const made =
          open.size > 0 ? `one of ${[...open.keys()].map((id) => plain(id, 64)).join(', ')}` : 'a call before it';
        throw wrong(`messages[${i}].toolCallId: expected ${made}, found ${plain(reply.id, 64)}`, 'UNKNOWN_CALL');
      }
      open.delete(reply.id);
      return { ...turn, reply: { ...reply, name } };
    }
    if (open.size > 0) throw unanswered(`messages[${i}]`);
    for (const [k, { id, name }] of (calls ?? []).entries()) {
      if (open.has(id)) throw wrong(`messages[${i}].toolCalls[${k}].id: two calls have it`, 'DUPLICATE_CALL');
      open.set(id, name);
    }
    return turn;
  });
  if (open.size > 0) throw unanswered('messages: the end');
  return named;
}

/** What a model is told that was not told of tools by its template. */
export function declarationText(tools: readonly DeclaredTool[], format: ToolFormat): string {
  const example = format.writeCall('FUNCTION', { PARAMETER: 'VALUE' });
  const declared = tools.map(({ name, description, schema }) =>
    lazy.jsonText.spacedJson({ name, description, parameters: schema.schema }),
  );
  return [
    'You can call functions. To call one, answer with its name and parameters in this form and with nothing else:',
    example,
    'You may call several at once. The results come in the next message. Answer in plain words when you need no function.',
    'The functions, with the JSON Schema of their parameters:',
    ...declared,
  ].join('\n');
}

function textTurn(role: string, content: Turn['content'], fields: Turn['fields'] = {}): Turn {
  return { role, content, fields };
}

// Text in front of a turn's content.
function prefixed(turn: Turn, text: string): Turn {
  const { content = '' } = turn;
  if (typeof content === 'string') return { ...turn, content: `${text}\n\n${strip(content)}` };
  const [first, ...others] = content;
  if (first?.type === 'text') {
    return { ...turn, content: [{ ...first, text: `${text}\n\n${strip(first.text ?? '')}` }, ...others] };
  }
  return { ...turn, content: [{ type: 'text', text: `${text}\n\n`, fields: {} }, ...content] };
}

function withCalls({ content = '', calls = [], fields }: Turn, format: ToolFormat): Turn {
  const written = calls.map(({ name, input }) => format.writeCall(name, input)).join('\n');
  if (typeof content === 'string') {
    const said = strip(content);
    return textTurn('assistant', said === '' ? written : `${said}\n${written}`, fields);
  }
  return textTurn('assistant', [...content, { type: 'text', text: `\n${written}`, fields: {} }], fields);
}

/**
 * Turns of users and assistant alone: declarations stand in front of the first user turn, calls are the assistant's text, their
 * results the user's.
 */
export function plainTurns(
  turns: readonly Turn[],
  tools: readonly DeclaredTool[],
  format: ToolFormat,
): readonly Turn[] {
  const plainer: Turn[] = [];
  let results: string[] = [];
  const flush = () => {
    if (results.length > 0) plainer.push(textTurn('user', results.join('\n')));
    results = [];
  };
  for (const turn of turns) {
    if (turn.reply) {
      results.push(lazy.jsonText.spacedJson({ name: turn.reply.name, response: turn.reply.output }));
    } else if (results.length > 0 && turn.role === 'user') {
      plainer.push(prefixed(turn, results.join('\n')));
      results = [];
    } else {
      flush();
      plainer.push(turn.calls ? withCalls(turn, format) : turn);
    }
  }
  flush();
  const first = plainer.findIndex(({ role }) => role === 'user');
  if (tools.length > 0 && first >= 0) {
    plainer[first] = prefixed(plainer[first] as Turn, declarationText(tools, format));
  }
  return plainer;
}

/** A tool as chat templates take it: in the form of OpenAI's API. */
export function declaredFunction({ name, description, schema }: DeclaredTool, format: ToolFormatName): object {
  // FunctionGemma's template knows types and properties, but no references and alternatives.
  const parameters: unknown = format === 'functiongemma' ? lazy.schemas.plainSchema(schema.schema) : schema.schema;
  return { type: 'function', function: { name, description, parameters } };
}

/** What a turn adds to the message that a chat template gets: its calls, or whose result it is and the result. */
export function toolFields({ calls, reply }: Turn, format: ToolFormatName): Record<string, unknown> {
  if (calls) {
    const written = calls.map(({ id, name, input }) => ({
      id,
      type: 'function',
      function: { name, arguments: input },
    }));
    return { tool_calls: written };
  }
  if (!reply) return {};
  const { id, name, output } = reply;
  // FunctionGemma's template takes data, but an object of a name and a response for those of the call itself.
  const text = () => (typeof output === 'string' ? output : lazy.jsonText.spacedJson(output));
  return { tool_call_id: id, name, content: format === 'functiongemma' ? { name, response: output } : text() };
}
