// What interfaces tell of a model without loading it: read once from the headers of its files.
import { createHash } from 'node:crypto';
import { Gemma, type InspectOptions, type ModelInfo } from 'gemma-native';
import type { ListedModel, ModelSpec } from './models.js';

export interface ModelFacts {
  /** as the files call it */
  title: string;
  /** `'gemma3'` */
  architecture: string;
  parameters: number;
  /** of the model's file; 0 where it is not known */
  fileBytes: number;
  /** the type that most of the weights have: `'q4_k'` */
  quantization: string;
  /** positions of prompt and answer together: those it is loaded with, or would be */
  contextSize: number;
  embeddingDim: number;
  hasVision: boolean;
  /** an embedding model, which writes nothing */
  isEncoder: boolean;
  hasTools: boolean;
  /** Tells versions of a model apart. Of the names and sizes in its headers, not of its weights: those would have to be read. */
  digest: string;
}

const MAX_DEFAULT_CONTEXT = 32_768; // as Gemma.load has it

const known = new WeakMap<ModelSpec, Promise<ModelFacts>>();

async function read({ name, spec }: ListedModel): Promise<ModelFacts> {
  const { model, options = {} } = spec;
  // Of a model that was handed over loaded the files are not known.
  const loaded = model instanceof Gemma ? model.info : undefined;
  const { mmproj, hub } = options;
  const inspected: InspectOptions = { ...(mmproj !== undefined && { mmproj }), ...(hub && { hub }) };
  const summary = model instanceof Gemma ? undefined : await Gemma.inspect(model, inspected);
  const { config, vision, chat } = (loaded ?? summary) as Pick<ModelInfo, 'config' | 'vision' | 'chat'>;
  const fileBytes = loaded?.memory.weightsBytes ?? summary?.fileBytes ?? 0;
  return {
    title: config.name,
    architecture: summary?.architecture ?? (config.encoder ? 'gemma-embedding' : 'gemma3'),
    parameters: summary?.parameters ?? 0,
    fileBytes,
    quantization: summary?.tensorTypes[0]?.type ?? 'unknown',
    contextSize: loaded?.contextSize ?? options.contextSize ?? Math.min(MAX_DEFAULT_CONTEXT, config.trainedContext),
    embeddingDim: config.embeddingDim,
    hasVision: vision !== undefined,
    isEncoder: config.encoder,
    hasTools: !config.encoder && chat.toolFormat !== 'unknown',
    digest: createHash('sha256')
      .update(JSON.stringify([name, config, fileBytes, summary?.tensorTypes]))
      .digest('hex'),
  };
}

/** Facts of a model; of one that cannot be read, again each time. */
export function factsOf(listed: ListedModel): Promise<ModelFacts> {
  const { spec } = listed;
  const found = known.get(spec);
  if (found) return found;
  const facts = read(listed);
  known.set(spec, facts);
  facts.catch(() => known.delete(spec));
  return facts;
}
