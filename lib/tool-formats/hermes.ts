// Calls as Hermes and Qwen write them: <tool_call>, a JSON object of name and arguments, </tool_call>. Both marks may be control
// tokens of the vocabulary or plain text.
import type { ToolFormat } from './format.js';
import { argumentsFormat, callHead, onlyTags } from './json-calls.js';
import { endOfJson, skipBlanks, spacedJson } from './json-text.js';
import { NOTHING, TextCallParser, type Reading } from './text-calls.js';

const OPEN = '<tool_call>';
const CLOSE = '</tool_call>';

// What is wrong with a call ends with its mark, or before the next call.
function broken(text: string, from: number, ended: boolean, reason: string): Reading {
  const close = text.indexOf(CLOSE, from);
  const next = text.indexOf(OPEN, from + OPEN.length);
  if (close >= 0 && (next < 0 || close < next)) return { is: 'broken', end: close + CLOSE.length, reason };
  if (next >= 0) return { is: 'broken', end: next, reason };
  return ended ? { is: 'broken', end: text.length, reason } : { is: 'more', isCall: true };
}

/** The name and the arguments of a parsed object; undefined: it has none. */
export function namedCall(value: unknown): { name: string; input: unknown } | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const call = value as { name?: unknown; arguments?: unknown; parameters?: unknown };
  const input = call.arguments ?? call.parameters;
  return typeof call.name === 'string' && input !== undefined ? { name: call.name, input } : undefined;
}

function readHermesCall(text: string, from: number, ended: boolean): Reading {
  if (!text.startsWith(OPEN, from)) {
    return OPEN.startsWith(text.slice(from)) ? { is: 'more', isCall: false } : NOTHING;
  }
  const begin = skipBlanks(text, from + OPEN.length);
  const end = endOfJson(text, begin);
  if (end === -1) return { is: 'more', isCall: true };
  if (end === -2) return broken(text, from, ended, 'there is no JSON object in it');
  const close = skipBlanks(text, end);
  const rest = text.slice(close, close + CLOSE.length);
  if (rest !== CLOSE && !(ended && rest === '')) {
    if (!ended && CLOSE.startsWith(rest)) return { is: 'more', isCall: true };
    return broken(text, from, ended, `expected ${CLOSE} behind its JSON object`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text.slice(begin, end));
  } catch {
    return broken(text, from, ended, 'it is not valid JSON');
  }
  const call = namedCall(value);
  if (!call) return broken(text, from, ended, 'it has no name and arguments');
  return { is: 'calls', end: close + rest.length, calls: [call] };
}

export const hermes: ToolFormat = {
  name: 'hermes',
  markers: [OPEN, CLOSE],
  writeCall: (name, input) => `${OPEN}\n${callHead(name, 'arguments')}${spacedJson(input)}}\n${CLOSE}`,
  structure(tools, force, markerId) {
    const [open, close] = [markerId(OPEN), markerId(CLOSE)];
    const end = close >= 0 ? { type: 'token', token: close } : CLOSE;
    const tags = tools.map((tool) => {
      const head = `\n${callHead(tool.name, 'arguments')}`;
      const tail = close >= 0 ? '}\n' : `}\n${CLOSE}`;
      if (open < 0 && close < 0) {
        return { type: 'tag', begin: OPEN + head, content: argumentsFormat(tool), end: tail };
      }
      const elements = [
        { type: 'const_string', value: head },
        argumentsFormat(tool),
        { type: 'const_string', value: '}\n' },
      ];
      const begin = open >= 0 ? { type: 'token', token: open } : OPEN;
      return { type: 'tag', begin, content: { type: 'sequence', elements }, end };
    });
    if (force !== 'auto') return onlyTags(tags, force, '\n');
    if (open >= 0) return { type: 'token_triggered_tags', trigger_tokens: [open], tags };
    return { type: 'triggered_tags', triggers: [OPEN], tags };
  },
  parser: () => new TextCallParser('<', '>', readHermesCall),
};
