// Adapters with random weights, for benchmarks and tests: folders as Hugging Face PEFT saves them.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SetupError } from './steps.mjs';

const WRITERS = {
  f32: [4, (buffer, value, at) => buffer.writeFloatLE(value, at)],
  bf16: [
    2,
    (buffer, value, at) => {
      const bits = new Uint32Array(Float32Array.of(value).buffer);
      buffer.writeUInt16LE(bits[0] >>> 16, at);
    },
  ],
};

/**
 * Writes an adapter of all linear layers. `config` is that of Gemma.inspect(); values of B are within `size` of 0, those of A
 * within 1 / sqrt(columns), as PEFT begins.
 */
export async function writeRandomAdapter(folder, config, { rank, type = 'f32', seed, size }) {
  const { layers, modelDim, ffnDim, heads, kvHeads, headDim } = config;
  const modules = {
    'self_attn.q_proj': [heads * headDim, modelDim],
    'self_attn.k_proj': [kvHeads * headDim, modelDim],
    'self_attn.v_proj': [kvHeads * headDim, modelDim],
    'self_attn.o_proj': [modelDim, heads * headDim],
    'mlp.gate_proj': [ffnDim, modelDim],
    'mlp.up_proj': [ffnDim, modelDim],
    'mlp.down_proj': [modelDim, ffnDim],
  };
  const [bytes, write] = WRITERS[type] ?? [];
  if (!bytes) throw new SetupError(`expected a type of ${Object.keys(WRITERS).join(', ')}, found ${type}`);
  let state = seed;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 31 - 1;
  const header = {};
  const parts = [];
  let offset = 0;
  const add = (name, shape, most) => {
    const data = Buffer.alloc(shape[0] * shape[1] * bytes);
    for (let at = 0; at < data.length; at += bytes) write(data, most * random(), at);
    header[name] = { dtype: type.toUpperCase(), shape, data_offsets: [offset, (offset += data.length)] };
    parts.push(data);
  };
  for (let layer = 0; layer < layers; ++layer) {
    for (const [module, [nOut, nIn]] of Object.entries(modules)) {
      const name = `base_model.model.model.layers.${layer}.${module}`;
      add(`${name}.lora_A.weight`, [rank, nIn], 1 / Math.sqrt(nIn));
      add(`${name}.lora_B.weight`, [nOut, rank], size);
    }
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  await mkdir(folder);
  await writeFile(join(folder, 'adapter_model.safetensors'), Buffer.concat([length, text, ...parts]));
  const settings = { peft_type: 'LORA', task_type: 'CAUSAL_LM', r: rank, lora_alpha: rank, bias: 'none' };
  const target_modules = Object.keys(modules).map((module) => module.split('.')[1]);
  await writeFile(join(folder, 'adapter_config.json'), JSON.stringify({ ...settings, target_modules }));
}
