// gemma-native devices: what this build can compute on, and which device is taken unless told otherwise.
import { Gemma, GemmaError } from '../../index.js';
import { type DefineCommand } from '../options.js';
import { bytes, printJson, printLine } from '../output.js';

async function devices(flags: { json?: boolean }): Promise<void> {
  const found = await Gemma.devices();
  const backends = [Gemma.backend];
  const wanted = process.env.GEMMA_ISA;
  const isa = wanted || found[0]?.isa || '';
  if (!found[0]?.isas.includes(isa)) {
    const isas = found[0]?.isas.join(', ') ?? '';
    throw new GemmaError('ERR_BACKEND_UNAVAILABLE', `GEMMA_ISA: expected one of ${isas}, found ${isa}`, 'ISA');
  }
  const packages = await Gemma.backends();
  const { name: auto, reason } = packages.find(({ chosen }) => chosen) ?? { name: 'cpu', reason: '' };
  const device = process.env.GEMMA_DEVICE || 'auto';
  if (flags.json) return printJson({ backends, devices: found, isa, device, auto, packages });
  printLine(`backends compiled in: ${backends.join(', ')}`);
  for (const one of found) {
    const size = one.memoryBytes > 0 ? `, ${one.cores} cores, ${bytes(one.memoryBytes)}` : '';
    printLine(`${one.name}: ${one.description}${size}`);
    if (one.name !== 'cpu' && one.isa) printLine(`  chip: ${one.isa}`);
    if (one.name === 'cpu') {
      printLine(`  instruction sets: ${one.isas.join(', ')}; in use: ${wanted ? `${wanted} (GEMMA_ISA)` : one.isa}`);
    }
    if (!one.available) printLine(`  not available: ${one.reason ?? ''}`);
  }
  printLine(device === 'auto' ? `device auto is ${auto}: ${reason}` : `device ${device}: GEMMA_DEVICE asks for it`);
  for (const { name, package: from, available, chosen, reason: why } of packages) {
    if (name === 'cpu' || (chosen && device === 'auto')) continue;
    printLine(`  ${name} (${from}): ${available ? '' : 'not available: '}${why}`);
  }
}

export function addDevices(command: DefineCommand): void {
  command('devices', 'what this build can compute on')
    .option('--json', 'print one JSON object')
    .action((flags: { json?: boolean }) => devices(flags));
}
