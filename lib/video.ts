// Videos to frames, by the program ffmpeg: started without a shell, allowed to open the one file that was named (no network, no
// playlists), its pictures read from a pipe. Killed when it takes too long or is not wanted any more.
//
// What it says to people is never read for facts: names of files and titles stand in between, and those are a stranger's. Facts come
// from formats in which no such text occurs: ffprobe's JSON with named fields of numbers, and the list of packets `framecrc`.
import { spawn, type ChildProcess } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { GemmaError } from './errors.js';
import type { Pixels } from './image.js';
import { localPath } from './local-file.js';
import type { MediaLimits } from './media-options.js';
import { plain, reasonOf, show } from './values.js';

/** A picture of a video and when it is shown. */
interface VideoFrame {
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

function notStarted(error: unknown): GemmaError {
  // Node's permission model refuses at once.
  const isDenied = (error as { code?: unknown }).code === 'ERR_ACCESS_DENIED';
  const advice = isDenied ? "Node's permission model asks for --allow-child-process" : INSTALL;
  return failed('NO_FFMPEG', `videos are read by ffmpeg, which cannot be started (${reasonOf(error)}); ${advice}`);
}

/** ffmpeg or ffprobe under way: what it writes, and how it ended. */
class Decoder {
  readonly #child: ChildProcess;
  readonly #signal: AbortSignal;
  readonly #kill = () => this.#child.kill('SIGKILL');
  /** the beginning and the end of what it said, for people */
  log = '';
  /** settles when it has ended; rejects when it cannot be started */
  readonly ended: Promise<void>;

  constructor(program: 'ffmpeg' | 'ffprobe', args: readonly string[], signal: AbortSignal) {
    this.#signal = signal;
    try {
      this.#child = spawn(program, ['-hide_banner', '-loglevel', 'error', ...args], {
        stdio: ['ignore', 'pipe', 'pipe'],
        windowsHide: true,
      });
    } catch (error) {
      throw notStarted(error);
    }
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.log = this.log.length < 65536 ? this.log + text : this.log.slice(0, 32768) + (this.log + text).slice(-32768);
    });
    this.ended = new Promise<void>((done, reject) => {
      this.#child.on('close', () => done());
      this.#child.on('error', (error) => reject(notStarted(error)));
    });
    this.ended.catch(() => {}); // whoever waits hears of it
    signal.addEventListener('abort', this.#kill);
    if (signal.aborted) this.#kill();
  }

  get output(): AsyncIterable<Buffer> {
    return this.#child.stdout as AsyncIterable<Buffer>;
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
        picture = { data: new Uint8Array(width * height * 3), width, height, layout: 'rgb', alpha: 'drop' };
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
  return plain(log.trim().split('\n').slice(-2).join('; ').slice(-300), 300);
}

/** What has to be known of a video before its frames are asked for. */
interface VideoFacts {
  seconds: number;
  /** from one frame to the next */
  frameSeconds: number;
  pixels: number;
}

const MAX_JSON = 1 << 20;
const USUAL_FRAME_SECONDS = 0.04;

function ratio(text: unknown): number {
  const [over = NaN, under = NaN] = String(text).split('/').map(Number);
  return over / under;
}

/** What the container says of its first video stream that is no cover picture; undefined where it says too little. */
function factsOf(json: string): VideoFacts | undefined {
  const found = JSON.parse(json) as { streams?: unknown; format?: { duration?: unknown } };
  const streams = Array.isArray(found.streams) ? (found.streams as Record<string, unknown>[]) : [];
  const [stream] = streams;
  const seconds = Number(found.format?.duration);
  const frameSeconds = [stream?.avg_frame_rate, stream?.r_frame_rate]
    .map((rate) => 1 / ratio(rate))
    .find((step) => step > 0 && step < Infinity);
  const pixels = Number(stream?.width) * Number(stream?.height);
  if (!(seconds > 0) || !(pixels > 0)) return undefined;
  return { seconds, frameSeconds: frameSeconds ?? USUAL_FRAME_SECONDS, pixels };
}

/** Undefined also where there is no ffprobe, or where it finds no video: whoever counts the packets finds out and says so. */
async function probe(path: string, signal: AbortSignal): Promise<VideoFacts | undefined> {
  const fields = 'format=duration:stream=width,height,avg_frame_rate,r_frame_rate';
  const args = ['-select_streams', 'V', '-show_entries', fields, '-of', 'json', ...INPUT, `file:${path}`];
  const decoder = new Decoder('ffprobe', args, signal);
  let json = '';
  try {
    for await (const chunk of decoder.output) {
      json += chunk.toString('latin1');
      if (json.length > MAX_JSON) return undefined;
    }
    await decoder.ended;
    return factsOf(json);
  } catch {
    return undefined;
  } finally {
    decoder.stop();
  }
}

/** What the packets of the video say, all of which are read; none is decoded. */
async function measure(path: string, name: string, signal: AbortSignal): Promise<VideoFacts> {
  const output = ['-map', '0:V:0', '-c', 'copy', '-copyinkf', '-f', 'framecrc', 'pipe:1'];
  const decoder = new Decoder('ffmpeg', ['-nostdin', ...INPUT, '-i', `file:${path}`, ...output], signal);
  let unit = NaN; // seconds
  let pixels = 0;
  let packets = 0;
  let first = Infinity;
  let end = -Infinity;
  // `#tb 0: 1/1000`, `#dimensions 0: 62x46`, then lines of `stream, dts, pts, duration, size, checksum`.
  const take = (line: string) => {
    const header = /^#(tb|dimensions) 0: (\d+)([/x])(\d+)$/.exec(line);
    if (header?.[1] === 'tb') unit = Number(header[2]) / Number(header[4]);
    else if (header) pixels = Number(header[2]) * Number(header[4]);
    else if (!line.startsWith('#')) {
      const [, dts = '', pts = '', duration = ''] = line.split(',', 4);
      const shown = Number.isNaN(Number(pts)) ? Number(dts) : Number(pts);
      if (Number.isNaN(shown)) return;
      ++packets;
      first = Math.min(first, shown);
      end = Math.max(end, shown + (Number(duration) || 0));
    }
  };
  try {
    let rest = '';
    for await (const chunk of decoder.output) {
      const lines = (rest + chunk.toString('latin1')).split('\n');
      rest = lines.pop() ?? '';
      lines.forEach(take);
    }
    await decoder.ended;
  } finally {
    decoder.stop();
  }
  if (packets === 0) throw failed('VIDEO_DECODE', `${name}: ${plain(path)}: no video in it: ${lastWords(decoder.log)}`);
  const seconds = end * unit;
  const frameSeconds = ((end - first) * unit) / packets;
  if (!(seconds >= 0)) throw failed('VIDEO_DECODE', `${name}: ${plain(path)}: its length cannot be found out`);
  return { seconds, frameSeconds: frameSeconds > 0 ? frameSeconds : USUAL_FRAME_SECONDS, pixels };
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

/** The path of a video. Throws TypeError, GemmaError `ERR_VIDEO`/`LOCAL_BLOCKED`. */
export function pathOfVideo(video: unknown, name: string, limits: { allowLocal: boolean }): string {
  if (!(video instanceof URL) && (typeof video !== 'string' || video === '')) {
    throw new TypeError(`${name}: expected the path or file: URL of a video, found ${show(video)}`);
  }
  return resolve(localPath(video, name, limits, 'ERR_VIDEO'));
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
  limits: MediaLimits,
  signal?: AbortSignal,
): AsyncGenerator<VideoFrame & { n: number }> {
  const where = `${name}: ${plain(path)}`;
  const { maxVideoBytes, maxVideoSeconds, videoTimeoutMs, maxImagePixels } = limits;
  const found = await stat(path).catch((error: unknown) => {
    throw new GemmaError('ERR_FILE', `${where}: cannot be opened (${reasonOf(error)})`);
  });
  if (!found.isFile()) throw new GemmaError('ERR_FILE', `${where}: expected a file`);
  if (found.size > maxVideoBytes) {
    throw failed('VIDEO_LIMIT', `${where}: ${found.size} bytes are more than ${maxVideoBytes} (option maxVideoBytes)`);
  }
  const timeout = AbortSignal.timeout(videoTimeoutMs);
  const stop = signal ? AbortSignal.any([signal, timeout]) : timeout;
  const checkTime = () => {
    signal?.throwIfAborted();
    if (!timeout.aborted) return;
    throw failed('VIDEO_LIMIT', `${where}: not decoded within ${videoTimeoutMs} ms (option videoTimeoutMs)`);
  };

  const facts =
    (await probe(path, stop)) ??
    (await measure(path, name, stop).catch((error: unknown) => {
      checkTime();
      throw error;
    }));
  checkTime();
  const { seconds, frameSeconds, pixels } = facts;
  if (seconds > maxVideoSeconds) {
    throw failed(
      'VIDEO_LIMIT',
      `${where}: ${seconds} seconds are more than ${maxVideoSeconds} (option maxVideoSeconds)`,
    );
  }
  if (pixels > maxImagePixels) {
    throw failed('VIDEO_LIMIT', `${where}: its frames have ${pixels} pixels (option maxImagePixels)`);
  }

  const times = frameTimes(seconds, frameSeconds, frames);
  const step = (times[1] ?? Infinity) - (times[0] ?? 0);
  const output = [
    '-map',
    '0:V:0', // no cover picture
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
    const decoder = new Decoder('ffmpeg', ['-nostdin', ...pass], stop);
    let i = first;
    try {
      for await (const picture of readPpm(decoder.output, maxImagePixels, name)) {
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
        `${where}: ends at frame ${i} of ${times.length}, cut or broken: ${lastWords(decoder.log)}`,
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
