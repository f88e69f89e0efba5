// The page in a real browser, against a server with the demonstration model.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { chromium, type Browser, type BrowserContextOptions, type Page } from 'playwright-core';
import sharp from 'sharp';
import { Gemma } from 'gemma-native';
import { join } from 'node:path';
import { createServer, type Server } from '../src/index.js';
import { realModel, root, tiny } from '../../../test/api/helpers.js';

const picture = join(root, 'models', 'pictures', 'shapes.png');

function browserPath(): string {
  const names = [process.env.CHROMIUM, 'chromium', 'chromium-browser', 'google-chrome'].filter(Boolean) as string[];
  const found = names.find((name) => spawnSync(name, ['--version']).status === 0);
  if (found === undefined) throw new Error('Chromium is missing: apt-get install chromium, or name it in CHROMIUM');
  return spawnSync('which', [found], { encoding: 'utf8' }).stdout.trim() || found;
}

let browser: Browser;
let server: Server;
let url: string;

beforeAll(async () => {
  browser = await chromium.launch({ executablePath: browserPath(), args: ['--no-sandbox'] });
  const adapters = { tools: Gemma.demoAdapter };
  server = await createServer({
    models: [
      { name: 'demo', model: 'demo', options: { adapters } },
      { name: 'endless', model: realModel(), options: { chatTemplate: '{{ messages[0].content }}' } },
    ],
  });
  url = await server.listen({ port: 0 });
});

afterAll(async () => {
  await browser?.close();
  await server?.close();
});

/** Opens the page; whatever the browser complains about fails the test. */
async function withPage(work: (page: Page) => Promise<void>, options: BrowserContextOptions = {}, at = url) {
  const context = await browser.newContext({ viewport: { width: 900, height: 700 }, ...options });
  const complaints: string[] = [];
  try {
    const page = await context.newPage();
    page.on('console', (message) => {
      // That the policy holds is no complaint: DOMPurify reads HTML in a document that has it too.
      if (message.type() === 'error' && !/^Executing inline event handler violates/.test(message.text()))
        complaints.push(message.text());
    });
    page.on('pageerror', (error) => complaints.push(error.message));
    await page.goto(at);
    await work(page);
  } finally {
    await context.close();
  }
  expect(complaints).toEqual([]);
}

async function send(page: Page, text: string) {
  await page.locator('#message').fill(text);
  await page.keyboard.press('Enter');
}

/** The last answer, when it is complete. */
async function answered(page: Page, n = 1): Promise<string> {
  await page
    .locator('.assistant')
    .nth(n - 1)
    .getByRole('button', { name: 'Regenerate' })
    .waitFor();
  expect(await page.locator('.assistant').count()).toBe(n);
  return page.locator('.assistant .text').last().innerText();
}

async function set(page: Page, values: Readonly<Record<string, string | boolean>>) {
  await page.getByRole('button', { name: 'Settings' }).click();
  for (const [label, value] of Object.entries(values)) {
    const field = page.getByRole('dialog').getByLabel(label);
    if (typeof value === 'boolean') await field.setChecked(value);
    else await field.fill(value);
  }
  await page.getByRole('button', { name: 'Save' }).click();
}

async function attach(page: Page, path: string | { name: string; mimeType: string; buffer: Buffer }) {
  await page.locator('#picture').setInputFiles(path);
  await page.locator('#attached img').waitFor();
}

test('a picture is attached, seen and asked about; the answer comes again, and the question is edited', async () => {
  await withPage(async (page) => {
    await page.locator('#model option').first().waitFor({ state: 'attached' });
    await attach(page, picture);
    await send(page, 'What is in the picture?');
    expect(await answered(page)).toMatch(/red circle/);
    expect(await page.locator('.user img').getAttribute('alt')).toBe('shapes.png');
    await page.getByRole('button', { name: 'Regenerate' }).click();
    expect(await answered(page)).toMatch(/red circle/);
    await send(page, 'How many shapes are there?');
    await answered(page, 2);
    await page.getByRole('button', { name: 'Edit this message' }).first().click();
    await page.locator('.user').first().getByLabel('Message').fill('What do you see?');
    await page.locator('.user').first().getByRole('button', { name: 'Send' }).click();
    expect(await answered(page)).toMatch(/red circle/);
    await page.getByRole('button', { name: 'Show request and answer as JSON' }).click();
    const raw = JSON.parse(await page.locator('.raw').innerText()) as { request: unknown };
    expect(raw.request).toMatchObject({ model: 'demo', messages: [{ content: [{}, { text: 'What do you see?' }] }] });
    await page.getByRole('button', { name: 'New chat' }).click();
    expect(await page.locator('#turns li').count()).toBe(0);
  });
});

test('Pan & Scan draws where it cuts', async () => {
  const wide = await sharp({ create: { width: 1600, height: 400, channels: 3, background: 'teal' } })
    .png()
    .toBuffer();
  const { crops } = await Gemma.crops(wide);
  expect(crops.length).toBeGreaterThan(1);
  await withPage(async (page) => {
    await set(page, { 'Pan & Scan': true });
    await attach(page, { name: 'wide.png', mimeType: 'image/png', buffer: wide });
    await page.locator('#attached rect').first().waitFor({ state: 'attached' });
    const boxes = await page.evaluate(
      `[...document.querySelectorAll('#attached rect')].map((rect) =>
        ['x', 'y', 'width', 'height'].map((side) => Number(rect.getAttribute(side))))`,
    );
    expect(boxes).toEqual(crops.map(({ x, y, width, height }) => [x, y, width, height]));
    expect(await page.locator('#attached figcaption').innerText()).toContain(`in ${crops.length} crops`);
    await page.getByRole('button', { name: 'Remove wide.png' }).click();
    expect(await page.locator('#attached img').count()).toBe(0);
  });
});

test('pictures are dropped and pasted', async () => {
  const bytes = [...readFileSync(picture)];
  await withPage(async (page) => {
    for (const kind of ['drop', 'paste']) {
      // As a text: the compiler knows no browser here.
      await page.evaluate(`{
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array([${bytes.join()}])], '${kind}.png', { type: 'image/png' }));
        document.body.dispatchEvent(
          '${kind}' === 'drop'
            ? new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true }),
        );
      }`);
      await page.getByRole('button', { name: `Remove ${kind}.png` }).waitFor();
    }
  });
});

test('an answer is stopped by the button and by Escape, and what came stays', async () => {
  await withPage(async (page) => {
    await page.getByLabel('Model').selectOption('endless');
    await set(page, { 'JSON schema': '{ "type": "string", "minLength": 100000 }' });
    for (const [i, stop] of [
      () => page.getByRole('button', { name: 'Stop' }).click(),
      () => page.keyboard.press('Escape'),
    ].entries()) {
      await send(page, 'on and on');
      await page.locator('.assistant').nth(i).locator('.text').filter({ hasText: /\S/ }).waitFor();
      await stop();
      await page.getByText('stopped').nth(i).waitFor();
      await answered(page, i + 1);
    }
  });
});

test('an answer in JSON is a tree', async () => {
  const schema = { type: 'object', properties: { n: { enum: [7] }, list: { const: [true] } }, required: ['n', 'list'] };
  await withPage(async (page) => {
    await set(page, { 'JSON schema': JSON.stringify(schema) });
    await send(page, 'Numbers?');
    expect(await answered(page)).toMatch(/"n": 7/);
    expect(await page.locator('.assistant .json details').count()).toBe(2);
  });
});

test('a tool is called, and its result answered', async () => {
  const parameters = {
    type: 'object',
    properties: { a: { type: 'integer' }, b: { type: 'integer' } },
    required: ['a', 'b'],
  };
  const description = 'Adds two numbers';
  const tools = [{ type: 'function', function: { name: 'add', description, parameters } }];
  await withPage(async (page) => {
    await set(page, { Adapter: 'tools', Tools: JSON.stringify(tools), Temperature: '0' });
    await send(page, 'What is 417 plus 311?');
    await page.getByRole('heading', { name: 'Call of add' }).waitFor();
    expect(await page.locator('.call .json').innerText()).toMatch(/417[^]*311/);
    await page.getByLabel('Result of add').fill('728');
    await page.getByRole('button', { name: 'Send results' }).click();
    expect(await answered(page, 2)).toMatch(/^417 plus 311 is/);
    await page.getByRole('button', { name: 'Show request and answer as JSON' }).last().click();
    expect(await page.locator('.raw').innerText()).toMatch(
      /"role": "tool",\s+"tool_call_id": "[^"]+",\s+"content": "728"/,
    );
  });
});

test('wrong settings are told, and kept from being saved', async () => {
  await withPage(async (page) => {
    await set(page, { Temperature: 'hot' });
    expect(await page.locator('#settings-failure').innerText()).toMatch(
      /Temperature: expected a number from 0 to 2, found hot/,
    );
    await page.getByRole('button', { name: 'Cancel' }).click();
    await send(page, 'Hello');
    await answered(page);
  });
});

test('what a model writes runs nothing and loads nothing', async () => {
  await withPage(async (page) => {
    const asked: string[] = [];
    page.on('request', (request) => asked.push(request.url()));
    const text =
      '**bold** <script>document.title = "x"</script><img src="http://127.0.0.1:1/a"> ![b](http://127.0.0.1:1/b)' +
      '<b onclick="x()">c</b> [d](javascript:alert(1)) [e](https://example.org/)';
    await page.route('**/v1/chat/completions', (route) => {
      const piece = { choices: [{ index: 0, delta: { content: text }, finish_reason: 'stop' }] };
      return route.fulfill({
        contentType: 'text/event-stream',
        body: `data: ${JSON.stringify(piece)}\n\ndata: [DONE]\n\n`,
      });
    });
    await send(page, 'Hello');
    await answered(page);
    expect(await page.title()).toBe('Gemma');
    expect(
      await page.evaluate(
        `[...document.querySelectorAll('.assistant .text *')].map((each) => each.outerHTML.replace(/>[^]*/, '>'))`,
      ),
    ).toEqual([
      '<p>',
      '<strong>',
      '<a rel="noopener noreferrer nofollow" target="_blank">',
      '<a href="https://example.org/" rel="noopener noreferrer nofollow" target="_blank">',
    ]);
    expect(asked.filter((each) => !each.startsWith(url))).toEqual([]);
  });
});

test('a server with a key asks for it, and takes it', async () => {
  const guarded = await createServer({ models: [{ name: 'tiny', model: tiny }], apiKeys: ['secret'] });
  try {
    const at = await guarded.listen({ port: 0 });
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(at);
    await page.getByText('This server wants an API key').waitFor();
    await set(page, { 'API key': 'secret' });
    await page.locator('#model option').waitFor({ state: 'attached' });
    expect(await page.getByLabel('Model').inputValue()).toBe('tiny');
    await context.close();
  } finally {
    await guarded.close();
  }
});

test.each(['light', 'dark'] as const)(
  'axe-core finds nothing to complain about (%s), on a phone neither',
  async (colorScheme) => {
    const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
    // Around the policy, for axe-core is a script of nobody's.
    const options = { bypassCSP: true, colorScheme, viewport: { width: 380, height: 700 } };
    await withPage(async (page) => {
      const violations = async () => {
        await page.evaluate(axe);
        type Found = { violations: { id: string; nodes: { html: string }[] }[] };
        const { violations: found } = await page.evaluate<Found>('axe.run()');
        return found.map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)]);
      };
      expect(await violations()).toEqual([]);
      await page.getByRole('button', { name: 'Settings' }).click();
      expect(await violations()).toEqual([]);
      await page.keyboard.press('Escape');
      await attach(page, picture);
      await send(page, 'What is in the picture?');
      await answered(page);
      expect(await violations()).toEqual([]);
      expect(await page.evaluate('document.documentElement.scrollWidth')).toBe(380);
    }, options);
  },
);

test('all of it is below 150 KB', async () => {
  let bytes = 0;
  await withPage(async (page) => {
    await page.reload({ waitUntil: 'networkidle' });
    const sizes = await page.evaluate(() =>
      performance.getEntries().map((entry) => ('decodedBodySize' in entry ? Number(entry.decodedBodySize) : 0)),
    );
    bytes = sizes.reduce((sum, size) => sum + size, 0);
  });
  expect(bytes).toBeGreaterThan(50_000);
  expect(bytes).toBeLessThan(150_000);
});
