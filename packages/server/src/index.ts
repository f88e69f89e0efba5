export { createServer, type Server, type ServerOptions } from './server.js';
export { HttpError } from './errors.js';
export type { ModelSpec } from './models.js';
export type { ServerContext } from './context.js';
