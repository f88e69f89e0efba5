// What the user has set: kept in this browser, but for the key, which stays with the tab.
import { apiKey, setApiKey } from './api.js';

const dialog = document.getElementById('settings');
const form = dialog.querySelector('form');
const failure = document.getElementById('settings-failure');
const texts = ['system', 'temperature', 'topK', 'topP', 'maxTokens', 'seed', 'adapter', 'schema', 'tools'];

function stored() {
  try {
    return JSON.parse(localStorage.getItem('settings')) ?? {};
  } catch {
    return {};
  }
}

let settings = stored();

function number(name, label, { min, max, whole }) {
  const text = form.elements[name].value.trim();
  if (text === '') return;
  const value = Number(text);
  if (!(value >= min && value <= max) || (whole && !Number.isInteger(value))) {
    throw new RangeError(
      `${label}: expected ${whole ? 'a whole number' : 'a number'} from ${min} to ${max}, found ${text}`,
    );
  }
}

function json(name, label, isRight, expected) {
  const text = form.elements[name].value.trim();
  if (text === '') return;
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new TypeError(`${label}: ${error.message}`, { cause: error });
  }
  if (!isRight(value)) throw new TypeError(`${label}: expected ${expected}`);
}

function check() {
  number('temperature', 'Temperature', { min: 0, max: 2 });
  number('topK', 'Top k', { min: 0, max: 1e6, whole: true });
  number('topP', 'Top p', { min: 0, max: 1 });
  number('maxTokens', 'Most tokens of an answer', { min: 1, max: 1e6, whole: true });
  number('seed', 'Seed', { min: 0, max: Number.MAX_SAFE_INTEGER, whole: true });
  json('schema', 'JSON schema', (value) => typeof value === 'object' && value && !Array.isArray(value), 'an object');
  json('tools', 'Tools', Array.isArray, 'an array');
}

/** Shows the settings; resolves when they are closed, with whether they were changed. */
export function openSettings() {
  for (const name of texts) form.elements[name].value = settings[name] ?? '';
  form.elements.panAndScan.checked = settings.panAndScan === true;
  form.elements.key.value = apiKey();
  failure.hidden = true;
  dialog.returnValue = 'cancel';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'save'), { once: true });
  });
}

form.addEventListener('submit', (event) => {
  if (event.submitter?.value !== 'save') return;
  try {
    check();
  } catch (error) {
    event.preventDefault();
    failure.textContent = error.message;
    failure.hidden = false;
    return;
  }
  settings = { panAndScan: form.elements.panAndScan.checked };
  for (const name of texts) settings[name] = form.elements[name].value.trim();
  localStorage.setItem('settings', JSON.stringify(settings));
  setApiKey(form.elements.key.value.trim());
});

export function usesPanAndScan() {
  return settings.panAndScan === true;
}

export function systemPrompt() {
  return settings.system ?? '';
}

/** The settings as parameters of OpenAI's interface. */
export function parameters() {
  const numbers = { temperature: 'temperature', topK: 'topK', topP: 'top_p', maxTokens: 'max_tokens', seed: 'seed' };
  const found = {};
  for (const [name, parameter] of Object.entries(numbers))
    if (settings[name]) found[parameter] = Number(settings[name]);
  if (settings.adapter) found.adapter = settings.adapter;
  if (settings.panAndScan) found.panAndScan = true;
  if (settings.schema) {
    found.response_format = {
      type: 'json_schema',
      json_schema: { name: 'answer', schema: JSON.parse(settings.schema) },
    };
  }
  if (settings.tools) found.tools = JSON.parse(settings.tools);
  return found;
}
