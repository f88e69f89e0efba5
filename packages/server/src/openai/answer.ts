// An answer as gemma-native gives it, whole or piece by piece. Where at most one tool may be called the answer ends with the first call.
import type { GenerateOptions, GenerateResult, Input, StreamPart } from 'gemma-native';
import type { Job } from '../context.js';

/** What is asked of the model. */
export interface Question {
  input: Input;
  options: GenerateOptions;
  /** at most one call */
  oneCall: boolean;
}

/** `index`: of several answers, which one */
export type AnswerEvent = { index: number } & (
  { kind: 'part'; part: StreamPart } | { kind: 'end'; result: GenerateResult }
);

/** The parts of an answer, then its result. */
export async function* answerParts(
  job: Job,
  { input, options, oneCall }: Question,
  stallTimeoutMs: number,
  index = 0,
): AsyncGenerator<AnswerEvent, void, undefined> {
  const stream = job.gemma.stream(input, { ...options, ...job.images, stallTimeoutMs, signal: job.signal });
  let call: Extract<StreamPart, { type: 'tool-call' }> | undefined;
  for await (const part of stream) {
    job.firstToken();
    yield { index, kind: 'part', part };
    if (part.type === 'tool-call' && oneCall) {
      call = part;
      break; // which ends the work
    }
  }
  const result = await stream.result;
  job.answered(result.usage);
  const { id = '', name = '', input: args } = call ?? {};
  // What the model may have begun behind the call is no part of the answer.
  yield {
    index,
    kind: 'end',
    result: call ? { ...result, finishReason: 'tool-calls', toolCalls: [{ id, name, input: args }] } : result,
  };
}

/** A whole answer. */
export async function answer(job: Job, { input, options, oneCall }: Question): Promise<GenerateResult> {
  if (oneCall) {
    let text = '';
    for await (const event of answerParts(job, { input, options, oneCall }, 0)) {
      if (event.kind === 'end') return { ...event.result, text };
      text += event.part.text;
    }
  }
  const result = await job.gemma.generate(input, { ...options, ...job.images, signal: job.signal });
  job.firstToken();
  job.answered(result.usage);
  return result;
}
