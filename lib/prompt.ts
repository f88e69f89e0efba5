// What is asked, to token ids and the rows of pictures between them. In two steps: first the layout, for which pictures and
// videos are decoded and cut but not encoded; then, when all of it fits into the context, the rows.
import type { Cancellation } from './cancellation.js';
import type { Chat } from './chat.js';
import { renderChat, renderImage } from './chat-template.js';
import { GemmaError } from './errors.js';
import { agreement, joined, type KeptTurn, type PromptPiece } from './kept-tokens.js';
import type { Crop, ImageEmbedding, ImageInput } from './media.js';
import { copyMessages, isMedia, type Loaded, type Message, type Part, type Turn } from './messages.js';
import {
  MARKER_BOS,
  type NativeAdapterUse,
  type NativeCropOptions,
  type NativeImage,
  type NativeModel,
  type NativeModelInfo,
  type PreparedImage,
  type PromptPart,
} from './native.js';
import { frameOptions } from './media-options.js';
import type { PromptSettings } from './options.js';
import type { TemplateMessage, TemplateRequest } from './template-prompt.js';
import type { TemplateRenderer } from './template-renderer.js';
import type { DeclaredTool, ToolFormat, ToolFormatName } from './tool-formats/format.js';
import type { Piece } from './tool-formats/functiongemma.js';
import { takesTools, TOOL_FORMATS, toolFormat } from './tool-formats/formats.js';
import { declaredFunction, plainTurns, toolFields, withAnswers } from './tool-turns.js';
import { inSlices, nextTurn, type Sliced } from './turns.js';
import { encodeParts, tokenIds } from './token-text.js';
import type { ImageEncoder, Picture } from './vision.js';

// Loaded with the first call that needs them: a program that asks a model for text is not to wait for them.
const lazy = {
  get image() {
    return require('./image.js') as typeof import('./image.js');
  },
  get templateRenderer() {
    return require('./template-renderer.js') as typeof import('./template-renderer.js');
  },
  get functionGemma() {
    return require('./tool-formats/functiongemma.js') as typeof import('./tool-formats/functiongemma.js');
  },
  get video() {
    return require('./video.js') as typeof import('./video.js');
  },
  get vision() {
    return require('./vision.js') as typeof import('./vision.js');
  },
};

/**
 * What a model is asked: a string (one user turn where the model has a chat template, else text to continue; `raw` forces either),
 * a conversation, or token ids taken as they are.
 */
export type Input = string | readonly Message[] | readonly number[];

/** Where everything stands in a prompt. */
export interface Layout {
  tokens: Int32Array;
  /** in the order of their squares in the prompt */
  pictures: Picture[];
  /** for each square the position of its first row */
  firsts: readonly number[];
  /** how many turns before were taken as they are kept, and what comes after these */
  nKept: number;
  last: PromptPiece;
  /** the picture and video parts in order, with where each of their pictures was cut */
  media?: readonly { part: Part; labels: readonly string[]; crops: readonly (readonly Crop[])[] }[];
  /** what it is computed with */
  adapters?: readonly NativeAdapterUse[];
  background?: boolean;
}

export interface Prompt {
  tokens: Int32Array;
  images: NativeImage[];
  /** tokens that are rows of images */
  imageTokens: number;
  adapters: readonly NativeAdapterUse[];
  background: boolean;
}

interface LayoutOptions {
  /** refuse a prompt that cannot fit into the context before it is looked at */
  fits?: boolean;
  /** room to keep for the answer; -1: as it comes */
  maxOutputTokens?: number;
  /** what is asked about the input, behind it: at the end of the last turn if that is the user's, else in a turn of its own */
  question?: string;
  /** turns of the same conversation, whose ids are taken where they agree */
  kept?: readonly KeptTurn[];
  signal?: AbortSignal | undefined;
}

// What a frame takes beside its rows: markers, newlines and the time.
const TOKENS_PER_LABEL = 16;

function nSquares(picture: Picture): number {
  return 'rows' in picture ? picture.rows.length : 1 + picture.crops.length;
}

/** A chat template of the model's own, and what its control texts stand for. */
interface OwnTemplate {
  renderer: TemplateRenderer;
  /** by the numbers of control texts */
  ids: Int32Array;
  variables: Record<string, string>;
  startOfImage: number;
}

const MAX_TEMPLATE_PARTS = 20_000;
const MAX_TOKEN_BYTES = 1024; // no token of a vocabulary is longer

// What is copied to the thread of templates is copied on the JavaScript thread.
function checkSize(turns: readonly Turn[], contextSize: number): void {
  let parts = 0;
  let characters = 0;
  for (const { content } of turns) {
    parts += typeof content === 'object' ? 1 + content.length : 1;
    if (typeof content === 'string') characters += content.length;
    else for (const { text } of content ?? []) characters += text?.length ?? 0;
  }
  if (parts > MAX_TEMPLATE_PARTS) {
    const message = `messages: expected at most ${MAX_TEMPLATE_PARTS} messages and parts for a chat template, found ${parts}`;
    throw new GemmaError('ERR_CHAT_TEMPLATE', message, 'TEMPLATE_LIMIT');
  }
  if (characters > contextSize * MAX_TOKEN_BYTES) {
    throw new GemmaError(
      'ERR_CONTEXT_FULL',
      `messages: ${characters} characters cannot fit into the context of ${contextSize} tokens`,
      'CONTEXT_OVERFLOW',
    );
  }
}

// A turn as templates know it. Frames of a video are pictures with texts between.
function templateMessage(turn: Turn, next: () => Loaded | undefined, format: ToolFormatName): TemplateMessage {
  const { role, content } = turn;
  const fields = { ...turn.fields, ...toolFields(turn, format) };
  if (content === undefined) return { role, ...fields };
  if (typeof content === 'string') return { role, content, ...fields };
  const parts = content.flatMap((part): Record<string, unknown>[] => {
    if (part.type === 'text') return [{ type: 'text', text: part.text, ...part.fields }];
    if (!isMedia(part.type)) return [{ type: part.type, ...part.fields }];
    const loaded = next();
    if (part.type === 'image') return [{ type: 'image', ...part.fields }];
    return (loaded?.labels ?? []).flatMap((text) => [
      { type: 'text', text },
      { type: 'image', ...part.fields },
    ]);
  });
  return { role, content: parts, ...fields };
}

function behind(text: string, question: string): string {
  return text === '' ? question : `${text}\n\n${question}`;
}

// Texts that follow each other are one part: Gemma's format would put nothing between them.
function withQuestion(turns: readonly Turn[], question: string | undefined): readonly Turn[] {
  if (question === undefined) return turns;
  const asked: Part = { type: 'text', text: question, fields: {} };
  const last = turns.at(-1);
  if (last?.role !== 'user' || last.content === undefined) {
    return [...turns, { role: 'user', content: question, fields: {} }];
  }
  const { content } = last;
  if (typeof content === 'string') return [...turns.slice(0, -1), { ...last, content: behind(content, question) }];
  const end = content.at(-1);
  const parts =
    end?.type === 'text'
      ? [...content.slice(0, -1), { ...end, text: behind(end.text ?? '', question) }]
      : [...content, asked];
  return [...turns.slice(0, -1), { ...last, content: parts }];
}

function renderPlace(picture: Picture | undefined): PromptPart[] {
  return picture ? renderImage(nSquares(picture) - 1) : [];
}

function ownTemplate(source: string, model: NativeModel): OwnTemplate {
  const { texts, ids, bos, eos, unknown, pad, startOfImage } = model.markers();
  const named = { bos_token: bos, eos_token: eos, unk_token: unknown, pad_token: pad };
  const variables: Record<string, string> = {};
  for (const [name, id] of Object.entries(named)) {
    const text = texts[ids.indexOf(id)];
    if (text !== undefined) variables[name] = text;
  }
  return { renderer: new lazy.templateRenderer.TemplateRenderer({ source, texts }), ids, variables, startOfImage };
}

export class PromptBuilder {
  readonly #live: () => NativeModel;
  readonly #info: NativeModelInfo;
  readonly #chat: Chat;
  readonly #template: OwnTemplate | undefined;
  readonly #encoder: ImageEncoder | undefined;
  readonly #noVision: string;
  #controls: ReadonlySet<number> | undefined;

  /** @param noVision why there is no encoder, for the message of the error */
  constructor(
    live: () => NativeModel,
    info: NativeModelInfo,
    chat: Chat,
    encoder: ImageEncoder | undefined,
    noVision: string,
  ) {
    this.#live = live;
    this.#info = info;
    this.#chat = chat;
    if (chat.source !== undefined) this.#template = ownTemplate(chat.source, live());
    this.#encoder = encoder;
    this.#noVision = noVision;
  }

  /** Ends what runs beside the model. */
  close(): void {
    this.#template?.renderer.close();
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

  /** Reads messages for `layOutTurns`. Throws TypeError that names the place. */
  read(messages: unknown, name?: string): Sliced<Turn[]> {
    return copyMessages(messages, this.#template !== undefined, name);
  }

  /** Ids of the tokens that only chat templates write: they show in no text. */
  controls(): ReadonlySet<number> {
    this.#controls ??= new Set(this.#template?.ids ?? this.#live().markers().ids);
    return this.#controls;
  }

  /** Positions to keep free for an answer; -1: of any length. */
  roomForAnswer(maxOutputTokens: number): number {
    return maxOutputTokens >= 0 ? maxOutputTokens : Math.min(512, Math.floor(this.#info.contextSize / 8));
  }

  async layOut(input: Input, settings: PromptSettings, options: LayoutOptions = {}): Promise<Layout> {
    this.#checkRoom(settings.images.length);
    const layout =
      Array.isArray(input) && typeof input[0] === 'number'
        ? await this.#ofTokens(await this.#tokens(input as readonly number[], options), settings, options)
        : await this.#ofText(input as string | readonly Message[], settings, options);
    if (layout.tokens.length === 0) throw new RangeError('input: expected at least one token, found none');
    return this.#checkPictures(layout, settings);
  }

  /** As `layOut`, of a conversation that was read before. Pictures that were seen before are not opened again. */
  async layOutTurns(turns: readonly Turn[], settings: PromptSettings, options: LayoutOptions): Promise<Layout> {
    return this.#checkPictures(await this.#ofTurns(turns, settings, options), settings);
  }

  #checkPictures(layout: Layout, settings?: Pick<PromptSettings, 'adapter' | 'priority'>): Layout {
    const { contextSize } = this.#info;
    if (layout.pictures.length > 0 && layout.tokens.length >= contextSize) {
      throw new GemmaError(
        'ERR_CONTEXT_FULL',
        `the prompt has ${layout.tokens.length} tokens with its pictures, more than the context of ${contextSize} has room for; ` +
          'load the model with a larger contextSize, or use fewer pictures, crops or frames',
      );
    }
    const { adapter = [], priority } = settings ?? {};
    return { ...layout, adapters: adapter, background: priority === 'background' };
  }

  // Each picture and each video takes a square at least: what cannot fit is refused before any is opened.
  #checkRoom(n: number): void {
    if (n === 0) return;
    const { contextSize } = this.#info;
    const least = n * this.vision().tokensPerImage;
    if (least < contextSize) return;
    throw new GemmaError(
      'ERR_CONTEXT_FULL',
      `${n} pictures take ${least} tokens or more, and the context has room for ${contextSize}; load the model with a larger ` +
        'contextSize, or use fewer pictures',
    );
  }

  /** Encodes the pictures of a layout; its parts then have what is known of them. Returns the rows of each square. */
  async see(
    { pictures, media = [], adapters, background }: Layout,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void,
  ): Promise<readonly Float32Array[]> {
    if (pictures.length === 0) return [];
    const rows = await this.vision().encoder.embed(
      pictures.length,
      (i) => {
        const picture = pictures[i] as Picture;
        pictures[i] = { rows: [], crops: [] }; // its pixels are not held any longer than needed
        return picture;
      },
      cancellation,
      onProgress,
      adapters,
      background,
    );
    let next = 0;
    for (const { part, labels, crops } of media) {
      part.loaded = { labels, pictures: crops.map((cut) => ({ crops: [...cut], rows: rows[next++] ?? [] })) };
    }
    return rows.flat();
  }

  /** The prompt of a layout, its pictures encoded. */
  async fill(layout: Layout, cancellation: Cancellation, onProgress: (fraction: number) => void): Promise<Prompt> {
    const images: NativeImage[] = [];
    for (const [i, embedding] of (await this.see(layout, cancellation, onProgress)).entries()) {
      await nextTurn();
      images.push({ first: layout.firsts[i] ?? 0, embedding: this.#live().holdRows(embedding) });
    }
    const { tokens, adapters = [], background = false } = layout;
    const imageTokens = images.length === 0 ? 0 : images.length * this.vision().tokensPerImage;
    return { tokens, images, imageTokens, adapters, background };
  }

  /** A prompt whose parts were written elsewhere. */
  layOutParts(parts: readonly PromptPart[], pictures: readonly Picture[], options: LayoutOptions): Promise<Layout> {
    return this.#encode(parts, [...pictures], options).then((layout) => this.#checkPictures(layout));
  }

  async #ofText(input: string | readonly Message[], settings: PromptSettings, options: LayoutOptions): Promise<Layout> {
    const { bos, images, tools } = settings;
    const { question } = options;
    const { raw = this.#chat.template === 'none' && !tools?.tools.length } = settings;
    if (raw && tools?.tools.length) throw new TypeError('tools: raw text is no conversation, which tools need');
    const isText = typeof input === 'string';
    if (!isText && !Array.isArray(input)) {
      throw new TypeError(`input: expected a string, messages or token ids, found ${typeof input}`);
    }
    if (!isText && settings.raw) throw new TypeError('raw: only strings can be raw text, found messages');
    if (!isText && images.length > 0) {
      throw new TypeError('images: a conversation has its pictures in its messages, as parts { type: "image", image }');
    }
    if (!isText) {
      return this.#ofTurns(withQuestion(await inSlices(this.read(input)), question), settings, options);
    }
    if (raw) {
      const pictures = await this.#images(images, settings, options);
      const parts = pictures.flatMap((picture) => renderImage(nSquares(picture) - 1));
      const text = question === undefined ? input : behind(input, question);
      return this.#encode([...(bos ? [MARKER_BOS as PromptPart] : []), ...parts, text], pictures, options);
    }
    const shown = images.map((image, i): Part => ({ type: 'image', image, name: `images[${i}]`, fields: {} }));
    const content = images.length === 0 ? input : [...shown, { type: 'text', text: input, fields: {} }];
    return this.#ofTurns(withQuestion([{ role: 'user', content, fields: {} }], question), settings, options);
  }

  async #ofTurns(turns: readonly Turn[], settings: PromptSettings, options: LayoutOptions): Promise<Layout> {
    // Once without pictures, which finds whatever is wrong before any of them is opened.
    const textOnly = await this.#write(turns, undefined, settings);
    const media = turns.flatMap(({ content }) =>
      typeof content === 'object' ? content.filter(({ type }) => isMedia(type)) : [],
    );
    if (media.length === 0) return this.#encode(textOnly, [], options);
    this.#checkRoom(media.length);
    const { tokensPerImage } = this.vision();

    // Pictures first: videos get the room that everything else leaves.
    const loaded: Loaded[] = [];
    const videos: { at: number; part: Part }[] = [];
    for (const [at, part] of media.entries()) {
      if (part.loaded) {
        loaded[at] = part.loaded;
      } else if (part.type === 'video') {
        videos.push({ at, part });
      } else {
        const picture = await this.#image(part.image as ImageInput, part.name ?? '', settings, options);
        loaded[at] = { pictures: [picture], labels: [] };
      }
    }
    if (videos.length > 0) {
      const text = (await this.#ids(textOnly, options)).length;
      const squares = loaded.flatMap(({ pictures }) => pictures).reduce((sum, picture) => sum + nSquares(picture), 0);
      const { contextSize } = this.#info;
      const answer = this.roomForAnswer(options.maxOutputTokens ?? -1);
      const perFrame = tokensPerImage + TOKENS_PER_LABEL;
      const room = Math.floor((contextSize - text - squares * perFrame - answer) / perFrame / videos.length);
      for (const { at, part } of videos) loaded[at] = await this.#video(part, room, settings, options);
    }
    const layout = await this.#encode(
      await this.#write(turns, loaded, settings),
      loaded.flatMap(({ pictures }) => pictures),
      options,
    );
    const seen = media.map((part, i) => {
      const { pictures, labels } = loaded[i] as Loaded;
      return { part, labels, crops: pictures.map(({ crops }) => crops) };
    });
    return { ...layout, media: seen };
  }

  // The parts of a prompt. loaded: what the pictures and videos are, in order; undefined: they are left out.
  #write(
    given: readonly Turn[],
    loaded: readonly Loaded[] | undefined,
    { tools: asked }: PromptSettings,
  ): Promise<PromptPart[]> {
    const answered = withAnswers(given);
    const { tools = [] } = asked ?? {};
    const isPlain = tools.length === 0 && answered === given;
    const byTemplate = !isPlain && this.#templateWrites(asked?.format);
    const format = isPlain ? undefined : this.toolFormat(asked?.format);
    const isOwn = format?.name === 'functiongemma' && !byTemplate;
    const turns = format && !byTemplate && !isOwn ? plainTurns(answered, tools, format) : answered;
    let next = 0;
    if (this.#template && !isOwn) {
      return this.#writeByTemplate(this.#template, turns, loaded, byTemplate ? tools : [], format?.name ?? 'gemma');
    }
    const written = loaded?.map(({ pictures, labels }) =>
      pictures.flatMap((picture, i) => [...labels.slice(i, i + 1), ...renderImage(nSquares(picture) - 1)]),
    );
    const media = () => written?.[next++] ?? [];
    if (isOwn) return Promise.resolve(this.#markedParts(lazy.functionGemma.conversationPieces(turns, tools, media)));
    return inSlices(renderChat(turns, media));
  }

  // Whether tools, calls and results are for the model's own template to write.
  #templateWrites(format: ToolFormatName | undefined): boolean {
    const { source, toolFormat: own } = this.#chat;
    if (!takesTools(source)) return false;
    return format === undefined || format === own || (format !== 'gemma' && format !== 'functiongemma');
  }

  /**
   * How calls are written.
   *
   * @throws GemmaError `ERR_UNSUPPORTED_INPUT`: `TOOL_FORMAT` where a template takes tools in a way that is not known here,
   * `TOOL_TOKENS` where the vocabulary has not the format's control tokens
   */
  toolFormat(given: ToolFormatName | undefined): ToolFormat {
    const name = given ?? this.#chat.toolFormat;
    if (name === 'unknown') {
      throw new GemmaError(
        'ERR_UNSUPPORTED_INPUT',
        'tools: the chat template takes tools, but how it writes calls is not known here; the option toolFormat can say it: ' +
          TOOL_FORMATS.join(', '),
        'TOOL_FORMAT',
      );
    }
    if (name === 'functiongemma') for (const spelling of lazy.functionGemma.MARKERS) this.#token(spelling);
    return toolFormat(name, this.#chat.source);
  }

  /** The id of a control token, -1 where it is text in this vocabulary. */
  controlToken(spelling: string): number {
    const id = this.#live().findToken(spelling);
    return this.controls().has(id) ? id : -1;
  }

  #token(spelling: string): number {
    const id = this.controlToken(spelling);
    if (id >= 0) return id;
    throw new GemmaError(
      'ERR_UNSUPPORTED_INPUT',
      `tools: FunctionGemma's format needs the token ${spelling}, and this model's vocabulary has none`,
      'TOOL_TOKENS',
    );
  }

  #markedParts(pieces: readonly Piece[]): PromptPart[] {
    return pieces.flatMap((piece): readonly PromptPart[] => {
      if (typeof piece === 'string') return [piece];
      return 'mark' in piece ? [-1 - this.#token(piece.mark)] : piece.media;
    });
  }

  async #writeByTemplate(
    { renderer, ids, variables, startOfImage }: OwnTemplate,
    turns: readonly Turn[],
    loaded: readonly Loaded[] | undefined,
    tools: readonly DeclaredTool[],
    format: ToolFormatName,
  ): Promise<PromptPart[]> {
    checkSize(turns, this.#info.contextSize);
    let next = 0;
    const messages = turns.map((turn) => templateMessage(turn, () => loaded?.[next++], format));
    const last = turns.at(-1);
    const continues = last?.role === 'assistant' && last.content !== undefined && !('tool_calls' in last.fields);
    const request: TemplateRequest = {
      messages,
      tools: tools.length > 0 ? tools.map((tool) => declaredFunction(tool, format)) : null,
      variables: { ...variables, documents: null, add_generation_prompt: !continues },
      continues,
    };
    const pieces = await renderer.render(request);
    const pictures = loaded?.flatMap((media) => media.pictures);
    const parts: PromptPart[] = [];
    let places = 0;
    for (const piece of pieces) {
      const id = typeof piece === 'string' ? undefined : ids[piece];
      if (typeof piece === 'string') parts.push(piece);
      else if (id === startOfImage && pictures?.length) parts.push(...renderPlace(pictures[places++]));
      else if (id !== undefined) parts.push(-1 - id);
    }
    if (pictures && places !== pictures.length) {
      throw new GemmaError(
        'ERR_CHAT_TEMPLATE',
        `the chat template has places for ${places} pictures (<start_of_image>), the messages have ${pictures.length}`,
        'TEMPLATE_PICTURES',
      );
    }
    return parts;
  }

  #ids(parts: readonly PromptPart[], { fits, signal }: LayoutOptions): Promise<Int32Array> {
    return encodeParts(this.#live(), parts, { signal, ...(fits && { fits: this.#info }) });
  }

  // What is longer than the context is refused by native code; here only what would take long to hand over.
  async #tokens(ids: readonly number[], { fits, signal }: LayoutOptions): Promise<Int32Array> {
    const { contextSize } = this.#info;
    if (fits && ids.length > contextSize) {
      throw new GemmaError(
        'ERR_CONTEXT_FULL',
        `the prompt of ${ids.length} tokens does not fit into the context of ${contextSize} positions: shorten it or load with a ` +
          'larger contextSize',
        'CONTEXT_OVERFLOW',
      );
    }
    return tokenIds('input', ids, signal);
  }

  async #image(
    image: ImageInput | ImageEmbedding,
    name: string,
    { limits, crops }: PromptSettings,
    { signal }: LayoutOptions,
  ): Promise<Picture> {
    signal?.throwIfAborted();
    const { imageSize, tokensPerImage } = this.vision();
    if (lazy.vision.isEmbedding(image)) {
      const rows = await lazy.vision.rowsOfEmbedding(image, name, tokensPerImage, this.#info.config.modelDim);
      return { rows, crops: image.crops };
    }
    return lazy.image.prepareImage(await lazy.image.readImage(image, name, limits, signal), imageSize, crops);
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

  async #video(part: Part, room: number, { limits }: PromptSettings, { signal }: LayoutOptions): Promise<Loaded> {
    const { imageSize } = this.vision();
    const { name = '' } = part;
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
    const path = lazy.video.pathOfVideo(part.video, name, limits);
    for await (const frame of lazy.video.videoFrames(path, name, frames, limits, signal)) {
      times.push(frame.seconds);
      pictures.push(await lazy.image.prepareImage(frame.pixels, imageSize, uncut));
    }
    const dense = times.length > 1 && (times[1] ?? 0) - (times[0] ?? 0) < 1;
    return { pictures, labels: times.map((seconds) => lazy.video.timeLabel(seconds, dense)) };
  }

  // Text to ids, but for the turns whose ids are kept.
  async #encode(parts: readonly PromptPart[], pictures: Picture[], options: LayoutOptions): Promise<Layout> {
    const { kept = [] } = options;
    const { n, rest } = agreement(parts, kept);
    const ids = await this.#ids(rest, options);
    const last = { parts: rest, ...(pictures.length === 0 ? { ids, firsts: [] } : this.#withRows(ids)) };
    const { tokens, firsts } = joined(kept.slice(0, n), last);
    const squares = pictures.reduce((sum, picture) => sum + nSquares(picture), 0);
    if (firsts.length !== squares) {
      throw new GemmaError('ERR_INTERNAL', `a prompt with ${firsts.length} places for ${squares} images`);
    }
    return { tokens, pictures, firsts, nKept: n, last };
  }

  // The one id that stands for a square becomes as many as it has rows.
  #withRows(ids: Int32Array): { ids: Int32Array; firsts: number[] } {
    const { imageToken } = this.#info;
    const { tokensPerImage } = this.vision();
    const squares = ids.reduce((sum, id) => sum + (id === imageToken ? 1 : 0), 0);
    const all = new Int32Array(ids.length + squares * (tokensPerImage - 1));
    const firsts: number[] = [];
    let n = 0;
    for (const id of ids) {
      const rows = id === imageToken ? tokensPerImage : 1;
      if (id === imageToken) firsts.push(n);
      all.fill(id, n, n + rows);
      n += rows;
    }
    return { ids: all, firsts };
  }

  // Token ids that were laid out elsewhere: pictures fill the runs of the image token.
  async #ofTokens(tokens: Int32Array, settings: PromptSettings, options: LayoutOptions): Promise<Layout> {
    const last: PromptPiece = { parts: [], ids: tokens, firsts: [] };
    if (settings.images.length === 0) return { tokens, pictures: [], firsts: [], nKept: 0, last };
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
    return { tokens, pictures, firsts, nKept: 0, last };
  }
}
