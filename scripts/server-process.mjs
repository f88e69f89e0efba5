// This package's server in a process of its own, for what measures it or wears it out.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { root, SetupError } from './steps.mjs';

/**
 * Starts it with one model, `NAME=FILE`, on a free port. `ended` gives the exit code; `stop()` ends it and throws where that is not 0.
 *
 * @param folder of the project whose build is run
 */
export async function startServer(model, flags, { nodeFlags = [], folder = root } = {}) {
  const path = join(folder, 'packages', 'server', 'dist', 'main.js');
  const args = [path, '--model', model, '--pin', '--port', '0', '--log-level', 'silent', ...flags];
  const child = spawn(process.execPath, [...nodeFlags, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  const ended = new Promise((resolve) => child.on('close', (code) => resolve(code)));
  const url = await new Promise((resolve, reject) => {
    child.stderr.on('data', (chunk) => {
      said += chunk;
      const [, found] = /listens on (\S+)/.exec(said) ?? [];
      if (found) resolve(found);
    });
    void ended.then(() => reject(new SetupError(`the server did not start:\n${said}`)));
  });
  const stop = async () => {
    child.kill('SIGTERM');
    const code = await ended;
    if (code !== 0) throw new SetupError(`the server ended with ${code}:\n${said}`);
  };
  return { url, pid: child.pid, stop, ended };
}
