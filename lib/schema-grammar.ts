// From a schema to one that XGrammar enforces: it has no allOf, conditions, negations or siblings of $ref, its patterns are anchored and
// spell JSON's escapes, and no part of it is impossible. What cannot be said in it is left out, so it allows more than the schema, never
// less than needed to meet it; schema-validator.ts has the last word. Where a schema leaves open what nobody asked for, it allows less: an
// object whose properties are named has no others, a tuple no further items, unless the schema says so.
//
// A value is described by the set of schemas that all apply to it. Alternatives (anyOf, if) make several sets, one of which applies.
import { GemmaError } from './errors.js';
import { type Json, type JsonType, type SchemaGraph, type SchemaNode } from './json-schema.js';
import type { Language } from './pattern.js';
import { meets } from './schema-validator.js';
import type { Sliced } from './turns.js';
import { plain } from './values.js';

const MAX_FORMS = 4000;
const MAX_PRODUCT = 128; // sets that alternatives make together
const MAX_COUNT = 100_000; // items, properties, characters; nothing longer fits into a context
const MAX_LISTED = 500; // multiples that are listed one by one
const MAX_PLACES = 8; // of the item that contains asks for
const VALUES_PER_STEP = 32;
const MAX_INLINE = 30; // levels of a schema that are written without a reference

type Kind = Exclude<JsonType, 'integer'>;
const KINDS: readonly Kind[] = ['object', 'array', 'string', 'number', 'boolean', 'null'];

/** What is written: one of these, or a reference to one that is made later. */
type Form =
  | { kind: 'any' | 'never' | 'null' | 'boolean' }
  | { kind: 'values'; values: readonly Json[] }
  | { kind: 'choice'; of: readonly Form[] }
  | { kind: 'later'; of: Later }
  | { kind: 'number'; schema: Record<string, Json> }
  | { kind: 'string'; pattern?: string; min?: number; max?: number }
  | { kind: 'array'; prefix: readonly Form[]; rest: Form; min: number; max: number; isUnique: boolean }
  | {
      kind: 'object';
      named: readonly { name: string; form: Form; isRequired: boolean }[];
      /** other properties, by their names; undefined: all others */
      rest: readonly { names: Language | undefined; form: Form }[];
      min: number;
      max: number;
    };

interface Later {
  nodes: readonly SchemaNode[];
  form: Form | undefined;
  uses: number;
  isPossible: boolean;
  /** number in $defs, when it has been written there */
  definition: number | undefined;
}

const ANY: Form = { kind: 'any' };
const NEVER: Form = { kind: 'never' };

function choiceOf(forms: readonly Form[]): Form {
  const values = forms.flatMap((form) => (form.kind === 'values' ? form.values : []));
  const some = forms.filter(({ kind }) => kind !== 'never' && kind !== 'values');
  if (values.length > 0) some.unshift({ kind: 'values', values });
  return some.length === 1 ? (some[0] as Form) : { kind: 'choice', of: some };
}

type Fields = Parameters<SchemaGraph['node']>[0];

class Translator {
  readonly #graph: SchemaGraph;
  readonly #laters = new Map<string, Later>();
  readonly #pending: Later[] = [];
  readonly #always: SchemaNode;
  readonly #impossible: SchemaNode;
  readonly #made = new Map<string, SchemaNode>();
  readonly #lone = new Map<SchemaNode, SchemaNode>();
  #contradiction: string | undefined; // the first that was found between bounds

  constructor(graph: SchemaGraph) {
    this.#graph = graph;
    this.#always = graph.node({}, '');
    this.#impossible = graph.node({ never: true }, '');
  }

  *translate(): Sliced<Json> {
    const root = this.#later([this.#graph.root]);
    for (let next = this.#pending.pop(); next; next = this.#pending.pop()) {
      yield;
      next.form = yield* this.#form(next.nodes);
    }
    yield* this.#findPossible();
    if (!this.#isPossible(root)) {
      const why = this.#contradiction === undefined ? '' : ` (${this.#contradiction})`;
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `${this.#graph.where}: no value meets the schema${why}`,
        'BAD_SCHEMA',
      );
    }
    return yield* new Writer(this.#graph, (form) => this.#isPossible(form)).write(root);
  }

  #later(nodes: readonly SchemaNode[]): Form {
    const set = [...new Set(nodes.map(target))].filter((node) => Object.keys(node).length > 2);
    if (set.length === 0) return ANY;
    if (set.some(({ never }) => never)) return NEVER;
    const key = set
      .map(({ id }) => id)
      .sort((a, b) => a - b)
      .join(' ');
    let later = this.#laters.get(key);
    if (!later) {
      if (this.#laters.size >= MAX_FORMS) {
        throw new GemmaError(
          'ERR_INVALID_ARGUMENT',
          'the schema combines too many schemas with each other',
          'SCHEMA_LIMIT',
        );
      }
      later = { nodes: set, form: undefined, uses: 0, isPossible: false, definition: undefined };
      this.#laters.set(key, later);
      this.#pending.push(later);
    }
    ++later.uses;
    return { kind: 'later', of: later };
  }

  // A part of a schema is impossible until something shows a value for it, however long the way.
  *#findPossible(): Sliced<void> {
    const laters = [...this.#laters.values()].reverse();
    for (let more = true; more;) {
      more = false;
      for (const later of laters) {
        yield;
        if (later.isPossible || !this.#isPossible(later.form as Form)) continue;
        later.isPossible = true;
        more = true;
      }
    }
  }

  #isPossible(form: Form): boolean {
    switch (form.kind) {
      case 'never':
        return false;
      case 'values':
        return form.values.length > 0;
      case 'choice':
        return form.of.some((choice) => this.#isPossible(choice));
      case 'later':
        return form.of.isPossible;
      case 'array': {
        const { prefix, rest, min, max } = form;
        if (min > max) return false;
        if (prefix.slice(0, min).some((item) => !this.#isPossible(item))) return false;
        return min <= prefix.length || this.#isPossible(rest);
      }
      case 'object': {
        const { named, rest, min, max } = form;
        const required = named.filter(({ isRequired }) => isRequired);
        if (min > max || required.length > max || required.some((property) => !this.#isPossible(property.form)))
          return false;
        if (rest.some((others) => this.#isPossible(others.form))) return true;
        return named.filter((property) => this.#isPossible(property.form)).length >= min;
      }
      default:
        return true;
    }
  }

  *#form(nodes: readonly SchemaNode[]): Sliced<Form> {
    const sets: SchemaNode[][] = [];
    const set = new Set<SchemaNode>();
    const choices: SchemaNode[][][] = [];
    for (const node of nodes) this.#gather(node, set, choices);
    yield* this.#expand(set, choices, 1, sets);
    const forms: Form[] = [];
    for (const pure of sets) {
      yield;
      forms.push(yield* this.#pure(pure));
    }
    return choiceOf(forms);
  }

  /** Adds a schema and those that apply with it; of alternatives the lists of schemas that come with each. */
  #gather(node: SchemaNode, set: Set<SchemaNode>, choices: SchemaNode[][][]): void {
    if (set.has(node)) return;
    set.add(node);
    if (node.ref) this.#gather(node.ref, set, choices);
    for (const part of node.allOf ?? []) this.#gather(part, set, choices);
    for (const parts of [node.anyOf, node.oneOf]) if (parts) choices.push(parts.map((part) => [part]));
    if (node.not && !isLeaf(node.not)) {
      const others = this.#negated(node.not);
      if (others) choices.push(others.map((other) => [other]));
    }
    if (node.if && (node.then || node.else)) {
      const others = this.#negated(node.if);
      const then = [node.if, node.then ?? this.#always];
      const otherwise = node.else ?? this.#always;
      choices.push([then, ...(others ? others.map((other) => [other, otherwise]) : [[otherwise]])]);
    }
    const isRequired = (key: string) => [...set].some(({ required }) => required?.includes(key));
    const depend = (key: string, needed: SchemaNode) => {
      if (isRequired(key)) this.#gather(needed, set, choices);
      else choices.push([[this.#without(key)], [this.#with([key]), needed]]);
    };
    for (const [key, others] of node.dependentRequired ?? []) depend(key, this.#with(others));
    for (const [key, schema] of node.dependentSchemas ?? []) depend(key, schema);
  }

  #node(fields: Fields, key: string): SchemaNode {
    let node = this.#made.get(key);
    if (!node) this.#made.set(key, (node = this.#graph.node(fields, '')));
    return node;
  }

  #with(names: readonly string[]): SchemaNode {
    return this.#node({ required: names }, `with ${JSON.stringify(names)}`);
  }

  #without(name: string): SchemaNode {
    return this.#node({ properties: new Map([[name, this.#impossible]]) }, `without ${name}`);
  }

  /** What is left where a schema does not apply: alternatives, which may allow more. Undefined: nothing is known. */
  #negated(node: SchemaNode): SchemaNode[] | undefined {
    const found: SchemaNode[] = [];
    const add = (fields: Fields) => found.push(this.#graph.node(fields, ''));
    for (const keyword of Object.keys(node) as (keyof SchemaNode)[]) {
      switch (keyword) {
        case 'id':
        case 'path':
          break;
        case 'never':
          return [this.#always];
        case 'types': {
          const types = node.types as ReadonlySet<JsonType>;
          // Numbers that are no integers cannot be told here.
          const others = KINDS.filter((kind) => !types.has(kind));
          if (others.length > 0) add({ types: new Set(others) });
          break;
        }
        case 'values':
          for (const values of node.values ?? []) add({ not: this.#graph.node({ values: [values] }, '') });
          break;
        case 'pattern':
          add({
            types: new Set(['string']),
            not: this.#graph.node({ pattern: node.pattern as NonNullable<SchemaNode['pattern']> }, ''),
          });
          break;
        case 'format':
          add({
            types: new Set(['string']),
            not: this.#graph.node({ format: node.format as NonNullable<SchemaNode['format']> }, ''),
          });
          break;
        case 'minimum':
          add({ types: new Set(['number']), exclusiveMaximum: node.minimum as number });
          break;
        case 'maximum':
          add({ types: new Set(['number']), exclusiveMinimum: node.maximum as number });
          break;
        case 'exclusiveMinimum':
          add({ types: new Set(['number']), maximum: node.exclusiveMinimum as number });
          break;
        case 'exclusiveMaximum':
          add({ types: new Set(['number']), minimum: node.exclusiveMaximum as number });
          break;
        case 'minLength':
          if (node.minLength) add({ types: new Set(['string']), maxLength: node.minLength - 1 });
          break;
        case 'maxLength':
          add({ types: new Set(['string']), minLength: (node.maxLength as number) + 1 });
          break;
        case 'minItems':
          if (node.minItems) add({ types: new Set(['array']), maxItems: node.minItems - 1 });
          break;
        case 'maxItems':
          add({ types: new Set(['array']), minItems: (node.maxItems as number) + 1 });
          break;
        case 'required':
          for (const name of node.required ?? []) {
            add({ types: new Set(['object']), properties: new Map([[name, this.#impossible]]) });
          }
          break;
        case 'properties':
          for (const [name, schema] of node.properties ?? []) {
            const other = this.#graph.node({ not: schema }, '');
            add({ types: new Set(['object']), required: [name], properties: new Map([[name, other]]) });
          }
          break;
        case 'not':
          found.push(node.not as SchemaNode);
          break;
        default:
          return undefined;
      }
    }
    return found;
  }

  // Every way to choose one of each alternative. Where there are too many, alternatives are left out.
  *#expand(
    set: Set<SchemaNode>,
    choices: readonly SchemaNode[][][],
    product: number,
    sets: SchemaNode[][],
  ): Sliced<void> {
    yield;
    const [first, ...rest] = choices;
    if (!first) {
      sets.push([...set]);
      return;
    }
    const more = product * first.length;
    if (more > MAX_PRODUCT && product > 1) {
      yield* this.#expand(set, rest, product, sets);
      return;
    }
    for (const chosen of first) {
      const grown = new Set(set);
      const next = [...rest];
      for (const node of chosen) this.#gather(node, grown, next);
      if (!isContradiction(grown)) yield* this.#expand(grown, next, more, sets);
    }
  }

  /** Schemas all of which apply, their alternatives chosen. */
  *#pure(nodes: readonly SchemaNode[]): Sliced<Form> {
    if (nodes.some(({ never }) => never)) return NEVER;
    const listed = nodes.find(({ values }) => values);
    if (listed) {
      const list = listed.values?.[0]?.list ?? [];
      return { kind: 'values', values: yield* this.#meeting(list, nodes) };
    }
    const { kinds, isInteger } = kindsOf(nodes);
    if (kinds.length === KINDS.length && nodes.every((node) => !isConstraint(node))) return ANY;
    const forms: Form[] = [];
    for (const kind of kinds) forms.push(yield* this.#ofKind(kind, isInteger, nodes));
    return choiceOf(forms);
  }

  *#meeting(values: readonly Json[], nodes: readonly SchemaNode[]): Sliced<Json[]> {
    const alone = nodes.map((node) => this.#alone(node));
    const meeting: Json[] = [];
    for (const [i, value] of values.entries()) {
      if (i % VALUES_PER_STEP === 0) yield;
      let isMet = true;
      for (const node of alone) if (!(yield* meets(this.#graph, node, value))) isMet = false;
      if (isMet) meeting.push(value);
    }
    return meeting;
  }

  /** What a schema says itself: those that apply with it stand beside it, and of its alternatives one was chosen. */
  #alone(node: SchemaNode): SchemaNode {
    let found = this.#lone.get(node);
    if (!found) {
      found = { ...node };
      for (const keyword of ['ref', 'allOf', 'anyOf', 'if', 'dependentSchemas'] as const) delete found[keyword];
      if ((found.oneOf?.length ?? 0) > 16) delete found.oneOf;
      this.#lone.set(node, found);
    }
    return found;
  }

  *#ofKind(kind: Kind, isInteger: boolean, nodes: readonly SchemaNode[]): Sliced<Form> {
    switch (kind) {
      case 'null':
        return { kind };
      case 'boolean': {
        const values = nodes.some(({ not }) => not) ? yield* this.#meeting([true, false], nodes) : [true, false];
        return values.length === 2 ? { kind } : { kind: 'values', values };
      }
      case 'number':
        return yield* this.#number(isInteger, nodes);
      case 'string':
        return yield* this.#string(nodes);
      case 'array':
        return this.#array(nodes);
      case 'object':
        return yield* this.#object(nodes);
    }
  }

  *#number(onlyIntegers: boolean, nodes: readonly SchemaNode[]): Sliced<Form> {
    const divisors = [...new Set(nodes.map(({ multipleOf }) => multipleOf).filter((n) => n !== undefined))];
    const isInteger = onlyIntegers || (divisors.length > 0 && divisors.every(Number.isInteger));
    const min = largest(nodes, 'minimum');
    const max = smallest(nodes, 'maximum');
    const above = largest(nodes, 'exclusiveMinimum');
    const below = smallest(nodes, 'exclusiveMaximum');
    const low = Math.max(min, above);
    const high = Math.min(max, below);
    if (low > high || (low === high && (low === above || high === below))) return this.#contradicting(nodes);
    // Beyond, not every integer is a double, and XGrammar writes no such bound.
    if (low > Number.MAX_SAFE_INTEGER || high < Number.MIN_SAFE_INTEGER) {
      const isLow = low > Number.MAX_SAFE_INTEGER;
      const { node, keyword, bound } = boundsOf(nodes).find(({ keyword: found, bound: value }) =>
        isLow ? !found.endsWith('aximum') && value === low : found.endsWith('aximum') && value === high,
      ) as Bound;
      throw new GemmaError(
        'ERR_UNSUPPORTED_INPUT',
        `${this.#graph.where}${node.path}/${keyword}: expected ${isLow ? 'at most 2^53 - 1' : 'at least -(2^53 - 1)'}, found ${bound}`,
        'SCHEMA_KEYWORD',
      );
    }
    const fraction = divisors.find((divisor) => !Number.isInteger(divisor));
    if (fraction !== undefined && !isInteger && (high - low) / fraction < MAX_LISTED) {
      const decimals = /e-(\d+)$/.exec(fraction.toExponential())?.[1] ?? '0';
      const digits = fraction.toExponential().split('e')[0]?.split('.')[1]?.length ?? 0;
      const multiples: number[] = [];
      for (let i = Math.ceil(low / fraction) - 1; i <= Math.floor(high / fraction) + 1; ++i) {
        multiples.push(Number((i * fraction).toFixed(Math.min(100, Number(decimals) + digits))));
      }
      return { kind: 'values', values: yield* this.#meeting(multiples, nodes) };
    }
    if (!isInteger) {
      // XGrammar writes at most six decimals, and nothing at all where no such number lies between the bounds.
      const nearest = Math.floor(low * 1e6);
      const written = [...Array(12).keys()].map((i) => (nearest - 1 + i) / 1e6);
      if (high - low < 2e-6 && (yield* this.#meeting(written, nodes)).length === 0) {
        return { kind: 'values', values: yield* this.#meeting([...new Set([low, (low + high) / 2, high])], nodes) };
      }
      const schema: Record<string, Json> = { type: 'number' };
      // XGrammar writes bounds with so many digits; those beyond are left to the check.
      const [least, most] = [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER];
      if (min >= least && min > above) schema.minimum = min;
      if (above >= least && above >= min) schema.exclusiveMinimum = above;
      if (max <= most && max < below) schema.maximum = max;
      if (below <= most && below <= max) schema.exclusiveMaximum = below;
      return { kind: 'number', schema };
    }
    const schema: Record<string, Json> = { type: 'integer' };
    const first = Math.max(Math.ceil(min), Math.floor(above) + 1);
    const last = Math.min(Math.floor(max), Math.ceil(below) - 1);
    if (first > last) return this.#contradicting(nodes);
    const whole = divisors.filter(Number.isInteger);
    if (whole.length > 0) {
      const divisor = whole.reduce(leastCommonMultiple);
      if ((last - first) / divisor < MAX_LISTED) {
        const multiples: number[] = [];
        for (let n = Math.ceil(first / divisor) * divisor; n <= last; n += divisor) multiples.push(n + 0); // no -0
        return { kind: 'values', values: yield* this.#meeting(multiples, nodes) };
      }
      // XGrammar enforces no bounds beside it.
      return { kind: 'number', schema: { ...schema, multipleOf: divisor } };
    }
    // Beyond that a double does not hold every integer.
    schema.minimum = Math.max(first, Number.MIN_SAFE_INTEGER);
    schema.maximum = Math.min(last, Number.MAX_SAFE_INTEGER);
    return { kind: 'number', schema };
  }

  #contradicting(nodes: readonly SchemaNode[]): Form {
    const bounds = boundsOf(nodes).map(({ node, keyword, bound }) => `${node.path}/${keyword} ${bound}`);
    this.#contradiction ??= plain(
      `no ${bounds.length > 1 ? 'number lies between' : 'integer meets'} ${bounds.join(', ')}`,
      200,
    );
    return NEVER;
  }

  /** The strings that the schemas allow, in steps from exact to easier to write. */
  *#languages(nodes: readonly SchemaNode[]): Sliced<Language[]> {
    const { patterns } = this.#graph;
    const exact: Language[] = [];
    const loose: Language[] = [];
    // A pattern of the whole text, as schema libraries give it beside a format, is stricter than the format. Both together are large.
    const hasWhole = nodes.some(({ pattern }) => /^\^.*\$$/s.test(pattern?.text ?? ''));
    for (const { pattern, format, not, values } of nodes) {
      for (const rule of [pattern, format]) {
        if (!rule || (rule === format && hasWhole)) continue;
        exact.push(rule.language);
        loose.push(rule.loose ?? rule.language);
      }
      for (const { list } of values ?? []) {
        const texts = yield* patterns.texts(list.filter((value) => typeof value === 'string'));
        exact.push(texts);
        loose.push(texts);
      }
      if (not) exact.push(patterns.not(yield* this.#forbidden(not)));
    }
    const [min, max] = [largest(nodes, 'minLength', 0), smallest(nodes, 'maxLength')];
    const lengths = patterns.lengths(min, max > MAX_COUNT ? Infinity : max);
    const steps = [[...exact, lengths], exact, [...loose, lengths], loose, ...loose.map((one) => [one])];
    return min > max || min > MAX_COUNT ? [patterns.none] : steps.map((step) => patterns.both(step));
  }

  // The strings of a schema, where it says nothing else of them.
  *#forbidden(not: SchemaNode): Sliced<Language> {
    const { patterns } = this.#graph;
    const [keyword, ...others] = Object.keys(not).filter((key) => key !== 'id' && key !== 'path' && key !== 'types');
    if (others.length > 0 || (not.types && !not.types.has('string'))) return patterns.none;
    if (keyword === 'pattern' || keyword === 'format') return not[keyword]?.language ?? patterns.none;
    if (keyword === 'values' && not.values?.length === 1) {
      return yield* patterns.texts(not.values[0]?.list.filter((value) => typeof value === 'string') ?? []);
    }
    return patterns.none;
  }

  *#string(nodes: readonly SchemaNode[]): Sliced<Form> {
    const { patterns } = this.#graph;
    for (const language of yield* this.#languages(nodes)) {
      if (language === patterns.all) return { kind: 'string' };
      const [min, max] = patterns.lengthsOf(language) ?? [];
      if (min !== undefined && max !== undefined) return { kind: 'string', min, max };
      const text = yield* patterns.write(language);
      if (text === null) return language.nullable ? { kind: 'values', values: [''] } : NEVER;
      if (text !== undefined) return { kind: 'string', pattern: text };
    }
    return { kind: 'string' };
  }

  #array(nodes: readonly SchemaNode[]): Form {
    const length = Math.max(...nodes.map(({ prefixItems }) => prefixItems?.length ?? 0));
    const at = (i: number) => this.#later(nodes.flatMap(({ prefixItems, items }) => prefixItems?.[i] ?? items ?? []));
    const prefix = Array.from({ length }, (_, i) => at(i));
    const hasItems = nodes.some(({ items }) => items);
    const rest = this.#later(
      nodes.flatMap(
        ({ items, unevaluatedItems, contains }) => items ?? (hasItems || contains ? [] : (unevaluatedItems ?? [])),
      ),
    );
    const contained = Math.max(...nodes.map(({ contains, minContains }) => (contains ? (minContains ?? 1) : 0)));
    const max = smallest(nodes, 'maxItems');
    const min = Math.max(largest(nodes, 'minItems', 0), contained);
    // A tuple ends with its last item, unless something is said of others.
    const isOpen = length === 0 || hasItems || min > length || nodes.some(({ unevaluatedItems }) => unevaluatedItems);
    const isUnique = nodes.some(({ uniqueItems }) => uniqueItems);
    const array: Form = {
      kind: 'array',
      prefix,
      rest: isOpen ? rest : NEVER,
      min,
      max: max > MAX_COUNT ? Infinity : max,
      isUnique,
    };
    const wanted = nodes.filter(({ contains, minContains }) => contains && minContains !== 0);
    if (wanted.length !== 1 || length > 0) return array;
    // One that contains asks for is among the first few: which one makes the alternatives.
    const items = nodes.flatMap((node) => node.items ?? []);
    const special = this.#later([...items, ...wanted.flatMap(({ contains }) => contains ?? [])]);
    const places = Array.from({ length: Math.min(MAX_PLACES, max) }, (_, i): Form => {
      return {
        ...array,
        prefix: [...Array.from({ length: i }, () => this.#later(items)), special],
        min: Math.max(min, i + 1),
      };
    });
    return choiceOf(places);
  }

  *#object(nodes: readonly SchemaNode[]): Sliced<Form> {
    const { patterns } = this.#graph;
    const names = new Set(nodes.flatMap(({ properties }) => [...(properties?.keys() ?? [])]));
    const required = new Set(nodes.flatMap((node) => node.required ?? []));
    for (const name of required) names.add(name);
    const nameSet = new Set<SchemaNode>();
    for (const { propertyNames } of nodes) if (propertyNames) this.#gather(propertyNames, nameSet, []);
    const nameRules = [...nameSet];
    const listedNames = nameRules
      .find(({ values }) => values)
      ?.values?.[0]?.list.filter((name) => typeof name === 'string');
    for (const name of listedNames ?? []) names.add(name);

    const isClosedBefore = nodes.some(({ additionalProperties }) => additionalProperties);
    const rules = [
      ...new Map(nodes.flatMap((node) => node.patternProperties ?? []).map((one) => [one.rule, one])).keys(),
    ];
    // The schemas for a property's value, by the patterns that its name has.
    const valueOf = (name: string | undefined, met: ReadonlySet<(typeof rules)[number]>): Form => {
      const schemas: SchemaNode[] = [];
      let isSeen = isClosedBefore;
      for (const node of nodes) {
        const mine = name === undefined ? [] : [node.properties?.get(name)];
        for (const { rule, node: schema } of node.patternProperties ?? []) if (met.has(rule)) mine.push(schema);
        const own = mine.filter((schema) => schema !== undefined);
        if (own.length > 0) isSeen = true;
        else if (node.additionalProperties) own.push(node.additionalProperties);
        schemas.push(...own);
      }
      if (!isSeen) schemas.push(...nodes.flatMap(({ unevaluatedProperties }) => unevaluatedProperties ?? []));
      return this.#later(schemas);
    };

    const named: { name: string; form: Form; isRequired: boolean }[] = [];
    for (const name of names) {
      yield;
      let form = NEVER;
      if ((yield* this.#meeting([name], nameRules)).length > 0) {
        const met = new Set<(typeof rules)[number]>();
        for (const rule of rules) if (yield* patterns.has(rule.language, name)) met.add(rule);
        form = valueOf(name, met);
      }
      named.push({ name, isRequired: required.has(name), form });
    }

    const rest: { names: Language | undefined; form: Form }[] = [];
    if (listedNames) {
      // All there are have names.
    } else if (rules.length === 0 && nameRules.length === 0)
      rest.push({ names: undefined, form: valueOf(undefined, new Set()) });
    else if (rules.length > 4) rest.push({ names: undefined, form: ANY });
    else {
      const allowed = nameRules.length === 0 ? [patterns.all] : yield* this.#languages(nameRules);
      for (let chosen = 0; chosen < 1 << rules.length; ++chosen) {
        const met = new Set(rules.filter((_, i) => ((chosen >> i) & 1) === 1));
        const parts = rules.map((rule) => (met.has(rule) ? rule.language : patterns.not(rule.language)));
        const form = valueOf(undefined, met);
        const allowedNames = patterns.both([allowed[0] as Language, ...parts]);
        if (form.kind !== 'never') rest.push({ names: allowedNames === patterns.all ? undefined : allowedNames, form });
      }
    }
    const max = smallest(nodes, 'maxProperties');
    const min = largest(nodes, 'minProperties', 0);
    const isOpen =
      names.size === 0 ||
      min > names.size ||
      rules.length > 0 ||
      isClosedBefore ||
      nodes.some((node) => node.unevaluatedProperties);
    return { kind: 'object', named, rest: isOpen ? rest : [], min, max: max > MAX_COUNT ? Infinity : max };
  }
}

interface Bound {
  node: SchemaNode;
  keyword: string;
  bound: number;
}

function boundsOf(nodes: readonly SchemaNode[]): Bound[] {
  return nodes.flatMap((node) =>
    (['minimum', 'exclusiveMinimum', 'maximum', 'exclusiveMaximum'] as const).flatMap((keyword) => {
      const bound = node[keyword];
      return bound === undefined ? [] : [{ node, keyword, bound }];
    }),
  );
}

function largest(
  nodes: readonly SchemaNode[],
  keyword: 'minimum' | 'exclusiveMinimum' | 'minLength' | 'minItems' | 'minProperties',
  none = -Infinity,
): number {
  return Math.max(...nodes.map((node) => node[keyword] ?? none));
}

function smallest(
  nodes: readonly SchemaNode[],
  keyword: 'maximum' | 'exclusiveMaximum' | 'maxLength' | 'maxItems' | 'maxProperties',
): number {
  return Math.min(...nodes.map((node) => node[keyword] ?? Infinity));
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y > 0) [x, y] = [y, x % y];
  return (a / x) * b;
}

/** What a schema that is a reference and nothing else refers to. */
function target(node: SchemaNode): SchemaNode {
  let found = node;
  while (found.ref && Object.keys(found).length === 3) found = found.ref;
  return found;
}

/** Says one thing of strings or values, whose contrary is seen to where these are written. */
function isLeaf(node: SchemaNode): boolean {
  const keywords = Object.keys(node).filter((keyword) => keyword !== 'id' && keyword !== 'path');
  return keywords.length === 1 && ['values', 'pattern', 'format'].includes(keywords[0] as string);
}

const ABOUT: Readonly<Record<Kind, readonly (keyof SchemaNode)[]>> = {
  object: [
    'properties',
    'patternProperties',
    'additionalProperties',
    'propertyNames',
    'required',
    'minProperties',
    'maxProperties',
    'unevaluatedProperties',
  ],
  array: ['prefixItems', 'items', 'contains', 'minItems', 'maxItems', 'uniqueItems', 'unevaluatedItems'],
  string: ['pattern', 'format', 'minLength', 'maxLength'],
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'],
  boolean: [],
  null: [],
};

function isConstraint(node: SchemaNode): boolean {
  return Object.values(ABOUT).some((keywords) => keywords.some((keyword) => node[keyword] !== undefined));
}

function isContradiction(nodes: ReadonlySet<SchemaNode>): boolean {
  const all = [...nodes];
  return all.some(({ never }) => never) || kindsOf(all).kinds.length === 0;
}

/** The types that all schemas allow. Where none names any, those that they say something about. */
function kindsOf(nodes: readonly SchemaNode[]): { kinds: Kind[]; isInteger: boolean } {
  const typed = nodes.filter(({ types }) => types).map(({ types }) => types as ReadonlySet<JsonType>);
  const isInteger = typed.some((types) => types.has('integer') && !types.has('number'));
  const order = [...new Set([...(typed[0] ?? KINDS)].map((type) => (type === 'integer' ? 'number' : type)))];
  const allows = (types: ReadonlySet<JsonType>, kind: Kind) =>
    types.has(kind) || (kind === 'number' && types.has('integer'));
  const kinds = order.filter((kind) => typed.every((types) => allows(types, kind)));
  if (typed.length > 0) return { kinds, isInteger };
  const about = KINDS.filter((kind) =>
    ABOUT[kind].some((keyword) => nodes.some((node) => node[keyword] !== undefined)),
  );
  return { kinds: about.length > 0 ? about : kinds, isInteger };
}

/** No longer than a reference to it. */
function isSmall(form: Form): boolean {
  return (
    ['any', 'null', 'boolean', 'number'].includes(form.kind) || (form.kind === 'string' && form.pattern === undefined)
  );
}

function stringSchema({ pattern, min = 0, max = Infinity }: { pattern?: string; min?: number; max?: number }): Json {
  return {
    type: 'string',
    ...(pattern !== undefined && { pattern }),
    ...(min > 0 && { minLength: min }),
    ...(max < Infinity && { maxLength: max }),
  };
}

/** Writes forms as JSON Schema. */
class Writer {
  readonly #graph: SchemaGraph;
  readonly #isPossible: (form: Form) => boolean;
  readonly #definitions: Later[] = [];

  constructor(graph: SchemaGraph, isPossible: (form: Form) => boolean) {
    this.#graph = graph;
    this.#isPossible = isPossible;
  }

  *write(root: Form): Sliced<Json> {
    const schema = yield* this.#of(root, 0);
    const definitions = Object.create(null) as Record<string, Json>;
    for (let i = 0; i < this.#definitions.length; ++i) {
      definitions[i] = yield* this.#of((this.#definitions[i] as Later).form as Form, 1);
    }
    if (this.#definitions.length === 0) return schema;
    return { ...(schema as Record<string, Json>), $defs: definitions };
  }

  *#of(form: Form, level: number): Sliced<Json> {
    yield;
    switch (form.kind) {
      case 'any':
      case 'never':
        return {};
      case 'null':
      case 'boolean':
        return { type: form.kind };
      case 'values':
        return { enum: [...form.values] };
      case 'choice':
        return yield* this.#choice(form.of, level);
      case 'later': {
        const later = form.of;
        if (isSmall(later.form as Form) || (later.uses === 1 && level < MAX_INLINE))
          return yield* this.#of(later.form as Form, level + 1);
        later.definition ??= this.#definitions.push(later) - 1;
        return { $ref: `#/$defs/${later.definition}` };
      }
      case 'number':
        return form.schema;
      case 'string':
        return stringSchema(form);
      case 'array':
        return yield* this.#array(form, level);
      case 'object':
        return yield* this.#object(form, level);
    }
  }

  *#choice(forms: readonly Form[], level: number): Sliced<Json> {
    const possible = forms.filter((form) => this.#isPossible(form));
    const written = new Map<string, Json>();
    for (const form of possible) {
      const schema = yield* this.#of(form, level + 1);
      written.set(JSON.stringify(schema), schema);
    }
    return written.size === 1 ? ([...written.values()][0] as Json) : { anyOf: [...written.values()] };
  }

  *#array({ prefix, rest, min, max, isUnique }: Extract<Form, { kind: 'array' }>, level: number): Sliced<Json> {
    const end = prefix.findIndex((item) => !this.#isPossible(item));
    const length = Math.min(end < 0 ? prefix.length : end, max);
    const hasRest = length === prefix.length && length < max && this.#isPossible(rest);
    let most = hasRest ? max : length;
    const different = rest.kind === 'later' && rest.of.form?.kind === 'values' ? rest.of.form.values.length : Infinity;
    if (isUnique && length === 0) most = Math.min(most, different);
    const first: Json[] = [];
    for (const item of prefix.slice(0, length)) first.push(yield* this.#of(item, level + 1));
    return {
      type: 'array',
      ...(length > 0 && { prefixItems: first }),
      items: hasRest && most > 0 ? yield* this.#of(rest, level + 1) : false,
      ...(min > 0 && { minItems: min }),
      ...(hasRest && most < Infinity && { maxItems: most }),
    };
  }

  *#object({ named, rest, min, max }: Extract<Form, { kind: 'object' }>, level: number): Sliced<Json> {
    const { patterns } = this.#graph;
    const properties = Object.create(null) as Record<string, Json>;
    const required: string[] = [];
    let isWithout = false;
    for (const { name, form, isRequired } of named) {
      if (!this.#isPossible(form)) {
        isWithout = true;
        continue;
      }
      properties[name] = yield* this.#of(form, level + 1);
      if (isRequired) required.push(name);
    }
    const others = rest.filter(({ form }) => this.#isPossible(form));
    const schema: Record<string, Json> = { type: 'object' };
    if (Object.keys(properties).length > 0) schema.properties = properties;
    if (required.length > 0) schema.required = required;
    if (min > required.length) schema.minProperties = min;
    if (max < Infinity) schema.maxProperties = max;
    const [first] = others;
    const lengths = first?.names && patterns.lengthsOf(first.names);
    if (!first) schema.additionalProperties = false;
    else if (others.length === 1 && (!first.names || lengths) && !isWithout) {
      if (lengths) schema.propertyNames = stringSchema({ min: lengths[0], max: lengths[1] });
      schema.additionalProperties = yield* this.#of(first.form, level + 1);
    } else {
      const notNamed = patterns.not(yield* patterns.texts(named.map(({ name }) => name)));
      const byName = Object.create(null) as Record<string, Json>;
      let isWritten = true;
      for (const { names, form } of others) {
        const text = yield* patterns.write(patterns.both([names ?? patterns.all, notNamed]));
        if (text === undefined) isWritten = false;
        else if (text !== null) byName[text] = yield* this.#of(form, level + 1);
      }
      if (!isWritten)
        schema.additionalProperties = yield* this.#choice(
          others.map(({ form }) => form),
          level + 1,
        );
      else {
        if (Object.keys(byName).length > 0) schema.patternProperties = byName;
        schema.additionalProperties = false;
      }
    }
    return schema;
  }
}

/**
 * The schema for XGrammar 0.2.9 (`strict_mode` off).
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA` where no value meets the schema, `SCHEMA_LIMIT`), `ERR_UNSUPPORTED_INPUT`
 * (`SCHEMA_KEYWORD`) for a bound that leaves only numbers which a double does not hold exactly
 */
export function grammarSchema(graph: SchemaGraph): Sliced<Json> {
  return new Translator(graph).translate();
}
