// Calls as a JSON object of a name and arguments: Gemma 3's prompt-based way, of which Google documents this form and one like
// Python calls, and Llama 3's. This one is taken because a grammar can hold its arguments to a schema without a word left open
// (nested objects, null, text in any script), and because declarations are JSON Schema in both of Google's prompts.
import type { BoundTool, Force, ToolFormat } from './format.js';
import { endOfJson, endOfString, skipBlanks, spacedJson } from './json-text.js';
import { NOTHING, TextCallParser, type Reading } from './text-calls.js';

const MORE: Reading = { is: 'more', isCall: false };
const MORE_OF_CALL: Reading = { is: 'more', isCall: true };

// Whether the text goes on with one of some words; undefined: it ends before that is decided.
function wordAt(text: string, at: number, words: readonly string[]): string | undefined | false {
  const rest = text.slice(at, at + Math.max(...words.map(({ length }) => length)));
  const word = words.find((each) => rest.startsWith(each));
  if (word !== undefined) return word;
  return words.some((each) => each.startsWith(rest)) ? undefined : false;
}

/** What the object at a place is: a call where its keys are a name and then the arguments. */
export function readNamedCall(text: string, from: number): Reading {
  let at = from;
  for (const word of ['{', '"name"', ':']) {
    at = skipBlanks(text, at);
    const found = wordAt(text, at, [word]);
    if (!found) return found === undefined ? MORE : NOTHING;
    at += word.length;
  }
  const begin = skipBlanks(text, at);
  const end = endOfString(text, begin);
  if (end < 0) return end === -1 ? MORE : NOTHING;
  at = skipBlanks(text, end);
  for (const words of [[','], ['"parameters"', '"arguments"'], [':']]) {
    at = skipBlanks(text, at);
    const found = wordAt(text, at, words);
    if (!found) return found === undefined ? MORE : NOTHING;
    at += found.length;
  }
  const first = skipBlanks(text, at);
  const last = endOfJson(text, first);
  if (last === -1) return MORE_OF_CALL;
  if (last === -2) return { is: 'broken', end: first, reason: 'its arguments are no object' };
  const close = skipBlanks(text, last);
  if (close >= text.length) return MORE_OF_CALL;
  try {
    if (text.charAt(close) !== '}') throw new SyntaxError('expected } behind the arguments');
    const call = JSON.parse(text.slice(from, close + 1)) as { name: string; parameters?: unknown; arguments?: unknown };
    return { is: 'calls', end: close + 1, calls: [{ name: call.name, input: call.parameters ?? call.arguments }] };
  } catch {
    return { is: 'broken', end: close, reason: 'it is not valid JSON' };
  }
}

/** The beginning of a call, up to the arguments, as it is written and bound. */
export function callHead(name: string, key: 'parameters' | 'arguments'): string {
  return `{"name": ${JSON.stringify(name)}, "${key}": `;
}

/** Arguments, in a structural tag. */
export function argumentsFormat({ bound }: BoundTool): object {
  // A blank where JSON allows blanks, not any number of them: small models do not find out of these.
  return { type: 'json_schema', json_schema: bound, max_whitespace_cnt: 1 };
}

/** Tags one after another and nothing else. */
export function onlyTags(tags: readonly object[], force: Exclude<Force, 'auto'>, separator: string): object {
  if (force === 'one') return { type: 'or', elements: tags };
  return { type: 'tags_with_separator', tags, separator, at_least_one: true };
}

function jsonFormat(name: 'gemma' | 'llama', markers: readonly string[]): ToolFormat {
  return {
    name,
    markers,
    writeCall: (tool, input) => `${callHead(tool, 'parameters')}${spacedJson(input)}}`,
    structure(tools, force) {
      const heads = tools.map((tool) => callHead(tool.name, 'parameters'));
      const tags = tools.map((tool, i) => ({ type: 'tag', begin: heads[i], content: argumentsFormat(tool), end: '}' }));
      // A head holds the tool's name, so that other JSON in an answer stays what it is.
      return force === 'auto' ? { type: 'triggered_tags', triggers: heads, tags } : onlyTags(tags, force, '\n');
    },
    parser: () => new TextCallParser('{', '}', readNamedCall),
  };
}

export const gemma = jsonFormat('gemma', []);
export const llama = jsonFormat('llama', []);
