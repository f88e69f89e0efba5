// Has chat templates rendered in a thread of their own, under limits of time and memory: they come with models, from strangers.
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { GemmaError } from './errors.js';
import type { TemplateFailure } from './jinja.js';
import type { TemplateRequest } from './template-prompt.js';
import { reasonOf } from './values.js';

/** What the thread is started with. */
export interface TemplateSettings {
  source: string;
  /** of the vocabulary's control tokens */
  texts: readonly string[];
}

/** What the thread answers. */
export type TemplateAnswer = { pieces: (string | number)[] } | { failure: TemplateFailure; message: string };

// The work that a template may do is counted (jinja.ts) and takes a second or two; time and memory are the limits of what is not:
// reading the template, and texts of the caller's that are very large.
const MAX_MS = 30_000;
const MAX_HEAP_MB = 1024;
const IDLE_MS = 10_000; // then the thread ends; the next call starts another, in some 30 ms
const MAX_MESSAGE = 500;

// Compiled code, also when this file is run from its source.
const WORKER = join(__dirname, '..', 'dist', 'template-worker.js');

function limitError(reason: string): GemmaError {
  return new GemmaError('ERR_CHAT_TEMPLATE', `the chat template was stopped: ${reason}`, 'TEMPLATE_LIMIT');
}

function errorOf(failure: TemplateFailure, text: string): GemmaError {
  const message = text.length > MAX_MESSAGE ? `${text.slice(0, MAX_MESSAGE)}...` : text;
  switch (failure) {
    case 'raised':
      return new GemmaError(
        'ERR_CHAT_TEMPLATE',
        `the chat template refuses the messages: ${message}`,
        'TEMPLATE_REFUSED',
      );
    case 'limit':
      return limitError(message);
    case 'syntax':
      return new GemmaError('ERR_CHAT_TEMPLATE', `the chat template cannot be read: ${message}`, 'TEMPLATE_ERROR');
    case 'error':
      return new GemmaError('ERR_CHAT_TEMPLATE', `the chat template failed: ${message}`, 'TEMPLATE_ERROR');
  }
}

function crashOf(error: unknown): GemmaError {
  const { code } = error as { code?: unknown };
  if (code === 'ERR_WORKER_OUT_OF_MEMORY') return limitError(`it took more than ${MAX_HEAP_MB} MB of memory`);
  return new GemmaError('ERR_INTERNAL', `the thread of chat templates failed: ${reasonOf(error)}`);
}

/** Renders one template. Its thread begins with the first call and ends by itself. */
export class TemplateRenderer {
  readonly #settings: TemplateSettings;
  #worker: Worker | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #idle: NodeJS.Timeout | undefined;

  constructor(settings: TemplateSettings) {
    this.#settings = settings;
  }

  /**
   * Texts, and numbers of control texts, in order. One call at a time; others wait.
   *
   * @throws GemmaError `ERR_CHAT_TEMPLATE` (`TEMPLATE_REFUSED`, `TEMPLATE_ERROR`, `TEMPLATE_LIMIT`)
   */
  render(request: TemplateRequest): Promise<(string | number)[]> {
    const result = this.#last.then(() => this.#run(request));
    this.#last = result.catch(() => undefined);
    return result;
  }

  /** Ends the thread. What is being rendered rejects with `ERR_DISPOSED`. */
  close(): void {
    clearTimeout(this.#idle);
    void this.#worker?.terminate();
    this.#worker = undefined;
  }

  #start(): Worker {
    try {
      return new Worker(WORKER, {
        name: 'gemma-native chat template',
        workerData: this.#settings,
        execArgv: [],
        env: {},
        resourceLimits: { maxOldGenerationSizeMb: MAX_HEAP_MB, stackSizeMb: 8 },
      });
    } catch (error) {
      const isDenied = (error as { code?: unknown }).code === 'ERR_ACCESS_DENIED';
      const advice = isDenied ? "; under Node's permission model it needs the flag --allow-worker" : '';
      throw new GemmaError(
        'ERR_CHAT_TEMPLATE',
        `the model's own chat template is rendered in a worker thread, which cannot be started here (${reasonOf(error)})${advice}`,
        'TEMPLATE_THREAD',
      );
    }
  }

  #run(request: TemplateRequest): Promise<(string | number)[]> {
    clearTimeout(this.#idle);
    const isNew = !this.#worker;
    const worker = (this.#worker ??= this.#start());
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      const begin = () => {
        timer = setTimeout(() => {
          void worker.terminate();
          this.#forget(worker);
          settle(() => reject(limitError(`it took more than ${MAX_MS / 1000} s`)));
        }, MAX_MS);
      };
      const settle = (end: () => void) => {
        clearTimeout(timer);
        for (const event of ['message', 'error', 'exit', 'online']) worker.removeAllListeners(event);
        worker.on('error', () => this.#forget(worker)); // an error that nobody awaits must not end the process
        worker.unref();
        end();
      };
      worker.once('message', (answer: TemplateAnswer) => {
        this.#idle = setTimeout(() => this.close(), IDLE_MS).unref();
        settle(() => ('pieces' in answer ? resolve(answer.pieces) : reject(errorOf(answer.failure, answer.message))));
      });
      worker.once('error', (error) => {
        this.#forget(worker);
        settle(() => reject(crashOf(error)));
      });
      worker.once('exit', () => {
        this.#forget(worker);
        settle(() =>
          reject(new GemmaError('ERR_DISPOSED', 'the model was disposed while its chat template was rendered')),
        );
      });
      worker.ref();
      if (isNew) worker.once('online', begin);
      else begin();
      worker.postMessage(request);
    });
  }

  #forget(worker: Worker): void {
    if (this.#worker === worker) this.#worker = undefined;
  }
}
