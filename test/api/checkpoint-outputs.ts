// What two models must say alike, to the bit, when their weights are the same.
import type { Message } from '../../lib/index.js';
import { withModel } from './helpers.js';

/** A text of several scripts, with white space and tags. */
export const TEXT = 'The quiet river opens a letter; na\u00efve \u65e5\u672c\u8a9e  <b>x</b>\n\n1, 2.';
const SEEN: Message[] = [
  { role: 'user', content: [{ type: 'image', image: { data: new Uint8Array(24 * 24 * 3).map((_, i) => i * 7), width: 24, height: 24, channels: 3 } }, { type: 'text', text: 'What?' }] }, // prettier-ignore
] as Message[];

/** Tokens, logits of a text and of a picture, and an answer. */
export async function outputs(model: string, options: object, pictures: boolean) {
  return withModel(
    async (gemma) => ({
      tokens: await gemma.tokenize(TEXT),
      text: (await gemma.logits(TEXT, { raw: true, all: true })).data,
      ...(pictures && { seen: (await gemma.logits(SEEN)).data }),
      generated: (await gemma.generate(TEXT, { raw: true, maxOutputTokens: 8, temperature: 0 })).tokens,
    }),
    options,
    model,
  );
}
