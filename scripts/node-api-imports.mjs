// Writes the C++ file that gives each function of Node-API its import pointer on Windows, filled when the addon is loaded:
//
//   node scripts/node-api-imports.mjs OUT.cpp
//
// It takes the place of an import library, which would name one program (node.exe), and of Microsoft's delay-load hook, which
// other linkers do not have. Electron's and other hosts' programs have other names.
import { readFileSync, writeFileSync } from 'node:fs';
import { def_paths as definitions } from 'node-api-headers';

const names = new Set(
  [definitions.js_native_api_def, definitions.node_api_def]
    .flatMap((file) => readFileSync(file, 'utf8').split(/\r?\n/))
    .map((line) => line.trim())
    .filter((line) => /^(napi|node_api)_\w+$/.test(line)),
);
const lines = (line) => [...names].sort().map(line).join('\n');

writeFileSync(
  process.argv[2],
  `// Made by scripts/node-api-imports.mjs from the package node-api-headers.
#include <windows.h>

extern "C" {
${lines((name) => `extern FARPROC __imp_${name};\nFARPROC __imp_${name} = nullptr;`)}
}

namespace {

struct Import {
  const char* name;
  FARPROC* pointer;
};
const Import kImports[] = {
${lines((name) => `    {"${name}", &__imp_${name}},`)}
};

// Before any constructor of ours: one of them may call Node.
__attribute__((constructor(101))) void fill_imports() {
  HMODULE host = GetModuleHandleW(L"libnode.dll");
  if (host == nullptr) host = GetModuleHandleW(nullptr);
  for (const Import& import : kImports) *import.pointer = GetProcAddress(host, import.name);
}

}  // namespace
`,
);
