// A server for a suite, and what its tests ask it with.
import { runInThisContext } from 'node:vm';
import { Gemma, GemmaError } from 'gemma-native';
import OpenAI from 'openai';
import { createServer, type Server, type ServerOptions } from '../src/index.js';

/** The demonstration model with the adapter that writes JSON and calls tools. */
export function loadDemo(): Promise<Gemma> {
  return Gemma.load('demo', { adapters: { tools: Gemma.demoAdapter } });
}

export interface Running {
  server: Server;
  url: string;
  client: OpenAI;
}

/** Starts a server on a free port. */
export async function start(options: ServerOptions): Promise<Running> {
  const server = await createServer(options);
  const url = await server.listen({ port: 0 });
  const [apiKey = 'none'] = options.apiKeys ?? [];
  return { server, url, client: new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 }) };
}

export async function collected<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

export interface Answer {
  status: number;
  headers: Headers;
  body: { error?: { message: string; code: string; param: string | null; type: string } } & Record<string, unknown>;
}

/** Posts JSON, or text as it is. */
export async function post(url: string, body: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  const text = await response.text();
  return {
    status: response.status,
    headers: response.headers,
    body: text === '' ? {} : (JSON.parse(text) as Answer['body']),
  };
}

/** A stream that gives one piece and fails: what `gemma.stream` is in the place of. */
export const brokenStream = {
  async *[Symbol.asyncIterator]() {
    yield await Promise.resolve({ type: 'text', text: 'begun', tokens: [1] });
    throw new GemmaError('ERR_DISPOSED', 'the model was disposed');
  },
};

/** Google's client looks for what Node's fetch uses, which jest's globals have not. */
export function lendDispatcher(): void {
  const name = Symbol.for('undici.globalDispatcher.1');
  runInThisContext('new Headers()'); // makes it
  Reflect.set(globalThis, name, Reflect.get(runInThisContext('globalThis') as object, name));
}
