import type { Tools } from '../../lib/index.js';

/** A question of heldout.json, or one that has an answer but no picture. */
interface Item {
  kind: string;
  images?: string[];
  question: string;
  answer: string;
}

export declare const schema: object;
export declare const tools: Tools;
export declare function jsonItems<T extends Item>(items: readonly T[]): (T & { object: unknown })[];
export declare function sums(n: number): (Item & { input: unknown })[];
export declare const talk: Item[];
