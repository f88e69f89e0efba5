// gemma-native embed-image: what the vision encoder makes of a picture.
import { writeFileSync } from 'node:fs';
import {
  imageOptions,
  using,
  withImages,
  withModel,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
} from '../options.js';
import { printJson, printLine, withProgress } from '../output.js';

interface EmbedImageFlags extends ModelFlags, ImageFlags {
  out?: string;
}

async function embedImage(file: string, flags: EmbedImageFlags, signal: AbortSignal): Promise<void> {
  await using(flags, signal, async (gemma) => {
    const { data, shape, crops } = await withProgress('Encoding', !!flags.json, (onProgress) =>
      gemma.embedImage(file, { ...imageOptions(flags), onProgress, signal }),
    );
    if (flags.out !== undefined)
      writeFileSync(flags.out, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    const tokensPerImage = gemma.info.vision?.tokensPerImage;
    if (flags.json) printJson({ shape, crops, tokensPerImage });
    else printLine(`${shape[0]} tokens of ${shape[1]}: the picture and ${crops.length} crops`);
  });
}

export function addEmbedImage(command: DefineCommand, signal: AbortSignal): void {
  withImages(withModel(command('embed-image <file>', 'what the vision encoder makes of a picture')))
    .option('--out <file>', 'write all rows, float32 little endian')
    .action((file: string, flags: EmbedImageFlags) => embedImage(file, flags, signal));
}
