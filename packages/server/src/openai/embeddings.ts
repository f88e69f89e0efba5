// POST /v1/embeddings.
import type { FastifyInstance } from 'fastify';
import type { EmbedOptions } from 'gemma-native';
import { z } from 'zod';
import { serve, stream, type ServerContext } from '../context.js';
import { HttpError } from '../errors.js';
import { given, list, parsed, tokenIds } from '../fields.js';
import { rowsOf, vectorsText } from '../vectors.js';

/** The body of a request. Exported for tests, which make wrong ones of it. */
export const embeddingsBody = z.strictObject({
  model: z.string(),
  input: z.union([z.string(), list(z.string(), 65536, 1), tokenIds, list(tokenIds, 65536, 1)]),
  encoding_format: z.enum(['float', 'base64']).nullish(),
  dimensions: z.int().min(1).nullish(),
  user: z.string().nullish(),
  // of gemma-native, under its names
  task: z.string().optional(),
  title: z.union([z.string(), list(z.string(), 65536)]).optional(),
  normalize: z.boolean().optional(),
  truncate: z.boolean().optional(),
});

function textsOf(input: z.output<typeof embeddingsBody>['input'], max: number): string[] {
  const texts = typeof input === 'string' ? [input] : input;
  if (texts.length > max) {
    throw new HttpError(400, 'invalid_value', `input: expected at most ${max} texts, found ${texts.length}`, {
      param: 'input',
    });
  }
  return texts.map((text) => {
    if (typeof text === 'string') return text;
    // A tokenizer of OpenAI's makes ids that mean other words here.
    throw new HttpError(400, 'invalid_value', 'input: expected texts; this server embeds no token ids', {
      param: 'input',
    });
  });
}

export async function embeddings(app: FastifyInstance, context: ServerContext): Promise<void> {
  app.post('/v1/embeddings', async (request, reply) => {
    const body = parsed(embeddingsBody, request.body);
    const texts = textsOf(body.input, context.limits.maxInputs);
    const { dimensions, task, title, normalize, truncate } = body;
    return serve(context, request, reply, body.model, async (job) => {
      const { gemma, model, signal } = job;
      const options = given({ dimensions, task, title, normalize, truncate }) as EmbedOptions; // it knows its tasks
      const found = await gemma.embed(texts, { ...options, signal });
      const { inputTokens } = found.usage;
      job.answered({ inputTokens, outputTokens: 0, imageTokens: 0, cachedInputTokens: 0 });
      const head = { object: 'list' };
      const tail = { model, usage: { prompt_tokens: inputTokens, total_tokens: inputTokens } };
      const rows = rowsOf(found);
      if (body.encoding_format === 'base64') {
        const vectors = rows.map((row, index) => ({ object: 'embedding', index, embedding: base64Of(row) }));
        return { ...head, data: vectors, ...tail };
      }
      let index = 0;
      const written = vectorsText(
        rows,
        `${JSON.stringify(head).slice(0, -1)},"data":[`,
        (numbers) => `{"object":"embedding","index":${index++},"embedding":${numbers}}`,
        `],${JSON.stringify(tail).slice(1)}`,
      );
      await stream(context, job, reply, 'application/json; charset=utf-8', written, () => '');
      return reply;
    });
  });
}

// Float32, little-endian, as all processors that this runs on have it.
function base64Of(row: Float32Array): string {
  return Buffer.from(row.buffer, row.byteOffset, row.byteLength).toString('base64');
}
