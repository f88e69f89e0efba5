// Which chat template a model is asked with, and how that was decided.
import { readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { GemmaError } from './errors.js';
import { isCheckpoint } from './model-files.js';
import type { NativeChatMetadata } from './native.js';
import type { ToolFormatName } from './tool-formats/format.js';
import { formatOf } from './tool-formats/formats.js';
import { plain, reasonOf, show } from './values.js';

/** How messages become a prompt, and whether a string is a turn of a conversation. */
export interface ChatInfo {
  /**
   * `'gemma'`: Gemma 3's own format. `'file'`: the template that comes with the model; `'option'`: the one given as
   * `chatTemplate`. `'none'`: there is no sign of one, so strings are continued; messages are written in Gemma 3's format.
   */
  template: 'gemma' | 'file' | 'option' | 'none';
  /** How that was decided. */
  reason: string;
  /**
   * How calls of tools are written, by the template's text. `'unknown'`: the template takes tools, but how it writes calls is not
   * known here, so tools need the option `toolFormat`.
   */
  toolFormat: ToolFormatName | 'unknown';
}

/** The decision, and the template to render where it is not Gemma's. */
export interface Chat extends ChatInfo {
  source?: string;
}

const MAX_TEMPLATE_BYTES = 1 << 20;

// The template of Gemma 3 as Google publishes it (google/gemma-3-4b-it, tokenizer_config.json). chat-template.ts writes what it
// writes, and can keep users' text from becoming control tokens; so a template of this text is not rendered.
const GEMMA_TEMPLATE = `{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}`;

// Files write a newline inside a string as itself or as \n, and end with a newline or not.
function normalized(template: string): string {
  return template.replaceAll('\r\n', '\n').replaceAll('\\n', '\n').trimEnd();
}

/** Whether a template is Gemma 3's own. Exported for tests. */
export function isGemmaTemplate(template: string): boolean {
  return normalized(template) === GEMMA_TEMPLATE;
}

// "Gemma 3 4b It", "gemma-3-27b-it-qat-q4_0": how the converters name Google's own instruction-tuned files.
function isGoogleName(name: string): boolean {
  return /^(google[ /])?gemma[ -]3[ -](270m|1b|4b|12b|27b)[ -]it([ -]qat([ -]q4[ _-]0)?)?([ -](gguf|unquantized))*$/i.test(
    name,
  );
}

function choose(source: string, template: 'file' | 'option', what: string): Chat {
  if (isGemmaTemplate(source)) return { template: 'gemma', reason: `${what} is Gemma 3's`, toolFormat: 'gemma' };
  return { template, reason: `${what} is not Gemma 3's`, source, toolFormat: formatOf(source) };
}

/**
 * Decides by the option, else the template inside the file, else one beside it, else the name.
 *
 * @param name the model's, as its file says it
 * @param option the load option `chatTemplate`
 * @throws GemmaError `ERR_FILE` for a template beside the file that cannot be read
 */
export async function decideChat(
  path: string,
  name: string,
  metadata: NativeChatMetadata,
  option: string | undefined,
): Promise<Chat> {
  if (option !== undefined) return choose(option, 'option', 'the option chatTemplate');
  if (metadata.template !== '') return choose(metadata.template, 'file', "the file's chat template");
  const beside = await findTemplate((await isCheckpoint(path)) ? path : dirname(path));
  if (beside) return choose(beside.source, 'file', `the chat template in ${beside.file}`);
  if (isGoogleName(name))
    return {
      template: 'gemma',
      reason: `no chat template, but its name is ${JSON.stringify(name)}`,
      toolFormat: 'gemma',
    };
  if (/^gemma-3(-|$)/i.test(metadata.baseName) && metadata.finetune.toLowerCase() === 'it') {
    return {
      template: 'gemma',
      reason: `no chat template, but the file calls itself ${metadata.baseName}, tuned "it"`,
      toolFormat: 'gemma',
    };
  }
  return {
    template: 'none',
    reason: 'neither a chat template nor the name of an instruction-tuned Gemma 3',
    toolFormat: 'gemma',
  };
}

/**
 * The template in a folder: where transformers keeps it, a file of its own, before that a field of the tokenizer's configuration.
 *
 * @throws GemmaError `ERR_FILE`
 */
export async function findTemplate(folder: string): Promise<{ source: string; file: string } | undefined> {
  const jinja = join(folder, 'chat_template.jinja');
  const source = await readSmall(jinja);
  if (source !== undefined) return { source, file: jinja };
  const config = join(folder, 'tokenizer_config.json');
  const json = await readSmall(config);
  if (json === undefined) return undefined;
  let template: unknown;
  try {
    template = (JSON.parse(json) as { chat_template?: unknown } | null)?.chat_template;
  } catch (error) {
    throw new GemmaError('ERR_FILE', `${plain(config)}: not valid JSON (${reasonOf(error)})`);
  }
  if (Array.isArray(template)) {
    // Under names, of which "default" is the one for conversations.
    const named = template as readonly ({ name?: unknown; template?: unknown } | null)[];
    const found = named.find((entry) => entry?.name === 'default');
    if (!found && named.every((entry) => typeof entry?.name === 'string')) return undefined;
    template = found?.template ?? template;
  }
  if (template === undefined || template === null) return undefined;
  if (typeof template !== 'string') {
    throw new GemmaError(
      'ERR_FILE',
      `${plain(config)}: chat_template: expected a string, or a list of names and templates, found ${show(template)}`,
      'BAD_TEMPLATE',
    );
  }
  return { source: template, file: config };
}

// The text of a file; undefined where there is none.
async function readSmall(path: string): Promise<string | undefined> {
  const limit = path.endsWith('.json') ? 4 * MAX_TEMPLATE_BYTES : MAX_TEMPLATE_BYTES; // lists of tokens are in the former
  const found = await stat(path).catch(() => undefined);
  if (!found?.isFile()) return undefined;
  if (found.size > limit) {
    throw new GemmaError(
      'ERR_FILE',
      `${plain(path)}: expected at most ${limit} bytes, found ${found.size}`,
      'TEMPLATE_LIMIT',
    );
  }
  return readFile(path, 'utf8').catch((error: unknown) => {
    throw new GemmaError('ERR_FILE', `${plain(path)}: cannot be read (${reasonOf(error)})`);
  });
}
