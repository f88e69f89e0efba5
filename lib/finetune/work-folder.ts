// Where a training stands while it runs: OUTPUT.part, a folder with what it goes on from; and how it becomes OUTPUT, all at once.
import { copyFile, mkdir, open, readFile, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileError, lockPath } from '../batch-output.js';
import { GemmaError } from '../errors.js';
import { localPath, replaceablePath } from '../local-file.js';
import { addon } from '../native.js';
import { checkWritable } from '../permission.js';
import { plain, show } from '../values.js';

/** A step as the log tells it, a line of JSON each. */
export interface LogEntry {
  step: number;
  epoch: number;
  loss: number;
  validationLoss?: number;
  learningRate: number;
  gradientNorm: number;
  /** that count */
  tokens: number;
  /** of training, this run's */
  seconds: number;
  rewardAccuracy?: number;
}

/** What two runs have in common of which one goes on from the other; by name, for messages. */
export type Fingerprint = Readonly<Record<string, string | number | boolean | readonly (string | number)[] | null>>;

const RUN = 'run.json';
const VERSION = 1;
const LOG = 'training-log.jsonl';
const MAX_RUN_BYTES = 1 << 20;

async function writeWhole(path: string, text: string): Promise<void> {
  const beside = `${path}.tmp`;
  const file = await open(beside, 'w');
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(beside, path);
}

export class WorkFolder {
  /** of the output */
  readonly path: string;
  readonly folder: string;
  readonly #unlock: () => void;
  #log: FileHandle | undefined;

  private constructor(path: string, unlock: () => void) {
    this.path = path;
    this.folder = `${path}.part`;
    this.#unlock = unlock;
  }

  /**
   * Takes the output for this run alone.
   *
   * @throws GemmaError `ERR_FILE`: `FILE_EXISTS` without `overwrite`, `IN_USE`
   */
  static async take(output: string | URL, overwrite: boolean): Promise<WorkFolder> {
    const named = localPath(output, 'output', { allowLocal: true }, 'ERR_FILE');
    const path = await replaceablePath(named.replace(/(?<=.)[\\/]+$/, ''));
    for (const written of [path, `${path}.part`, lockPath(path)]) checkWritable(written);
    const found = await stat(path).catch(() => undefined);
    if (found && !overwrite) {
      throw new GemmaError(
        'ERR_FILE',
        `${plain(path)}: is there already; name another output, or set overwrite`,
        'FILE_EXISTS',
      );
    }
    if (found && !found.isDirectory()) throw new GemmaError('ERR_FILE', `${plain(path)}: not a folder`);
    await mkdir(dirname(path), { recursive: true }).catch((error: unknown) => {
      throw fileError(error, path, 'the output cannot be made');
    });
    const unlock = await addon().lockFile(lockPath(path));
    if (!unlock) throw new GemmaError('ERR_FILE', `${plain(path)}: another training is writing it`, 'IN_USE');
    return new WorkFolder(path, unlock);
  }

  get checkpoint(): string {
    return join(this.folder, 'checkpoint.bin');
  }
  /** the best adapter so far */
  get best(): { path: string; gguf: string } {
    return { path: join(this.folder, 'best.safetensors'), gguf: join(this.folder, 'best.gguf') };
  }

  /** What an earlier run was of, where one can be gone on from. */
  async earlier(): Promise<Fingerprint | undefined> {
    const run = join(this.folder, RUN);
    if (!(await stat(this.checkpoint).catch(() => undefined))) return undefined;
    try {
      if ((await stat(run)).size > MAX_RUN_BYTES) throw new RangeError('too long');
      const { version, ...fingerprint } = JSON.parse(await readFile(run, 'utf8')) as Record<string, unknown>;
      if (version !== VERSION) throw new RangeError(`version ${show(version)}`);
      return fingerprint as Fingerprint;
    } catch (error) {
      throw new GemmaError(
        'ERR_FILE',
        `${plain(run)}: not what a training has written (${plain(String(error))}); set resume to false to begin anew`,
        'NOT_A_CHECKPOINT',
      );
    }
  }

  /** Forgets an earlier run. */
  async begin(fingerprint: Fingerprint): Promise<void> {
    await this.#writing(async () => {
      await rm(this.folder, { recursive: true, force: true });
      await mkdir(this.folder);
      await writeWhole(join(this.folder, RUN), `${JSON.stringify({ version: VERSION, ...fingerprint })}\n`);
      this.#log = await open(join(this.folder, LOG), 'w');
    });
  }

  /** Goes on from an earlier run that has done so many steps. Returns what its log has of these. */
  async goOn(steps: number): Promise<LogEntry[]> {
    return this.#writing(async () => {
      const path = join(this.folder, LOG);
      const text = await readFile(path, 'utf8').catch(() => '');
      const entries: LogEntry[] = [];
      for (const line of text.split('\n')) {
        try {
          const entry = JSON.parse(line) as LogEntry;
          if (entry.step <= steps) entries.push(entry);
        } catch {
          // A line that was not written to its end.
        }
      }
      await writeWhole(path, entries.map((entry) => `${JSON.stringify(entry)}\n`).join(''));
      this.#log = await open(path, 'a');
      return entries;
    });
  }

  async log(entry: LogEntry): Promise<void> {
    await this.#writing(() => this.#log?.appendFile(`${JSON.stringify(entry)}\n`));
  }

  /** When it resolves, the log is on the disk. */
  async sync(): Promise<void> {
    await this.#writing(() => this.#log?.datasync());
  }

  /** Makes the output of the best adapter, the log and other files by name: it takes its name when it is whole. */
  async finish(files: Readonly<Record<string, string>>, gguf: boolean): Promise<void> {
    await this.#writing(async () => {
      await this.#log?.sync();
      await this.#log?.close();
      this.#log = undefined;
      const result = join(this.folder, 'result');
      await rm(result, { recursive: true, force: true });
      await mkdir(result);
      await copyFile(this.best.path, join(result, 'adapter_model.safetensors'));
      if (gguf) await copyFile(this.best.gguf, join(result, 'adapter.gguf'));
      await copyFile(join(this.folder, LOG), join(result, LOG));
      for (const [name, text] of Object.entries(files)) await writeWhole(join(result, name), text);
      // A folder cannot take the place of another one that is not empty.
      const old = `${this.path}.old`;
      if (await stat(this.path).catch(() => undefined)) {
        await rm(old, { recursive: true, force: true });
        await rename(this.path, old);
      }
      await rename(result, this.path);
      await rm(old, { recursive: true, force: true });
      await rm(this.folder, { recursive: true, force: true });
    });
  }

  /** Forgets what was done. */
  async discard(): Promise<void> {
    await this.#log?.close().catch(() => {});
    this.#log = undefined;
    await rm(this.folder, { recursive: true, force: true }).catch(() => {});
  }

  async close(): Promise<void> {
    await this.#log?.close().catch(() => {});
    await rm(lockPath(this.path), { force: true }).catch(() => {});
    this.#unlock();
  }

  async #writing<T>(work: () => Promise<T> | undefined): Promise<T> {
    try {
      return (await work()) as T;
    } catch (error) {
      throw fileError(error, this.folder, 'the training cannot be written');
    }
  }
}
