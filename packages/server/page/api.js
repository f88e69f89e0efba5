// What the page asks the server: the interface of OpenAI, and where Pan & Scan cuts a picture.

/** A request that the server refused, or an answer that broke off. */
export class Failure extends Error {}

let key = sessionStorage.getItem('key') ?? '';

export function apiKey() {
  return key;
}

/** The key stays with this tab. */
export function setApiKey(value) {
  key = value;
  if (key) sessionStorage.setItem('key', key);
  else sessionStorage.removeItem('key');
}

async function ask(path, { body, signal } = {}) {
  const headers = {
    ...(key && { authorization: `Bearer ${key}` }),
    ...(body && { 'content-type': 'application/json' }),
  };
  const method = body ? 'POST' : 'GET';
  let response;
  try {
    response = await fetch(path, { method, headers, signal, ...(body && { body: JSON.stringify(body) }) });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure('The server cannot be reached.');
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  if (response.status === 401) throw new Failure('This server wants an API key: enter it in the settings.');
  const wait = response.headers.get('retry-after');
  const again = response.status === 429 || response.status === 503 ? ` Try again${wait ? ` in ${wait} s` : ''}.` : '';
  throw new Failure(`${error?.message ?? `The server answered ${response.status}.`}${again}`);
}

/** The names of the models that the server has. */
export async function models() {
  const { data } = await (await ask('v1/models')).json();
  return data.map(({ id }) => id);
}

/** Where Pan & Scan cuts a picture: `{ width, height, crops: [{ x, y, width, height }] }`, in pixels. */
export async function crops(image) {
  return (await ask('page/crops', { body: { image } })).json();
}

// Server-sent events: lines "data: ..." with an empty line behind each event.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const data = part
        .split('\n')
        .filter((line) => line.startsWith('data: '))
        .map((line) => line.slice('data: '.length));
      if (data.length > 0) yield data.join('\n');
    }
  }
}

/**
 * Asks for an answer and passes on what comes of it.
 *
 * @param request as OpenAI's interface takes it, without `stream`
 * @param on `text(piece)`, `call(index, { id, name, piece })`, `usage(usage)`, `finish(reason)`
 * @throws Failure; an AbortError when the signal is aborted
 */
export async function answer(request, on, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await ask('v1/chat/completions', { body, signal });
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const { error, choices = [], usage } = JSON.parse(data);
    if (error) throw new Failure(error.message);
    for (const { delta, finish_reason: reason } of choices) {
      if (delta?.content) on.text(delta.content);
      for (const { index, id, function: { name, arguments: piece } = {} } of delta?.tool_calls ?? []) {
        on.call(index, { id, name, piece });
      }
      if (reason) on.finish(reason);
    }
    if (usage) on.usage(usage);
  }
  throw new Failure('The connection ended before the answer did.');
}
