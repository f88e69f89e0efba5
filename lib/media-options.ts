// The options that say which pictures and videos are accepted and how pictures are cut; shared by all calls that take some. Laid
// out as in options.ts.
import {
  booleans,
  choices,
  custom,
  integers,
  known,
  numbers,
  or,
  valuesOf,
  type TableOf,
  type Values,
} from './option-table.js';
import { ANY_SIZE, integer, number, show } from './values.js';

/** What is accepted as a picture. */
export interface ImageOptions {
  /** Bytes of a file at most. Default: 64 MiB. */
  maxImageBytes?: number;
  /** Pixels of a picture at most, checked before it is decoded. Default: 100 million. A side has at most 65535. */
  maxImagePixels?: number;
  /**
   * Fetch pictures from http(s) URLs. True: from public addresses only, `'private'`: also from this machine and its network;
   * set that only for URLs you wrote yourself. Default false.
   */
  allowRemote?: boolean | 'private';
  /** How long fetching may take, from the lookup of the name to the last byte, in milliseconds. Default: 30000. */
  remoteTimeoutMs?: number;
  /**
   * Default true. False refuses paths and `file:` URLs, for pictures and videos (`LOCAL_BLOCKED`): for programs that pass on
   * strings of their users, which could otherwise name any file of this machine.
   */
  allowLocal?: boolean;
  /**
   * Transparency of pictures, which the encoder cannot see: `'drop'` shows the colours that stand below it, `'white'` lays the
   * picture on white. Default, as in the reference: `'drop'` for files, `'white'` for raw pixels.
   */
  alpha?: 'drop' | 'white';
}

/**
 * Pan & Scan, as Hugging Face's image processor does it: a picture that is wider or higher than a square is seen whole and once
 * more in 2 or more crops side by side, so that small text stays legible.
 */
export interface PanAndScanOptions {
  /** Pixels a crop must have in width and height. Default 256. */
  minCropSize?: number;
  /** Default 4. */
  maxCrops?: number;
  /** Longer side divided by the shorter one from which on a picture is cropped. Default 1.2. */
  minRatio?: number;
}

/** How pictures are cut. */
export interface CropOptions {
  /** Default false, as in the reference. */
  panAndScan?: boolean | PanAndScanOptions;
  /**
   * Instead of Pan & Scan: cut every picture into nearly square tiles, so many along its shorter side (a square page into
   * n x n). For dense pages, where Pan & Scan does nothing. At most 256 tiles. Each costs as much as a picture.
   */
  tile?: number;
}

/** How videos are read. */
export interface VideoOptions {
  /** Videos longer than this are refused. Default: 4 hours. */
  maxVideoSeconds?: number;
  /** Larger files are refused. Default: 16 GiB. */
  maxVideoBytes?: number;
  /** How long decoding one may take, in milliseconds. Default: 10 minutes. */
  videoTimeoutMs?: number;
}

export const IMAGE = {
  maxImageBytes: or(integers(1), 64 << 20),
  maxImagePixels: or(integers(1), 100e6),
  allowRemote: or(
    custom((name, value) => {
      if (typeof value === 'boolean' || value === 'private') return value;
      throw new TypeError(`${name}: expected true, false or 'private', found ${show(value)}`);
    }),
    false,
  ),
  remoteTimeoutMs: or(integers(1), 30_000),
  allowLocal: or(booleans, true),
  alpha: choices('drop', 'white'),
} as const satisfies TableOf<ImageOptions>;

const MAX_CROPS = 256; // kMaxCrops of the native image code

const PAN_AND_SCAN = {
  minCropSize: integers(1),
  maxCrops: integers(1, MAX_CROPS),
  minRatio: numbers('a number of at least 0', (n) => n >= 0),
} as const satisfies TableOf<PanAndScanOptions>;

export const CROP = {
  panAndScan: custom((name, value): Values<typeof PAN_AND_SCAN> | undefined => {
    if (value === false) return undefined;
    if (value === true) return {};
    known(PAN_AND_SCAN, value, name);
    return valuesOf(PAN_AND_SCAN, value as object, `${name}.`);
  }),
  tile: integers(1, MAX_CROPS),
} as const satisfies TableOf<CropOptions>;

export const VIDEO = {
  maxVideoSeconds: or(
    numbers('a number above 0', (n) => n > 0),
    4 * 3600,
  ),
  maxVideoBytes: or(integers(1, ANY_SIZE), 16 * 2 ** 30),
  videoTimeoutMs: or(integers(1), 600_000),
} as const satisfies TableOf<VideoOptions>;

/**
 * What pictures and videos may be: the values of the options under the names of the options, which are all different, so that none
 * can take the place of another.
 */
export type ImageLimits = Values<typeof IMAGE>;
export type MediaLimits = ImageLimits & Values<typeof VIDEO>;

export function imageLimits(options: ImageOptions): ImageLimits {
  return valuesOf(IMAGE, options);
}

export function mediaLimits(options: ImageOptions & VideoOptions): MediaLimits {
  return valuesOf({ ...IMAGE, ...VIDEO }, options);
}

/** How native code cuts a picture: in one of two ways, or not at all. */
export type CropParams = Values<typeof CROP>;

export function cropParams(options: CropOptions): CropParams {
  if (options.tile !== undefined && (options.panAndScan ?? false) !== false) {
    throw new TypeError('tile: a picture is cut by panAndScan or into tiles, not both');
  }
  return valuesOf(CROP, options);
}

/** How many frames of a video part are wanted; undefined: as many as there is room for. */
export function frameOptions(
  name: string,
  { fps, maxFrames }: { fps?: number | undefined; maxFrames?: number | undefined },
): { fps?: number; maxFrames?: number } {
  if (fps !== undefined) number(`${name}.fps`, fps, (n) => n > 0 && n <= 1000, 'a number above 0, at most 1000');
  if (maxFrames !== undefined) integer(`${name}.maxFrames`, maxFrames, 1);
  if (fps === undefined) return { maxFrames: maxFrames ?? 16 };
  return { fps, ...(maxFrames !== undefined && { maxFrames }) };
}
