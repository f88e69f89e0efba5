// gemma-native inspect: what a model file holds and how much memory it takes.
import { Gemma, type KvCacheType, type Quantization } from '../../index.js';
import { kvOption, quantizeOption, type DefineCommand } from '../options.js';
import { bytes, printJson, printLine, table } from '../output.js';

interface InspectFlags {
  json?: boolean;
  kv?: KvCacheType;
  quantize?: Quantization;
}

async function inspect(model: string, flags: InspectFlags): Promise<void> {
  const summary = await Gemma.inspect(model, {
    ...(flags.kv !== undefined && { kvCache: flags.kv }),
    ...(flags.quantize !== undefined && { quantize: flags.quantize }),
  });
  if (flags.json) return printJson(summary);
  const { config, vision } = summary;
  printLine(
    table([
      [
        'model',
        `${config.name || '(no name)'}, ${config.size}, ${summary.instructionTuned ? 'instruction-tuned' : 'pretrained'}`,
      ],
      ['chat template', `${summary.chat.template}: ${summary.chat.reason}`],
      ['file', `${bytes(summary.fileBytes)}, ${(summary.parameters / 1e6).toFixed(1)} M parameters`],
      ['layers', `${config.layers} (${config.globalLayers} global, the others see ${config.slidingWindow} positions)`],
      ['widths', `model ${config.modelDim}, feed-forward ${config.ffnDim}`],
      ['heads', `${config.heads} of ${config.headDim}, ${config.kvHeads} for keys and values`],
      ['vocabulary', String(config.vocabularySize)],
      ['context', `${config.trainedContext} positions`],
      ...(vision
        ? [
            [
              'vision',
              `${vision.imageSize} pixels a side, ${vision.layers} layers, ${vision.tokensPerImage} tokens a picture`,
            ],
          ]
        : []),
    ]),
  );
  printLine(flags.quantize === undefined ? '\ntensor types' : `\ntensor types, loaded as ${flags.quantize}`);
  printLine(
    table(summary.tensorTypes.map(({ type, tensors, bytes: n }) => ['  ', type, tensors, 'tensors', bytes(n)])),
  );
  printLine('\nmemory by context size');
  printLine(
    table(
      summary.memory.map((plan) => [
        '  ',
        plan.contextSize,
        `${bytes(plan.totalBytes)} = weights ${bytes(plan.weightsBytes)} + cache ${bytes(plan.kvBytes)} + work ${bytes(plan.scratchBytes)} + screen ${bytes(plan.screenBytes)}${plan.adapterBytes > 0 ? ` + adapters ${bytes(plan.adapterBytes)}` : ''}${plan.visionBytes > 0 ? ` + vision ${bytes(plan.visionBytes)}` : ''} + grammars ${bytes(plan.grammarBytes)}`,
      ]),
    ),
  );
}

export function addInspect(command: DefineCommand): void {
  command('inspect <model>', 'what a model file holds and how much memory it takes')
    .addOption(kvOption())
    .addOption(quantizeOption())
    .option('--json', 'print one JSON object')
    .action((model: string, flags: InspectFlags) => inspect(model, flags));
}
