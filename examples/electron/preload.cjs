// The bridge between the page and the model's process. It exposes a few functions and nothing else of Node or Electron. The page
// and this script share no objects; values are copied.
'use strict';
const { contextBridge, ipcRenderer } = require('electron');

let port; // to the model's process
let listener = () => {};
let last = { type: 'waiting' }; // the page may begin to listen after the first message
let nextId = 1;

function report(message) {
  if (message.id === undefined) last = message;
  listener(message);
}

ipcRenderer.on('model-channel', ({ ports }) => {
  port?.close();
  [port] = ports;
  port.onmessage = ({ data }) => report(data);
});
ipcRenderer.on('model-gone', (_event, code) => report({ type: 'gone', code }));

contextBridge.exposeInMainWorld('gemma', {
  /** One listener for everything that comes from the model's process; see model-process.mjs. */
  listen(callback) {
    listener = callback;
    callback(last);
  },
  /** Asks; returns the number that the messages about the answer carry. */
  ask(messages, options) {
    if (!port) throw new Error('no model is loaded');
    const id = nextId++;
    port.postMessage({ type: 'ask', id, messages, options });
    return id;
  },
  stop(id) {
    port?.postMessage({ type: 'stop', id });
  },
  chooseModel() {
    ipcRenderer.send('choose-model');
  },
  restart() {
    ipcRenderer.send('restart-model');
  },
});
