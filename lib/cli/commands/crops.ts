// gemma-native crops: how a picture is cut, without a model.
import { writeFileSync } from 'node:fs';
import { Option } from 'commander';
import { Gemma } from '../../index.js';
import { number, type DefineCommand } from '../options.js';
import { printJson, printLine, table } from '../output.js';

interface CropsFlags {
  json?: boolean;
  minCropSize?: number;
  maxCrops?: number;
  minRatio?: number;
  tile?: number;
  draw?: string;
}

async function crops(file: string, flags: CropsFlags, signal: AbortSignal): Promise<void> {
  const { minCropSize, maxCrops, minRatio, tile, draw } = flags;
  const panAndScan = {
    ...(minCropSize !== undefined && { minCropSize }),
    ...(maxCrops !== undefined && { maxCrops }),
    ...(minRatio !== undefined && { minRatio }),
  };
  const { png, ...result } = await Gemma.crops(file, {
    signal,
    ...(tile === undefined ? { panAndScan } : { tile }),
    ...(draw !== undefined && { draw: true }),
  });
  if (draw !== undefined && png) writeFileSync(draw, png);
  if (flags.json) return printJson(result);
  printLine(`${result.width} x ${result.height}, ${result.crops.length} crops`);
  printLine(table(result.crops.map(({ x, y, width, height }) => ['  ', `${width} x ${height}`, `at ${x}, ${y}`])));
}

export function addCrops(command: DefineCommand, signal: AbortSignal): void {
  command('crops <file>', 'how Pan & Scan, or a grid of tiles, cuts a picture')
    .option('--min-crop-size <pixels>', 'width and height a crop must have', number)
    .option('--max-crops <n>', 'crops at most', number)
    .option('--min-ratio <r>', 'longer side by shorter side from which on a picture is cropped', number)
    .addOption(
      new Option('--tile <n>', 'tiles along the shorter side, instead of Pan & Scan')
        .argParser(number)
        .conflicts(['minCropSize', 'maxCrops', 'minRatio']),
    )
    .option('--draw <file>', 'write the picture with the frames of its crops, as PNG')
    .option('--json', 'print one JSON object')
    .action((file: string, flags: CropsFlags) => crops(file, flags, signal));
}
