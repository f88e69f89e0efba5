// Answers in Google's form.
import type { GenerateResult, TokenLogprobs, ToolCall, Usage } from 'gemma-native';
import type { Job } from '../context.js';
import type { HttpError } from '../errors.js';
import { finite, idsOf, spelled, textLogprobs } from '../openai/common.js';

const FINISH: Readonly<Record<GenerateResult['finishReason'], string>> = {
  stop: 'STOP',
  length: 'MAX_TOKENS',
  'tool-calls': 'STOP',
  error: 'OTHER',
  other: 'OTHER',
};

export function callPart({ id, name, input }: Pick<ToolCall, 'id' | 'name' | 'input'>) {
  return { functionCall: { id, name, args: input } };
}

/** A candidate, or a piece of one. */
export function candidate(index: number, parts: readonly object[], more: object = {}) {
  return { content: { parts, role: 'model' }, ...more, index };
}

async function logprobsResult({ gemma, signal }: Job, entries: readonly TokenLogprobs[], top: number) {
  const texts = await spelled(gemma, idsOf(entries), signal);
  const entry = ({ token, logprob }: { token: number; logprob: number }) => ({
    token: texts.get(token) ?? '',
    tokenId: token,
    logProbability: finite(logprob),
  });
  return {
    chosenCandidates: entries.map(entry),
    topCandidates: entries.map((each) => ({ candidates: each.top.slice(0, top).map(entry) })),
  };
}

/** What stands beside the content at an answer's end. */
export async function endOf(job: Job, result: GenerateResult, top: number | undefined) {
  const finishReason = FINISH[result.finishReason];
  if (top === undefined) return { finishReason };
  const entries = await textLogprobs(job.gemma, result, job.signal);
  const sum = entries.reduce((total, { logprob }) => total + finite(logprob), 0);
  return {
    finishReason,
    avgLogprobs: entries.length > 0 ? sum / entries.length : 0,
    logprobsResult: await logprobsResult(job, entries, top),
  };
}

function promptDetails(inputTokens: number, imageTokens: number) {
  return [
    { modality: 'TEXT', tokenCount: inputTokens - imageTokens },
    ...(imageTokens > 0 ? [{ modality: 'IMAGE', tokenCount: imageTokens }] : []),
  ];
}

export function usageMetadata({ inputTokens, outputTokens, imageTokens, cachedInputTokens }: Usage) {
  return {
    promptTokenCount: inputTokens,
    candidatesTokenCount: outputTokens,
    totalTokenCount: inputTokens + outputTokens,
    ...(cachedInputTokens > 0 && { cachedContentTokenCount: cachedInputTokens }),
    promptTokensDetails: promptDetails(inputTokens, imageTokens),
  };
}

const STATUSES: Readonly<Record<number, string>> = {
  400: 'INVALID_ARGUMENT',
  401: 'UNAUTHENTICATED',
  403: 'PERMISSION_DENIED',
  404: 'NOT_FOUND',
  408: 'DEADLINE_EXCEEDED',
  429: 'RESOURCE_EXHAUSTED',
  499: 'CANCELLED',
  500: 'INTERNAL',
  503: 'UNAVAILABLE',
  504: 'DEADLINE_EXCEEDED',
};

/** What a client is told of an error. */
export function errorBody({ status, message, param, code }: HttpError) {
  const details = [
    { '@type': 'type.googleapis.com/google.rpc.ErrorInfo', reason: code.toUpperCase(), domain: 'gemma-native' },
    ...(param === undefined
      ? []
      : [
          {
            '@type': 'type.googleapis.com/google.rpc.BadRequest',
            fieldViolations: [{ field: param, description: message }],
          },
        ]),
  ];
  const name = STATUSES[status] ?? (status >= 500 ? 'INTERNAL' : 'INVALID_ARGUMENT');
  return { error: { code: status, message, status: name, details } };
}
