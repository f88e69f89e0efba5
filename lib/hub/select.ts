// Which files of a repository are the model that is meant: one GGUF file with its other parts and its vision encoder, or a checkpoint.
import { SENTENCE_MODULE, visionCandidates } from '../model-files.js';
import { plain } from '../values.js';
import { downloadError } from './failure.js';
import { isSafePath } from './names.js';

/** A file that can be chosen. */
interface Named {
  name: string;
  bytes: number;
}

export interface Selection<F extends Named> {
  /** a GGUF file; a folder of safetensors with what belongs to it */
  kind: 'gguf' | 'checkpoint';
  /** in order; of a split model its first part first */
  model: F[];
  mmproj?: F;
}

// What most people want, first: good at its size, then smaller loss, then what is larger or worse.
const ORDER =
  'Q4_K_M Q4_0 Q5_K_M Q4_K_S Q6_K Q8_0 Q5_K_S Q4_1 IQ4_XS IQ4_NL Q5_0 Q5_1 Q4_K_L Q3_K_M BF16 F16 F32'.split(' ');

const QUANT = /(?:^|[-._/])(I?Q\d(?:_[A-Z0-9]+)*|BF16|FP?16|FP?32)(?=$|[-._/])/gi;
const PART = /-(\d{5})-of-(\d{5})$/;

/** A model of GGUF: all parts of a split one, or one file. */
interface Candidate<F> {
  files: F[];
  /** without `.gguf` and without the number of the part */
  stem: string;
  /** upper case; '' for none in the name */
  quant: string;
  /** the stem without it: equal for one model in several quantisations */
  title: string;
  /** some of its parts are not there */
  missing: boolean;
}

function isGguf({ name }: Named): boolean {
  return /\.gguf$/i.test(name);
}

function isVision({ name }: Named): boolean {
  return /mmproj[^/]*$/i.test(name);
}

function quantOf(stem: string): string {
  const last = [...stem.matchAll(QUANT)].at(-1)?.[1] ?? '';
  return last.toUpperCase().replace(/^FP/, 'F');
}

function titleOf(stem: string): string {
  const base = stem.slice(stem.lastIndexOf('/') + 1);
  return base
    .toLowerCase()
    .replace(QUANT, '')
    .replace(/[-._](?:ud|qat|i1|imat|imatrix)(?=$|[-._])/g, '');
}

function groupsOf<F extends Named>(files: readonly F[]): Candidate<F>[] {
  const groups = new Map<string, F[]>();
  for (const file of files) {
    if (!isGguf(file) || isVision(file) || /imatrix[^/]*$/i.test(file.name)) continue;
    const whole = file.name.replace(/\.gguf$/i, '');
    const key = whole.replace(PART, '-of-$2');
    groups.set(key, [...(groups.get(key) ?? []), file]);
  }
  return [...groups.values()].map((group) => {
    const parts = group.toSorted((a, b) => (a.name < b.name ? -1 : 1));
    const whole = (parts[0]?.name ?? '').replace(/\.gguf$/i, '');
    const stem = whole.replace(PART, '');
    const [, , count] = PART.exec(whole) ?? [];
    const isWhole = parts.every(
      ({ name }, i) => count === undefined || Number(PART.exec(name.replace(/\.gguf$/i, ''))?.[1]) === i + 1,
    );
    const missing = count !== undefined && (parts.length !== Number(count) || !isWhole);
    return { files: parts, stem, quant: quantOf(stem), title: titleOf(stem), missing };
  });
}

function list<F extends Named>(candidates: readonly Candidate<F>[]): string {
  const names = candidates.map(({ files }) => plain(files[0]?.name ?? '', 100)).sort();
  const more = names.length > 12 ? ` and ${names.length - 12} more` : '';
  return `${names.slice(0, 12).join(', ')}${more}`;
}

function ambiguous<F extends Named>(candidates: readonly Candidate<F>[], where: string, meant: string): never {
  throw downloadError('AMBIGUOUS_MODEL', `${where}: ${meant}: ${list(candidates)}. Name one behind a colon`);
}

// Most preferred quantisation of one model, unless two files have it.
function byDefault<F extends Named>(candidates: readonly Candidate<F>[], where: string): Candidate<F> {
  const [only] = candidates;
  if (only && candidates.length === 1) return only;
  if (new Set(candidates.map(({ title }) => title)).size > 1) ambiguous(candidates, where, 'holds several models');
  for (const quant of ORDER) {
    const found = candidates.filter((candidate) => candidate.quant === quant);
    const [first] = found;
    if (first && found.length === 1) return first;
    if (first) ambiguous(found, where, `holds several files of ${quant}`);
  }
  return ambiguous(candidates, where, 'holds several files, none of a common quantisation');
}

function bySelector<F extends Named>(
  candidates: readonly Candidate<F>[],
  selector: string,
  where: string,
): Candidate<F> {
  const wanted = selector.toLowerCase().replace(/\.gguf$/, '');
  const quant = wanted.toUpperCase().replace(/^FP/, 'F');
  const delimited = new RegExp(`(?:^|[-._/])${wanted.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}(?=$|[-._/])`, 'i');
  const lower = ({ stem }: Candidate<F>) => stem.toLowerCase();
  // A whole path, the name of a file, the quantisation, a part of the name: the first that says anything decides.
  const ways: ((candidate: Candidate<F>) => boolean)[] = [
    (one) => lower(one) === wanted || one.files.some(({ name }) => name === selector),
    (one) => lower(one).endsWith(`/${wanted}`),
    (one) => one.quant === quant && !/(?:^|[-._/])ud[-._]/i.test(one.stem),
    (one) => one.quant === quant,
    (one) => delimited.test(one.stem),
  ];
  for (const matches of ways) {
    const found = candidates.filter(matches);
    const [first] = found;
    if (first && found.length === 1) return first;
    if (first) ambiguous(found, where, `several files fit ${plain(selector)}`);
  }
  throw downloadError('NOT_FOUND', `${where}: no file fits ${plain(selector)}; there are ${list(candidates)}`);
}

const CHECKPOINT_FILES = new Set(
  (
    'config.json generation_config.json tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json added_tokens.json ' +
    'chat_template.jinja chat_template.json preprocessor_config.json processor_config.json modules.json ' +
    'config_sentence_transformers.json sentence_bert_config.json model.safetensors.index.json adapter_config.json ' +
    'adapter_model.safetensors'
  ).split(' '),
);

function isOfCheckpoint({ name }: Named): boolean {
  const [folder = '', file = '', ...deeper] = name.split('/');
  const isOfModule = SENTENCE_MODULE.test(folder) && (file === 'config.json' || file === 'model.safetensors');
  return CHECKPOINT_FILES.has(name) || (isOfModule && deeper.length === 0);
}

function checkpointOf<F extends Named>(files: readonly F[], where: string): F[] | undefined {
  const root = files.filter(({ name }) => /^[^/]+\.safetensors$/.test(name));
  const usual = root.filter(({ name }) => /^(?:model(?:-\d{5}-of-\d{5})?|adapter_model)\.safetensors$/.test(name));
  const weights = usual.length > 0 ? usual : root.length === 1 ? root : [];
  const hasConfig = files.some(({ name }) => name === 'config.json' || name === 'adapter_config.json');
  if (!hasConfig || weights.length === 0) return undefined;
  const parts = weights.filter(({ name }) => PART.test(name.replace(/\.safetensors$/, '')));
  const count = Number(/-of-(\d{5})\./.exec(parts[0]?.name ?? '')?.[1] ?? parts.length);
  if (parts.length !== count) {
    throw downloadError('NOT_FOUND', `${where}: expected ${count} parts of model.safetensors, found ${parts.length}`);
  }
  return [...new Set([...files.filter(isOfCheckpoint), ...weights])];
}

/**
 * Chooses.
 *
 * @param where begins messages: `hf:org/repo`
 * @throws GemmaError `ERR_DOWNLOAD`: `AMBIGUOUS_MODEL`, `NOT_FOUND`, `PATH_REJECTED`
 */
export function selectFiles<F extends Named>(
  files: readonly F[],
  selector: string | undefined,
  where: string,
  { mmproj = true }: { mmproj?: boolean } = {},
): Selection<F> {
  const chosen = choose(files, selector, where, mmproj);
  for (const { name } of [...chosen.model, ...(chosen.mmproj ? [chosen.mmproj] : [])]) {
    if (!isSafePath(name))
      throw downloadError('PATH_REJECTED', `${where}: ${plain(name)}: not a name that a file may have`);
  }
  return chosen;
}

function choose<F extends Named>(
  files: readonly F[],
  selector: string | undefined,
  where: string,
  mmproj: boolean,
): Selection<F> {
  const lower = selector?.toLowerCase();
  const vision = files.filter((file) => isGguf(file) && isVision(file));
  const named = vision.find(({ name }) => name.toLowerCase() === lower);
  if (named) return { kind: 'gguf', model: [named] };
  const candidates = groupsOf(files);
  if (candidates.length === 0 || lower === 'safetensors') {
    const model = checkpointOf(files, where);
    const hasOther = selector !== undefined && lower !== 'safetensors';
    if (model && !hasOther) return { kind: 'checkpoint', model };
    throw downloadError(
      'NOT_FOUND',
      `${where}: expected a GGUF file${hasOther ? ` that fits ${plain(selector)}` : ' or config.json with model.safetensors'}, ` +
        `found ${files.length === 0 ? 'no files' : plain(files.map(({ name }) => name).join(', '), 300)}`,
    );
  }
  const one = selector === undefined ? byDefault(candidates, where) : bySelector(candidates, selector, where);
  if (one.missing) {
    const parts = one.files.map(({ name }) => name.slice(name.lastIndexOf('/') + 1)).join(', ');
    throw downloadError(
      'NOT_FOUND',
      `${where}: ${plain(one.stem)}: not all of its parts are there, only ${plain(parts, 300)}`,
    );
  }
  const encoder = mmproj ? encoderOf(one, vision) : undefined;
  return { kind: 'gguf', model: one.files, ...(encoder && { mmproj: encoder }) };
}

// In the model's folder, else in the root.
function encoderOf<F extends Named>({ stem }: Candidate<F>, vision: readonly F[]): F | undefined {
  const folder = stem.slice(0, stem.lastIndexOf('/') + 1);
  const near = (prefix: string) => vision.filter(({ name }) => name.slice(0, name.lastIndexOf('/') + 1) === prefix);
  const beside = folder !== '' && near(folder).length > 0 ? near(folder) : near('');
  const title = stem.slice(folder.length);
  const [best] = visionCandidates(
    beside.map(({ name }) => name.slice(name.lastIndexOf('/') + 1)),
    title,
  );
  return best === undefined ? undefined : beside.find(({ name }) => name.slice(name.lastIndexOf('/') + 1) === best);
}

/** All models of GGUF among files, each with its parts and its vision encoder; of a split one that is not whole none. */
export function ggufModels<F extends Named>(files: readonly F[]): Selection<F>[] {
  const vision = files.filter((file) => isGguf(file) && isVision(file));
  return groupsOf(files).flatMap((group) => {
    if (group.missing) return [];
    const encoder = encoderOf(group, vision);
    return [{ kind: 'gguf', model: group.files, ...(encoder && { mmproj: encoder }) }];
  });
}
