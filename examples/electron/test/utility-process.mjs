// Stands in for Electron's utility process: runs model-process.mjs as it is in a worker thread of Node. A parent port that hands
// on message ports, and ports whose messages come as { data }, are all that it uses of Electron.
import { MessagePort, parentPort, workerData } from 'node:worker_threads';

// Node's ports emit the data itself, Electron's an event with it.
function electronPort(port) {
  return {
    postMessage: (message) => port.postMessage(message),
    on: (event, listener) => port.on(event, event === 'message' ? (data) => listener({ data }) : listener),
    start: () => port.start(),
  };
}

process.argv.push(workerData.model);
process.parentPort = {
  on: (event, listener) =>
    parentPort.on(event, (data) => listener({ data, ports: data instanceof MessagePort ? [electronPort(data)] : [] })),
};
await import('../model-process.mjs');
