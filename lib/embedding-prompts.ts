// What stands before texts that are embedded, by what the embeddings are for: as config_sentence_transformers.json beside a checkpoint
// says, else as EmbeddingGemma was trained (its model card).
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { GemmaError } from './errors.js';
import { isCheckpoint } from './model-files.js';
import type { ModelConfig } from './native.js';
import { checkReadable } from './permission.js';
import { oneOf, plain, reasonOf, show } from './values.js';

const TASKS = {
  query: 'search result',
  'question-answering': 'question answering',
  'fact-checking': 'fact checking',
  classification: 'classification',
  clustering: 'clustering',
  'sentence-similarity': 'sentence similarity',
  'code-retrieval': 'code retrieval',
  summarization: 'summarization',
} as const;

/** What EmbeddingGemma's embeddings are for. */
export type EmbeddingTask = 'document' | keyof typeof TASKS;

const DOCUMENT = documentPrompt('none');

function documentPrompt(title: string): string {
  return `title: ${title} | text: `;
}

/** The prompts of a model. */
export interface EmbeddingPrompts {
  /** by name; empty: of a model that was trained with none */
  byTask: ReadonlyMap<string, string>;
  /** the name of the one that stands before texts where nothing else is asked for */
  defaultTask?: string;
}

const FILE = 'config_sentence_transformers.json';
const MAX_BYTES = 1 << 20;
const MAX_PROMPTS = 1000;
const MAX_CHARACTERS = 10_000;

function ownPrompts(isEncoder: boolean): Map<string, string> {
  if (!isEncoder) return new Map();
  const queries = Object.entries(TASKS).map(([task, what]) => [task, `task: ${what} | query: `] as const);
  return new Map([['document', DOCUMENT], ...queries]);
}

/** The text of a small file; undefined where there is none. */
async function readSmall(path: string): Promise<string | undefined> {
  checkReadable(path);
  try {
    const file = await open(path, 'r');
    try {
      const status = await file.stat();
      if (!status.isFile()) throw new GemmaError('ERR_FILE', `${plain(path)}: not a regular file`);
      if (status.size > MAX_BYTES)
        throw new GemmaError('ERR_FILE', `${plain(path)}: expected at most 1 MiB, found ${status.size} bytes`, 'FILE_TOO_LARGE'); // prettier-ignore
      return await file.readFile('utf8');
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof GemmaError) throw error;
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new GemmaError('ERR_FILE', `${plain(path)}: cannot be read (${reasonOf(error)})`);
  }
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * The prompts of a loaded model.
 *
 * @param path of its file or folder
 * @throws GemmaError `ERR_SAFETENSORS_INVALID` (`BAD_PROMPTS`), `ERR_UNSUPPORTED_MODEL` (`SENTENCE_MODULE`: a folder of another kind of
 * model of sentence-transformers'), `ERR_FILE`
 */
export async function embeddingPrompts(path: string, config: ModelConfig): Promise<EmbeddingPrompts> {
  const byTask = ownPrompts(config.encoder);
  const file = join(path, FILE);
  const source = (await isCheckpoint(path)) ? await readSmall(file) : undefined;
  if (source === undefined) return { byTask };
  const invalid = (message: string) =>
    new GemmaError('ERR_SAFETENSORS_INVALID', `${plain(file)}: ${message}`, 'BAD_PROMPTS');
  let fields: unknown;
  try {
    fields = JSON.parse(source);
  } catch (error) {
    throw invalid(`expected JSON: ${reasonOf(error)}`);
  }
  if (!isObject(fields)) throw invalid(`expected an object, found ${show(fields)}`);
  const { prompts = {}, default_prompt_name: defaultTask, model_type: kind = 'SentenceTransformer' } = fields;
  if (kind !== 'SentenceTransformer') {
    throw new GemmaError(
      'ERR_UNSUPPORTED_MODEL',
      `${plain(file)}: this is a ${show(kind)} of sentence-transformers', expected a SentenceTransformer`,
      'SENTENCE_MODULE',
    );
  }
  if (!isObject(prompts)) throw invalid(`prompts: expected an object, found ${show(prompts)}`);
  const entries = Object.entries(prompts);
  if (entries.length > MAX_PROMPTS) throw invalid(`prompts: expected at most ${MAX_PROMPTS}, found ${entries.length}`);
  for (const [name, prompt] of entries) {
    const where = `prompts[${plain(name, 60)}]`;
    if (prompt !== null && typeof prompt !== 'string')
      throw invalid(`${where}: expected a string, found ${show(prompt)}`);
    const { length } = prompt ?? '';
    if (length > MAX_CHARACTERS)
      throw invalid(`${where}: expected at most ${MAX_CHARACTERS} characters, found ${length}`);
    byTask.set(name, prompt ?? '');
  }
  if (defaultTask === undefined || defaultTask === null) return { byTask };
  if (typeof defaultTask !== 'string' || !Object.hasOwn(prompts, defaultTask)) {
    throw invalid(`default_prompt_name: expected the name of one of the prompts, found ${show(defaultTask)}`);
  }
  return { byTask, defaultTask };
}

/** What is asked for of the options of `embed`. */
export interface PromptChoice {
  task?: string;
  prompt?: string;
  title?: unknown;
}

/**
 * What stands before each text.
 *
 * @throws TypeError, RangeError; GemmaError `ERR_UNSUPPORTED_INPUT` (`NO_TASKS`)
 */
export function promptOf(
  { task: asked, prompt, title }: PromptChoice,
  { byTask, defaultTask }: EmbeddingPrompts,
  nTexts: number,
): (i: number) => string {
  if (prompt !== undefined) return () => prompt;
  const task = asked ?? defaultTask;
  if (task === undefined) return () => '';
  if (byTask.size === 0) {
    throw new GemmaError(
      'ERR_UNSUPPORTED_INPUT',
      "task: the prompts are EmbeddingGemma's, this model was not trained with them; leave it out, or write what you want before the texts (option prompt)",
      'NO_TASKS',
    );
  }
  const text = byTask.get(oneOf('task', task, [...byTask.keys()])) ?? '';
  if (title === undefined) return () => text;
  if (text !== DOCUMENT) throw new TypeError(`title: this model's prompt for documents is ${show(text)}, which has no place for one`); // prettier-ignore
  if (!Array.isArray(title)) return () => documentPrompt(title as string);
  if (title.length !== nTexts) {
    throw new RangeError(`title: expected one for each of ${nTexts} texts, found ${title.length}`);
  }
  return (i) => {
    const found = title[i] as unknown;
    if (typeof found !== 'string') throw new TypeError(`title[${i}]: expected a string, found ${show(found)}`);
    return documentPrompt(found);
  };
}
