#!/usr/bin/env node
'use strict';
// Stands in for node-gyp inside prebuildify, which knows nothing else: ignores its arguments and builds with CMake.
const { execFileSync } = require('node:child_process');
const { join } = require('node:path');

execFileSync(process.execPath, [join(__dirname, 'build-native.mjs')], { stdio: 'inherit' });
