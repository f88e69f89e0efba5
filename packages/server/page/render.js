// How turns are drawn: Markdown, JSON as a tree, pictures with their crops. What a model writes is a stranger's text: it becomes HTML only
// through DOMPurify, and loads nothing.
import { marked } from './marked.js';

const { DOMPurify } = globalThis;

// An answer has no pictures: a URL in one would tell its host what was asked. Links open elsewhere, without a word about this page.
DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName !== 'A') return;
  node.setAttribute('rel', 'noopener noreferrer nofollow');
  node.setAttribute('target', '_blank');
});
const allowed = {
  ALLOWED_TAGS: [
    ...[
      'p',
      'br',
      'hr',
      'strong',
      'em',
      'del',
      'code',
      'pre',
      'blockquote',
      'ul',
      'ol',
      'li',
      'a',
      'table',
      'thead',
      'tbody',
    ],
    ...['tr', 'th', 'td', 'h3', 'h4', 'h5', 'h6', 'sup', 'sub'],
  ],
  ALLOWED_ATTR: ['href', 'title', 'start', 'align', 'colspan', 'rowspan'],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_TRUSTED_TYPE: true,
};

// The page has headings of its own above those of an answer.
marked.use({
  gfm: true,
  breaks: true,
  walkTokens: (token) => {
    if (token.type === 'heading') token.depth = Math.min(6, token.depth + 2);
  },
});

/** Makes an element: `element('p', { className: 'text' }, 'words', otherElement)`. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== undefined && child !== false));
  return made;
}

/** Shows Markdown in an element. */
export function showMarkdown(target, text) {
  target.innerHTML = DOMPurify.sanitize(marked.parse(text), allowed);
}

/** The value of a JSON text, or undefined where it is none that has parts. */
export function parseJson(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

/** A value of JSON as a tree that can be folded. */
export function jsonTree(value, name) {
  const label = name === undefined ? '' : `${JSON.stringify(name)}: `;
  if (typeof value !== 'object' || value === null) {
    return element('div', { className: 'item' }, `${label}${JSON.stringify(value)}`);
  }
  const entries = Array.isArray(value) ? value.map((item) => [undefined, item]) : Object.entries(value);
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  if (entries.length === 0) return element('div', { className: 'item' }, `${label}${open}${close}`);
  const children = entries.map(([key, item]) => jsonTree(item, key));
  return element(
    'details',
    { open: true },
    element('summary', {}, `${label}${open}${entries.length}${close}`),
    ...children,
  );
}

const SVG = 'http://www.w3.org/2000/svg';

/** A picture with a frame for each of its crops. */
export function picture({ url, name, crops }) {
  const image = element('img', { src: url, alt: name });
  const figure = element('figure', {}, image);
  if (!crops) return figure;
  if (crops.crops.length > 0) {
    const svg = document.createElementNS(SVG, 'svg');
    svg.setAttribute('viewBox', `0 0 ${crops.width} ${crops.height}`);
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.setAttribute('aria-hidden', 'true');
    for (const box of crops.crops) {
      const rect = document.createElementNS(SVG, 'rect');
      for (const side of ['x', 'y', 'width', 'height']) rect.setAttribute(side, box[side]);
      svg.append(rect);
    }
    figure.append(svg);
  }
  const n = crops.crops.length;
  const seen = n === 0 ? 'seen whole, no crops' : `seen whole and in ${n} crops`;
  figure.append(element('figcaption', {}, `${crops.width} × ${crops.height}, ${seen}`));
  return figure;
}
