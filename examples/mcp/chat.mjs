// A conversation whose tools are those of an MCP server: they are listed, and each call goes to the server.
// node chat.mjs [model-it.gguf] [command of an MCP server, with its arguments]
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { Gemma } from 'gemma-native';
import { fileURLToPath } from 'node:url';

const [model, command = process.execPath, ...args] = process.argv.slice(2);
const own = [fileURLToPath(new URL('server.mjs', import.meta.url))];
const client = new Client({ name: 'gemma-native-mcp-example', version: '0.1.0' });
await client.connect(new StdioClientTransport({ command, args: process.argv[3] ? args : own }));

// What a server says is text for the model, and never more: no control token is made of it. JSON reaches the model as data.
function dataOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

async function call(name, input, signal) {
  const { content, structuredContent, isError } = await client.callTool({ name, arguments: input }, undefined, {
    signal,
  });
  const texts = content.map((part) => (part.type === 'text' ? part.text : `(${part.type})`));
  if (isError) throw new Error(texts.join('\n'));
  return structuredContent ?? dataOf(texts.join('\n'));
}

const tools = {};
for (const { name, description, inputSchema } of (await client.listTools()).tools) {
  tools[name] = { description, inputSchema, execute: (input, { signal }) => call(name, input, signal) };
}

// The demonstration model knows the tool of server.mjs, by its adapter.
const gemma = model ? await Gemma.load(model) : await Gemma.load('demo', { adapters: { tools: Gemma.demoAdapter } });
const chat = gemma.chat({ tools, maxOutputTokens: 200, ...(!model && { adapter: 'tools', temperature: 0 }) });
for (const question of ['What is 417 plus 311?', 'Thank you!']) {
  console.log(`> ${question}`);
  for await (const part of chat.stream(question)) {
    if (part.type === 'tool-call') process.stdout.write(`${part.name}(${JSON.stringify(part.input)})`);
    if (part.type === 'tool-result') console.log(` = ${JSON.stringify(part.output)}`);
    process.stdout.write(part.text);
  }
  console.log();
}
await gemma.dispose();
await client.close();
