// gemma-native run: answers or continues a prompt, piece by piece.
import { readFileSync } from 'node:fs';
import type { GenerateOptions, Input, StreamPart, ToolChoice, Tools } from '../../index.js';
import {
  collect,
  adapterOptions,
  imageOptions,
  jsonFrom,
  number,
  samplingOptions,
  textFrom,
  using,
  withAdapters,
  withImages,
  withModel,
  withSampling,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
  type SamplingFlags,
} from '../options.js';
import { note, printJson, promptProgress, UsageError } from '../output.js';

interface RunFlags extends ModelFlags, ImageFlags, SamplingFlags {
  video?: string[];
  fps?: number;
  maxFrames?: number;
  raw?: boolean;
  system?: string;
  draft?: string | false;
  schema?: string;
  regex?: string;
  choice?: string[];
  grammar?: string;
  tools?: string;
  toolChoice?: string;
}

function toolChoiceOf(text: string): ToolChoice {
  return text === 'auto' || text === 'none' || text === 'required' ? text : { tool: text };
}

/** What the answer is bound to, and what it may call. */
function structureOf({ schema, regex, choice, grammar, tools, toolChoice }: RunFlags): GenerateOptions {
  return {
    ...(schema !== undefined && { schema: jsonFrom(schema, '--schema') as object }),
    ...(regex !== undefined && { regex }),
    ...(choice && { choices: choice }),
    ...(grammar !== undefined && { grammar: readFileSync(grammar, 'utf8') }),
    ...(tools !== undefined && { tools: jsonFrom(tools, '--tools') as Tools }),
    ...(toolChoice !== undefined && { toolChoice: toolChoiceOf(toolChoice) }),
  };
}

/** Writes an answer as it comes; calls of tools are lines of their own. */
async function show(stream: AsyncIterable<StreamPart>, onPart: () => void): Promise<void> {
  let isEmpty = true; // the line
  let isOpen = true; // the answer's last line
  for await (const part of stream) {
    onPart();
    if (part.type === 'tool-call') {
      process.stdout.write(`${isEmpty ? '' : '\n'}${part.name} ${JSON.stringify(part.input)}\n`);
      isEmpty = true;
      isOpen = false;
    } else if (part.text !== '') {
      process.stdout.write(part.text);
      isEmpty = part.text.endsWith('\n');
      isOpen = true;
    }
  }
  if (isOpen) process.stdout.write('\n');
}

function speed(tokens: number, ms: number, rate: number): string {
  return `${tokens} tokens in ${(ms / 1000).toFixed(2)} s (${rate.toFixed(1)}/s)`;
}

/** A prompt with what stands before it: pictures, videos, a system message. */
function inputOf(prompt: string, flags: RunFlags): Input {
  const { system, image = [], video = [], fps, maxFrames } = flags;
  if (system === undefined && video.length === 0) return prompt; // images go in by an option
  const frames = { ...(fps !== undefined && { fps }), ...(maxFrames !== undefined && { maxFrames }) };
  return [
    ...(system === undefined ? [] : [{ role: 'system' as const, content: system }]),
    {
      role: 'user',
      content: [
        ...image.map((path) => ({ type: 'image' as const, image: path })),
        ...video.map((path) => ({ type: 'video' as const, video: path, ...frames })),
        { type: 'text', text: prompt },
      ],
    },
  ];
}

async function run(argument: string | undefined, flags: RunFlags, signal: AbortSignal): Promise<void> {
  if (flags.raw && flags.video) throw new UsageError('--video: raw text has no video');
  if (flags.raw && flags.system !== undefined) throw new UsageError('--system: raw text has no system message');
  const prompt = await textFrom(argument, undefined, 'prompt');
  const input = inputOf(prompt, flags);
  const structure = structureOf(flags);
  const { images, ...seen } = imageOptions(flags);
  await using(flags, signal, async (gemma) => {
    const progress = promptProgress(!!flags.json);
    const stream = gemma.stream(input, {
      signal,
      ...seen,
      ...(typeof input === 'string' && images && { images }),
      onProgress: progress.update,
      ...(flags.raw !== undefined && { raw: flags.raw }),
      ...adapterOptions(flags),
      ...samplingOptions(flags),
      ...structure,
    });
    let result;
    try {
      if (!flags.json) await show(stream, progress.stop);
      result = await stream.result;
    } finally {
      progress.stop();
    }
    const { usage, timings } = result;
    const { loadMs, chat } = gemma.info;
    if (flags.json) {
      const { text, object, toolCalls, malformedCalls, finishReason, tokens, seed, stopSequence } = result;
      printJson({
        text,
        object,
        toolCalls,
        malformedCalls,
        finishReason,
        usage,
        timings: { loadMs, ...timings },
        tokens,
        seed,
        stopSequence,
        chat,
      });
    } else {
      note(
        `\nprompt: ${speed(usage.inputTokens - usage.cachedInputTokens, timings.prefillMs, timings.prefillTokensPerSecond)}, ` +
          `answer: ${speed(usage.outputTokens, timings.decodeMs, timings.decodeTokensPerSecond)}, ` +
          `loaded in ${(loadMs / 1000).toFixed(2)} s; ${gemma.info.device}, ${gemma.info.isa}, ${gemma.info.threads} threads; ` +
          `chat template: ${chat.template}`,
      );
    }
  });
}

export function addRun(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(withSampling(withImages(withModel(command('run [prompt]', 'answer or continue a prompt')))))
    .option('--raw', 'continue the text, also with an instruction-tuned model')
    .option('--no-raw', 'take the text as a user turn, also without a chat template')
    .option('--system <text>', 'system message')
    .option('--schema <file>', 'the answer is JSON that meets the JSON Schema in this file')
    .option('--regex <pattern>', 'the answer matches this regular expression')
    .option('--choice <text>', 'the answer is one of these texts; as often as wanted', collect)
    .option('--grammar <file>', 'the answer is what the EBNF in this file allows')
    .option('--tools <file>', 'tools the model may call: { name: { description, inputSchema } } in a file of JSON')
    .option('--tool-choice <how>', 'auto, none, required, or the name of the tool to call')
    .option('--image <file>', 'a picture to look at, before the prompt; as often as wanted', collect)
    .option('--video <file>', 'a video to look at; as often as wanted', collect)
    .option('--fps <n>', 'frames of a video per second, instead of evenly spaced ones', number)
    .option('--max-frames <n>', 'frames of a video at most (16)', number)
    .action((prompt: string | undefined, flags: RunFlags) => run(prompt, flags, signal));
}
