// The conversation: a list of turns, drawn again where it changes. The server keeps nothing of it; each request brings all of it.
import { answer, crops, Failure, models } from './api.js';
import { element, jsonTree, parseJson, picture, showMarkdown } from './render.js';
import { openSettings, parameters, systemPrompt, usesPanAndScan } from './settings.js';

const byId = (id) => document.getElementById(id);
const composer = byId('composer');
const message = byId('message');
const list = byId('turns');
const main = document.querySelector('main');

let turns = []; // { role: 'user', text, images } | { role: 'assistant', text, calls, ... } | { role: 'tool', id, text }
let attached = []; // pictures of the next message: { url, name, crops }
let running; // the controller of the answer under way

function say(text) {
  byId('status').textContent = text;
}

function fail(error) {
  const box = byId('failure');
  box.textContent = error ? (error instanceof Failure ? error.message : `Something went wrong: ${error.message}`) : '';
  box.hidden = !error;
  if (error && !(error instanceof Failure)) console.error(error);
}

// What the server gets.

function contentOf({ text, images }) {
  if (images.length === 0) return text;
  const pictures = images.map(({ url }) => ({ type: 'image_url', image_url: { url } }));
  return [...pictures, ...(text ? [{ type: 'text', text }] : [])];
}

function messages() {
  const system = systemPrompt();
  return [
    ...(system ? [{ role: 'system', content: system }] : []),
    ...turns.map((turn) => {
      if (turn.role === 'user') return { role: 'user', content: contentOf(turn) };
      if (turn.role === 'tool') return { role: 'tool', tool_call_id: turn.id, content: turn.text };
      const calls = turn.calls.map(({ id, name, text }) => ({
        id,
        type: 'function',
        function: { name, arguments: text },
      }));
      return { role: 'assistant', content: turn.text, ...(calls.length > 0 && { tool_calls: calls }) };
    }),
  ];
}

// How turns look.

function button(label, onClick, name = label) {
  const made = element('button', { type: 'button' }, label);
  made.setAttribute('aria-label', name);
  made.addEventListener('click', onClick);
  return made;
}

function userTurn(turn, at) {
  const body = element('div', { className: 'body' }, ...turn.images.map(picture));
  body.append(element('div', { className: 'text' }, turn.text));
  return element(
    'li',
    { className: 'user' },
    element('h2', { className: 'hidden' }, 'You'),
    body,
    element(
      'div',
      { className: 'tools' },
      button('Edit', () => edit(at), 'Edit this message'),
    ),
  );
}

function edit(at) {
  const turn = turns[at];
  const box = element('textarea', { value: turn.text, rows: 3 });
  box.setAttribute('aria-label', 'Message');
  const done = button('Send', () => {
    stop();
    turns = [...turns.slice(0, at), { ...turn, text: box.value }];
    void respond();
  });
  done.className = 'main';
  const tools = element('div', { className: 'tools' }, done, button('Cancel', draw));
  list.children[at].replaceChildren(...turn.images.map(picture), box, tools);
  box.focus();
}

function callCard(call, at) {
  const value = parseJson(call.text);
  const shown = value ? element('div', { className: 'json' }, jsonTree(value)) : element('pre', {}, call.text);
  const card = element('section', { className: 'call' }, element('h3', {}, `Call of ${call.name}`), shown);
  const result = turns.slice(at + 1).find((turn) => turn.role === 'tool' && turn.id === call.id);
  if (result) {
    card.append(element('h4', {}, 'Result'), element('pre', {}, result.text));
  } else if (!running && !turns[at].stopped) {
    const box = element('textarea', { rows: 2, value: call.result ?? '' });
    box.addEventListener('input', () => (call.result = box.value));
    card.append(element('label', {}, `Result of ${call.name} `, box));
  }
  return card;
}

function sendResults(at) {
  const { calls } = turns[at];
  turns = [...turns.slice(0, at + 1), ...calls.map(({ id, result }) => ({ role: 'tool', id, text: result ?? '' }))];
  void respond();
}

function showAnswer(target, turn) {
  const value = turn.asked?.response_format && parseJson(turn.text);
  if (value) target.replaceChildren(element('div', { className: 'json' }, jsonTree(value)));
  else showMarkdown(target, turn.text);
}

function facts({ usage, finish, stopped, seconds }) {
  const found = [];
  if (stopped) found.push('stopped');
  if (finish === 'length') found.push('cut off at the limit of tokens');
  if (usage) {
    found.push(`${usage.completion_tokens} tokens`);
    const cached = usage.prompt_tokens_details?.cached_tokens;
    found.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} of them cached` : ''}`);
  }
  if (seconds) found.push(`${seconds.toFixed(1)} s`);
  return found.join(' · ');
}

function assistantTurn(turn, at) {
  const text = element('div', { className: 'text' });
  showAnswer(text, turn);
  const item = element('li', { className: 'assistant' }, element('h2', { className: 'hidden' }, 'Gemma'), text);
  item.append(...turn.calls.map((call) => callCard(call, at)));
  if (turn === running?.turn) return item;
  const tools = element('div', { className: 'tools' });
  const isLast = turns.slice(at + 1).length === 0;
  if (isLast && turn.calls.length > 0 && !turn.stopped) tools.append(button('Send results', () => sendResults(at)));
  if (isLast) tools.append(button('Regenerate', () => regenerate(at)));
  if (turn.text) tools.append(button('Copy', () => void navigator.clipboard.writeText(turn.text), 'Copy this answer'));
  if (turn.asked) tools.append(button('JSON', () => toggleRaw(item, turn), 'Show request and answer as JSON'));
  tools.append(element('span', {}, facts(turn)));
  item.append(tools);
  return item;
}

// Pictures are long and say nothing as text.
function shortened(key, value) {
  return typeof value === 'string' && value.startsWith('data:') ? `${value.slice(0, 40)}…` : value;
}

function toggleRaw(item, { asked, text, calls, usage, finish }) {
  const shown = item.querySelector('.raw');
  if (shown) return shown.remove();
  const answer_ = { text, ...(calls.length > 0 && { calls }), finish, usage };
  item.append(element('pre', { className: 'raw' }, JSON.stringify({ request: asked, answer: answer_ }, shortened, 2)));
  return undefined;
}

function draw() {
  const nearEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  byId('welcome').hidden = turns.length > 0;
  const items = turns.map((turn, at) => {
    if (turn.role === 'user') return userTurn(turn, at);
    if (turn.role === 'assistant') return assistantTurn(turn, at);
    return element('li', { hidden: true }); // its call shows it
  });
  list.replaceChildren(...items);
  byId('send').hidden = running !== undefined;
  byId('stop').hidden = running === undefined;
  if (nearEnd) main.scrollTop = main.scrollHeight;
}

function drawAttached() {
  const items = attached.map((image) => {
    const remove = button('Remove', () => {
      attached = attached.filter((other) => other !== image);
      drawAttached();
      message.focus();
    });
    remove.setAttribute('aria-label', `Remove ${image.name}`);
    return element('li', {}, picture(image), remove);
  });
  byId('attached').replaceChildren(...items);
}

// Asking.

function stop() {
  running?.abort();
}

function regenerate(at) {
  turns = turns.slice(0, at);
  void respond();
}

// While text comes its turn alone is drawn, once for each frame of the screen.
function redraw(turn) {
  if (turn.drawing) return;
  turn.drawing = true;
  requestAnimationFrame(() => {
    turn.drawing = false;
    const target = list.children[turns.indexOf(turn)]?.querySelector('.text');
    if (!target || running?.turn !== turn) return;
    const nearEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
    showMarkdown(target, turn.text);
    if (nearEnd) main.scrollTop = main.scrollHeight;
  });
}

async function respond() {
  fail();
  const asked = { model: byId('model').value, messages: messages(), ...parameters() };
  const turn = { role: 'assistant', text: '', calls: [], asked };
  const controller = new AbortController();
  controller.turn = turn;
  running = controller;
  turns = [...turns, turn];
  draw();
  main.scrollTop = main.scrollHeight;
  say('Gemma is answering');
  const start = performance.now();
  try {
    const on = {
      text(piece) {
        turn.text += piece;
        redraw(turn);
      },
      call(index, { id, name, piece }) {
        const call = (turn.calls[index] ??= { id: '', name: '', text: '' });
        if (id) call.id = id;
        if (name) call.name = name;
        if (piece) call.text += piece;
      },
      usage: (usage) => (turn.usage = usage),
      finish: (reason) => (turn.finish = reason),
    };
    await answer(asked, on, controller.signal);
    turn.seconds = (performance.now() - start) / 1000;
    say(turn.calls.length > 0 ? `Gemma calls ${turn.calls.map(({ name }) => name).join(', ')}` : `Gemma: ${turn.text}`);
  } catch (error) {
    turn.stopped = true;
    turn.calls = []; // what broke off is no call
    const isAbort = error.name === 'AbortError';
    if (turn.text === '') turns = turns.filter((other) => other !== turn);
    if (!isAbort && running === controller) fail(error);
    say(isAbort ? 'Stopped' : 'No answer');
  }
  if (running !== controller) return; // another has begun
  running = undefined;
  draw();
}

composer.addEventListener('submit', (event) => {
  event.preventDefault();
  if (running) return;
  const text = message.value.trim();
  if (!text && attached.length === 0) return message.focus();
  const last = turns.at(-1);
  // Behind an unanswered message, or an answer that never came, this one takes its place.
  if (last?.role === 'user') turns = turns.slice(0, -1);
  turns = [...turns, { role: 'user', text, images: attached }];
  attached = [];
  message.value = '';
  drawAttached();
  return void respond();
});

message.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && running && !byId('settings').open) stop();
});

byId('stop').addEventListener('click', stop);

byId('new').addEventListener('click', () => {
  stop();
  running = undefined;
  turns = [];
  attached = [];
  fail();
  draw();
  drawAttached();
  message.focus();
});

// Pictures.

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Failure(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

async function attach(files) {
  const pictures = [...files].filter(({ type }) => type.startsWith('image/'));
  for (const file of pictures) {
    try {
      const image = { url: await readFile(file), name: file.name || 'Picture' };
      attached = [...attached, image];
      drawAttached();
      if (!usesPanAndScan()) continue;
      image.crops = await crops(image.url);
      drawAttached();
    } catch (error) {
      fail(error);
    }
  }
  if (pictures.length > 0) say(`${attached.length} pictures attached`);
  message.focus();
}

byId('picture').addEventListener('change', ({ target }) => {
  void attach(target.files).then(() => (target.value = ''));
});

document.addEventListener('paste', (event) => {
  if (event.clipboardData?.files.length > 0) void attach(event.clipboardData.files);
});

let depth = 0; // dragging over an element inside another enters one before it leaves the other
const showDrop = (n) => {
  depth = Math.max(0, n);
  byId('drop').hidden = depth === 0;
};
document.addEventListener('dragenter', (event) => {
  if (event.dataTransfer?.types.includes('Files')) showDrop(depth + 1);
});
document.addEventListener('dragleave', () => showDrop(depth - 1));
document.addEventListener('dragover', (event) => event.preventDefault());
document.addEventListener('drop', (event) => {
  event.preventDefault();
  showDrop(0);
  if (event.dataTransfer) void attach(event.dataTransfer.files);
});

// Beginning.

async function listModels() {
  const select = byId('model');
  const chosen = select.value;
  try {
    const names = await models();
    select.replaceChildren(...names.map((name) => element('option', { value: name }, name)));
    if (names.includes(chosen)) select.value = chosen;
    fail();
  } catch (error) {
    fail(error);
  }
}

byId('open-settings').addEventListener('click', async () => {
  if (await openSettings()) await listModels();
});

await listModels();
message.focus();
