// Opens files of strangers one after the other: node open.cjs ROOT BASE LIST, where LIST is a file with a path in each line, "model" or
// "adapter" and a blank before it. Prints a line of JSON for each, before it is opened and with what came of it. A parent sees which one
// ends the process. Memory is limited (prlimit), so that sizes that a file claims end as ERR_OUT_OF_MEMORY where they are believed.
'use strict';
const { execFileSync } = require('node:child_process');
const { readFileSync } = require('node:fs');
const [, , root, base, list] = process.argv;
const { Gemma } = require(root);

const MORE = 512 * 2 ** 20; // bytes of address space for all that follows
const options = { threads: 1, contextSize: 64, prefixCacheBytes: 0 };

(async () => {
  const gemma = await Gemma.load(base, options);
  if (process.platform === 'linux') {
    const kib = Number(/VmSize:\s*(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
    try {
      execFileSync('prlimit', ['--pid', String(process.pid), `--as=${kib * 1024 + MORE}`]);
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
    }
  }
  const lines = readFileSync(list, 'utf8').split('\n').filter(Boolean);
  for (const line of lines) {
    const [kind] = line.split(' ', 1);
    const path = line.slice(kind.length + 1);
    process.stdout.write('{"opens":true}\n');
    let result;
    try {
      if (kind === 'adapter') {
        await gemma.loadAdapter('stranger', path);
        await gemma.unloadAdapter('stranger');
      } else {
        await (await Gemma.load(path, options)).dispose();
      }
      result = { loaded: true };
    } catch (error) {
      const { name, code, detail, message } = error;
      result = { name, code, detail, message };
    }
    process.stdout.write(`${JSON.stringify(result)}\n`);
  }
  await gemma.dispose();
})();
