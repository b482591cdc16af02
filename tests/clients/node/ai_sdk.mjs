// The Vercel AI SDK over two providers: any OpenAI-compatible server, and OpenRouter's own.
// Usage: node ai_sdk.mjs DEMO_URL SCRIPTED_URL
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { createOpenRouter } from '@openrouter/ai-sdk-provider';
import { generateText, Output, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';
import { assert, check, COUNTED, demo, MODEL, run, scripted, version } from './checks.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;

const compatible = (base) =>
  createOpenAICompatible({
    name: 'nemoserve',
    baseURL: `${base}/v1`,
    apiKey: 'unused',
    includeUsage: true,
    supportsStructuredOutputs: true,
  })(MODEL);
const openrouter = (base) =>
  createOpenRouter({ baseURL: `${base}/api/v1`, apiKey: 'unused', compatibility: 'strict' }).chat(MODEL);

const Person = z.object({
  name: z.string().max(12),
  age: z.number().int().min(0).max(150),
  languages: z.array(z.enum(['notes', 'tables', 'Rust'])).max(3),
});

function weather(asked) {
  return tool({
    description: 'The weather of the coming days.',
    inputSchema: z.object({ city: z.string(), days: z.number().int() }),
    execute: async (input) => {
      asked.push(input);
      return '21 degrees, sunny';
    },
  });
}

for (const [name, provider] of [
  ['openai-compatible', compatible],
  ['openrouter', openrouter],
]) {
  const options = { model: provider(scripted), maxRetries: 0 };

  check(`${name}: generateText with reasoning and usage`, async () => {
    const answer = await generateText({ ...options, prompt: 'Count to five.' });
    assert.equal(answer.text, COUNTED);
    assert.equal(answer.reasoningText, 'Counting is easy.');
    assert.equal(answer.finishReason, 'stop');
    assert(answer.usage.inputTokens > 0 && answer.usage.outputTokens > 0);
  });

  check(`${name}: streamText with reasoning and usage`, async () => {
    const answer = streamText({ ...options, prompt: 'Count to five.' });
    let pieces = 0;
    let text = '';
    for await (const piece of answer.textStream) {
      pieces += 1;
      text += piece;
    }
    assert.equal(text, COUNTED);
    assert(pieces > 5, `${pieces} pieces`);
    assert.equal(await answer.reasoningText, 'Counting is easy.');
    assert((await answer.usage).outputTokens > 0);
  });

  check(`${name}: generateText runs a tool and goes on`, async () => {
    const asked = [];
    const answer = await generateText({
      ...options,
      prompt: 'What is the weather in Paris?',
      tools: { get_weather: weather(asked) },
      stopWhen: stepCountIs(3),
    });
    assert.deepEqual(asked, [{ city: 'Paris', days: 2 }]);
    assert.equal(answer.text, 'It is 21 degrees and sunny in Paris.');
  });

  check(`${name}: streamText runs two parallel tools and goes on`, async () => {
    const asked = [];
    const answer = streamText({
      ...options,
      prompt: 'What is the weather in Paris and in Rome?',
      tools: { get_weather: weather(asked) },
      stopWhen: stepCountIs(3),
    });
    assert.equal(await answer.text, 'Paris has 21 degrees, Rome 27.');
    assert.deepEqual(asked, [
      { city: 'Paris', days: 2 },
      { city: 'Rome', days: 3 },
    ]);
  });

  check(`${name}: structured output binds the demo model`, async () => {
    const answer = await generateText({
      model: provider(demo),
      maxRetries: 0,
      temperature: 0,
      maxOutputTokens: 600,
      prompt: 'Who are you?',
      output: Output.object({ schema: Person }),
    });
    Person.parse(answer.output);
  });

  check(`${name}: structured output streams an object that grows`, async () => {
    const answer = streamText({
      ...options,
      prompt: 'Who was the first programmer?',
      output: Output.object({ schema: Person }),
    });
    const parts = [];
    for await (const part of answer.partialOutputStream) parts.push(part);
    assert(parts.length > 1, `${parts.length} parts`);
    assert.deepEqual(parts.at(-1), { name: 'Ada', age: 36, languages: ['notes', 'tables'] });
  });
}

const providers = ['@ai-sdk/openai-compatible', '@openrouter/ai-sdk-provider'];
await run(`ai-sdk ${version('ai')} (${providers.map((name) => version(name)).join(', ')})`);
