// llama.cpp's server as a peer: started for one model, asked over HTTP, stopped.
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { TextDecoder } from 'node:util';
import { buildLlamaCpp } from './peers.mjs';

const START_LIMIT_MS = 120_000;

async function freePort() {
  const server = createServer();
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

/** `post(path, body)` gives an answer's JSON, `stream(path, body)` its server-sent events as objects. */
export function clientOf(base) {
  const request = async (path, body) => {
    const headers = { 'content-type': 'application/json' };
    const answer = await fetch(base + path, { method: 'POST', headers, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).slice(0, 500)}`);
    return answer;
  };
  return {
    post: async (path, body) => (await request(path, body)).json(),
    async *stream(path, body) {
      let text = '';
      const decoder = new TextDecoder();
      for await (const bytes of (await request(path, { ...body, stream: true })).body) {
        text += decoder.decode(bytes, { stream: true });
        const lines = text.split('\n');
        text = lines.pop();
        for (const line of lines) {
          if (line.startsWith('data: {')) yield JSON.parse(line.slice(6));
        }
      }
    },
  };
}

/**
 * Builds the server where it is missing and starts it with its defaults but for what `flags` say. Asked as `clientOf` says; `stop()` ends it.
 */
export async function startLlamaServer(model, flags, log = () => {}) {
  const program = (await buildLlamaCpp(log)).tools['llama-server'];
  const port = await freePort();
  const child = spawn(program, ['-m', model, '--host', '127.0.0.1', '--port', String(port), ...flags], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let said = '';
  let ended = false;
  child.stderr.on('data', (chunk) => (said = (said + chunk).slice(-4000)));
  child.on('close', () => (ended = true));
  const base = `http://127.0.0.1:${port}`;
  for (let waited = 0; ; waited += 100) {
    if (ended || waited > START_LIMIT_MS) {
      child.kill('SIGKILL');
      throw new Error(`llama-server did not start:\n${said}`);
    }
    const health = await fetch(`${base}/health`).catch(() => undefined);
    if (health?.ok) break;
    await sleep(100);
  }
  return {
    ...clientOf(base),
    url: base,
    async stop() {
      child.kill('SIGTERM');
      await new Promise((done) => (ended ? done() : child.on('close', done)));
    },
  };
}
