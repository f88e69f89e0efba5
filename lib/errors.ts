import { plain } from './values.js';

// Messages name files, URLs and keys, which can be as long, and hold whatever controls a terminal, as whoever chose them wanted.
const MAX_MESSAGE_BYTES = 1000;

/** What went wrong, stable across versions. Kept equal to ErrorCode in native/base/error.h by a test. */
export const ERROR_CODES = [
  'ERR_FILE',
  'ERR_GGUF_INVALID',
  'ERR_SAFETENSORS_INVALID',
  'ERR_UNSUPPORTED_MODEL',
  'ERR_ADAPTER_INVALID',
  'ERR_UNSUPPORTED_INPUT',
  'ERR_IMAGE',
  'ERR_VIDEO',
  'ERR_CHAT_TEMPLATE',
  'ERR_CONTEXT_FULL',
  'ERR_NON_FINITE',
  'ERR_OUT_OF_MEMORY',
  'ERR_BACKEND_UNAVAILABLE',
  'ERR_INVALID_ARGUMENT',
  'ERR_DISPOSED',
  'ERR_QUEUE_FULL',
  'ERR_STALLED',
  'ERR_OUTPUT_INVALID',
  'ERR_DOWNLOAD',
  'ERR_INTERNAL',
] as const;

export type GemmaErrorCode = (typeof ERROR_CODES)[number];

/**
 * Every failure of the engine. Wrong arguments are `TypeError` and `RangeError` instead, an aborted call rejects with its
 * signal's reason.
 */
export class GemmaError extends Error {
  /** Stable; decide by it. */
  readonly code: GemmaErrorCode;
  /** A finer reason where there is one, such as `BAD_SHAPE` under `ERR_GGUF_INVALID`. */
  readonly detail: string | undefined;

  constructor(code: GemmaErrorCode, message: string, detail?: string) {
    super(plain(message, MAX_MESSAGE_BYTES));
    this.name = 'GemmaError';
    this.code = code;
    this.detail = detail;
  }
}
