#!/usr/bin/env node
import { main } from './cli.js';
import { QUEUE_COMMANDS, queueMain } from './queue-cli.js';

const run = QUEUE_COMMANDS.includes(process.argv[2] ?? '') ? queueMain : main;
void run(process.argv).then((code) => {
  process.exitCode = code;
});
