// Work over many machines: jobs in a queue of BullMQ on Redis. Producers put them in and take results out; workers (worker.ts) compute them.
// BullMQ holds the state of a job: a result counts only of the worker that holds the job's lock, so a job has one however often
// it was begun.
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type * as BullMQ from 'bullmq';
import { z } from 'zod';
import { HttpError } from './errors.js';
import { parsed } from './fields.js';

/** Work for one call of gemma-native, as JSON: the lines that `gemma.batch` reads. */
export interface QueuedJob {
  /** Of the caller, each once: two jobs of one id are one job. At most 1000 characters. */
  id: string;
  /** for `generate`: a prompt, with pictures as data: URLs (or what the workers may read) */
  prompt?: string;
  images?: readonly string[];
  /** for `generate`: a conversation */
  messages?: readonly unknown[];
  /** for `embed`: texts */
  embed?: readonly string[];
  /** for `embedImage`: a picture; the result is the mean of its rows */
  embedImage?: string;
  /** of the call */
  options?: Readonly<Record<string, unknown>>;
}

/** What became of a job. */
export type QueuedResult =
  | { id: string; result: unknown }
  /** `code`: of gemma-native's errors, or `'ERR_POISON'`: the workers that had it died, as often as a job may be begun anew */
  | { id: string; error: { code: string; message: string } };

export interface QueueOptions {
  /** the queue's name */
  queue: string;
  /** `redis://[:password@]host[:port][/database]`; `rediss:` for TLS */
  redis: string;
}

export interface ProducerOptions extends QueueOptions {
  /** `add` waits while so many jobs are in the queue that nobody has begun. Default 10000. */
  maxWaiting?: number;
  /** How often a job is begun anew after a failure that may pass (memory, a model that was unloaded). Default 3. */
  attempts?: number;
}

const MAX_ID = 1000;
const CHUNK = 100; // jobs of one command
const POLL_MS = 200;

const oneOf = ['prompt', 'messages', 'embed', 'embedImage'] as const;

const jobSchema = z
  .strictObject({
    id: z.string().min(1).max(MAX_ID),
    prompt: z.string().optional(),
    images: z.array(z.string()).optional(),
    messages: z.array(z.unknown()).min(1).optional(),
    embed: z.array(z.string()).min(1).optional(),
    embedImage: z.string().optional(),
    options: z.record(z.string(), z.unknown()).optional(),
  })
  .refine((job) => oneOf.filter((name) => job[name] !== undefined).length === 1, {
    message: `expected one of ${oneOf.join(', ')}`,
  })
  .refine((job) => job.images === undefined || job.prompt !== undefined, { message: 'images: only beside prompt' });

/** @throws TypeError that names what is wrong */
export function checkJob(job: unknown): QueuedJob {
  try {
    return parsed(jobSchema, job) as QueuedJob;
  } catch (error) {
    if (error instanceof HttpError) throw new TypeError(error.message, { cause: error });
    throw error;
  }
}

/** BullMQ, which only queues need. */
export async function bullmq(): Promise<typeof BullMQ> {
  try {
    return await import('bullmq');
  } catch (error) {
    throw new TypeError('queues need BullMQ: npm install bullmq ioredis', { cause: error });
  }
}

/** How every part of a queue is connected: commands wait for a Redis that is away, as long as it takes. */
export function connectionOf({ redis }: QueueOptions): BullMQ.ConnectionOptions {
  let url: URL;
  try {
    url = new URL(redis);
  } catch (error) {
    throw new TypeError(`redis: expected redis://host:port, found ${redis}`, { cause: error });
  }
  if (url.protocol !== 'redis:' && url.protocol !== 'rediss:') {
    throw new TypeError(`redis: expected redis: or rediss:, found ${url.protocol}`);
  }
  const retryStrategy = (times: number) => Math.min(1000, 50 * times);
  return { url: redis, maxRetriesPerRequest: null, retryStrategy };
}

// BullMQ has rules for ids of its own.
function innerId(id: string): string {
  return `job-${createHash('sha256').update(id).digest('hex')}`;
}

/** Waits a little. Throws the signal's own reason. */
async function pause(signal: AbortSignal | undefined): Promise<void> {
  await sleep(POLL_MS, undefined, signal && { signal }).catch(() => {});
  signal?.throwIfAborted();
}

function failureOf(reason: string): { code: string; message: string } {
  try {
    const { code, message } = JSON.parse(reason) as { code?: unknown; message?: unknown };
    if (typeof code === 'string' && typeof message === 'string') return { code, message };
  } catch {
    // not a worker's: BullMQ's own, of a job that nobody ended
  }
  return { code: 'ERR_POISON', message: reason };
}

/** Puts jobs into a queue and takes their results out. Any number of producers may have one queue. */
export class Producer {
  readonly #queue: BullMQ.Queue<QueuedJob, unknown>;
  readonly #maxWaiting: number;
  readonly #attempts: number;

  private constructor(queue: BullMQ.Queue<QueuedJob, unknown>, maxWaiting: number, attempts: number) {
    this.#queue = queue;
    this.#maxWaiting = maxWaiting;
    this.#attempts = attempts;
  }

  /** @throws TypeError for a wrong address, or where BullMQ is not installed */
  static async connect(options: ProducerOptions): Promise<Producer> {
    const { Queue } = await bullmq();
    const queue = new Queue<QueuedJob, unknown>(options.queue, { connection: connectionOf(options) });
    queue.on('error', () => {}); // what is lost is connected again
    return new Producer(queue, options.maxWaiting ?? 10_000, options.attempts ?? 3);
  }

  /**
   * Adds jobs. Waits while the queue is full, so a source of millions is read no faster than workers work. A job whose id the queue knows
   * is not added again: a producer that died begins anew from its beginning.
   *
   * @returns how many were given
   * @throws TypeError for a job that is none; those before it are in the queue
   */
  async add(jobs: Iterable<QueuedJob> | AsyncIterable<QueuedJob>, signal?: AbortSignal): Promise<number> {
    let n = 0;
    let chunk: QueuedJob[] = [];
    const send = async () => {
      if (chunk.length === 0) return;
      for (;;) {
        signal?.throwIfAborted();
        if ((await this.#queue.getJobCountByTypes('waiting', 'delayed')) < this.#maxWaiting) break;
        await pause(signal);
      }
      await this.#queue.addBulk(
        chunk.map((data) => ({
          name: 'gemma',
          data,
          opts: { jobId: innerId(data.id), attempts: this.#attempts, backoff: { type: 'exponential', delay: 1000 } },
        })),
      );
      n += chunk.length;
      chunk = [];
    };
    for await (const job of jobs) {
      try {
        chunk.push(checkJob(job));
      } catch (error) {
        await send();
        throw error;
      }
      if (chunk.length === CHUNK) await send();
    }
    await send();
    return n;
  }

  /**
   * The results of jobs, as they come, until nothing is in the queue any more; with `follow` for ever. Each is taken out of the queue when the
   * next one is asked for: what a reader that died had not finished with comes again.
   */
  async *results({
    follow = false,
    signal,
  }: { follow?: boolean; signal?: AbortSignal } = {}): AsyncGenerator<QueuedResult> {
    for (;;) {
      signal?.throwIfAborted();
      // Counted before the results are looked at: what ends in between is seen in the next round.
      const counts = await this.#queue.getJobCounts('waiting', 'active', 'delayed', 'prioritized');
      const ended = await this.#queue.getJobs(['completed', 'failed'], 0, CHUNK - 1, true);
      for (const job of ended) {
        // Redis may have lost the rest of a job that is being removed.
        if (!(job as BullMQ.Job<QueuedJob> | undefined)?.data) continue;
        const { id } = job.data;
        const isFailed = job.failedReason !== undefined && job.failedReason !== '';
        yield isFailed ? { id, error: failureOf(job.failedReason) } : { id, result: job.returnvalue };
        await job.remove();
      }
      if (ended.length > 0) continue;
      if (!follow && Object.values(counts).every((count) => count === 0)) return;
      await pause(signal);
    }
  }

  /** Jobs by state: waiting, active, delayed, completed, failed. */
  async counts(): Promise<Record<string, number>> {
    return this.#queue.getJobCounts('waiting', 'active', 'delayed', 'completed', 'failed');
  }

  async close(): Promise<void> {
    await this.#queue.close();
  }
}
