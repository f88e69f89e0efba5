// One generation in three steps: the engine's events are read here, parts.ts makes parts of them, result.ts the result.
import type { Cancellation } from './cancellation.js';
import { GemmaError } from './errors.js';
import type { NativeGenerateEvent, NativeGenerateParams, NativeModel } from './native.js';
import { runOperation, type Outcome } from './operation.js';
import { textOf, TextAssembler, type PartAssembler, type StreamPart } from './parts.js';
import { resultOf, type FinishEvent, type GenerateResult, type TokenLogprobs } from './result.js';

/** Who reads a generation while it runs. */
export interface Sink {
  /** Takes a part. The engine counts it as unread until its events are acknowledged. */
  part(part: StreamPart, events: number): void;
  /** How the reader tells the engine how many events it has taken. */
  started(acknowledge: (events: number) => void): void;
}

/** A generation that ended. */
export interface Generated {
  result: GenerateResult;
  /** with a grammar: the answer is a whole text of it */
  isWhole: boolean;
}

/** Settles when the engine's last event is here. A cancelled generation resolves with what there is. */
export function runGeneration(
  model: NativeModel,
  params: NativeGenerateParams,
  imageTokens: number,
  cancellation: Cancellation,
  onPrompt?: (fraction: number) => void,
  sink?: Sink,
  assembler: PartAssembler = new TextAssembler(),
): Promise<Generated> {
  let text = '';
  const tokens: number[] = [];
  const logprobs: TokenLogprobs[] = [];
  let acknowledge = (_events: number) => {};
  let nGiven = 0; // of the log-probabilities, those that parts have

  const emit = (piece: string, token?: number) => {
    const parts = assembler.push(piece, token);
    parts.forEach((part, i) => {
      text += textOf(part);
      if (params.logprobs > 0) {
        part.logprobs = logprobs.slice(nGiven, nGiven + part.tokens.length);
        nGiven += part.tokens.length;
      }
      sink?.part(part, i === 0 ? 1 : 0); // the event is read with its first part
    });
    if (sink && parts.length === 0) acknowledge(1); // nothing the reader could take
  };

  const finish = (event: FinishEvent): Outcome<Generated> => {
    if (event.reason === 'error') return { error: event.error };
    if (event.reason === 'cancelled' && !cancellation.cancelled) {
      return { error: new GemmaError('ERR_DISPOSED', 'the model was disposed during a generation') };
    }
    const { seed } = params;
    const result = resultOf(event, { text, tokens, imageTokens, seed, ...(params.logprobs > 0 && { logprobs }) });
    return { value: { result, isWhole: event.grammarComplete === true } };
  };

  const onEvent = (event: NativeGenerateEvent): Outcome<Generated> | undefined => {
    switch (event.kind) {
      case 'prefill':
        if (!cancellation.cancelled) onPrompt?.(event.done / params.tokens.length);
        return undefined;
      case 'token':
        tokens.push(event.token);
        if (event.chosen) logprobs.push({ ...event.chosen, top: event.top ?? [] });
        emit(event.text, event.token);
        return undefined;
      case 'finish':
        emit(event.text);
        return finish(event);
    }
  };

  return runOperation(
    {
      start: (listener: (event: NativeGenerateEvent) => void) => model.generate(params, listener),
      stop: (id) => model.cancel(id),
      onStart: (id) => {
        acknowledge = (events) => model.acknowledge(id, events);
        sink?.started(acknowledge);
      },
      onEvent,
    },
    cancellation,
  );
}
