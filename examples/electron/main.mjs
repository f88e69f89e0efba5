// The main process: windows, menus, files. The model runs in a utility process (model-process.mjs), so that neither a long
// computation nor a crash affects the window. Pictures and text go from the page to the model through a message channel, not
// through this process.
//
//   electron . [--model=/path/to/model.gguf]      or GEMMA_MODEL; otherwise the demonstration model of gemma-native
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { app, BrowserWindow, dialog, Menu, MessageChannelMain, net, protocol, shell, utilityProcess } from 'electron';

const here = dirname(fileURLToPath(import.meta.url));

// The page has its own scheme: with file: it could read every file that the user can, and could not load ES modules.
protocol.registerSchemesAsPrivileged([{ scheme: 'app', privileges: { standard: true, secure: true } }]);

let modelPath = app.commandLine.getSwitchValue('model') || process.env.GEMMA_MODEL || demoModel();
let window;
let model; // the utility process

// The operating system maps models into memory. It cannot read an asar archive, so models are unpacked next to it.
function demoModel() {
  const packageFile = createRequire(import.meta.url).resolve('gemma-native/package.json');
  const path = join(dirname(packageFile), 'models', 'demo.gguf').replace(/\bapp\.asar([\\/])/, 'app.asar.unpacked$1');
  return existsSync(path) ? path : '';
}

// One process per model. A new model, or a crash, starts a new process with a new channel for the page.
function startModel() {
  if (!window || !modelPath) return;
  model?.removeAllListeners('exit');
  model?.kill();
  model = utilityProcess.fork(join(here, 'model-process.mjs'), [modelPath], { serviceName: 'Gemma' });
  const { port1, port2 } = new MessageChannelMain();
  model.postMessage('connect', [port1]);
  window.webContents.postMessage('model-channel', null, [port2]);
  model.once('exit', (code) => {
    model = undefined;
    if (code !== 0) window?.webContents.send('model-gone', code);
  });
}

async function chooseModel() {
  const { canceled, filePaths } = await dialog.showOpenDialog(window, {
    title: 'Choose a Gemma 3 model',
    message: 'The vision encoder (mmproj-*.gguf) is found beside it.',
    filters: [{ name: 'GGUF models', extensions: ['gguf'] }],
    properties: ['openFile'],
  });
  if (canceled) return;
  modelPath = filePaths[0];
  startModel();
}

function createWindow() {
  window = new BrowserWindow({
    width: 920,
    height: 860,
    minWidth: 420,
    minHeight: 480,
    title: 'Gemma',
    backgroundColor: '#00000000',
    webPreferences: {
      preload: join(here, 'preload.cjs'),
      contextIsolation: true,
      sandbox: true,
      nodeIntegration: false,
    },
  });
  const { webContents } = window;
  // Neither text from the model nor a dropped picture may navigate this window.
  webContents.on('will-navigate', (event) => event.preventDefault());
  webContents.setWindowOpenHandler(({ url }) => {
    if (url.startsWith('https://')) void shell.openExternal(url);
    return { action: 'deny' };
  });
  webContents.on('did-finish-load', startModel); // also after a reload, which closes the page's end of the channel
  webContents.ipc.on('choose-model', () => void chooseModel());
  webContents.ipc.on('restart-model', () => startModel());
  window.on('closed', () => {
    window = undefined;
    model?.kill();
  });
  void window.loadURL('app://gemma/index.html');
}

function createMenu() {
  const template = [
    ...(process.platform === 'darwin' ? [{ role: 'appMenu' }] : []),
    {
      label: 'File',
      submenu: [
        { label: 'Open model…', accelerator: 'CmdOrCtrl+O', click: () => void chooseModel() },
        { type: 'separator' },
        { role: process.platform === 'darwin' ? 'close' : 'quit' },
      ],
    },
    { role: 'editMenu' },
    { role: 'viewMenu' },
    { role: 'windowMenu' },
  ];
  Menu.setApplicationMenu(Menu.buildFromTemplate(template));
}

await app.whenReady();
protocol.handle('app', ({ url }) => {
  const file = join(here, 'page', basename(new URL(url).pathname)); // only files of that folder
  return net.fetch(pathToFileURL(file).href);
});
createMenu();
createWindow();
app.on('activate', () => {
  if (!window) createWindow();
});
app.on('window-all-closed', () => {
  if (process.platform !== 'darwin') app.quit();
});
