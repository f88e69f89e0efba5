// The thread in which chat templates are rendered (template-renderer.ts starts it): a template may take long, and this thread
// can be ended.
import { parentPort, workerData } from 'node:worker_threads';
import { Template, TemplateError } from './jinja.js';
import { ControlTexts, renderPrompt, type TemplateRequest } from './template-prompt.js';
import type { TemplateAnswer, TemplateSettings } from './template-renderer.js';

const { source, texts } = workerData as TemplateSettings;
const controls = new ControlTexts(texts);
let template: Template | undefined;

function answer(request: TemplateRequest): TemplateAnswer {
  try {
    template ??= new Template(source);
    return { pieces: renderPrompt(template, request, controls) };
  } catch (error) {
    if (error instanceof TemplateError) return { failure: error.kind, message: error.message };
    throw error;
  }
}

parentPort?.on('message', (request: TemplateRequest) => parentPort?.postMessage(answer(request)));
