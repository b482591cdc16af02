// The official OpenAI SDK for Node. Usage: node openai.mjs DEMO_URL SCRIPTED_URL
import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { assert, check, COUNTED, demo, MODEL, run, scripted, version } from './checks.mjs';

const client = (base) => new OpenAI({ baseURL: `${base}/v1`, apiKey: 'unused', maxRetries: 0 });
const script = client(scripted);
const model = client(demo);
const user = (content) => [{ role: 'user', content }];
const Person = z.object({
  name: z.string().max(12),
  age: z.number().int().min(0).max(150),
  languages: z.array(z.enum(['notes', 'tables', 'Rust'])).max(3),
});
const parameters = {
  type: 'object',
  properties: { city: { type: 'string' }, days: { type: 'integer' } },
  required: ['city', 'days'],
  additionalProperties: false,
};
const tools = [{ type: 'function', function: { name: 'get_weather', parameters, strict: true } }];

check('models.list names the model', async () => {
  const ids = [];
  for await (const entry of model.models.list()) ids.push(entry.id);
  assert(ids.includes(MODEL), ids.join());
});

check('chat.completions.create answers and counts', async () => {
  const { data, response } = await script.chat.completions
    .create({ model: MODEL, messages: user('Count to five.') })
    .withResponse();
  assert.equal(data.choices[0].message.content, COUNTED);
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.equal(data._request_id, response.headers.get('x-request-id'));
});

check('a stream carries the same text, then usage', async () => {
  const stream = await script.chat.completions.create({
    model: MODEL,
    messages: user('Count to five.'),
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = '';
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, COUNTED);
  assert(usage.completion_tokens > 0);
});

check('leaving a stream early leaves the client usable', async () => {
  const stream = await script.chat.completions.create({
    model: MODEL,
    messages: user('Count to five.'),
    stream: true,
  });
  for await (const _ of stream) break;
  const next = await script.chat.completions.create({ model: MODEL, messages: user('Count to five.') });
  assert.equal(next.choices[0].message.content, COUNTED);
});

check('runTools: call, result, answer', async () => {
  const asked = [];
  const runner = script.chat.completions.runTools({
    model: MODEL,
    messages: user('What is the weather in Paris?'),
    tools: [
      {
        type: 'function',
        function: {
          name: 'get_weather',
          parse: JSON.parse,
          function: (args) => {
            asked.push(args);
            return '21 degrees, sunny';
          },
          parameters,
        },
      },
    ],
  });
  assert.equal(await runner.finalContent(), 'It is 21 degrees and sunny in Paris.');
  assert.deepEqual(asked, [{ city: 'Paris', days: 2 }]);
});

check('stream helper: two parallel calls', async () => {
  const events = [];
  const stream = script.chat.completions
    .stream({ model: MODEL, messages: user('What is the weather in Paris and in Rome?'), tools })
    .on('tool_calls.function.arguments.done', (event) => events.push(event));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].finish_reason, 'tool_calls');
  const calls = final.choices[0].message.tool_calls;
  assert.deepEqual(
    calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
    [
      ['get_weather', { city: 'Paris', days: 2 }],
      ['get_weather', { city: 'Rome', days: 3 }],
    ],
  );
  assert.equal(new Set(calls.map((call) => call.id)).size, 2);
  assert.equal(events.length, 2);
});

check('parse with a zod schema binds the demo model', async () => {
  const answer = await model.chat.completions.parse({
    model: MODEL,
    messages: user('Who are you?'),
    temperature: 0,
    max_tokens: 600,
    response_format: zodResponseFormat(Person, 'person'),
  });
  Person.parse(answer.choices[0].message.parsed);
});

check('a strict tool binds the demo model', async () => {
  const answer = await model.chat.completions.create({
    model: MODEL,
    messages: user('What is the weather in Peru for 3 days?'),
    temperature: 0,
    max_tokens: 600,
    tools,
    tool_choice: { type: 'function', function: { name: 'get_weather' } },
  });
  const [call] = answer.choices[0].message.tool_calls;
  const args = JSON.parse(call.function.arguments);
  assert.equal(typeof args.city, 'string');
  assert(Number.isInteger(args.days));
});

check("mistakes come back as the SDK's own errors", async () => {
  const bad = model.chat.completions.create({ model: MODEL, messages: user('Hi'), temperature: 3 });
  await assert.rejects(bad, (error) => {
    assert(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, 'temperature');
    return true;
  });
  const unknown = model.chat.completions.create({ model: 'gpt-nothing', messages: user('Hi') });
  await assert.rejects(unknown, OpenAI.NotFoundError);
});

check('responses.create answers, streamed and whole', async () => {
  const whole = await script.responses.create({ model: MODEL, input: 'Count to five.' });
  assert.equal(whole.output_text, COUNTED);
  const stream = await script.responses.create({ model: MODEL, input: 'Count to five.', stream: true });
  let text = '';
  let completed = false;
  for await (const event of stream) {
    if (event.type === 'response.output_text.delta') text += event.delta;
    completed ||= event.type === 'response.completed';
  }
  assert.equal(text, COUNTED);
  assert(completed);
});

await run(`openai-node ${version('openai')}`);
