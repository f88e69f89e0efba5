// Spans of OpenTelemetry, where the program has `@opentelemetry/api`; without it nothing happens. Names and attributes are those of
// OpenTelemetry's conventions for generative AI. No text of a prompt or an answer becomes an attribute.
import type { Span, Tracer } from '@opentelemetry/api';

interface Api {
  trace: { getTracer(name: string): Tracer };
  SpanStatusCode: { ERROR: 2 };
}

function load(): Api | undefined {
  try {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- optional
    return require('@opentelemetry/api') as Api;
  } catch {
    return undefined;
  }
}

const api = load();

/** A piece of work that is traced. */
export interface Trace {
  set(attributes: Record<string, string | number | boolean>): void;
}

const NO_TRACE: Trace = { set: () => {} };

function traceOf(span: Span): Trace {
  return { set: (attributes) => void span.setAttributes(attributes) };
}

/** Does work within a span. */
export async function traced<T>(name: string, model: string, work: (trace: Trace) => Promise<T>): Promise<T> {
  if (!api) return work(NO_TRACE);
  const tracer = api.trace.getTracer('gemma-native-server');
  const attributes = { 'gen_ai.system': 'gemma-native', 'gen_ai.request.model': model };
  return tracer.startActiveSpan(`${name} ${model}`, { attributes }, async (span) => {
    try {
      return await work(traceOf(span));
    } catch (error) {
      const { name: kind } = (error ?? {}) as { name?: unknown };
      span.setAttribute('error.type', typeof kind === 'string' ? kind : 'unknown');
      span.setStatus({ code: 2 });
      throw error;
    } finally {
      span.end();
    }
  });
}
