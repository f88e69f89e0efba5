// An MCP server with a tool, which speaks over its standard input and output.
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js';
import { z } from 'zod';

const server = new McpServer({ name: 'numbers', version: '0.1.0' });
server.registerTool(
  'add',
  { description: 'Adds two numbers', inputSchema: { a: z.int(), b: z.int() } },
  async ({ a, b }) => ({ content: [{ type: 'text', text: String(a + b) }] }),
);
await server.connect(new StdioServerTransport());
