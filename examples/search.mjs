// Semantic search: sentences are found by what they mean, not by their words.
// node examples/search.mjs embeddinggemma-300m-Q8_0.gguf "How do plants get their energy?"
import { Gemma } from 'gemma-native';

const sentences = [
  'Leaves turn light, water and carbon dioxide into sugar.',
  'The train to Lyon leaves at nine in the morning.',
  'Bread rises because yeast makes gas.',
  'A battery stores electricity in chemical form.',
  'The opening hours are from ten to six.',
];
const [model, question = 'How do plants get their energy?'] = process.argv.slice(2);
const gemma = await Gemma.load(model);
const isSearchModel = gemma.info.config.encoder; // others know no tasks
const documents = await gemma.embed(sentences, isSearchModel ? { task: 'document' } : {});
const query = await gemma.embed(question, isSearchModel ? { task: 'query' } : {});
const dim = query.shape[1];

// Vectors have a length of 1: their dot product is the cosine of their angle.
const found = sentences.map((sentence, i) => {
  const row = documents.data.subarray(i * dim, (i + 1) * dim);
  return { sentence, similarity: row.reduce((sum, x, j) => sum + x * query.data[j], 0) };
});
console.log(`> ${question}`);
for (const { sentence, similarity } of found.toSorted((a, b) => b.similarity - a.similarity)) {
  console.log(`${similarity.toFixed(3)}  ${sentence}`);
}
await gemma.dispose();
