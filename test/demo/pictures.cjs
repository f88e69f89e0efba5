// Reads test/demo/images.tar: the pictures that heldout.json and golden.json name, as lossless WebP in an uncompressed
// ustar archive. training/heldout.py writes it. One archive instead of 600 files halves the number of tracked files.
const { readFileSync } = require('node:fs');
const { join } = require('node:path');

const BLOCK = 512;

/** All held-out pictures: the bytes of each file by its name. */
exports.heldOutPictures = () => {
  const archive = readFileSync(join(__dirname, 'images.tar'));
  const text = (begin, length) => archive.toString('latin1', begin, begin + length).replace(/\0.*$/s, '');
  const pictures = new Map();
  // Each file: a header of one block (name at 0, size in octal at 124), then its bytes, padded to whole blocks. A block of
  // zeros ends the archive.
  for (let at = 0; archive[at];) {
    const size = parseInt(text(at + 124, 12), 8);
    pictures.set(text(at, 100), archive.subarray(at + BLOCK, at + BLOCK + size));
    at += BLOCK + Math.ceil(size / BLOCK) * BLOCK;
  }
  return pictures;
};
