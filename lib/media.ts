// What callers pass as pictures, and what they get for them.

/** Pixels without a file around them: rows of `width` pixels of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) bytes. */
export interface RawImage {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  /** Default: what the data has for each pixel. */
  channels?: 1 | 2 | 3 | 4;
}

/**
 * A picture: a path; a `file:`, `data:` or (with `allowRemote`) http(s) URL; the bytes of a JPEG, PNG, WebP, GIF (its first
 * frame), AVIF or TIFF file; a Blob of such; raw pixels.
 */
export type ImageInput = string | URL | Uint8Array | ArrayBuffer | Blob | RawImage;

/** Pixels x .. x + width - 1, y .. y + height - 1 of a picture. */
export interface Crop {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** What the vision encoder makes of a picture. May stand in a message instead of the picture. */
export interface ImageEmbedding {
  /** row-major `shape` */
  data: Float32Array;
  /** `[tokens, modelDim]`: the rows of the whole picture, then those of each crop; with `pooling: 'mean'` `[1, modelDim]` */
  shape: [number, number];
  /** where the picture was cut */
  crops: Crop[];
}
