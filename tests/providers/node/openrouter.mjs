// OpenRouter's own SDK, whose schemas refuse answers that do not fit, and its docs' other two ways.
// Usage: openrouter.mjs URL KEY

import assert from "node:assert/strict";

import { OpenRouter } from "@openrouter/sdk";
import OpenAI from "openai";

import { check, finish } from "./check.mjs";

const MODEL = "nvidia/nemotron-3-super-120b-a12b";
const [url, key] = process.argv.slice(2);
const messages = [{ role: "user", content: "What is the meaning of life?" }];
const client = new OpenRouter({ apiKey: key, serverURL: `${url}/api/v1` });

// The SDK waits for a receipt to be written; here it is there at once.
const receiptOf = async (id) => (await client.generations.getGeneration({ id })).data;

await check("@openrouter/sdk: chat.send", async () => {
  const completion = await client.chat.send({ chatRequest: { model: MODEL, messages } });
  const [choice] = completion.choices;
  assert.equal(typeof choice.message.content, "string");
  assert.ok(choice.message.reasoning.length > 0);
  assert.equal(choice.message.reasoningDetails[0].text, choice.message.reasoning);
  assert.ok(completion.usage.cost > 0);
  assert.equal(completion.usage.costDetails.upstreamInferenceCost, completion.usage.cost);
  const receipt = await receiptOf(completion.id);
  assert.equal(receipt.tokensCompletion, completion.usage.completionTokens);
  assert.equal(receipt.totalCost, completion.usage.cost);
});

await check("@openrouter/sdk: chat.send with stream: true ends with usage", async () => {
  const stream = await client.chat.send({ chatRequest: { model: MODEL, messages, stream: true } });
  let [text, reasoning, usage, id] = ["", "", null, null];
  for await (const chunk of stream) {
    id = chunk.id;
    usage = chunk.usage ?? usage;
    text += chunk.choices[0]?.delta?.content ?? "";
    reasoning += chunk.choices[0]?.delta?.reasoningDetails?.[0]?.text ?? "";
  }
  assert.ok(text.length > 0 && reasoning.length > 0);
  assert.ok(usage.cost > 0);
  const receipt = await receiptOf(id);
  assert.equal(receipt.streamed, true);
  assert.equal(receipt.totalCost, usage.cost);
});

await check("@openrouter/sdk: thoughts go back in a second turn", async () => {
  const first = await client.chat.send({ chatRequest: { model: MODEL, messages } });
  const { content, reasoningDetails } = first.choices[0].message;
  const turns = [
    ...messages,
    { role: "assistant", content, reasoningDetails },
    { role: "user", content: "Are you sure?" },
  ];
  const second = await client.chat.send({ chatRequest: { model: MODEL, messages: turns } });
  assert.ok(second.usage.promptTokens > first.usage.promptTokens);
});

await check("@openrouter/sdk: models.list has prices and windows", async () => {
  const models = [];
  for await (const page of await client.models.list()) {
    models.push(...page.result.data);
  }
  const model = models.find((model) => model.id === MODEL);
  assert.equal(model.pricing.prompt, "0.00000009");
  assert.ok(model.contextLength >= 1024);
});

await check("@openrouter/sdk: errors are its own", async () => {
  const refused = client.chat.send({ chatRequest: { model: MODEL, messages, temperature: 5 } });
  await assert.rejects(refused, (error) => {
    assert.equal(error.name, "BadRequestResponseError");
    assert.match(error.message, /temperature/);
    return true;
  });
  const stranger = new OpenRouter({ apiKey: "wrong", serverURL: `${url}/api/v1` });
  const unknown = stranger.chat.send({ chatRequest: { model: MODEL, messages } });
  await assert.rejects(unknown, { name: "UnauthorizedResponseError" });
});

await check("openai-node: OpenRouter by baseURL", async () => {
  const openai = new OpenAI({
    baseURL: `${url}/api/v1`,
    apiKey: key,
    defaultHeaders: { "HTTP-Referer": "https://example.com", "X-Title": "Example" },
  });
  const completion = await openai.chat.completions.create({ model: `${MODEL}:free`, messages });
  assert.equal(completion.model, `${MODEL}:free`);
  assert.ok(completion.usage.cost > 0);
});

await check("fetch: OpenRouter without an SDK", async () => {
  const response = await fetch(`${url}/api/v1/chat/completions`, {
    method: "POST",
    headers: {
      Authorization: `Bearer ${key}`,
      "HTTP-Referer": "https://example.com",
      "X-Title": "Example",
      "Content-Type": "application/json",
    },
    body: JSON.stringify({ model: MODEL, messages, reasoning: { effort: "low" } }),
  });
  const answer = await response.json();
  assert.equal(response.headers.get("x-generation-id"), answer.id);
  assert.equal(answer.provider, "nemoserve");
});

finish();
