// What the terminal sees of a download.
import { SingleBar } from 'cli-progress';
import type { PullProgress } from '../index.js';
import { bytes, note, printable } from './output.js';

/** What there is, as lines for people. */
function describe({ plan, stage, memoryBytes }: PullProgress): string[] {
  if (stage === 'checked') return [`takes ${bytes(memoryBytes ?? 0)} of memory`];
  const { repo, revision, commit, license, gated, page, files, totalBytes, downloadBytes } = plan;
  const state = gated ? `, to be accepted at ${page}` : '';
  return [
    `${repo}@${printable(revision)} (${commit.slice(0, 7)}), licence: ${printable(license ?? 'not stated')}${state}`,
    ...files.map((file) => `  ${printable(file.name)}  ${bytes(file.bytes)}${file.cached ? ', here already' : ''}`),
    `${bytes(downloadBytes)} of ${bytes(totalBytes)} to download`,
  ];
}

/** Tells of a download on stderr: what there is, then a bar on a terminal. */
export function pullProgress(silent: boolean): { update: (progress: PullProgress) => void; stop: () => void } {
  if (silent) return { update: () => {}, stop: () => {} };
  let shown: SingleBar | undefined;
  const stop = () => {
    shown?.stop();
    shown = undefined;
  };
  const update = (progress: PullProgress) => {
    const { stage, fraction, plan, file = '' } = progress;
    const isNew = plan.downloadBytes > 0;
    if ((stage === 'plan' && isNew) || stage === 'checked') describe(progress).forEach(note);
    if (stage === 'wait') note(`another process downloads ${printable(file)}: waiting for it`);
    if (stage === 'done') stop();
    if (stage !== 'download' || !process.stderr.isTTY) return;
    if (!shown) {
      const format = 'Downloading [{bar}] {percentage} % {done} of {all}, {eta_formatted} left';
      shown = new SingleBar({
        format,
        clearOnComplete: true,
        stream: process.stderr,
        hideCursor: true,
        etaBuffer: 100,
      });
      shown.start(plan.totalBytes, progress.bytes, { done: '', all: bytes(plan.totalBytes) });
    }
    shown.update(Math.round(fraction * plan.totalBytes), { done: bytes(progress.bytes) });
  };
  return { update, stop };
}
