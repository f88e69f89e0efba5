import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, relative } from 'node:path';
import { Gemma, type LoadOptions } from '../../lib/index.js';

export { atOnce } from '../../lib/turns.js';

export const root = join(__dirname, '..', '..');
export const data = join(root, 'test', 'reference', 'data');
/** 7 layers, 64 wide, vocabulary of 448; answers thousands of tokens a second. Has a chat template. */
export const tiny = join(data, 'text-a-f16.gguf');
export const cli = join(root, 'dist', 'cli', 'main.js');

export interface Source {
  path: string; // from the root, with slashes
  text: string;
}

/** The files below a folder of the project whose names match. */
export function sources(folder: string, name: RegExp): Source[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && name.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .map((path) => ({ path: relative(root, path).replaceAll('\\', '/'), text: readFileSync(path, 'utf8') }));
}

/** The real Gemma 3 270M; `npm test` fetches it. */
export function realModel(): string {
  const path =
    process.env.GEMMA_TEST_MODEL ??
    join(process.env.GEMMA_CACHE ?? join(homedir(), '.cache', 'gemma-native'), 'gemma-3-270m-q4_k_m.gguf');
  if (!existsSync(path)) throw new Error(`${path} is missing: run node scripts/fetch-test-model.mjs`);
  return path;
}

export async function withModel<T>(
  work: (gemma: Gemma) => Promise<T>,
  options: LoadOptions = {},
  model = tiny,
): Promise<T> {
  const gemma = await Gemma.load(model, options);
  try {
    return await work(gemma);
  } finally {
    await gemma.dispose();
  }
}

export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** Runs Node with arguments. */
export function runNode(
  args: readonly string[],
  options: {
    env?: NodeJS.ProcessEnv;
    cwd?: string;
    input?: string;
    /** Called with the first output. */
    onOutput?: (kill: (signal: NodeJS.Signals) => void) => void;
  } = {},
): Promise<Exit> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, {
      cwd: options.cwd ?? root,
      env: { ...process.env, ...options.env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stdout.once('data', () => options.onOutput?.((signal) => child.kill(signal)));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
    child.stdin.end(options.input ?? '');
  });
}

/** What a promise rejects with; fails when it does not. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  let value: unknown;
  try {
    value = await promise;
  } catch (error) {
    return error;
  }
  throw new Error(`expected a rejection, got ${JSON.stringify(value)}`);
}

/** Waits until a condition holds, without blocking the event loop and without a limit but the test's own. */
export async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** FunctionGemma's control tokens for tools, in the order of their ids. */
export const FUNCTION_MARKS = [
  '<start_function_declaration>',
  '<end_function_declaration>',
  '<start_function_call>',
  '<end_function_call>',
  '<start_function_response>',
  '<end_function_response>',
  '<escape>',
];
