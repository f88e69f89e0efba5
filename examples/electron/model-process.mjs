// The utility process that holds the model. It talks to the page over message channels that the main process passes to it.
//
// From the page:   { type: 'ask', id, messages, options }   { type: 'stop', id }
// To the page:     { type: 'loading', fraction }   { type: 'ready', model }   { type: 'failed', message }
//                  { type: 'progress', id, stage, fraction }   { type: 'text', id, text }
//                  { type: 'done', id, finishReason, usage, timings }   { type: 'error', id, code, message }
import { basename } from 'node:path';
import { Gemma } from 'gemma-native';

const modelPath = process.argv.at(-1);
const ports = new Set();
const running = new Map(); // question id -> AbortController
let latest = { type: 'loading', fraction: 0 }; // sent to a page that connects later

function tell(message) {
  latest = message;
  for (const port of ports) port.postMessage(message);
}

const loading = Gemma.load(modelPath, { onProgress: (fraction) => tell({ type: 'loading', fraction }) }).then(
  (gemma) => {
    const { info } = gemma;
    const name = info.config.name || basename(modelPath, '.gguf');
    const sees = info.vision !== undefined;
    tell({ type: 'ready', model: { name, size: info.config.size, sees, isa: info.isa, threads: info.threads } });
    return gemma;
  },
  (error) => {
    tell({ type: 'failed', message: error.message });
    throw error;
  },
);
loading.catch(() => {}); // each question reports the failure

async function answer(port, { id, messages, options }) {
  const abort = new AbortController();
  running.set(id, abort);
  try {
    const gemma = await loading;
    const stream = gemma.stream(messages, {
      maxOutputTokens: 800,
      ...options,
      allowLocal: false, // the page hands over pictures as bytes; it must not be able to name files or addresses
      allowRemote: false,
      signal: abort.signal,
      onProgress: ({ stage, fraction }) => port.postMessage({ type: 'progress', id, stage, fraction }),
    });
    for await (const { text } of stream) port.postMessage({ type: 'text', id, text });
    const { finishReason, usage, timings } = await stream.result;
    port.postMessage({ type: 'done', id, finishReason, usage, timings });
  } catch (error) {
    if (abort.signal.aborted) port.postMessage({ type: 'done', id, finishReason: 'stopped' });
    else port.postMessage({ type: 'error', id, code: error.code ?? error.name, message: error.message });
  } finally {
    running.delete(id);
  }
}

process.parentPort.on('message', ({ ports: [port] }) => {
  ports.add(port);
  port.on('message', ({ data }) => {
    if (data.type === 'ask') void answer(port, data);
    if (data.type === 'stop') running.get(data.id)?.abort();
  });
  port.on('close', () => ports.delete(port));
  port.start();
  port.postMessage(latest);
});
