// The loss of a training as a picture: SVG, with nothing in it but lines and numbers.

export interface LossPoint {
  step: number;
  loss: number;
  validationLoss?: number;
}

const WIDTH = 720;
const HEIGHT = 360;
const LEFT = 56;
const TOP = 24;
const RIGHT = 16;
const BOTTOM = 40;
const MAX_POINTS = 1000;

// 1, 2 or 5 times a power of ten, so that some five of them span the range.
function tick(range: number): number {
  const power = 10 ** Math.floor(Math.log10(range / 5));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => range / n <= 6) ?? range;
}

/** Means of as many neighbours as make at most so many points. */
export function thinned(points: readonly LossPoint[], most: number): { step: number; loss: number }[] {
  const n = Math.ceil(points.length / most);
  const means: { step: number; loss: number }[] = [];
  for (let i = 0; i < points.length; i += n) {
    const part = points.slice(i, i + n);
    const loss = part.reduce((sum, point) => sum + point.loss, 0) / part.length;
    means.push({ step: part.at(-1)?.step ?? 0, loss });
  }
  return means;
}

const number = (value: number) => String(Number(value.toFixed(2)));
const label = (value: number, step: number) => value.toFixed(Math.max(0, Math.ceil(-Math.log10(step))));

/** The curve of a training: its loss in each step, and that of its validation where there was one. */
export function lossChart(points: readonly LossPoint[]): string {
  const losses = thinned(points, MAX_POINTS);
  const validation = points.flatMap(({ step, validationLoss }) =>
    validationLoss === undefined ? [] : [{ step, loss: validationLoss }],
  );
  const all = [...losses, ...validation].map(({ loss }) => loss);
  const low = Math.min(...all);
  const high = Math.max(...all, low + 1e-6);
  const unit = tick(high - low);
  const bottom = Math.floor(low / unit) * unit;
  const top = Math.max(Math.ceil(high / unit) * unit, bottom + unit);
  const last = Math.max(1, points.at(-1)?.step ?? 1);
  const x = (step: number) => number(LEFT + ((WIDTH - LEFT - RIGHT) * step) / last);
  const y = (loss: number) => number(TOP + ((HEIGHT - TOP - BOTTOM) * (top - loss)) / (top - bottom));
  const line = (of: readonly { step: number; loss: number }[], colour: string) =>
    `<polyline fill="none" stroke="${colour}" stroke-width="1.5" points="${of.map(({ step, loss }) => `${x(step)},${y(loss)}`).join(' ')}"/>`;
  const parts: string[] = [];
  for (let i = 0; bottom + i * unit <= top + unit / 2; ++i) {
    const value = bottom + i * unit;
    parts.push(
      `<path stroke="#ddd" d="M${LEFT} ${y(value)}H${WIDTH - RIGHT}"/>`,
      `<text x="${LEFT - 6}" y="${y(value)}" text-anchor="end" dominant-baseline="middle">${label(value, unit)}</text>`,
    );
  }
  const across = Math.max(1, Math.round(tick(last)));
  for (let step = 0; step <= last; step += across) {
    parts.push(`<text x="${x(step)}" y="${HEIGHT - BOTTOM + 16}" text-anchor="middle">${step}</text>`);
  }
  parts.push(`<text x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 6}" text-anchor="middle">step</text>`);
  parts.push(line(losses, '#3b6fb6'), `<text x="${LEFT}" y="14" fill="#3b6fb6">loss</text>`);
  if (validation.length > 0) {
    parts.push(line(validation, '#c2571a'), `<text x="${LEFT + 48}" y="14" fill="#c2571a">validation loss</text>`);
    for (const { step, loss } of validation)
      parts.push(`<circle cx="${x(step)}" cy="${y(loss)}" r="2.5" fill="#c2571a"/>`);
  }
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="11">` +
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>${parts.join('')}</svg>\n`
  );
}
