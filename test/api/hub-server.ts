// A server that behaves like the Hugging Face hub, as far as models are got from it: the API's listing, files by their commit, large ones
// behind a redirect to another origin with a signed URL, ranges, tokens and the hub's errors. Tests make it misbehave.
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const COMMIT = 'c0ffee'.repeat(6) + 'abcd';

export interface RepoFile {
  body: Buffer;
  /** in Git LFS: redirected, and known by SHA-256 */
  lfs: boolean;
  hash: string;
}

export interface Repo {
  files: Map<string, RepoFile>;
  commit: string;
  /** its files need a token */
  gated?: boolean;
  /** nothing of it is there without a token */
  private?: boolean;
  license?: string;
}

export interface Request {
  kind: 'api' | 'hub' | 'cdn';
  method: string;
  url: string;
  authorization: string | undefined;
  range: string | undefined;
  status: number;
}

type Fault = (request: IncomingMessage, response: ServerResponse, kind: Request['kind']) => boolean;
type Deliver = (response: ServerResponse, body: Buffer, start: number, end: number) => void | Promise<void>;

export function hashOf(body: Buffer, lfs: boolean): string {
  return lfs
    ? createHash('sha256').update(body).digest('hex')
    : createHash('sha1').update(`blob ${body.length}\0`).update(body).digest('hex');
}

function listen(server: Server): Promise<string> {
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve(`http://127.0.0.1:${(server.address() as AddressInfo).port}`));
  });
}

export class FakeHub {
  readonly repos = new Map<string, Repo>();
  readonly token = 'hf_secret';
  readonly requests: Request[] = [];
  /** Answers a request instead of the server when it returns true. */
  fault: Fault | undefined;
  /** Sends the body of a large file, bytes start to end. */
  deliver: Deliver | undefined;
  /** what the listing says instead of the truth */
  listing: ((info: Record<string, unknown>) => unknown) | undefined;
  knowsRanges = true;
  endpoint = '';
  cdn = '';
  readonly #servers: Server[] = [];

  async start(): Promise<this> {
    const hub = createServer((request, response) => void this.#answer(request, response));
    const cdn = createServer((request, response) => void this.#deliver(request, response));
    this.#servers.push(hub, cdn);
    [this.endpoint, this.cdn] = [await listen(hub), await listen(cdn)];
    return this;
  }

  async stop(): Promise<void> {
    for (const server of this.#servers) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  add(name: string, files: Record<string, Buffer | string>, options: Partial<Repo> = {}): Repo {
    const entries = Object.entries(files).map(([path, content]): [string, RepoFile] => {
      const body = Buffer.from(content as string);
      const lfs = /\.(?:gguf|safetensors|bin)$|^tokenizer\.(?:json|model)$/.test(path);
      return [path, { body, lfs, hash: hashOf(body, lfs) }];
    });
    const repo = { files: new Map(entries), commit: COMMIT, ...options };
    this.repos.set(name, repo);
    return repo;
  }

  /** Bytes of bodies that were asked for, by what their ranges say. */
  reset(): void {
    this.requests.length = 0;
    this.fault = this.deliver = this.listing = undefined;
    this.knowsRanges = true;
  }

  #log(request: IncomingMessage, response: ServerResponse, kind: Request['kind']): void {
    const entry: Request = {
      kind,
      method: request.method ?? '',
      url: request.url ?? '',
      authorization: request.headers.authorization,
      range: request.headers.range,
      status: 0,
    };
    this.requests.push(entry);
    const writeHead = response.writeHead.bind(response) as (...args: unknown[]) => ServerResponse;
    response.writeHead = (status: number, ...rest: unknown[]) => {
      entry.status = status;
      return writeHead(status, ...rest);
    };
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname } = new URL(request.url ?? '', this.endpoint);
    const isApi = pathname.startsWith('/api/');
    this.#log(request, response, isApi ? 'api' : 'hub');
    if (this.fault?.(request, response, isApi ? 'api' : 'hub')) return;
    const refuse = (status: number, code: string, message: string) => {
      response.writeHead(status, { 'x-error-code': code, 'x-error-message': message }).end();
    };
    const [, name = '', revision = '', path = ''] =
      /^\/api\/models\/([^/]+\/[^/]+)\/revision\/([^/]+)()$/.exec(pathname) ??
      /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(pathname) ??
      [];
    const repo = this.repos.get(name);
    const { authorization } = request.headers;
    const isKnown = authorization === `Bearer ${this.token}`;
    if (authorization !== undefined && !isKnown) return refuse(401, '', 'Invalid credentials in Authorization header');
    if (!repo || (repo.private && !isKnown)) return refuse(isKnown ? 404 : 401, 'RepoNotFound', 'Repository not found');
    if (!['main', 'v1', 'refs/pr/1', repo.commit].includes(decodeURIComponent(revision))) {
      return refuse(404, 'RevisionNotFound', 'Invalid rev id');
    }
    if (isApi) return this.#list(response, name, repo);
    if (repo.gated && !isKnown) return refuse(401, 'GatedRepo', `Access to model ${name} is restricted`);
    const file = repo.files.get(decodeURIComponent(path));
    if (!file) return refuse(404, 'EntryNotFound', 'Entry not found');
    const headers = { 'x-repo-commit': repo.commit, etag: `"${file.hash}"` };
    if (!file.lfs) {
      response.writeHead(200, { ...headers, 'content-length': file.body.length });
      response.end(request.method === 'HEAD' ? undefined : file.body);
      return;
    }
    response.writeHead(302, {
      ...headers,
      'x-linked-etag': `"${file.hash}"`,
      'x-linked-size': file.body.length,
      location: `${this.cdn}/${file.hash}?signature=very-secret`,
      'content-length': 0,
    });
    response.end();
  }

  #list(response: ServerResponse, id: string, { commit, files, gated = false, license }: Repo): void {
    const info = {
      id,
      sha: commit,
      gated: gated ? 'manual' : false,
      ...(license !== undefined && { cardData: { license } }),
      siblings: [...files].map(([rfilename, { body, lfs, hash }]) => ({
        rfilename,
        size: body.length,
        blobId: hashOf(body, false),
        ...(lfs && { lfs: { sha256: hash, size: body.length, pointerSize: 135 } }),
      })),
    };
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(this.listing ? this.listing(info) : info));
  }

  async #deliver(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.#log(request, response, 'cdn');
    if (this.fault?.(request, response, 'cdn')) return;
    const hash = (request.url ?? '').slice(1).replace(/\?.*/, '');
    const file = [...this.repos.values()].flatMap(({ files }) => [...files.values()]).find((one) => one.hash === hash);
    if (!file) return void response.writeHead(403).end();
    const { body } = file;
    const asked = this.knowsRanges ? /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') : null;
    const start = Number(asked?.[1] ?? 0);
    const end = Math.min(Number(asked?.[2] || body.length - 1) + 1, body.length);
    const headers = { etag: `"cdn-${hash}"`, 'content-length': end - start };
    if (asked) response.writeHead(206, { ...headers, 'content-range': `bytes ${start}-${end - 1}/${body.length}` });
    else response.writeHead(200, headers);
    if (request.method === 'HEAD') return void response.end();
    if (this.deliver) await this.deliver(response, body, start, end);
    else response.end(body.subarray(start, end));
  }
}
