// What a server counts, in Prometheus' form. Labels are models and interfaces, which the operator chose; nothing that a client sends
// becomes a label.
import type { GenerateResult } from 'gemma-native';
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { Admission } from './admission.js';
import type { ModelRegistry } from './models.js';

const SECONDS = [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];

/** The numbers of an answer. */
export type Answered = Pick<GenerateResult, 'usage' | 'timings'>;

export class Metrics {
  /** What `/metrics` writes; others may register their own. */
  readonly registry = new Registry();
  readonly #requests: Counter<'api' | 'status'>;
  readonly #seconds: Histogram<'api'>;
  readonly #firstToken: Histogram<'model'>;
  readonly #queued: Histogram;
  readonly #tokens: Counter<'model' | 'kind'>;

  constructor(models: ModelRegistry, admission: Admission) {
    const registers = [this.registry];
    collectDefaultMetrics({ register: this.registry });
    this.#requests = new Counter({
      name: 'gemma_requests_total',
      help: 'requests that have ended, by interface and status',
      labelNames: ['api', 'status'],
      registers,
    });
    this.#seconds = new Histogram({
      name: 'gemma_request_seconds',
      help: 'time from a request to the end of its answer',
      labelNames: ['api'],
      buckets: SECONDS,
      registers,
    });
    this.#firstToken = new Histogram({
      name: 'gemma_time_to_first_token_seconds',
      help: 'time from the beginning of a request to its first token, waiting included',
      labelNames: ['model'],
      buckets: SECONDS,
      registers,
    });
    this.#queued = new Histogram({
      name: 'gemma_queue_seconds',
      help: 'time that requests waited for their turn',
      buckets: SECONDS,
      registers,
    });
    this.#tokens = new Counter({
      name: 'gemma_tokens_total',
      help: 'tokens: of prompts (input), of these those taken from the cache (cached) and of pictures (image), of answers (output)',
      labelNames: ['model', 'kind'],
      registers,
    });
    new Gauge({
      name: 'gemma_requests_in_flight',
      help: 'requests that are computed now',
      registers,
      collect() {
        this.set(admission.inFlight);
      },
    });
    new Gauge({
      name: 'gemma_requests_waiting',
      help: 'requests that wait for their turn',
      registers,
      collect() {
        this.set(admission.waiting);
      },
    });
    new Gauge({
      name: 'gemma_model_bytes',
      help: 'memory of the loaded models by their plans',
      labelNames: ['model'],
      registers,
      collect() {
        this.reset();
        for (const { name, gemma, bytes } of models.list()) if (gemma) this.set({ model: name }, bytes);
      },
    });
    new Gauge({
      name: 'gemma_engine',
      help: 'what the engines of the loaded models say: requests running, waiting and paused, bytes of keys and values, of kept prefixes',
      labelNames: ['model', 'what'],
      registers,
      collect() {
        this.reset();
        for (const { name: model, gemma } of models.list()) {
          if (!gemma) continue;
          const { running, waiting, paused, kvBytesResident, prefixBytes } = gemma.stats();
          this.set({ model, what: 'running' }, running);
          this.set({ model, what: 'waiting' }, waiting);
          this.set({ model, what: 'paused' }, paused);
          this.set({ model, what: 'kv_bytes' }, kvBytesResident);
          this.set({ model, what: 'prefix_bytes' }, prefixBytes);
        }
      },
    });
  }

  request(api: string, status: number, seconds: number): void {
    this.#requests.inc({ api, status });
    this.#seconds.observe({ api }, seconds);
  }

  queued(seconds: number): void {
    this.#queued.observe(seconds);
  }

  firstToken(model: string, seconds: number): void {
    this.#firstToken.observe({ model }, seconds);
  }

  /** Of work that has input alone, `outputTokens` is 0. */
  tokens(model: string, { inputTokens, outputTokens, imageTokens, cachedInputTokens }: GenerateResult['usage']): void {
    this.#tokens.inc({ model, kind: 'input' }, inputTokens);
    this.#tokens.inc({ model, kind: 'output' }, outputTokens);
    this.#tokens.inc({ model, kind: 'image' }, imageTokens);
    this.#tokens.inc({ model, kind: 'cached' }, cachedInputTokens);
  }
}
