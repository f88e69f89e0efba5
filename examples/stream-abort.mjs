// Prints an answer while it is generated and aborts it after a second. Ctrl-C would work the same way.
// node examples/stream-abort.mjs model.gguf
import { Gemma } from 'gemma-native';

const gemma = await Gemma.load(process.argv[2]);
const signal = AbortSignal.timeout(1000);
try {
  for await (const part of gemma.stream('Once upon a time', { raw: true, signal })) process.stdout.write(part.text);
  console.log('\n(the story ended by itself)');
} catch (error) {
  if (!signal.aborted) throw error;
  console.log('\n(stopped after a second)');
}
await gemma.dispose();
