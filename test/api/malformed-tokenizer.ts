// Malformed tokenizers: tokenizer.json, and SentencePiece's own file.
import { sentencePiece } from './checkpoint.js';
import {
  base,
  INVALID,
  UNSUPPORTED,
  type Maker,
  bytesOf,
  replace,
  edit,
  editJson,
  TOKENIZER,
} from './malformed-maker.js';

export function tokenizers(maker: Maker): void {
  const V = 'BAD_VOCAB';
  const text = (group: string, name: string, from: string | RegExp, to: string, code: string, detail: string, ...words: string[]) =>
    maker.add(group, name, 'model', maker.sound, [code, detail, TOKENIZER, ...words], (files) => edit(files, TOKENIZER, from, to)); // prettier-ignore
  const all = 'tokenizer.json: JSON';
  const whole = (name: string, make: (bytes: Buffer) => Buffer | string, detail: string, ...words: string[]) =>
    maker.add(all, name, 'model', maker.sound, [INVALID, detail, TOKENIZER, ...words], (files) => files.set(TOKENIZER, Buffer.from(make(bytesOf(files, TOKENIZER)) as Buffer))); // prettier-ignore
  whole('empty', () => '', V, 'the text ends');
  whole('a list', () => '[]', V, 'expected an object');
  whole('no model', () => '{"version":"1.0"}', V, '"model"', 'missing');
  whole('cut in the middle', (bytes) => bytes.subarray(0, bytes.length >> 1), V, 'at byte');
  whole('cut by a byte', (bytes) => bytes.subarray(0, -1), V, 'the text ends');
  whole('text behind', (bytes) => `${bytes.toString()}x`, V, 'expected the end');
  whole('a byte order mark', (bytes) => `\ufeff${bytes.toString()}`, V, 'byte 0');
  whole('no UTF-8', () => Buffer.from('{"model":{"vocab":{"\xff":0}}}', 'latin1'), V, 'not valid UTF-8');
  whole('nested 10^5 deep', () => `{"x":${'['.repeat(1e5)}`, V, 'more than 32');
  whole('normalizers in each other', () => `{"normalizer":${'{"type":"Sequence","normalizers":['.repeat(1000)}`, V, 'more than 32'); // prettier-ignore
  whole('a key twice', (bytes) => replace(bytes.toString(), '"version":"1.0"', '"version":"1.0","version":"1.0"'), 'DUPLICATE', 'version'); // prettier-ignore

  const model = 'tokenizer.json: model';
  for (const type of ['Unigram', 'WordPiece', 'WordLevel']) {
    text(
      model,
      type,
      '"type":"BPE"',
      `"type":"${type}"`,
      UNSUPPORTED,
      'TOKENIZER',
      `type "${type}"`,
      'SentencePiece BPE',
    );
  }
  text(model, 'a type that is a number', '"type":"BPE"', '"type":1', INVALID, V, 'type', 'expected a string');
  text(model, 'no type', '"type":"BPE",', '', INVALID, V, 'type is missing');
  text(model, 'no byte pieces', '"byte_fallback":true', '"byte_fallback":false', UNSUPPORTED, 'TOKENIZER', 'byte_fallback'); // prettier-ignore
  text(model, 'byte pieces as a string', '"byte_fallback":true', '"byte_fallback":"yes"', INVALID, V, 'byte_fallback', 'true or false'); // prettier-ignore
  text(model, 'whole words first', '"ignore_merges":false', '"ignore_merges":true', UNSUPPORTED, 'TOKENIZER', 'ignore_merges'); // prettier-ignore
  text(model, 'marks of words', '"ignore_merges":false', '"end_of_word_suffix":"</w>"', UNSUPPORTED, 'TOKENIZER', 'marks of words'); // prettier-ignore
  text(model, 'a model that is a list', '"model":{', '"model":[],"x":{', INVALID, V, '"model"', 'an array');
  text(model, 'two models', '"model":{', '"model":{"type":"BPE","byte_fallback":true,"vocab":{}},"model":{', INVALID, 'DUPLICATE|BAD_VOCAB', 'model'); // prettier-ignore
  text(model, 'an unknown token that is a number', '"unk_token":"<unk>"', '"unk_token":3', INVALID, V, 'unk_token', 'expected a string'); // prettier-ignore

  const vocab = 'tokenizer.json: vocabulary';
  text(vocab, 'none', '"vocab":', '"other":', INVALID, V, 'the vocabulary is missing');
  text(vocab, 'a list', '"vocab":{', '"vocab":[],"x":{', INVALID, V, 'vocab', 'expected an object');
  text(vocab, 'an id twice', '"<eos>":1', '"<eos>":2', INVALID, V, 'two pieces have the id 2');
  text(vocab, 'a piece twice', '"<eos>":1', '"<pad>":1', INVALID, 'DUPLICATE', '<pad>');
  text(vocab, 'a negative id', '"<eos>":1', '"<eos>":-1', INVALID, V, '<eos>', 'found -1');
  text(vocab, 'a fraction', '"<eos>":1', '"<eos>":1.5', INVALID, V, '<eos>', 'found 1.5');
  text(vocab, 'an id of 2^32', '"<eos>":1', '"<eos>":4294967297', INVALID, V, '<eos>', 'found 4294967297');
  text(vocab, 'an id that is a string', '"<eos>":1', '"<eos>":"1"', INVALID, V, '<eos>', 'a string');
  text(vocab, 'an empty piece', '"<eos>":1', '"":1', INVALID, V, 'a piece without text');
  text(vocab, 'a piece of 100 KB under the id of an added token', '"<eos>":1', `"${'x'.repeat(1e5)}":1`, INVALID, V, '<eos>', 'the id 1 of "xxx', '..."'); // prettier-ignore
  maker.add(
    vocab,
    'a piece of 100 KB',
    'model',
    maker.sound,
    [INVALID, V, '/', '(100000 bytes)', 'longer than 1024'],
    (files) =>
      editJson(files, TOKENIZER, (value) => {
        const bpe = value.model as { vocab: Record<string, number> };
        const [piece = ''] = Object.keys(bpe.vocab).slice(-1);
        bpe.vocab['x'.repeat(1e5)] = bpe.vocab[piece] as number;
        delete bpe.vocab[piece];
      }),
  );
  maker.add(vocab, 'empty', 'model', maker.sound, [INVALID, V, '/', 'byte'], (files) =>
    editJson(files, TOKENIZER, (value) => {
      (value.model as Record<string, unknown>).vocab = {};
      (value.model as Record<string, unknown>).merges = [];
      value.added_tokens = [];
    }),
  );

  const merges = 'tokenizer.json: merges';
  const merge = (name: string, to: string, ...words: string[]) =>
    text(merges, name, '"merges":[[', `"merges":[${to},[`, INVALID, V, 'merges', ...words);
  merge('of one piece', '["a"]', 'expected two pieces');
  merge('of three pieces', '["a","b","c"]', 'expected two pieces');
  merge('of none', '[]', 'expected two pieces');
  merge('of numbers', '[1,2]', 'expected a string', 'a number');
  merge('a string without a blank', '"ab"', 'a blank between them');
  merge('null', 'null', 'expected', 'null');
  merge('a number', '7', 'expected', 'a number');
  text(merges, 'an object', '"merges":[', '"merges":{},"x":[', INVALID, V, 'merges', 'expected an array');
  text(merges, '65,536 of one', '"merges":[[', `"merges":[${'["<e","os>"],'.repeat(65536)}[`, INVALID, V, 'too many merges'); // prettier-ignore
  maker.add(merges, 'of pairs alone', 'model', maker.sound, [UNSUPPORTED, 'TOKENIZER', TOKENIZER, 'joins less'], (files) =>
    editJson(files, TOKENIZER, (value) => {
      const seen = new Set<string>();
      const bpe = value.model as { merges: string[][] };
      bpe.merges = bpe.merges.filter((pair) => !seen.has(pair.join('')) && seen.add(pair.join('')));
    }),
  ); // prettier-ignore

  const added = 'tokenizer.json: added tokens';
  const token = (name: string, to: string, ...words: string[]) =>
    text(added, name, '"added_tokens":[', `"added_tokens":[${to},`, INVALID, V, ...words);
  token('no id', '{"content":"<x>"}', '<x>', 'no id');
  token('no text', '{"id":5}', 'without text');
  token('an empty text', '{"id":5,"content":""}', 'without text');
  token('a negative id', '{"id":-1,"content":"<x>"}', 'id', 'found -1');
  token('an id beyond the limit', '{"id":4294967296,"content":"<x>"}', 'id', 'found 4294967296');
  token('the id of another piece', '{"id":2,"content":"<x>"}', '<x>', '<bos>', 'the id 2');
  token('no object', '7', 'added_tokens', 'expected an object');
  token('a text that is a number', '{"id":5,"content":5}', 'content', 'expected a string');
  token('special as a number', '{"id":5,"content":"<x>","special":1}', 'special', 'true or false');
  text(added, 'an object', '"added_tokens":[', '"added_tokens":{},"x":[', INVALID, V, 'added_tokens', 'expected an array'); // prettier-ignore
  text(added, 'one that takes its neighbours', '"added_tokens":[', '"added_tokens":[{"id":400,"content":"<x>","lstrip":true},', UNSUPPORTED, 'TOKENIZER', '<x>', 'blanks beside'); // prettier-ignore

  const steps = 'tokenizer.json: normalizer, pre-tokenizer, decoder';
  for (const type of ['NFKC', 'Lowercase', 'Prepend', 'Precompiled']) {
    text(
      steps,
      `normalizer ${type}`,
      '"type":"Replace"',
      `"type":"${type}"`,
      UNSUPPORTED,
      'TOKENIZER',
      'normalizer',
      type,
    );
  }
  text(steps, 'a normalizer of something else', '"pattern":{"String":" "},"content"', '"pattern":{"String":"x"},"content"', UNSUPPORTED, 'TOKENIZER', 'normalizer', '"x"'); // prettier-ignore
  text(steps, 'a normalizer with a regular expression', '"pattern":{"String":" "},"content"', '"pattern":{"Regex":" "},"content"', UNSUPPORTED, 'TOKENIZER', 'normalizer', 'Regex'); // prettier-ignore
  text(steps, 'a normalizer that is a string', '"normalizer":{', '"normalizer":"Replace","x":{', INVALID, V, 'normalizer', 'expected an object'); // prettier-ignore
  text(steps, 'no normalizer', /"normalizer":\{.*?\},"pre_/, '"normalizer":null,"pre_', UNSUPPORTED, 'TOKENIZER', 'U+2581'); // prettier-ignore
  for (const type of ['ByteLevel', 'Metaspace', 'Whitespace', 'BertPreTokenizer']) {
    text(steps, `pre-tokenizer ${type}`, '"type":"Split"', `"type":"${type}"`, UNSUPPORTED, 'TOKENIZER', 'pre-tokenizer', type); // prettier-ignore
  }
  text(steps, 'a pre-tokenizer with a regular expression', /"pattern":\{"String":" "\},"behavior"/, '"pattern":{"Regex":"\\\\d"},"behavior"', UNSUPPORTED, 'TOKENIZER', 'pre-tokenizer', 'Regex'); // prettier-ignore
  for (const decoder of [
    '{"type":"ByteLevel"}',
    '{"type":"WordPiece","prefix":"##"}',
    '{"type":"Metaspace","replacement":"_"}',
    '{"type":"Sequence","decoders":[{"type":"Strip","content":" ","start":1,"stop":0}]}',
    '{"type":"Replace","pattern":{"String":"x"},"content":"y"}',
  ]) {
    text(steps, `decoder ${decoder.slice(0, 60)}`, '"model":{', `"decoder":${decoder},"model":{`, UNSUPPORTED, 'TOKENIZER', 'decoder'); // prettier-ignore
  }
  text(steps, 'a decoder that is a string', '"model":{', '"decoder":"x","model":{', INVALID, V, 'decoder', 'expected an object'); // prettier-ignore
}

/** A number as Protocol Buffers write it. */
function varint(value: number | bigint): Buffer {
  const bytes: number[] = [];
  let left = BigInt(value);
  for (; left > 127n; left >>= 7n) bytes.push(Number(left & 127n) | 128);
  return Buffer.from([...bytes, Number(left)]);
}

export function sentencePieces(maker: Maker): void {
  const MODEL = 'tokenizer.model';
  const group = 'tokenizer.model: ';
  const sound = sentencePiece(base);
  const add = (part: string, name: string, content: Buffer, code: string, detail: string, ...words: string[]) =>
    maker.add(group + part, name, 'model', maker.sound, [code, detail, ...words], (files) => {
      files.delete(TOKENIZER);
      files.set(MODEL, content);
    });
  const V = 'BAD_VOCAB';
  const not = 'not a SentencePiece model';
  const whole = (name: string, content: Buffer, ...words: string[]) =>
    add('framing', name, content, INVALID, V, MODEL, ...words);
  whole('empty', Buffer.alloc(0), not, 'parts of it are missing');
  whole('text', Buffer.from('<pad>\n<eos>\n'), not);
  whole('a zip archive', Buffer.from('PK\x03\x04'.repeat(20)), not);
  whole('a gzip file', Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0]), not);
  whole('ones', Buffer.alloc(64, 0xff), not, 'more than 64 bits');
  whole('zeros', Buffer.alloc(64), not, 'parts of it are missing');
  whole('cut by a byte', sound.subarray(0, -1), not, 'are left');
  whole('cut in half', sound.subarray(0, sound.length >> 1), not);
  for (const kind of [3, 4, 6, 7]) {
    whole(`a field of kind ${kind}`, Buffer.concat([sound, varint((9 << 3) | kind)]), not, `a field of kind ${kind}`);
  }
  whole('a length of 2^32', Buffer.concat([varint(0x0a), varint(2n ** 32n), sound]), 'a field of 4294967296 bytes');
  whole('a length of 2^64 - 1', Buffer.concat([varint(0x0a), varint(2n ** 64n - 1n), sound]), '18446744073709551615');
  whole('a number of eleven bytes', Buffer.concat([varint(0x48), Buffer.alloc(10, 0x80), varint(1), sound]), 'more than 64 bits'); // prettier-ignore
  whole('a number without an end', Buffer.concat([sound, varint(0x48), Buffer.from([0x80])]), '0 are left');
  whole('a fixed number without an end', Buffer.concat([sound, varint(0x49), Buffer.alloc(7)]), 'a field of 8 bytes', '7 are left'); // prettier-ignore
  whole('a short fixed number without an end', Buffer.concat([sound, varint(0x4d), Buffer.alloc(3)]), 'a field of 4 bytes', '3 are left'); // prettier-ignore

  const message = (field: number, content: Buffer) =>
    Buffer.concat([varint((field << 3) | 2), varint(content.length), content]);
  const number = (field: number, value: number | bigint) => Buffer.concat([varint(field << 3), varint(value)]);
  const float = (field: number, value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeFloatLE(value);
    return Buffer.concat([varint((field << 3) | 5), bytes]);
  };
  const piece = (text: string | Buffer, score: number, kind: number | bigint) =>
    message(1, Buffer.concat([message(1, Buffer.from(text as string)), float(2, score), number(3, kind)]));
  const trainer = message(2, Buffer.concat([number(3, 2), number(35, 1)]));
  const normalizer = message(3, Buffer.concat([number(3, 0), number(4, 0), number(5, 1)]));
  const missing = (name: string, content: Buffer) => add('parts', name, content, INVALID, V, MODEL, not, 'missing');
  missing('pieces alone', piece('a', 0, 1));
  missing('no normalizer', Buffer.concat([piece('a', 0, 1), trainer]));
  missing('no trainer', Buffer.concat([piece('a', 0, 1), normalizer]));
  missing('no pieces', Buffer.concat([trainer, normalizer]));
  const settings = (name: string, content: Buffer, ...words: string[]) =>
    add('settings', name, Buffer.concat([sound, content]), UNSUPPORTED, 'TOKENIZER', MODEL, ...words);
  settings('unigram', message(2, Buffer.concat([number(3, 1), number(35, 1)])), 'type 1', 'SentencePiece BPE');
  settings('words', message(2, Buffer.concat([number(3, 3), number(35, 1)])), 'type 3');
  settings('no bytes', message(2, number(3, 2)), 'byte_fallback');
  settings('a blank in front', message(3, Buffer.concat([number(3, 1), number(4, 0)])), 'changes text');
  settings('blanks removed', message(3, Buffer.concat([number(3, 0), number(4, 1)])), 'changes text');
  settings('blanks as they are', message(3, Buffer.concat([number(3, 0), number(4, 0), number(5, 0)])), 'changes text');
  settings('rules', message(3, Buffer.concat([message(2, Buffer.from('x')), number(3, 0), number(4, 0)])), 'changes text'); // prettier-ignore
  const first = (name: string, content: Buffer, ...words: string[]) =>
    add('pieces', name, Buffer.concat([content, sound]), INVALID, V, ...words);
  first('of kind 0', piece('x', 0, 0), MODEL, 'token 0', 'from 1 to 6', 'found 0');
  first('of kind 7', piece('x', 0, 7), MODEL, 'token 0', 'found 7');
  first('of kind 2^64 - 1', piece('x', 0, 2n ** 64n - 1n), MODEL, 'token 0', 'found 18446744073709551615');
  first('a score that is NaN', piece('!zq', NaN, 1), '/', 'token 0', 'score');
  first('no text', piece('', 0, 1), MODEL, 'token 0', 'without text');
  first('no UTF-8', piece(Buffer.from([0xff, 0xfe]), 0, 1), '/', 'token 0', 'UTF-8');
  first('of 100 KB', piece('x'.repeat(1e5), 0, 1), '/', 'token 0 (100000 bytes)');
  first('twice', Buffer.concat([piece('same', 0, 1), piece('same', 0, 1)]), MODEL, 'token 1', '"same"', 'token 0');
  first('a byte that is none', piece('<0xZZ>', 0, 6), '/', 'token 0', 'byte');
  first('a field inside that is cut', message(1, Buffer.from([0x0a, 5, 0x61])), MODEL, not, 'a field of 5 bytes');
}
