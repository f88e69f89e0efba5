// The page. It knows the bridge of preload.cjs (window.gemma) and nothing else of Electron, so it runs in a browser as well
// (test/page.mjs). What the model writes is shown as text, never as HTML.
const { gemma } = window;
const element = (id) => document.getElementById(id);
const [conversation, question, send, hint] = ['conversation', 'question', 'send', 'hint'].map(element);

const MAX_BYTES = 64 * 2 ** 20; // gemma-native's own limit for one picture

let model; // what { type: 'ready' } said
let attachments = []; // { file, url }: pictures of the next question
let history = []; // messages so far, answers included
let open; // the answer that is being written: { id, ... }

function make(tag, className, text = '') {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function picture({ file, url }) {
  const image = make('img', '');
  image.src = url;
  image.alt = file.name;
  return image;
}

// the state of the model

function showState(text, isBad = false) {
  element('model-state').textContent = text;
  element('model-state').classList.toggle('bad', isBad);
  refresh();
}

function refresh() {
  send.textContent = open ? 'Stop' : 'Ask';
  send.disabled = open ? false : !model || (question.value.trim() === '' && attachments.length === 0);
}

const onModel = {
  waiting: () => showState('No model yet: open a Gemma 3 model (GGUF)'),
  loading({ fraction }) {
    model = undefined;
    history = []; // it was another model's
    if (open) endAnswer('stopped: another model is loaded');
    showState(`Loading ${Math.round(fraction * 100)} %`);
  },
  ready(message) {
    ({ model } = message);
    element('model-name').textContent = model.name;
    showState(
      [model.size, model.sees ? 'sees pictures' : 'text only', `${model.threads} threads`, model.isa]
        .filter(Boolean)
        .join(' · '),
    );
  },
  failed({ message }) {
    model = undefined;
    showState(message, true);
  },
  gone({ code }) {
    model = undefined;
    showState(`The model's process has ended (${code}); it is being started again`, true);
    if (open) endAnswer('the model’s process has ended', true);
    gemma.restart();
  },
};

// an answer

function endAnswer(note, isBad = false) {
  open.turn.classList.remove('busy');
  open.turn.classList.toggle('failed', isBad);
  open.progress.remove();
  open.note.textContent = note;
  if (open.text.textContent === '' && isBad) open.text.textContent = note;
  open = undefined;
  refresh();
}

const STAGES = { images: 'Looking at the pictures', prompt: 'Reading' };

const onAnswer = {
  progress({ stage, fraction }) {
    open.progress.value = fraction;
    open.note.textContent = STAGES[stage] ?? stage;
  },
  text({ text }) {
    open.progress.remove();
    const atEnd = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 60;
    open.text.append(text);
    open.note.textContent = '';
    if (atEnd) conversation.scrollTop = conversation.scrollHeight;
  },
  done({ finishReason, usage, timings }) {
    history.push({ role: 'assistant', content: open.text.textContent });
    const facts = usage
      ? [
          `${usage.outputTokens} tokens`,
          timings.decodeTokensPerSecond > 0 && `${timings.decodeTokensPerSecond.toFixed(1)} tokens/s`,
          usage.imageTokens > 0 && `${usage.imageTokens} of ${usage.inputTokens} tokens read were pictures`,
          finishReason === 'length' && 'cut at the length limit',
        ]
      : ['stopped'];
    endAnswer(facts.filter(Boolean).join(' · '));
  },
  error({ code, message }) {
    history.pop(); // the question that failed
    endAnswer(`${message} (${code})`, true);
  },
};

gemma.listen((message) => {
  if (message.id === undefined) onModel[message.type]?.(message);
  else if (open?.id === message.id) onAnswer[message.type]?.(message);
});

async function ask() {
  const text = question.value.trim() || 'Describe this picture.';
  const pictures = attachments;
  attachments = [];
  question.value = '';
  hint.textContent = '';
  showAttachments();
  element('welcome')?.remove();

  const mine = make('section', 'turn mine');
  if (pictures.length > 0) {
    const row = make('div', 'pictures');
    row.append(...pictures.map(picture));
    mine.append(row);
  }
  mine.append(make('div', 'bubble', text));

  const turn = make('section', 'turn answer busy');
  const progress = document.createElement('progress');
  const answer = { turn, progress, text: make('div', 'text'), note: make('footer', '') };
  open = answer;
  turn.append(answer.text, progress, answer.note);
  conversation.append(mine, turn);
  conversation.scrollTop = conversation.scrollHeight;
  refresh();

  const images = await Promise.all(pictures.map(async ({ file }) => new Uint8Array(await file.arrayBuffer())));
  if (open !== answer) return; // another model came in between
  history.push({
    role: 'user',
    content: [...images.map((image) => ({ type: 'image', image })), { type: 'text', text }],
  });
  try {
    open.id = gemma.ask(history, { panAndScan: element('pan-and-scan').checked });
  } catch (error) {
    history.pop();
    endAnswer(error.message, true);
  }
}

element('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  if (open) gemma.stop(open.id);
  else void ask();
});
question.addEventListener('input', refresh);
question.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!send.disabled && !open) void ask();
});
for (const suggestion of document.querySelectorAll('.suggestions button')) {
  suggestion.addEventListener('click', () => {
    question.value = suggestion.textContent;
    question.focus();
    refresh();
  });
}
element('choose-model').addEventListener('click', () => gemma.chooseModel());

// pictures: dropped, pasted, chosen

function showAttachments() {
  element('attachments').replaceChildren(
    ...attachments.map((attachment) => {
      const thumb = make('div', 'thumb');
      const remove = make('button', '', '×');
      remove.type = 'button';
      remove.setAttribute('aria-label', `Remove ${attachment.file.name}`);
      remove.addEventListener('click', () => {
        attachments = attachments.filter((other) => other !== attachment);
        URL.revokeObjectURL(attachment.url);
        showAttachments();
      });
      thumb.append(picture(attachment), remove);
      return thumb;
    }),
  );
  refresh();
}

function attach(files) {
  const pictures = [...files].filter((file) => file.type.startsWith('image/'));
  const small = pictures.filter((file) => file.size <= MAX_BYTES);
  if (pictures.length === 0) hint.textContent = 'That is no picture';
  else if (small.length < pictures.length) hint.textContent = 'Larger than 64 MB';
  else if (model && !model.sees) hint.textContent = 'This model reads text only';
  else hint.textContent = '';
  attachments.push(...small.map((file) => ({ file, url: URL.createObjectURL(file) })));
  showAttachments();
  question.focus();
}

let depth = 0; // of elements that the dragged files are over
const dropping = (change) => {
  depth = change === 0 ? 0 : depth + change;
  document.body.classList.toggle('dropping', depth > 0);
};
window.addEventListener('dragenter', () => dropping(1));
window.addEventListener('dragleave', () => dropping(-1));
window.addEventListener('dragover', (event) => event.preventDefault());
window.addEventListener('drop', (event) => {
  event.preventDefault();
  dropping(0);
  attach(event.dataTransfer.files);
});
window.addEventListener('paste', (event) => {
  if (event.clipboardData.files.length > 0) attach(event.clipboardData.files);
});
element('attach').addEventListener('click', () => element('files').click());
element('files').addEventListener('change', ({ target }) => {
  attach(target.files);
  target.value = '';
});
