import { createServer } from '../src/index.js';
import { tiny } from '../../../test/api/helpers.js';

test('a server lists its models, and knows whether it is alive', async () => {
  const server = await createServer({ models: [{ name: 'tiny', model: tiny }] });
  try {
    const url = await server.listen({ port: 0 });
    expect(await (await fetch(`${url}/health`)).json()).toEqual({ status: 'ok' });
    const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { data: { id: string }[] };
    expect(data.map(({ id }) => id)).toEqual(['tiny']);
    expect(await (await fetch(`${url}/metrics`)).text()).toContain('gemma_requests_total{api="openai",status="200"} 1');
    expect((await fetch(`${url}/nowhere`)).status).toBe(404);
  } finally {
    await server.close();
  }
});
