// Options as tables: a row for each option says of what kind it is, its bounds, and what holds where it is not given. Checking,
// the error for a name that is not in the table, and the type of what comes out all derive from the table.
import { boolean, integer, number, oneOf, plain, show, text } from './values.js';

/** Returns the value as it is passed on, or throws the error that begins with the name. */
type Check<V> = (name: string, value: unknown) => V;

/** An option. Without `otherwise` an option that is not given is absent from the result; so is one whose check returns undefined. */
export interface Row<V> {
  readonly check: Check<V>;
  /** not here yet: not among the names that there are */
  readonly isLater?: boolean;
}

/** An option with a default, called for each use. */
export interface RowWithDefault<V> extends Row<V> {
  readonly otherwise: () => V;
  /** null counts as not given; elsewhere it is a wrong type */
  readonly orNull?: boolean;
}

export type Table = Readonly<Record<string, Row<unknown>>>;

/** The table of an interface: a row for each of its options, and for no other name but some that later versions have. */
export type TableOf<Options, Later extends string = never> = Record<keyof Options | Later, Row<unknown>>;

/** What a table makes of options: those with a default always, the others where they are given. */
export type Values<T extends Table> = {
  [K in keyof T as T[K] extends RowWithDefault<unknown> ? K : never]: T[K] extends Row<infer V> ? V : never;
} & {
  [
    K in keyof T as T[K] extends RowWithDefault<unknown> ? never : T[K] extends Row<undefined> ? never : K
  ]?: T[K] extends Row<infer V> ? Exclude<V, undefined> : never;
};

/** The same row with a default. */
export function or<V, D extends V>({ check }: Row<V>, otherwise: D | (() => D)): RowWithDefault<V> {
  return { check, otherwise: typeof otherwise === 'function' ? (otherwise as () => D) : () => otherwise };
}

/** A row with a default that also holds where the value is null, which callers in JavaScript pass. */
export function orIfNull<V, D extends V>(row: Row<V>, otherwise: D | (() => D)): RowWithDefault<V> {
  return { ...or(row, otherwise), orNull: true };
}

/** Of a kind that no function below makes. */
export function custom<V>(check: Check<V>): Row<V> {
  return { check };
}

/** An integer from `min` to `max`, both included; default: 2^31 - 1. */
export function integers(min: number, max?: number): Row<number> {
  return { check: (name, value) => integer(name, value, min, max) };
}

/** A number that `accepts` takes; `expected` describes these for messages. */
export function numbers(expected: string, accepts: (value: number) => boolean): Row<number> {
  return { check: (name, value) => number(name, value, accepts, expected) };
}

export const booleans: Row<boolean> = { check: boolean };
export const strings: Row<string> = { check: text };

/** One of some strings. */
export function choices<T extends string>(...values: readonly T[]): Row<T> {
  return { check: (name, value) => oneOf(name, value, values) };
}

/** A function that is called from TypeScript: checked, but not in the result. */
export const callbacks: Row<undefined> = {
  check: (name, value) => {
    if (typeof value !== 'function') throw new TypeError(`${name}: expected a function, found ${show(value)}`);
    return undefined;
  },
};

/** An AbortSignal: checked, but not in the result. */
export const signals: Row<undefined> = {
  check: (name, value) => {
    if (!(typeof value === 'object' && value !== null && 'aborted' in value)) {
      throw new TypeError(`${name}: expected an AbortSignal, found ${show(value)}`);
    }
    return undefined;
  },
};

/** An option that is checked where it is used, and not in the result. */
export const elsewhere: Row<undefined> = { check: () => undefined };

/** A name that other libraries have for what has another one here. */
export function called(instead: string): Row<undefined> {
  return {
    isLater: true,
    check: (name) => {
      throw new TypeError(`${name}: no such option; here it is ${instead}`);
    },
  };
}

/**
 * Refuses names that are not in a table: misspelt options would otherwise be ignored without a word. `what` names the object.
 *
 * @throws TypeError
 */
export function known(table: Table, options: unknown, what = 'options'): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(`${what}: expected an object, found ${show(options)}`);
  }
  for (const name of Object.keys(options)) {
    if (!Object.hasOwn(table, name)) {
      const names = Object.keys(table).filter((known) => !table[known]?.isLater);
      throw new TypeError(`${plain(name, 60)}: no such option; there are ${names.join(', ')}`);
    }
  }
}

/** Checks the options of a table, in its order, and fills in defaults. Other names are not looked at. `prefix` is for messages. */
export function valuesOf<T extends Table>(table: T, options: object, prefix = ''): Values<T> {
  const given = options as Record<string, unknown>;
  const values: Record<string, unknown> = {};
  for (const [name, row] of Object.entries(table)) {
    const { otherwise, orNull } = row as Partial<RowWithDefault<unknown>>;
    const found = given[name]; // read once: a getter may answer differently the next time
    const isGiven = found !== undefined && !(orNull && found === null);
    const value = isGiven ? row.check(`${prefix}${name}`, found) : otherwise?.();
    if (value !== undefined) values[name] = value;
  }
  return values as Values<T>;
}

/** Both: no name but those of the table, and their values. */
export function checked<T extends Table>(table: T, options: object): Values<T> {
  known(table, options);
  return valuesOf(table, options);
}
