// adapter_config.json as PEFT 0.21 reads it (LoraConfig).
import type { ModelConfig } from '../native.js';
import type { FinetuneSettings } from './options.js';

/**
 * Beginning of the names of a decoder's modules in transformers. Gemma 3 from 4B on is a model with a vision encoder there, whose decoder is
 * one of its parts; PEFT's names are those of the whole.
 */
export function modelPrefix({ layers }: ModelConfig, hasVision: boolean): string {
  return hasVision || layers >= 34 ? 'model.language_model.' : 'model.';
}

export function peftConfig(
  { rank, alpha, rslora, dropout, layers }: FinetuneSettings,
  targets: readonly string[],
  baseModel: string,
  hasLanguageModel: boolean,
): string {
  // A model with vision has modules of these names in its encoder too.
  const where = layers ? `\\.layers\\.(${layers.join('|')})\\.` : '';
  const modules = hasLanguageModel ? `.*language_model.*${where}(.*\\.)?(${targets.join('|')})` : targets;
  const config = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: baseModel,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: dropout,
    use_rslora: rslora,
    target_modules: modules,
    ...(layers && !hasLanguageModel && { layers_to_transform: layers, layers_pattern: 'layers' }),
    bias: 'none',
    fan_in_fan_out: false,
    init_lora_weights: true,
    inference_mode: true,
  };
  return `${JSON.stringify(config, null, 2)}\n`;
}
