// LangChain's tools and choices of tools to those of gemma-native.
import { isOpenAITool, type ToolDefinition } from '@langchain/core/language_models/base';
import type { BindToolsInput, ToolChoice } from '@langchain/core/language_models/chat_models';
import { convertToOpenAITool, isLangChainTool } from '@langchain/core/utils/function_calling';
import { toJsonSchema } from '@langchain/core/utils/json_schema';
import { isInteropZodSchema } from '@langchain/core/utils/types';
import type { GenerateOptions, Tool } from 'gemma-native';

/**
 * A tool in the form of OpenAI's API, which is plain data: what is bound to a model is written down by tracers and caches.
 *
 * @throws TypeError
 */
export function declared(tool: BindToolsInput): ToolDefinition {
  if (isLangChainTool(tool)) return convertToOpenAITool(tool);
  if (isOpenAITool(tool)) return tool;
  const { name, description, ...given } = tool as Record<string, unknown>;
  const schema = given.schema ?? given.input_schema ?? given.inputSchema ?? given.parameters;
  if (typeof name !== 'string' || typeof schema !== 'object' || schema === null) {
    throw new TypeError('tools: expected tools of LangChain, or objects with name, description and schema');
  }
  const parameters = isInteropZodSchema(schema) ? toJsonSchema(schema) : (schema as Record<string, unknown>);
  return { type: 'function', function: { name, ...(typeof description === 'string' && { description }), parameters } };
}

function choiceOf(choice: ToolChoice): GenerateOptions['toolChoice'] {
  if (typeof choice === 'object') {
    const { name, function: named } = choice as { name?: unknown; function?: { name?: unknown } };
    const found = named?.name ?? name;
    if (typeof found === 'string') return { tool: found };
    throw new TypeError('tool_choice: expected auto, any, none, or the name of a tool');
  }
  if (choice === 'auto' || choice === 'none' || choice === 'required') return choice;
  return choice === 'any' ? 'required' : { tool: choice };
}

export function toolOptions(
  tools: readonly BindToolsInput[] | undefined,
  choice: ToolChoice | undefined,
): Pick<GenerateOptions, 'tools' | 'toolChoice'> {
  if (!tools?.length) return {};
  const known = new Map<string, Tool>();
  for (const tool of tools) {
    const { name, description, parameters } = declared(tool).function;
    if (known.has(name)) throw new TypeError(`tools: two have the name ${name.slice(0, 64)}`);
    known.set(name, { ...(description !== undefined && { description }), inputSchema: parameters });
  }
  const toolChoice = choice === undefined ? undefined : choiceOf(choice);
  return { tools: Object.fromEntries(known), ...(toolChoice !== undefined && { toolChoice }) };
}
