// The name of this machine's processor. Virtual machines often say no more than "AMD EPYC" or "Intel(R) Xeon(R) Processor":
// then family and model follow, as CPUID has them, and what core that is.
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';

// The core of a range of models of a family. AMD: Linux, arch/x86/kernel/cpu/amd.c (bsp_init_amd); Intel:
// arch/x86/include/asm/intel-family.h, servers only, because others name themselves.
const range = (first, last, core) => ({ first, last, core });
const CORES = {
  'AuthenticAMD 23': [
    range(0x00, 0x2f, 'Zen'),
    range(0x50, 0x5f, 'Zen'),
    range(0x30, 0x4f, 'Zen 2'),
    range(0x60, 0x7f, 'Zen 2'),
    range(0x90, 0xaf, 'Zen 2'),
  ],
  'AuthenticAMD 25': [
    range(0x00, 0x0f, 'Zen 3'),
    range(0x20, 0x5f, 'Zen 3'),
    range(0x10, 0x1f, 'Zen 4'),
    range(0x60, 0xaf, 'Zen 4'),
  ],
  'AuthenticAMD 26': [range(0x00, 0x2f, 'Zen 5'), range(0x40, 0x4f, 'Zen 5'), range(0x60, 0x7f, 'Zen 5')],
  'GenuineIntel 6': [
    range(0x55, 0x55, 'Skylake, Cascade Lake or Cooper Lake'),
    range(0x6a, 0x6c, 'Ice Lake'),
    range(0x8f, 0x8f, 'Sapphire Rapids'),
    range(0xcf, 0xcf, 'Emerald Rapids'),
    range(0xad, 0xae, 'Granite Rapids'),
    range(0xaf, 0xaf, 'Sierra Forest'),
  ],
};

// /proc/cpuinfo, whose first paragraph is the first processor's; nothing on other systems.
function cpuInfo() {
  try {
    return readFileSync('/proc/cpuinfo', 'utf8');
  } catch {
    return '';
  }
}

/** `name` as the system has it, with family, model and core where it names no product. */
export function processorName(name = cpus()[0]?.model.trim() ?? process.arch, info = cpuInfo()) {
  const field = (key) => new RegExp(`^${key}\\s*: *(.*)$`, 'm').exec(info)?.[1];
  const [vendor, family, model] = ['vendor_id', 'cpu family', 'model'].map(field);
  if (/\d/.test(name) || !vendor || !family || !model) return name;
  const number = Number(model);
  const core = CORES[`${vendor} ${family}`]?.find(({ first, last }) => number >= first && number <= last)?.core;
  return `${name} (family ${family} model ${model}${core ? `, ${core}` : ''})`;
}
