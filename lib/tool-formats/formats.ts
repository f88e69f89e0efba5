// All formats of tool calls, and which of them a chat template writes.
import type { ToolFormat, ToolFormatName } from './format.js';

const lazy = {
  get functionGemma() {
    return require('./functiongemma.js') as typeof import('./functiongemma.js');
  },
  get hermes() {
    return require('./hermes.js') as typeof import('./hermes.js');
  },
  get jsonCalls() {
    return require('./json-calls.js') as typeof import('./json-calls.js');
  },
  get mistral() {
    return require('./mistral.js') as typeof import('./mistral.js');
  },
};

export const TOOL_FORMATS: readonly ToolFormatName[] = ['functiongemma', 'gemma', 'llama', 'hermes', 'mistral'];

/** Whether a chat template says what tools there are. */
export function takesTools(source: string | undefined): boolean {
  return source !== undefined && /\btools\b/.test(source);
}

/**
 * How calls are written where a chat template has been decided: by what the template's own text writes.
 *
 * @param source of a template that is not Gemma 3's
 * @returns `'unknown'`: the template takes tools, but no format that is known here stands in it
 */
export function formatOf(source: string | undefined): ToolFormatName | 'unknown' {
  if (source === undefined || !takesTools(source)) return 'gemma';
  if (source.includes('<start_function_call>')) return 'functiongemma';
  if (source.includes('[TOOL_CALLS]')) return 'mistral';
  if (source.includes('<tool_call>')) return source.includes('<function=') ? 'unknown' : 'hermes';
  if (/"parameters\\?"\s*:/.test(source) && /"name\\?"\s*:/.test(source)) return 'llama';
  return 'unknown';
}

/** A format by its name. `source`: of the chat template, which decides between the two ways of Mistral's. */
export function toolFormat(name: ToolFormatName, source: string | undefined): ToolFormat {
  switch (name) {
    case 'functiongemma':
      return lazy.functionGemma.functiongemma;
    case 'hermes':
      return lazy.hermes.hermes;
    case 'mistral':
      return lazy.mistral.mistral(source?.includes('[ARGS]') ?? false);
    default:
      return lazy.jsonCalls[name];
  }
}
