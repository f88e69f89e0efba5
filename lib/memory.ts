// How much memory there is.
import { freemem } from 'node:os';

/** Bytes that this process could use now. */
export function availableMemory(): number {
  const limit = process.constrainedMemory(); // of the container; 0 or huge without one
  return limit > 0 ? Math.min(freemem(), limit) : freemem();
}
