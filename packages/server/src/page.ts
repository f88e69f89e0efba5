// The page at `/`: plain modules in the folder page/, two libraries, and where Pan & Scan cuts a picture. It talks to the interface of OpenAI
// like any other client.
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { Gemma } from 'gemma-native';
import { z } from 'zod';
import { imageOptions, pictureOfUrl } from './content.js';
import type { ServerContext } from './context.js';
import { ClientGone, HttpError } from './errors.js';

const FOLDER = join(__dirname, '..', 'page');

// A file beside the one that Node would load: the library as browsers take it.
function library(name: string, file: string): string {
  return join(dirname(require.resolve(name)), file);
}

const FILES: Readonly<Record<string, { path: () => string; type: string }>> = {
  'style.css': { path: () => join(FOLDER, 'style.css'), type: 'text/css; charset=utf-8' },
  ...Object.fromEntries(
    ['app.js', 'api.js', 'render.js', 'settings.js'].map((name) => [
      name,
      { path: () => join(FOLDER, name), type: 'text/javascript; charset=utf-8' },
    ]),
  ),
  'marked.js': { path: () => library('marked', 'marked.esm.js'), type: 'text/javascript; charset=utf-8' },
  'purify.js': { path: () => library('dompurify', 'purify.min.js'), type: 'text/javascript; charset=utf-8' },
};

// Nothing but this server's own files runs or is asked; HTML is made by DOMPurify alone.
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data: blob:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  'trusted-types dompurify',
].join('; ');

const HEADERS = {
  'content-security-policy': POLICY,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cache-control': 'no-cache', // another version of the server may listen here next
};

const cropsBody = z.strictObject({ image: z.string() });

export async function page(app: FastifyInstance, { admission, limits }: ServerContext): Promise<void> {
  app.addHook('onRoute', (route) => {
    route.config = { api: 'page', ...route.config };
  });
  const files = new Map<string, { text: Buffer; type: string }>();
  for (const [name, { path, type }] of Object.entries(FILES)) files.set(name, { text: await readFile(path()), type });
  const index = await readFile(join(FOLDER, 'index.html'));

  // Anyone may see the page; what it asks for wants the key.
  app.get('/', { config: { open: true } }, async (_, reply) =>
    reply.headers(HEADERS).type('text/html; charset=utf-8').send(index),
  );
  app.get<{ Params: { name: string } }>('/page/:name', { config: { open: true } }, async ({ params }, reply) => {
    const file = files.get(params.name);
    if (!file) throw new HttpError(404, 'not_found', 'there is no such file');
    return reply.headers(HEADERS).type(file.type).send(file.text);
  });
  app.post('/page/crops', async (request, reply) => {
    const { success, data } = cropsBody.safeParse(request.body);
    if (!success)
      throw new HttpError(400, 'invalid_value', 'image: expected a data: URL with a picture', { param: 'image' });
    const picture = pictureOfUrl(data.image, 'image', limits);
    // A decoded picture is large: no more of them at the same time than there are answers.
    const controller = new AbortController();
    const onClose = () => controller.abort(new ClientGone());
    reply.raw.on('close', onClose);
    try {
      const { signal } = controller;
      const slot = await admission.enter(request.client, signal);
      try {
        return await Gemma.crops(picture, { ...imageOptions(limits), signal });
      } finally {
        slot.release();
      }
    } finally {
      reply.raw.off('close', onClose);
    }
  });
}
