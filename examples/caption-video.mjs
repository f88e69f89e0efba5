// Describes a video. The model sees 16 frames, each after its time. Needs the program ffmpeg.
// node examples/caption-video.mjs gemma-3-4b-it.gguf clip.mp4
import { Gemma } from 'gemma-native';

const [model, video] = process.argv.slice(2);
const gemma = await Gemma.load(model);
const messages = [
  {
    role: 'user',
    content: [
      { type: 'text', text: 'These are frames of a video with their times.' },
      { type: 'video', video, maxFrames: 16 },
      { type: 'text', text: 'Describe what happens, in a few sentences.' },
    ],
  },
];
const onProgress = ({ stage, fraction }) => {
  if (process.stderr.isTTY) process.stderr.write(`\r${stage} ${Math.round(fraction * 100)} % `);
};
const { text, usage } = await gemma.generate(messages, { maxOutputTokens: 200, onProgress });
console.log(`${text}\n(${usage.imageTokens} tokens of frames)`);
await gemma.dispose();
