// The one bridge between operations of native code, which report by events, and promises. All operations work alike: native code
// starts one and returns its id, calls back with events on the JavaScript thread, and ends it with one last event.
import type { Cancellation } from './cancellation.js';

/** How an operation ended. The error is a GemmaError made by native code, or what a callback of the caller threw. */
export type Outcome<T> = { value: T } | { error: unknown };

export interface Operation<Event, T> {
  /** Starts it and returns its id. May throw, which is then the rejection. */
  start(onEvent: (event: Event) => void): number;
  /** Asks native code to stop it. Its last event still comes. */
  stop(id: number): void;
  /**
   * Takes an event and returns the outcome once there is one. What it throws is a callback's error: the operation is stopped and
   * rejects with it. Events also come after a cancellation, so a handler asks for `cancelled` before it calls the caller's code.
   */
  onEvent(event: Event): Outcome<T> | undefined;
  /** Called with the id as soon as the operation runs, before any event. */
  onStart?(id: number): void;
}

/**
 * Runs an operation to its end. Cancelling stops it; it then ends with the outcome of its last event.
 *
 * @throws the outcome's error, and what `start` throws
 */
export async function runOperation<Event, T>(operation: Operation<Event, T>, cancellation: Cancellation): Promise<T> {
  const outcome = await new Promise<Outcome<T>>((settle) => {
    const id = operation.start((event) => {
      try {
        const ended = operation.onEvent(event);
        if (ended) settle(ended);
      } catch (error) {
        cancellation.cancel();
        settle({ error });
      }
    });
    operation.onStart?.(id);
    cancellation.onCancel(() => operation.stop(id));
  });
  if ('error' in outcome) throw outcome.error;
  return outcome.value;
}

/**
 * The same for an operation without a value: its last event, of kind `finish`, says at most an error. onReport gets the others, and
 * none after a cancellation.
 */
export function runReporting<Event extends { kind: string }>(
  { start, stop }: Pick<Operation<Event, undefined>, 'start' | 'stop'>,
  onReport: (event: Exclude<Event, { kind: 'finish' }>) => void,
  cancellation: Cancellation,
): Promise<void> {
  const onEvent = (event: Event): Outcome<undefined> | undefined => {
    if (event.kind === 'finish') {
      const { error } = event as { error?: unknown };
      return error === undefined ? { value: undefined } : { error };
    }
    if (!cancellation.cancelled) onReport(event as Exclude<Event, { kind: 'finish' }>);
    return undefined;
  };
  return runOperation({ start, stop, onEvent }, cancellation);
}
