// A worker: takes jobs from a queue, computes many at once, and gives each one's result. Native work runs beside the event loop, so the locks
// of long jobs are renewed while it goes on.
import type * as BullMQ from 'bullmq';
import {
  GemmaError,
  type EmbedOptions,
  type Gemma,
  type GenerateOptions,
  type ImageOptions,
  type Input,
} from 'gemma-native';
import { Counter, Gauge, Registry, collectDefaultMetrics } from 'prom-client';
import { bullmq, checkJob, connectionOf, type QueuedJob, type QueueOptions } from './queue.js';

export interface WorkerOptions extends QueueOptions {
  /** what computes; stays the caller's */
  gemma: Gemma;
  /** jobs that are computed at the same time. Default 16. */
  concurrency?: number;
  /** A job whose worker has not said for so long that it works on it is given to another one, in milliseconds. Default 30000. */
  lockMs?: number;
  /** How many workers a job may take down with it before it is set aside as failed. Default 5. */
  maxDeaths?: number;
  /** What jobs' pictures may name beside data: URLs. Default: nothing. */
  images?: Pick<ImageOptions, 'allowLocal' | 'allowRemote'>;
}

export interface QueueWorker {
  /** of prom-client: jobs, tokens, the queue */
  readonly metrics: Registry;
  /** Takes no more jobs, and waits for those under way. Any number of calls. */
  close(): Promise<void>;
}

// Not another attempt's to mend.
const isFinal = (error: unknown) =>
  error instanceof TypeError ||
  error instanceof RangeError ||
  (error instanceof GemmaError &&
    !['ERR_OUT_OF_MEMORY', 'ERR_QUEUE_FULL', 'ERR_DISPOSED', 'ERR_STALLED'].includes(error.code));

function reasonOf(error: unknown): string {
  if (error instanceof GemmaError) return JSON.stringify({ code: error.code, message: error.message });
  const { message } = error as Error;
  return JSON.stringify({ code: isFinal(error) ? 'ERR_INVALID_ARGUMENT' : 'ERR_INTERNAL', message });
}

/** Calls gemma-native for one job. What the caller may not set is set last. */
async function compute(gemma: Gemma, data: unknown, images: ImageOptions, signal: AbortSignal): Promise<unknown> {
  const job: QueuedJob = checkJob(data);
  const options = { allowLocal: false, allowRemote: false, ...images, signal };
  if (job.embed) {
    const { data: rows, shape } = await gemma.embed([...job.embed], { ...(job.options as EmbedOptions), signal });
    const [n, dimensions] = shape;
    return {
      embeddings: Array.from({ length: n }, (_, i) => [...rows.subarray(i * dimensions, (i + 1) * dimensions)]),
    };
  }
  if (job.embedImage !== undefined) {
    const { data: row } = await gemma.embedImage(job.embedImage, { ...job.options, ...options, pooling: 'mean' });
    return { embedding: [...row] };
  }
  const input = (job.prompt ?? job.messages) as Input;
  const given = { ...(job.options as GenerateOptions), ...options, ...(job.images && { images: [...job.images] }) };
  const { text, finishReason, object, toolCalls, usage, seed } = await gemma.generate(input, given);
  const parts = { ...(object !== undefined && { object }), ...(toolCalls && { toolCalls }) };
  return { text, finishReason, ...parts, usage, seed };
}

/**
 * Starts a worker.
 *
 * @throws TypeError for a wrong address, or where BullMQ is not installed
 */
export async function createWorker(options: WorkerOptions): Promise<QueueWorker> {
  const { gemma, queue, concurrency = 16, lockMs = 30_000, maxDeaths = 5, images = {} } = options;
  const { Worker, Queue, UnrecoverableError } = await bullmq();
  const connection = connectionOf(options);
  const metrics = new Registry();
  const registers = [metrics];
  collectDefaultMetrics({ register: metrics });
  const ended = new Counter({
    name: 'gemma_jobs_total',
    help: 'jobs that have ended here',
    labelNames: ['status'],
    registers,
  });
  const tokens = new Counter({
    name: 'gemma_tokens_total',
    help: 'tokens: of prompts (input), of answers (output)',
    labelNames: ['kind'],
    registers,
  });

  // Those that are computed here, by BullMQ's ids.
  const underWay = new Map<string, AbortController>();
  const worker: BullMQ.Worker<unknown, unknown> = new Worker(
    queue,
    async (job) => {
      const controller = new AbortController();
      const id = job.id ?? '';
      underWay.set(id, controller);
      try {
        const result = await compute(gemma, job.data, images, controller.signal);
        const { usage } = result as { usage?: { inputTokens: number; outputTokens: number } };
        tokens.inc({ kind: 'input' }, usage?.inputTokens ?? 0);
        tokens.inc({ kind: 'output' }, usage?.outputTokens ?? 0);
        return result;
      } catch (error) {
        const reason = reasonOf(error);
        throw isFinal(error) ? new UnrecoverableError(reason) : new Error(reason, { cause: error });
      } finally {
        underWay.delete(id);
      }
    },
    {
      connection,
      concurrency,
      lockDuration: lockMs,
      stalledInterval: lockMs,
      maxStalledCount: maxDeaths,
      runRetryDelay: 1000, // milliseconds until Redis is asked again after it was away
    },
  );
  worker.on('error', () => {}); // of the connection: it comes again
  worker.on('completed', () => ended.inc({ status: 'completed' }));
  worker.on('failed', () => ended.inc({ status: 'failed' }));
  // Another worker may have the job by now: its result counts.
  worker.on('lockRenewalFailed', (ids) => {
    for (const id of ids) underWay.get(id)?.abort(new Error('the job has gone to another worker'));
  });

  const watched = new Queue(queue, { connection });
  watched.on('error', () => {});
  new Gauge({
    name: 'gemma_jobs_active',
    help: 'jobs that are computed here now',
    registers,
    collect() {
      this.set(underWay.size);
    },
  });
  new Gauge({
    name: 'gemma_queue_jobs',
    help: 'jobs of the queue, by state',
    labelNames: ['state'],
    registers,
    async collect() {
      const counts = await watched.getJobCounts('waiting', 'active', 'delayed', 'completed', 'failed');
      for (const [state, count] of Object.entries(counts)) this.set({ state }, count);
    },
  });

  let closing: Promise<void> | undefined;
  return {
    metrics,
    close: () =>
      (closing ??= (async () => {
        await worker.close();
        await watched.close();
      })()),
  };
}
