// Cloudflare's Workers, as the model's page has them, on a binding that speaks HTTP.
// Usage: worker.mjs URL KEY

import assert from "node:assert/strict";

import OpenAI from "openai";

import { Ai } from "./binding.mjs";
import { check, finish } from "./check.mjs";

const MODEL = "@cf/nvidia/nemotron-3-120b-a12b";
const [url, key] = process.argv.slice(2);
const env = { AI: new Ai(url, key) };
const messages = [
  { role: "system", content: "You are a friendly assistant" },
  { role: "user", content: "What is the origin of the phrase Hello, World" },
];

const streaming = {
  async fetch(request, env) {
    const stream = await env.AI.run(MODEL, { messages, stream: true });
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  },
};

const whole = {
  async fetch(request, env) {
    const response = await env.AI.run(MODEL, { messages });
    return Response.json(response);
  },
};

await check("worker: env.AI.run with stream: true is an event stream", async () => {
  const response = await streaming.fetch(new Request("http://worker/"), env);
  assert.equal(response.headers.get("content-type"), "text/event-stream");
  const events = (await response.text()).split("\n\n");
  assert.deepEqual(events.slice(-2), ["data: [DONE]", ""]);
  const chunks = events.slice(0, -2).map((event) => JSON.parse(event.replace(/^data: /, "")));
  const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
  assert.ok(text.length > 0, "it says something");
  assert.equal(chunks[0].model, MODEL);
  assert.ok(["stop", "length"].includes(chunks.at(-1).choices[0].finish_reason));
});

await check("worker: env.AI.run is the answer itself", async () => {
  const response = await whole.fetch(new Request("http://worker/"), env);
  const answer = await response.json();
  assert.equal(answer.object, "chat.completion");
  assert.equal(typeof answer.choices[0].message.content, "string");
  assert.ok(answer.usage.completion_tokens > 0);
});

await check("worker: env.AI.run with a prompt, and what it throws", async () => {
  const answer = await env.AI.run(MODEL, { prompt: "Tell me all about PEP-8", max_tokens: 8 });
  assert.equal(answer.usage.completion_tokens, 8);
  await assert.rejects(env.AI.run(MODEL, { prompt: "" }), /^Error: 5006: .*prompt/);
  await assert.rejects(env.AI.run("@cf/no/such-model", { prompt: "x" }), /^Error: 5007/);
});

await check("openai-node: Cloudflare's OpenAI endpoint by baseURL", async () => {
  const baseURL = `${url}/client/v4/accounts/0123456789abcdef/ai/v1`;
  const client = new OpenAI({ apiKey: key, baseURL });
  const answer = await client.chat.completions.create({ messages, model: MODEL, max_tokens: 8 });
  assert.equal(answer.choices[0].message.role, "assistant");
});

finish();
