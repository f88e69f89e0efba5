// What is asked, to token ids and the rows of pictures between them. In two steps: first the layout, for which pictures and
// videos are decoded and cut but not encoded; then, when all of it fits into the context, the rows.
import type { Cancellation } from './cancellation.js';
import { renderChat, renderImage, type ImagePart, type Message, type VideoPart } from './chat-template.js';
import { GemmaError } from './errors.js';
import { prepareImage, readImage, type ImageInput } from './image.js';
import {
  MARKER_BOS,
  type NativeCropOptions,
  type NativeImage,
  type NativeModel,
  type NativeModelInfo,
  type PreparedImage,
  type PromptPart,
} from './native.js';
import { frameOptions, tokenIds, type PromptSettings } from './options.js';
import { pathOfVideo, timeLabel, videoFrames } from './video.js';
import { isEmbedding, rowsOfEmbedding, type ImageEmbedding, type ImageEncoder, type Picture } from './vision.js';

/**
 * What a model is asked: a string (one user turn for an instruction-tuned model, text to continue for a pretrained one or with
 * `raw: true`), a conversation, or token ids taken as they are.
 */
export type Input = string | readonly Message[] | readonly number[];

/** Where everything stands in a prompt. */
export interface Layout {
  tokens: Int32Array;
  /** in the order of their squares in the prompt */
  pictures: Picture[];
  /** for each square the position of its first row */
  firsts: number[];
}

export interface Prompt {
  tokens: Int32Array;
  images: NativeImage[];
  /** tokens that are rows of images */
  imageTokens: number;
}

interface LayoutOptions {
  /** room to keep for the answer; -1: as it comes */
  maxOutputTokens?: number;
  signal?: AbortSignal | undefined;
}

// What a frame takes beside its rows: markers, newlines and the time.
const TOKENS_PER_LABEL = 16;

function nSquares(picture: Picture): number {
  return 'rows' in picture ? picture.rows.length : 1 + picture.crops.length;
}

export class PromptBuilder {
  readonly #live: () => NativeModel;
  readonly #info: NativeModelInfo;
  readonly #encoder: ImageEncoder | undefined;
  readonly #noVision: string;

  /** @param noVision why there is no encoder, for the message of the error */
  constructor(live: () => NativeModel, info: NativeModelInfo, encoder: ImageEncoder | undefined, noVision: string) {
    this.#live = live;
    this.#info = info;
    this.#encoder = encoder;
    this.#noVision = noVision;
  }

  /** The vision encoder and its sizes. Throws GemmaError `ERR_UNSUPPORTED_INPUT`/`NO_VISION` where there is none. */
  vision(): { encoder: ImageEncoder; imageSize: number; tokensPerImage: number } {
    const { vision } = this.#info;
    if (!this.#encoder || !vision) {
      throw new GemmaError(
        'ERR_UNSUPPORTED_INPUT',
        `this model was loaded without a vision encoder: ${this.#noVision}. Models from 4B on have one, in a file of its own: ` +
          'put it beside the model, or name it (option mmproj)',
        'NO_VISION',
      );
    }
    return { encoder: this.#encoder, ...vision };
  }

  async layOut(input: Input, settings: PromptSettings, options: LayoutOptions = {}): Promise<Layout> {
    const layout =
      Array.isArray(input) && typeof input[0] === 'number'
        ? await this.#ofTokens(tokenIds('input', input), settings, options)
        : await this.#ofText(input as string | readonly Message[], settings, options);
    if (layout.tokens.length === 0) throw new RangeError('input: expected at least one token, found none');
    const { contextSize } = this.#info;
    if (layout.pictures.length > 0 && layout.tokens.length >= contextSize) {
      throw new GemmaError(
        'ERR_CONTEXT_FULL',
        `the prompt has ${layout.tokens.length} tokens with its pictures, more than the context of ${contextSize} has room for; ` +
          'load the model with a larger contextSize, or use fewer pictures, crops or frames',
      );
    }
    return layout;
  }

  /** Encodes the pictures of a layout. */
  async fill(
    { tokens, pictures, firsts }: Layout,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void,
  ): Promise<Prompt> {
    if (pictures.length === 0) return { tokens, images: [], imageTokens: 0 };
    const { encoder, tokensPerImage } = this.vision();
    const rows = await encoder.embed(
      pictures.length,
      (i) => {
        const picture = pictures[i] as Picture;
        pictures[i] = { rows: [] }; // its pixels are not held any longer than needed
        return picture;
      },
      cancellation,
      onProgress,
    );
    const images = rows.flat().map((embedding, i) => ({ first: firsts[i] ?? 0, embedding }));
    return { tokens, images, imageTokens: images.length * tokensPerImage };
  }

  async #ofText(input: string | readonly Message[], settings: PromptSettings, options: LayoutOptions): Promise<Layout> {
    const { raw, bos, images } = settings;
    const isText = typeof input === 'string';
    if (!isText && !Array.isArray(input)) {
      throw new TypeError(`input: expected a string, messages or token ids, found ${typeof input}`);
    }
    if (!isText && raw) throw new TypeError('raw: only strings can be raw text, found messages');
    if (!isText && images.length > 0) {
      throw new TypeError('images: a conversation has its pictures in its messages, as parts { type: "image", image }');
    }
    if (isText && (raw || !this.#info.instructionTuned)) {
      const pictures = await this.#images(images, settings, options);
      const parts = pictures.flatMap((picture) => renderImage(nSquares(picture) - 1));
      return this.#encode([...(bos ? [MARKER_BOS as PromptPart] : []), ...parts, input], pictures);
    }
    const messages: readonly Message[] = isText
      ? [
          {
            role: 'user',
            content:
              images.length === 0
                ? input
                : [
                    ...images.map((image) => ({ type: 'image' as const, image })),
                    { type: 'text' as const, text: input },
                  ],
          },
        ]
      : input;
    return this.#ofMessages(messages, settings, options, isText);
  }

  async #ofMessages(
    messages: readonly Message[],
    settings: PromptSettings,
    options: LayoutOptions,
    isText: boolean,
  ): Promise<Layout> {
    // Once without pictures, which finds whatever is wrong before any of them is opened.
    const media: { part: ImagePart | VideoPart; name: string }[] = [];
    const textOnly = renderChat(messages, (part, where) => {
      media.push({ part, name: isText ? `images[${media.length}]` : `${where}.${part.type}` });
      return [];
    });
    if (media.length === 0) return this.#encode(textOnly, []);
    const { tokensPerImage } = this.vision();

    // Pictures first: videos get the room that everything else leaves.
    const loaded: { pictures: Picture[]; parts: PromptPart[] }[] = [];
    const videos: { at: number; part: VideoPart; name: string }[] = [];
    for (const [at, { part, name }] of media.entries()) {
      if (part.type === 'video') {
        videos.push({ at, part, name });
      } else {
        const picture = await this.#image(part.image, name, settings, options);
        loaded[at] = { pictures: [picture], parts: renderImage(nSquares(picture) - 1) };
      }
    }
    if (videos.length > 0) {
      const text = (await this.#live().encode(textOnly, false)).length;
      const squares = loaded.flatMap(({ pictures }) => pictures).reduce((sum, picture) => sum + nSquares(picture), 0);
      const { contextSize } = this.#info;
      const { maxOutputTokens = -1 } = options;
      const answer = maxOutputTokens >= 0 ? maxOutputTokens : Math.min(512, Math.floor(contextSize / 8));
      const perFrame = tokensPerImage + TOKENS_PER_LABEL;
      const room = Math.floor((contextSize - text - squares * perFrame - answer) / perFrame / videos.length);
      for (const { at, part, name } of videos) loaded[at] = await this.#video(part, name, room, settings, options);
    }
    let next = 0;
    const parts = renderChat(messages, () => loaded[next++]?.parts ?? []);
    return this.#encode(
      parts,
      loaded.flatMap(({ pictures }) => pictures),
    );
  }

  async #image(
    image: ImageInput | ImageEmbedding,
    name: string,
    { limits, crops }: PromptSettings,
    { signal }: LayoutOptions,
  ): Promise<Picture> {
    signal?.throwIfAborted();
    const { imageSize, tokensPerImage } = this.vision();
    if (isEmbedding(image)) return { rows: rowsOfEmbedding(image, name, tokensPerImage, this.#info.config.modelDim) };
    return prepareImage(await readImage(image, name, limits, signal), imageSize, crops);
  }

  async #images(
    images: readonly (ImageInput | ImageEmbedding)[],
    settings: PromptSettings,
    options: LayoutOptions,
  ): Promise<Picture[]> {
    const pictures: Picture[] = [];
    for (const [i, image] of images.entries()) {
      pictures.push(await this.#image(image, `images[${i}]`, settings, options));
    }
    return pictures;
  }

  async #video(
    part: VideoPart,
    name: string,
    room: number,
    { limits, videoLimits }: PromptSettings,
    { signal }: LayoutOptions,
  ): Promise<{ pictures: PreparedImage[]; parts: PromptPart[] }> {
    const { imageSize } = this.vision();
    const { fps, maxFrames = room } = frameOptions(name, part);
    if (room < 1) {
      throw new GemmaError(
        'ERR_CONTEXT_FULL',
        `${name}: the context has no room for a frame; use a larger contextSize`,
      );
    }
    const frames = { maxFrames: Math.min(maxFrames, room), ...(fps !== undefined && { fps }) };
    const uncut: NativeCropOptions = {};
    const times: number[] = [];
    const pictures: PreparedImage[] = [];
    const path = pathOfVideo(part.video, name);
    for await (const frame of videoFrames(path, name, frames, { ...videoLimits, ...limits }, signal)) {
      times.push(frame.seconds);
      pictures.push(await prepareImage(frame.pixels, imageSize, uncut));
    }
    const dense = times.length > 1 && (times[1] ?? 0) - (times[0] ?? 0) < 1;
    return { pictures, parts: times.flatMap((seconds) => [timeLabel(seconds, dense), ...renderImage(0)]) };
  }

  // Text to ids; the one id that stands for a square becomes as many as it has rows.
  async #encode(parts: readonly PromptPart[], pictures: Picture[]): Promise<Layout> {
    const ids = await this.#live().encode(parts, false);
    if (pictures.length === 0) return { tokens: ids, pictures, firsts: [] };
    const { imageToken } = this.#info;
    const { tokensPerImage } = this.vision();
    const squares = pictures.reduce((sum, picture) => sum + nSquares(picture), 0);
    const tokens = new Int32Array(ids.length + squares * (tokensPerImage - 1));
    const firsts: number[] = [];
    let n = 0;
    for (const id of ids) {
      const rows = id === imageToken ? tokensPerImage : 1;
      if (id === imageToken) firsts.push(n);
      tokens.fill(id, n, n + rows);
      n += rows;
    }
    if (firsts.length !== squares || n !== tokens.length) {
      throw new GemmaError('ERR_INTERNAL', `a prompt with ${firsts.length} places for ${squares} images`);
    }
    return { tokens, pictures, firsts };
  }

  // Token ids that were laid out elsewhere: pictures fill the runs of the image token.
  async #ofTokens(tokens: Int32Array, settings: PromptSettings, options: LayoutOptions): Promise<Layout> {
    if (settings.images.length === 0) return { tokens, pictures: [], firsts: [] };
    const { imageToken } = this.#info;
    const { tokensPerImage } = this.vision();
    const pictures = await this.#images(settings.images, settings, options);
    const firsts: number[] = [];
    for (let n = 0; n < tokens.length; ++n) {
      if (tokens[n] !== imageToken) continue;
      if (
        tokens.subarray(n, n + tokensPerImage).some((id) => id !== imageToken) ||
        n + tokensPerImage > tokens.length
      ) {
        throw new RangeError(`input: expected runs of ${tokensPerImage} image tokens (${imageToken}) at ${n}`);
      }
      firsts.push(n);
      n += tokensPerImage - 1;
    }
    const squares = pictures.reduce((sum, picture) => sum + nSquares(picture), 0);
    if (firsts.length !== squares) {
      throw new RangeError(`images: expected ${firsts.length}, as many as the input has runs for, found ${squares}`);
    }
    return { tokens, pictures, firsts };
  }
}
