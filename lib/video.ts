// Videos to frames, by the program ffmpeg: started without a shell, allowed to open the one file that was named (no network, no
// playlists), its pictures read from a pipe. Killed when it takes too long or is not wanted any more.
import { spawn, type ChildProcess } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { GemmaError } from './errors.js';
import type { Pixels } from './image.js';
import { show } from './options.js';

export interface VideoLimits {
  maxSeconds: number;
  maxBytes: number;
  timeoutMs: number;
}

/** A picture of a video and when it is shown. */
export interface VideoFrame {
  seconds: number;
  pixels: Pixels;
}

// Containers that hold their own data. Playlists and the like name other files, so they are not among them.
const CONTAINERS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif,mxf';
const INPUT = ['-protocol_whitelist', 'file,pipe', '-format_whitelist', CONTAINERS];

// From here on it is cheaper to open the file anew at each frame's time than to decode everything in between.
const SEEK_SECONDS = 8;

const INSTALL =
  'install it (apt-get install ffmpeg, brew install ffmpeg, winget install Gyan.FFmpeg) so that it is on the PATH';

function failed(detail: string, message: string): GemmaError {
  return new GemmaError('ERR_VIDEO', message, detail);
}

/** ffmpeg under way: what it writes, and how it ended. */
class Decoder {
  readonly #child: ChildProcess;
  readonly #signal: AbortSignal;
  readonly #kill = () => this.#child.kill('SIGKILL');
  /** the beginning and the end of what it said */
  log = '';
  /** settles when it has ended; rejects when it cannot be started */
  readonly ended: Promise<void>;

  constructor(args: readonly string[], signal: AbortSignal) {
    this.#signal = signal;
    this.#child = spawn('ffmpeg', ['-hide_banner', '-nostdin', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      windowsHide: true,
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.log = this.log.length < 65536 ? this.log + text : this.log.slice(0, 32768) + (this.log + text).slice(-32768);
    });
    this.ended = new Promise<void>((done, reject) => {
      this.#child.on('close', () => done());
      this.#child.on('error', (error) =>
        reject(
          failed('NO_FFMPEG', `videos are read by ffmpeg, which cannot be started (${error.message}); ${INSTALL}`),
        ),
      );
    });
    this.ended.catch(() => {}); // whoever waits hears of it
    signal.addEventListener('abort', this.#kill);
    if (signal.aborted) this.#kill();
  }

  get output(): AsyncIterable<Buffer> {
    return this.#child.stdout as AsyncIterable<Buffer>;
  }

  ignoreOutput(): void {
    this.#child.stdout?.resume();
  }

  stop(): void {
    this.#signal.removeEventListener('abort', this.#kill);
    this.#kill();
  }
}

/** Reads a stream of binary PPM pictures: `P6 width height 255`, then three bytes a pixel. */
async function* readPpm(chunks: AsyncIterable<Buffer>, maxPixels: number, name: string): AsyncGenerator<Pixels> {
  let header = '';
  let picture: Pixels | undefined;
  let filled = 0;
  for await (const chunk of chunks) {
    let at = 0;
    while (at < chunk.length) {
      if (!picture) {
        header += String.fromCharCode(chunk[at++] ?? 0);
        const found = /^P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s$/.exec(header);
        if (!found && header.length > 32) throw failed('VIDEO_DECODE', `${name}: ffmpeg answered something unexpected`);
        if (!found) continue;
        const [width, height] = [Number(found[1]), Number(found[2])];
        if (width * height > maxPixels) throw failed('VIDEO_LIMIT', `${name}: a frame of ${width} x ${height} pixels`);
        picture = { data: new Uint8Array(width * height * 3), width, height, layout: 'rgb' };
        header = '';
        filled = 0;
      }
      const part = chunk.subarray(at, at + picture.data.length - filled);
      picture.data.set(part, filled);
      at += part.length;
      filled += part.length;
      if (filled === picture.data.length) {
        yield picture;
        picture = undefined;
      }
    }
  }
}

function lastWords(log: string): string {
  return log.trim().split('\n').slice(-2).join('; ').slice(-300);
}

function clock(text: string | undefined): number {
  const [hours = NaN, minutes = NaN, seconds = NaN] = (text ?? '').split(':').map(Number);
  return hours * 3600 + minutes * 60 + seconds;
}

async function probe(
  path: string,
  name: string,
  signal: AbortSignal,
): Promise<{ seconds: number; frameSeconds: number; pixels: number }> {
  const run = async (...args: string[]) => {
    const decoder = new Decoder([...INPUT, '-i', `file:${path}`, ...args], signal);
    try {
      decoder.ignoreOutput();
      await decoder.ended;
    } finally {
      decoder.stop();
    }
    return decoder.log;
  };
  const log = await run(); // says what it found, and that it misses an output
  const stream = log.split('\n').find((line) => /Stream #.*: Video: /.test(line) && !line.includes('(attached pic)'));
  if (stream === undefined) throw failed('VIDEO_DECODE', `${name}: ${path}: no video in it: ${lastWords(log)}`);
  const size = /, (\d+)x(\d+)/.exec(stream);
  const rate = Number(/([\d.]+) fps/.exec(stream)?.[1] ?? /([\d.]+) tbr/.exec(stream)?.[1] ?? 25);
  let seconds = clock(/Duration: (\d+:\d+:[\d.]+)/.exec(log)?.[1]);
  if (!(seconds > 0)) {
    // The file does not say: count, without decoding.
    const counted = await run('-map', '0:v:0', '-c', 'copy', '-f', 'null', '-');
    seconds = clock([...counted.matchAll(/time=(\d+:\d+:[\d.]+)/g)].at(-1)?.[1]);
  }
  if (!(seconds >= 0)) throw failed('VIDEO_DECODE', `${name}: ${path}: its length cannot be found out`);
  return {
    seconds,
    frameSeconds: rate > 0 ? 1 / rate : 0.04,
    pixels: Number(size?.[1] ?? 0) * Number(size?.[2] ?? 0),
  };
}

/**
 * Times of the frames: each 1 / fps from 0 on, or `maxFrames` from the first frame to the last at equal distances (also where
 * `fps` would be more than that); never more than the video has.
 */
export function frameTimes(
  seconds: number,
  frameSeconds: number,
  { fps, maxFrames = Infinity }: { fps?: number; maxFrames?: number },
): number[] {
  const last = Math.max(0, seconds - frameSeconds / 2); // the middle of the last frame: safely inside
  const atRate = fps === undefined ? Infinity : Math.floor(last * fps) + 1;
  const n = Math.max(1, Math.min(atRate, maxFrames, Math.floor(last / frameSeconds) + 1));
  if (n === 1) return [fps === undefined ? seconds / 2 : 0];
  const step = n === atRate && fps !== undefined ? 1 / fps : last / (n - 1);
  return Array.from({ length: n }, (_, i) => i * step);
}

export function pathOfVideo(video: unknown, name: string): string {
  if (video instanceof URL || (typeof video === 'string' && video.startsWith('file:'))) return fileURLToPath(video);
  if (typeof video !== 'string' || video === '') {
    throw new TypeError(`${name}: expected the path or file: URL of a video, found ${show(video)}`);
  }
  return resolve(video);
}

/**
 * Frames of a video, in order: of each time the picture that is shown then.
 *
 * @throws GemmaError `ERR_FILE`; `ERR_VIDEO` with `NO_FFMPEG`, `VIDEO_DECODE` or `VIDEO_LIMIT`; the signal's reason
 */
export async function* videoFrames(
  path: string,
  name: string,
  frames: { fps?: number; maxFrames?: number },
  limits: VideoLimits & { maxPixels: number },
  signal?: AbortSignal,
): AsyncGenerator<VideoFrame & { n: number }> {
  const found = await stat(path).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error);
    throw new GemmaError('ERR_FILE', `${name}: ${path}: cannot be opened (${reason})`);
  });
  if (!found.isFile()) throw new GemmaError('ERR_FILE', `${name}: ${path}: expected a file`);
  if (found.size > limits.maxBytes) {
    throw failed(
      'VIDEO_LIMIT',
      `${name}: ${path}: ${found.size} bytes are more than ${limits.maxBytes} (option maxVideoBytes)`,
    );
  }
  const timeout = AbortSignal.timeout(limits.timeoutMs);
  const stop = signal ? AbortSignal.any([signal, timeout]) : timeout;
  const checkTime = () => {
    signal?.throwIfAborted();
    if (!timeout.aborted) return;
    throw failed('VIDEO_LIMIT', `${name}: ${path}: not decoded within ${limits.timeoutMs} ms (option videoTimeoutMs)`);
  };

  const { seconds, frameSeconds, pixels } = await probe(path, name, stop).catch((error: unknown) => {
    checkTime();
    throw error;
  });
  if (seconds > limits.maxSeconds) {
    throw failed(
      'VIDEO_LIMIT',
      `${name}: ${path}: ${seconds} seconds are more than ${limits.maxSeconds} (option maxVideoSeconds)`,
    );
  }
  if (pixels > limits.maxPixels) {
    throw failed('VIDEO_LIMIT', `${name}: ${path}: its frames have ${pixels} pixels (option maxImagePixels)`);
  }

  const times = frameTimes(seconds, frameSeconds, frames);
  const step = (times[1] ?? Infinity) - (times[0] ?? 0);
  const output = [
    '-map',
    '0:v:0',
    '-an',
    '-sn',
    '-dn',
    '-pix_fmt',
    'rgb24',
    '-c:v',
    'ppm',
    '-f',
    'image2pipe',
    'pipe:1',
  ];
  const input = [...INPUT, '-i', `file:${path}`];
  // A seek finds the first picture that is not before a time: the one on screen began up to a frame earlier.
  const seek = (time: number) => Math.max(0, time - frameSeconds * 0.9).toFixed(6);
  // One pass hands over the picture on screen at each multiple of the step: round=up dates a picture to the first multiple
  // that is not before it. Or a pass of its own for each time.
  const passes =
    step > SEEK_SECONDS
      ? times.map((time) => ['-ss', seek(time), ...input, '-frames:v', '1', ...output])
      : [[...input, '-vf', `fps=fps=${1 / step}:round=up:start_time=0`, '-frames:v', String(times.length), ...output]];
  for (const [first, pass] of passes.entries()) {
    const decoder = new Decoder(['-loglevel', 'error', ...pass], stop);
    let i = first;
    try {
      for await (const picture of readPpm(decoder.output, limits.maxPixels, name)) {
        checkTime();
        yield { seconds: times[i] ?? seconds, pixels: picture, n: times.length };
        ++i;
      }
      await decoder.ended;
    } finally {
      decoder.stop();
    }
    checkTime();
    // Some containers round the end, so the last frame of several may be missing; more than that, and the file is broken.
    const expected = passes.length > 1 ? first + 1 : times.length;
    if (i < expected - (expected === times.length && expected > 1 ? 1 : 0)) {
      throw failed(
        'VIDEO_DECODE',
        `${name}: ${path}: ends at frame ${i} of ${times.length}, cut or broken: ${lastWords(decoder.log)}`,
      );
    }
  }
}

/** `[mm:ss]`, or `[h:mm:ss]` from an hour on; with tenths where frames are closer than a second. */
export function timeLabel(seconds: number, tenths: boolean): string {
  const whole = Math.floor(tenths ? Math.round(seconds * 10) / 10 : seconds + 1e-6);
  const two = (n: number) => String(n).padStart(2, '0');
  const hours = Math.floor(whole / 3600);
  const rest = tenths ? `.${Math.round(seconds * 10) % 10}` : '';
  return `[${hours > 0 ? `${hours}:` : ''}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}${rest}]`;
}
