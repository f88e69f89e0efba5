// The validator that ours is held against: ajv, which no one here wrote.
import { Ajv2020 } from 'ajv/dist/2020.js';
import * as formats from 'ajv-formats';

const addFormats = formats.default as unknown as (ajv: Ajv2020) => Ajv2020;

/** Formats asserted, numbers finite, unknown keywords ignored. */
export function independentValidator(): Ajv2020 {
  return addFormats(new Ajv2020({ strict: false, strictNumbers: true }));
}
