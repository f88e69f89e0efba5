// Videos made here by ffmpeg, whose frames say by their brightness which one they are.
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Gemma, type Message, type VideoPart } from '../../lib/index.js';
import { mediaLimits } from '../../lib/media-options.js';
import { frameTimes, timeLabel, videoFrames } from '../../lib/video.js';
import { cli, data, rejection, root, runNode, withModel } from './helpers.js';

const model = join(data, 'mm-a-f16.gguf');
const limits = mediaLimits({ maxImagePixels: 1e6 });
let folder: string;

function ffmpeg(...args: string[]): void {
  const { error, status, stderr } = spawnSync('ffmpeg', ['-y', '-loglevel', 'error', ...args], { encoding: 'utf8' });
  if (error)
    throw new Error('ffmpeg is missing: apt-get install ffmpeg, brew install ffmpeg, winget install Gyan.FFmpeg');
  if (status !== 0) throw new Error(stderr);
}

/** A clip whose frame n has brightness 16 + 2 n, of 219 levels. */
function clip(name: string, seconds: number, rate: number, ...codec: string[]): string {
  const path = join(folder, name);
  const source = `nullsrc=s=62x46:r=${rate}:d=${seconds},geq=lum=16+2*N:cb=128:cr=128`;
  ffmpeg('-f', 'lavfi', '-i', source, ...codec, path);
  return path;
}

/** The numbers of the frames that were handed over, and their times. */
async function numbers(path: string, frames: { fps?: number; maxFrames?: number }) {
  const all: { number: number; seconds: number }[] = [];
  for await (const { seconds, pixels } of videoFrames(path, 'video', frames, limits)) {
    expect(pixels).toMatchObject({ width: 62, height: 46, layout: 'rgb' });
    const middle = pixels.data[(23 * 62 + 31) * 3 + 1] ?? NaN;
    all.push({ number: Math.round((middle * 219) / 255 / 2), seconds });
  }
  return all;
}

beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-video-'))));
afterAll(() => rmSync(folder, { recursive: true }));

describe('times', () => {
  test('evenly from the first frame to the last, or at a rate', () => {
    expect(frameTimes(10, 0.1, { maxFrames: 3 })).toEqual([0, 4.975, 9.95]);
    expect(frameTimes(10, 0.1, { maxFrames: 1 })).toEqual([5]);
    expect(frameTimes(10, 0.1, { fps: 0.5 })).toEqual([0, 2, 4, 6, 8]);
    expect(frameTimes(10, 0.1, { fps: 2, maxFrames: 2 })).toEqual([0, 9.95]);
    expect(frameTimes(0.3, 0.1, { maxFrames: 16 })).toHaveLength(3);
    expect(frameTimes(0, 0.04, { maxFrames: 16 })).toEqual([0]);
    expect(frameTimes(10, 0.1, { fps: 100 })).toHaveLength(100);
  });

  test('labels', () => {
    expect([0, 5.999, 61, 3599.2, 3600, 36061].map((seconds) => timeLabel(seconds, false))).toEqual(
      ['[00:00]', '[00:05]', '[01:01]', '[59:59]', '[1:00:00]', '[10:01:01]'], // prettier-ignore
    );
    expect([0, 0.25, 59.96, 61.5].map((seconds) => timeLabel(seconds, true))).toEqual(
      ['[00:00.0]', '[00:00.3]', '[01:00.0]', '[01:01.5]'], // prettier-ignore
    );
  });
});

describe('frames', () => {
  test.each([
    ['lossless.mkv', ['-c:v', 'ffv1', '-pix_fmt', 'yuv420p']],
    ['lossy.mp4', ['-c:v', 'mpeg4', '-q:v', '1']],
    ['stream.ts', ['-c:v', 'mpeg2video', '-q:v', '1', '-r', '25']],
  ])('%s: those that are shown at their times', async (name, codec) => {
    const rate = name === 'stream.ts' ? 25 : 10;
    const path = clip(name, name === 'stream.ts' ? 4 : 10, rate, ...codec);
    const last = 99;
    for (const [frames, n] of [
      [{ maxFrames: 16 }, 16],
      [{ maxFrames: 7 }, 7],
      [{ maxFrames: 1 }, 1],
      [{ maxFrames: 1000 }, 100],
      [{ fps: 1 }, rate === 25 ? 4 : 10],
      [{ fps: 3.3 }, rate === 25 ? 14 : 33],
    ] as const) {
      const found = await numbers(path, frames);
      // Streams begin at some time of their own and their length is rounded: a frame to either side.
      const slack = name === 'lossless.mkv' ? 0 : 1;
      expect(Math.abs(found.length - n)).toBeLessThanOrEqual(slack);
      for (const { number, seconds } of found) {
        expect([name, seconds, Math.abs(number - Math.min(last, Math.floor(seconds * rate + 1e-6))) <= slack]).toEqual([
          name,
          seconds,
          true,
        ]);
      }
      if (n > 1 && 'maxFrames' in frames) {
        expect(found[0]?.number).toBeLessThanOrEqual(slack);
        expect(found.at(-1)?.number).toBeGreaterThanOrEqual(last - (name === 'lossless.mkv' ? 0 : 20));
      }
    }
  });

  test('far apart: the file is opened at each time', async () => {
    const path = clip('long.mkv', 100, 1, '-c:v', 'ffv1', '-g', '10');
    const found = await numbers(path, { maxFrames: 5 });
    expect(found).toHaveLength(5);
    for (const { number, seconds } of found) expect(Math.abs(number - seconds)).toBeLessThanOrEqual(1);
  });

  test('a slow slide show: no more frames than there are', async () => {
    const path = clip('slides.mkv', 12, 0.5, '-c:v', 'ffv1');
    const found = await numbers(path, { fps: 1 });
    expect(found.map(({ number }) => number)).toEqual(found.map(({ seconds }) => Math.floor(seconds / 2)));
    expect(found.length).toBe(6);
  });
});

describe('in a prompt', () => {
  const messages = (part: Partial<VideoPart>): Message[] => [
    {
      role: 'user',
      content: [
        { type: 'text', text: 'Watch:' },
        { type: 'video', video: join(folder, 'lossless.mkv'), ...part },
        { type: 'text', text: 'What happens?' },
      ],
    },
  ];

  test('each frame after its time', async () => {
    await withModel(
      async (gemma) => {
        const IMG = '\n\n<start_of_image>#<end_of_image>\n\n';
        const frames = [0, 4, 9].map((second) => `[00:0${second}]${IMG}`).join('');
        const full = `<start_of_turn>user\nWatch:${frames}What happens?<end_of_turn>\n<start_of_turn>model\n`;
        const expected = [];
        for (const [i, piece] of full.split('#').entries()) {
          if (i > 0) expected.push(...Array<number>(16).fill(448));
          expected.push(...(await gemma.tokenize(piece, { special: true, bos: i === 0 })));
        }
        const { tokens } = await gemma.logits(messages({ maxFrames: 3 }), { data: false });
        expect(tokens).toEqual(expected);
        const url = pathToFileURL(join(folder, 'lossless.mkv'));
        const { usage } = await gemma.generate(messages({ video: url }), { maxOutputTokens: 1 });
        expect(usage.imageTokens).toBe(16 * 16);
        expect((await gemma.generate(messages({ fps: 1 }), { maxOutputTokens: 1 })).usage.imageTokens).toBe(160);
        expect(await rejection(gemma.generate(messages({ fps: 0 })))).toBeInstanceOf(RangeError);
        expect(await rejection(gemma.generate(messages({ maxFrames: 1.5 })))).toBeInstanceOf(RangeError);
        expect(await rejection(gemma.generate(messages({ video: 7 as never })))).toBeInstanceOf(TypeError);
      },
      { contextSize: 2048 },
      model,
    );
  });

  test('as many frames as the context has room for', async () => {
    await withModel(
      async (gemma) => {
        const { usage } = await gemma.generate(messages({ maxFrames: 100 }), { maxOutputTokens: 20 });
        expect(usage.imageTokens).toBeGreaterThanOrEqual(4 * 16);
        expect(usage.inputTokens + 20).toBeLessThanOrEqual(256);
        expect(await rejection(gemma.generate(messages({}), { maxOutputTokens: 230 }))).toMatchObject({
          code: 'ERR_CONTEXT_FULL',
        });
      },
      { contextSize: 256 },
      model,
    );
  });

  test('frames that are alike are encoded once', async () => {
    const still = join(folder, 'still.mkv');
    ffmpeg('-f', 'lavfi', '-i', 'testsrc=s=62x46:r=10:d=1,loop=loop=50:size=1', '-t', '4', '-c:v', 'ffv1', still);
    const cache = join(folder, 'cache');
    await withModel(
      (gemma) => gemma.generate(messages({ video: still, maxFrames: 12 }), { maxOutputTokens: 1 }),
      { contextSize: 1024, imageCache: { folder: cache } },
      model,
    );
    expect(readdirSync(cache)).toHaveLength(1);
  });

  test('the example', async () => {
    const example = join(root, 'examples', 'caption-video.mjs');
    const exit = await runNode([example, model, join(folder, 'lossless.mkv')]);
    expect(exit).toMatchObject({ code: 0, stderr: '' });
    expect(exit.stdout).toContain('(256 tokens of frames)');
  });

  test('on the command line', async () => {
    const flags = ['--json', '--model', model, '--context', '1024', '--max-tokens', '1', '--max-frames', '5'];
    const { code, stdout } = await runNode([cli, 'run', ...flags, '--video', join(folder, 'lossless.mkv'), 'What?']);
    expect([code, JSON.parse(stdout)]).toEqual([
      0,
      expect.objectContaining({ usage: expect.objectContaining({ imageTokens: 80 }) }),
    ]);
  });
});

describe('hostile videos (attacks 26)', () => {
  const decode = async (path: string, more: Partial<typeof limits> = {}, signal?: AbortSignal) => {
    let n = 0;
    for await (const frame of videoFrames(path, 'video', { maxFrames: 8 }, { ...limits, ...more }, signal))
      n += frame.n / 8;
    return n;
  };
  const decodeError = { code: 'ERR_VIDEO', detail: 'VIDEO_DECODE' };
  const limitError = { code: 'ERR_VIDEO', detail: 'VIDEO_LIMIT' };

  test('cut, empty, no video in it', async () => {
    const whole = readFileSync(join(folder, 'lossless.mkv'));
    const cut = join(folder, 'cut.mkv');
    writeFileSync(cut, whole);
    truncateSync(cut, Math.floor(whole.length / 2));
    expect(await rejection(decode(cut))).toMatchObject(decodeError);
    const mp4 = join(folder, 'cut.mp4');
    writeFileSync(mp4, readFileSync(join(folder, 'lossy.mp4')).subarray(0, 3000));
    expect(await rejection(decode(mp4))).toMatchObject(decodeError);
    writeFileSync(join(folder, 'empty.mp4'), '');
    expect(await rejection(decode(join(folder, 'empty.mp4')))).toMatchObject(decodeError);
    expect(await rejection(decode(__filename))).toMatchObject(decodeError);
    const sound = join(folder, 'sound.mkv');
    ffmpeg('-f', 'lavfi', '-i', 'sine=d=1', sound);
    expect(await rejection(decode(sound))).toMatchObject(decodeError);
    for (const path of [join(folder, 'none.mp4'), folder]) {
      expect(await rejection(decode(path))).toMatchObject({ code: 'ERR_FILE' });
    }
  });

  test('a playlist that names other files', async () => {
    const other = join(folder, 'stream.ts');
    const playlists: [string, string][] = [
      ['list.m3u8', `#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n${other}\n#EXT-X-ENDLIST\n`],
      ['list.mp4', `ffconcat version 1.0\nfile ${other}\n`],
      ['list.ffconcat', `ffconcat version 1.0\nfile ${other}\n`],
      ['list.sdp', 'v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n'],
    ];
    for (const [name, text] of playlists) {
      const path = join(folder, name);
      writeFileSync(path, text);
      expect(await rejection(decode(path))).toMatchObject(decodeError);
    }
    expect(await rejection(decode(`concat:${other}|${other}`))).toMatchObject({ code: 'ERR_FILE' });
  });

  // Titles and names of files stand among what ffmpeg says to people; these imitate it.
  const imitation =
    '\n  Duration: 09:59:59.00, start: 0.000000, bitrate: 1 kb/s\n    Stream #0:0: Video: x, yuv420p, 1x1, 1 fps, 1 tbr\n' +
    'frame=1 fps=0 q=-1.0 size=N/A time=00:00:00.04 bitrate=N/A\n0, 0, 999999999, 1, 1, 0x0\n#dimensions 0: 9x9\n{"format":';

  test('titles, and names of streams and chapters, are no facts', async () => {
    const tags = ['title', 'comment', 'artist', 'encoder'].flatMap((key) => ['-metadata', `${key}=${imitation}`]);
    const streams = ['-metadata:s:v:0', `title=${imitation}`, '-metadata:s:v:0', `handler_name=${imitation}`];
    for (const name of ['lossless.mkv', 'lossy.mp4']) {
      const titled = join(folder, `titled-${name}`);
      ffmpeg('-i', join(folder, name), '-c', 'copy', ...tags, ...streams, titled);
      expect(await numbers(titled, { maxFrames: 16 })).toEqual(await numbers(join(folder, name), { maxFrames: 16 }));
    }
  });

  test('neither are names of files and folders', async () => {
    const named = join(folder, `x${imitation.replaceAll('/', ':').slice(0, 200)}.mkv`);
    copyFileSync(join(folder, 'lossless.mkv'), named);
    expect(await numbers(named, { maxFrames: 16 })).toEqual(
      await numbers(join(folder, 'lossless.mkv'), { maxFrames: 16 }),
    );
    writeFileSync(named, 'no video');
    const error = (await rejection(decode(named))) as Error;
    expect(error).toMatchObject(decodeError);
    expect(error.message).not.toMatch(/\n/);
    expect(error.message.length).toBeLessThan(1000);
  });

  test('a cover picture is not the video', async () => {
    const covered = join(folder, 'covered.mp4');
    const cover = join(folder, 'cover.png');
    ffmpeg('-f', 'lavfi', '-i', 'color=s=200x200', '-frames:v', '1', cover);
    const inputs = ['-i', cover, '-i', join(folder, 'lossy.mp4')];
    ffmpeg(...inputs, '-map', '0', '-map', '1:v', '-c', 'copy', '-disposition:v:0', 'attached_pic', covered);
    expect(await numbers(covered, { maxFrames: 4 })).toEqual(
      await numbers(join(folder, 'lossy.mp4'), { maxFrames: 4 }),
    );
  });

  test('without ffprobe, or where the container does not say its length, packets are counted', async () => {
    const files = ['lossless.mkv', 'lossy.mp4', 'stream.ts', 'slides.mkv', 'titled-lossy.mp4'];
    const raw = join(folder, 'unfinished.mkv'); // as a recorder writes it that cannot go back to the beginning
    const { stdout } = spawnSync('ffmpeg', ['-i', join(folder, 'lossless.mkv'), '-c', 'copy', '-f', 'matroska', '-'], {
      maxBuffer: 1 << 28,
    });
    writeFileSync(raw, stdout);
    expect(await numbers(raw, { maxFrames: 16 })).toEqual(
      await numbers(join(folder, 'lossless.mkv'), { maxFrames: 16 }),
    );
    const ffmpegOnly = mkdtempSync(join(folder, 'bin-'));
    const found = spawnSync('sh', ['-c', 'command -v ffmpeg'], { encoding: 'utf8' }).stdout.trim();
    if (process.platform === 'win32') return;
    symlinkSync(found, join(ffmpegOnly, 'ffmpeg'));
    const before = process.env.PATH;
    for (const name of files) {
      const path = join(folder, name);
      const want = await numbers(path, { maxFrames: 5 });
      try {
        process.env.PATH = ffmpegOnly;
        const counted = await numbers(path, { maxFrames: 5 });
        expect([name, counted.length]).toEqual([name, want.length]);
        for (const [i, { number, seconds }] of counted.entries()) {
          expect([name, Math.abs(number - (want[i]?.number ?? NaN)) <= 1]).toEqual([name, true]);
          expect(seconds).toBeCloseTo(want[i]?.seconds ?? NaN, 1);
        }
      } finally {
        process.env.PATH = before;
      }
    }
  });

  test('too long, too large, too slow, tiny frames', async () => {
    const path = join(folder, 'lossless.mkv');
    expect(await rejection(decode(path, { maxVideoSeconds: 9 }))).toMatchObject(limitError);
    expect(await rejection(decode(path, { maxVideoBytes: 1000 }))).toMatchObject(limitError);
    expect(await rejection(decode(path, { maxImagePixels: 62 * 46 - 1 }))).toMatchObject(limitError);
    expect(await rejection(decode(path, { videoTimeoutMs: 1 }))).toMatchObject(limitError);
    expect(await rejection(decode(path, {}, AbortSignal.abort('no')))).toBe('no');
    const hours = join(folder, 'hours.mkv');
    ffmpeg('-f', 'lavfi', '-i', 'color=s=16x16:r=1/600:d=36000', '-c:v', 'ffv1', hours);
    expect(await rejection(decode(hours))).toMatchObject(limitError);
    const dot = join(folder, 'dot.mkv');
    ffmpeg('-f', 'lavfi', '-i', 'color=s=16x16:r=10:d=1,format=gray,scale=1:1', '-c:v', 'ffv1', dot);
    expect(await decode(dot)).toBe(8);
  });

  test('without ffmpeg the error says how to get it', async () => {
    const script = `
      const { Gemma } = require(${JSON.stringify(join(cli, '..', '..', 'index.js'))});
      (async () => {
        const gemma = await Gemma.load(${JSON.stringify(model)});
        const content = [{ type: 'video', video: ${JSON.stringify(join(folder, 'lossless.mkv'))} }];
        await gemma.generate([{ role: 'user', content }]).catch((e) => console.log(e.code, e.detail, e.message));
        await gemma.dispose();
      })();`;
    const { stdout } = await runNode(['-e', script], { env: { PATH: folder } });
    expect(stdout).toMatch(/^ERR_VIDEO NO_FFMPEG .*install ffmpeg/);
  });

  test('abort kills the decoder', async () => {
    const gemma = await Gemma.load(model, { contextSize: 1024 });
    try {
      const content = [{ type: 'video' as const, video: join(folder, 'lossless.mkv') }];
      for (let i = 0; i < 5; ++i) {
        const signal = AbortSignal.timeout(i * 40);
        await gemma
          .generate([{ role: 'user', content }], { signal, maxOutputTokens: 1 })
          .catch((error: unknown) => expect(error).toMatchObject({ name: 'TimeoutError' }));
      }
    } finally {
      await gemma.dispose();
    }
  });
});
