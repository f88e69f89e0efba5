// What clients send beside text: pictures. A client can name the bytes themselves (data: URL, base64), or an http(s) URL where the
// operator allows it; never a file of this machine.
import type { CropOptions, ImageOptions } from 'gemma-native';
import { HttpError } from './errors.js';

/** How pictures may come. */
export interface PictureLimits {
  /**
   * Fetch http(s) URLs of clients: `true` from public addresses alone, `'private'` from this machine's network too. gemma-native checks
   * every address that a connection goes to, redirects included.
   */
  remoteImages: boolean | 'private';
  /** bytes of a picture's file */
  maxImageBytes: number;
  /** pixels of a picture */
  maxImagePixels: number;
  /** how long fetching one may take, in milliseconds */
  remoteTimeoutMs: number;
}

/** What every call that takes a client's pictures gets. */
export function imageOptions({
  remoteImages,
  maxImageBytes,
  maxImagePixels,
  remoteTimeoutMs,
}: PictureLimits): ImageOptions {
  return { allowLocal: false, allowRemote: remoteImages, maxImageBytes, maxImagePixels, remoteTimeoutMs };
}

/**
 * A picture that a client names by its URL, as gemma-native takes it together with `imageOptions`.
 *
 * @param where the parameter, for messages
 * @throws HttpError 400
 */
export function pictureOfUrl(url: string, where: string, { remoteImages }: PictureLimits): string {
  const [scheme = ''] = /^[A-Za-z][A-Za-z0-9+.-]*:/.exec(url) ?? [];
  switch (scheme.toLowerCase()) {
    case 'data:':
      return url;
    case 'http:':
    case 'https:':
      if (remoteImages !== false) return url;
      throw new HttpError(
        400,
        'invalid_image',
        `${where}: this server fetches no URLs; send the picture as a data: URL`,
        {
          param: where,
        },
      );
    default:
      throw new HttpError(
        400,
        'invalid_image',
        `${where}: expected a data: URL with a picture in base64, or an http(s) URL`,
        {
          param: where,
        },
      );
  }
}

/**
 * A picture that a client sends in base64 without more.
 *
 * @throws HttpError 400
 */
export function pictureOfBase64(text: string, where: string, mimeType = 'image/png'): string {
  // The library looks at all of it; this tells a path or a URL from base64 by its beginning.
  if (text === '' || !/^[A-Za-z0-9+/_=\s-]*$/.test(text.slice(0, 256))) {
    throw new HttpError(400, 'invalid_image', `${where}: expected a picture in base64`, { param: where });
  }
  return `data:${/^[\w.+-]+\/[\w.+-]+$/.test(mimeType) ? mimeType : 'image/png'};base64,${text}`;
}

/** The pictures' cutting as the interfaces take it, in extra fields. */
export type CropFields = Pick<CropOptions, 'panAndScan' | 'tile'>;
