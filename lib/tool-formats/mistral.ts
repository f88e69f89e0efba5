// Calls as Mistral writes them: [TOOL_CALLS] and a JSON array of names and arguments, or in newer templates [TOOL_CALLS]name[ARGS]
// and the arguments, once for each call. The marks may be control tokens or plain text.
import type { BoundTool, Force, MarkerId, ToolFormat } from './format.js';
import { namedCall } from './hermes.js';
import { argumentsFormat, callHead, onlyTags } from './json-calls.js';
import { endOfJson, skipBlanks, spacedJson } from './json-text.js';
import { NOTHING, TextCallParser, type ReadCall, type Reading } from './text-calls.js';

const OPEN = '[TOOL_CALLS]';
const ARGS = '[ARGS]';
const CALL_ID = '[CALL_ID]';
const MORE: Reading = { is: 'more', isCall: true };

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function readArray(text: string, begin: number): Reading {
  const end = endOfJson(text, begin);
  if (end < 0) return MORE;
  const list = parsed(text.slice(begin, end));
  const calls = Array.isArray(list) ? list.map(namedCall) : [];
  const whole = calls.filter((call): call is ReadCall => call !== undefined);
  if (whole.length === 0 || whole.length !== calls.length)
    return { is: 'broken', end, reason: 'it is no array of calls' };
  return { is: 'calls', end, calls: whole };
}

function readMistralCall(text: string, from: number, ended: boolean): Reading {
  if (!text.startsWith(OPEN, from)) {
    return OPEN.startsWith(text.slice(from)) ? { is: 'more', isCall: false } : NOTHING;
  }
  const begin = skipBlanks(text, from + OPEN.length);
  if (begin >= text.length) return MORE;
  if (text.charAt(begin) === '[') return readArray(text, begin);
  const mark = text.indexOf(ARGS, begin);
  const brace = text.indexOf('{', begin);
  if (mark < 0 || (brace >= 0 && brace < mark)) {
    if (brace < 0 && !ended) return MORE;
    return { is: 'broken', end: brace < 0 ? text.length : brace, reason: `expected a name and ${ARGS}` };
  }
  const name = (text.slice(begin, mark).split(CALL_ID)[0] ?? '').trim();
  const first = skipBlanks(text, mark + ARGS.length);
  const end = endOfJson(text, first);
  if (end === -1) return MORE;
  const input = end < 0 ? undefined : parsed(text.slice(first, end));
  if (name === '' || input === undefined) {
    return { is: 'broken', end: end < 0 ? first : end, reason: 'its arguments are no JSON object' };
  }
  return { is: 'calls', end, calls: [{ name, input }] };
}

// A mark as a token, where it is one, else as text.
function mark(markerId: MarkerId, spelling: string): object {
  const token = markerId(spelling);
  return token >= 0 ? { type: 'token', token } : { type: 'const_string', value: spelling };
}

function structure(withArgs: boolean, tools: readonly BoundTool[], force: Force, markerId: MarkerId): object {
  const open = markerId(OPEN);
  const begin = open >= 0 ? { type: 'token', token: open } : OPEN;
  let tags: object[];
  if (withArgs) {
    tags = tools.map((tool) => {
      const elements = [{ type: 'const_string', value: tool.name }, mark(markerId, ARGS), argumentsFormat(tool)];
      return { type: 'tag', begin, content: { type: 'sequence', elements }, end: '' };
    });
  } else {
    const calls = tools.map((tool) => ({
      type: 'tag',
      begin: callHead(tool.name, 'arguments'),
      content: argumentsFormat(tool),
      end: '}',
    }));
    const list = onlyTags(calls, force === 'one' ? 'one' : 'required', ', ');
    const elements = [{ type: 'const_string', value: '[' }, list];
    tags = [{ type: 'tag', begin, content: { type: 'sequence', elements }, end: ']' }];
  }
  if (force !== 'auto') return onlyTags(tags, withArgs ? force : 'one', '');
  if (open >= 0) return { type: 'token_triggered_tags', trigger_tokens: [open], tags };
  return { type: 'triggered_tags', triggers: [OPEN], tags };
}

/** @param withArgs calls are written with [ARGS] */
export function mistral(withArgs: boolean): ToolFormat {
  return {
    name: 'mistral',
    markers: [OPEN, ARGS, CALL_ID],
    writeCall: (name, input) =>
      withArgs
        ? `${OPEN}${name}${ARGS}${spacedJson(input)}`
        : `${OPEN}[${callHead(name, 'arguments')}${spacedJson(input)}}]`,
    structure: (tools, force, markerId) => structure(withArgs, tools, force, markerId),
    parser: () => new TextCallParser('[', ']}', readMistralCall),
  };
}
