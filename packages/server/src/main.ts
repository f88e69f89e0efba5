#!/usr/bin/env node
import { queueMain } from './queue-cli.js';

void queueMain(process.argv).then((code) => {
  process.exitCode = code;
});
