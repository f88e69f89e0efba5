// What a call fails with: the AI SDK's own errors where it has one, with the engine's as `cause`.
import {
  AISDKError,
  APICallError,
  InvalidArgumentError,
  InvalidPromptError,
  UnsupportedFunctionalityError,
} from '@ai-sdk/provider';
import { GemmaError, type GemmaErrorCode } from 'gemma-native';

/** What was asked for, for errors that say it. */
export interface Asked {
  modelId: string;
  /** the prompt, the texts or the documents */
  input: unknown;
}

// A prompt that cannot be computed, whatever is tried again.
const OF_PROMPT: readonly GemmaErrorCode[] = ['ERR_CONTEXT_FULL', 'ERR_IMAGE', 'ERR_VIDEO', 'ERR_CHAT_TEMPLATE'];
// The same, where the messages are at fault and not the settings beside them.
const OF_MESSAGES = ['UNKNOWN_CALL', 'UNANSWERED_CALL', 'DUPLICATE_CALL'];

// Messages begin with what they are about: `topP: expected a number ...`.
function argumentOf(message: string): string {
  return /^[\w.[\]]+(?=: )/.exec(message)?.[0] ?? 'options';
}

function isOfMessages(error: GemmaError): boolean {
  const argument = argumentOf(error.message);
  return OF_MESSAGES.includes(error.detail ?? '') || /^(?:messages|input)\b/.test(argument);
}

/**
 * The AI SDK's error for one of the engine's, which is its `cause`. What an abort signal gave as its reason stays as it is, because the AI
 * SDK looks for it.
 */
export function providerError(error: unknown, { modelId, input }: Asked, signal?: AbortSignal): unknown {
  if (signal?.aborted && error === signal.reason) return error;
  if (error instanceof GemmaError) {
    const { code, message } = error;
    const cause = error;
    if (code === 'ERR_QUEUE_FULL') {
      // The only one that waiting cures: the AI SDK tries again, as after a 503 of a server.
      const url = `gemma-native:${modelId}`;
      return new APICallError({ message, url, requestBodyValues: {}, statusCode: 503, isRetryable: true, cause });
    }
    if (code === 'ERR_UNSUPPORTED_INPUT') {
      const unsupported = new UnsupportedFunctionalityError({ functionality: error.detail ?? code, message });
      return Object.assign(unsupported, { cause });
    }
    if (OF_PROMPT.includes(code)) return new InvalidPromptError({ prompt: input, message, cause });
    if (code === 'ERR_INVALID_ARGUMENT') {
      return isOfMessages(error)
        ? new InvalidPromptError({ prompt: input, message, cause })
        : new InvalidArgumentError({ argument: argumentOf(message), message, cause });
    }
    return new AISDKError({ name: 'AI_GemmaError', message, cause });
  }
  if (error instanceof TypeError || error instanceof RangeError) {
    const { message } = error;
    const argument = argumentOf(message);
    return /^(?:messages|input)\b/.test(argument)
      ? new InvalidPromptError({ prompt: input, message, cause: error })
      : new InvalidArgumentError({ argument, message, cause: error });
  }
  return error;
}
