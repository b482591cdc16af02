// Drives the playground of a running daemon in a headless browser: a line per check, exit 1 on failure.
//
// Usage: node check.mjs CHROMIUM http://127.0.0.1:PORT [SCREENSHOT.png]
// NEMOSERVE_API_KEY: the daemon's key; then only what a key changes is checked.

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [, , executablePath, base, screenshot] = process.argv;
const apiKey = process.env.NEMOSERVE_API_KEY;
const folder = await mkdtemp(join(tmpdir(), "nemoserve-browser-"));
const context = await chromium.launchPersistentContext(folder, {
  executablePath,
  headless: true,
  viewport: { width: 1280, height: 820 },
  permissions: ["clipboard-read", "clipboard-write"],
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
context.setDefaultTimeout(20_000);

const faults = [];
/** Consoles may complain about the refusals that a check provokes, and about nothing else. */
let expectedRefusals = 0;
await context.route("**/*", (route) => {
  const url = route.request().url();
  if (url.startsWith(`${base}/`)) return route.continue();
  faults.push(`a request to ${url}`);
  return route.abort();
});

const page = context.pages()[0] ?? (await context.newPage());
page.on("pageerror", (error) => faults.push(`an exception: ${error.stack}`));
page.on("console", (message) => {
  if (!["error", "warning"].includes(message.type())) return;
  if (expectedRefusals > 0 && message.text().includes("the server responded with a status of 4")) expectedRefusals -= 1;
  else faults.push(`on the console: ${message.text()}`);
});

const prompt = page.getByRole("textbox", { name: "Message", exact: true });
const answer = page.locator(".assistant").last();
const setting = (label) => page.locator("#settings").getByLabel(label);

async function say(text) {
  await prompt.fill(text);
  await prompt.press("Enter");
}
const done = () => page.locator("body:not(.running)").waitFor();
async function fresh() {
  await page.getByRole("button", { name: "New chat" }).click();
  await page.getByRole("button", { name: "Reset the settings" }).click();
}

const checks = {
  async "a chat streams: the text grows, the thought is folded, the numbers are there"() {
    // Long enough for the demo's speed to be seen.
    await setting("Other parameters").fill('{"temperature": 0, "ignore_eos": true, "max_tokens": 2500}');
    // What the page shows, each time it changes.
    await page.evaluate(() => {
      globalThis.seen = new Set();
      new MutationObserver(() => seen.add(document.querySelector(".assistant .body")?.textContent))
        .observe(document.getElementById("log"), { childList: true, characterData: true, subtree: true });
    });
    await say("Tell me a short story.");
    await page.locator("body.running").waitFor();
    await done();
    const seen = await page.evaluate(() => [...globalThis.seen].filter(Boolean));
    assert.ok(seen.length >= 5, `the text came in ${seen.length} pieces`);
    assert.ok(seen.every((part, i) => part.length >= (seen[i - 1]?.length ?? 0)), "the text only grows");
    const details = answer.locator("details.thinking");
    assert.equal(await details.getAttribute("open"), null);
    assert.match(await details.locator("summary").textContent(), /^Thought for [\d.]+ m?s, \d+ tokens$/);
    assert.equal(await details.locator(".thought").isVisible(), false);
    await details.locator("summary").press("Enter");
    assert.equal(await details.locator(".thought").isVisible(), true);
    assert.match(await answer.locator(".stats").textContent(),
      /^first token \d+ ms · [\d.]+ tokens\/s · \d+ tokens · prompt \d+.* · length$/);
    await page.getByRole("button", { name: "Reset the settings" }).click();
  },

  async "what was said survives a reload, and another turn sees it"() {
    const before = await answer.locator(".body").textContent();
    await page.reload();
    assert.equal(await answer.locator(".body").textContent(), before);
    const request = page.waitForRequest("**/v1/chat/completions");
    await say("What is the capital of France?");
    const { messages } = (await request).postDataJSON();
    assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user"]);
    await done();
    assert.match(await answer.locator(".body").textContent(), /Paris/);
  },

  async "a question is edited, an answer made again"() {
    await fresh();
    await setting("Temperature").fill("0");
    await say("What is the capital of France?");
    await done();
    await page.getByRole("button", { name: "Edit" }).click();
    const field = page.getByRole("textbox", { name: "Your message" });
    await field.fill("What is the capital of Japan?");
    await field.press("Enter");
    await done();
    const text = await answer.locator(".body").textContent();
    assert.match(text, /Tokyo/);
    await answer.getByRole("button", { name: "Regenerate" }).click();
    await done();
    assert.equal(await answer.locator(".body").textContent(), text);
    assert.equal(await page.locator(".turn").count(), 2);
  },

  async "hover and arrow keys show what else was likely"() {
    await fresh();
    await setting("Show each token's probability").check();
    await setting("Effort").selectOption("none");
    // Long enough to come in many parts.
    await setting("Other parameters").fill('{"temperature": 0}');
    await say("Tell me a short story.");
    await done();
    const tokens = answer.locator(".token");
    const whole = (await tokens.allTextContents()).join("");
    assert.ok(whole.length > 60, whole);
    await tokens.nth(1).hover();
    const tip = page.getByRole("tooltip");
    assert.equal(await tip.locator("li").count(), 5);
    assert.match(await tip.locator("li").first().textContent(), /\d %$/);
    await tokens.first().focus();
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), await tokens.nth(1).textContent());
    assert.equal(await tip.isVisible(), true);
    await setting("Show each token's probability").uncheck();
    assert.equal(await tokens.count(), 0);
    assert.equal(await answer.locator(".body").textContent(), whole);
  },

  async "the model calls a tool, reads the result a person gives, and says it"() {
    await fresh();
    await setting("Temperature").fill("0");
    await page.getByRole("button", { name: "Insert an example" }).click();
    await say("What is the weather in Paris?");
    await done();
    const called = page.locator(".assistant").first();
    const card = called.getByRole("region", { name: "Tool call" });
    assert.equal(await card.locator(".call-name").textContent(), "get_weather");
    assert.deepEqual(JSON.parse(await card.locator("pre code").textContent()), { city: "Paris" });
    assert.match(await called.locator(".stats").textContent(), /tool_calls$/);
    const result = card.getByRole("textbox", { name: "Result of this call" });
    await result.fill('{"temperature": 21, "condition": "sunny"}');
    const request = page.waitForRequest("**/v1/chat/completions");
    await result.press("Enter");
    const { messages } = (await request).postDataJSON();
    assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "tool"]);
    assert.equal(messages[2].tool_call_id, messages[1].tool_calls[0].id);
    await done();
    assert.match(await answer.locator(".body").textContent(), /Paris/);
    assert.equal(await result.isVisible(), false);
    assert.match(await card.locator(".result").textContent(), /sunny/);
    await page.reload();
    assert.match(await card.locator(".result").textContent(), /sunny/);
  },

  async "a schema binds the answer"() {
    await fresh();
    await setting("Answer format").selectOption("json_schema");
    await setting("Effort").selectOption("none");
    await setting("Max tokens").fill("60");
    await say("What is the capital of France?");
    await done();
    assert.match(await answer.locator(".body").textContent(), /^\{\s*"country"/);
  },

  async "stop stops, by button and by Esc, and the server forgets the request"() {
    for (const stop of [() => page.getByRole("button", { name: "Stop" }).click(), () => page.keyboard.press("Escape")]) {
      await fresh();
      await setting("Other parameters").fill('{"ignore_eos": true, "reasoning_effort": "none"}');
      await say("Tell me a short story.");
      await page.waitForFunction(() => document.querySelector(".assistant .body")?.textContent.length > 20);
      await stop();
      await done();
      assert.match(await answer.locator(".stats").textContent(), /stopped$/);
      await page.waitForFunction(async () => /requests_running\S* 0\n/.test(await (await fetch("/metrics")).text()));
    }
  },

  async "parameters are sent as given"() {
    await fresh();
    await setting("System prompt").fill("Be kind.");
    for (const [label, value] of [["Temperature", "0.5"], ["Top p", "0.9"], ["Max tokens", "3"], ["Seed", "7"],
      ["Stop", "END\n###"]]) await setting(label).fill(value);
    await setting("Effort").selectOption("low");
    await setting("Other parameters").fill('{"top_k": 5}');
    const request = page.waitForRequest("**/v1/chat/completions");
    await say("Hello!");
    const { messages, model, ...sent } = (await request).postDataJSON();
    assert.deepEqual(sent, {
      stream: true, stream_options: { include_usage: true }, temperature: 0.5, top_p: 0.9, max_completion_tokens: 3,
      seed: 7, stop: ["END", "###"], reasoning_effort: "low", top_k: 5,
    });
    assert.deepEqual(messages[0], { role: "system", content: "Be kind." });
    assert.equal(model, await page.locator("#model").inputValue());
    await done();
    assert.match(await answer.locator(".stats").textContent(), /length$/);
    await page.getByRole("button", { name: "Copy as curl" }).click();
    const command = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(command.startsWith(`curl --no-buffer ${base}/v1/chat/completions`) && command.includes('"top_k": 5'), command);
  },

  async "an error is shown with its parameter; wrong JSON is not sent"() {
    await fresh();
    await setting("Temperature").fill("9");
    expectedRefusals = 1;
    await say("Hello!");
    await done();
    const error = answer.getByRole("alert");
    assert.match(await error.textContent(), /temperature.*HTTP 400 · invalid_value · parameter temperature/);
    await fresh();
    await setting("Tools").first().fill("[{");
    await say("Hello!");
    assert.match(await page.locator("#tools-error").textContent(), /is not JSON/);
    assert.equal(await page.locator(".assistant").count(), 0);
  },

  async "what a model or a person writes never becomes markup"() {
    await fresh();
    const hostile = "<img src=x onerror=alert(1)> **<b>x</b>** `<script>`\n\n# T\n- a\n  - b\n\n```html\n<i>c</i>\n```\n|a|b|\n|-|-|\n|1|2|";
    await page.route("**/v1/chat/completions", (route) => route.fulfill({
      contentType: "text/event-stream",
      body: `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: hostile }, finish_reason: "stop" }] })}\n\ndata: [DONE]\n\n`,
    }));
    await say(hostile);
    await done();
    await page.unroute("**/v1/chat/completions");
    assert.equal(await page.locator(".log :is(img, script, b, i)").count(), 0);
    for (const [selector, text] of [["strong", "<b>x</b>"], ["p code", "<script>"], ["h3", "T"], ["li li", "b"],
      ["pre code", "<i>c</i>"], ["td >> nth=1", "2"]]) {
      assert.equal(await answer.locator(".body").locator(selector).textContent(), text);
    }
  },

  async "a phone shows it all without scrolling sideways"() {
    await fresh();
    await say("What is the capital of France?");
    await done();
    await page.setViewportSize({ width: 360, height: 640 });
    const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth
      && [...document.querySelectorAll("main *, header *")].every((e) => e.getBoundingClientRect().right <= innerWidth + 1));
    assert.ok(await fits());
    const toggle = page.getByRole("button", { name: "Settings", exact: true });
    if (await toggle.getAttribute("aria-expanded") === "true") await page.getByRole("button", { name: "Close the settings" }).click();
    await toggle.click();
    assert.equal(await page.evaluate(() => document.activeElement.id), "panel-close");
    assert.ok(await page.evaluate(() => document.getElementById("panel").getBoundingClientRect().right <= innerWidth));
    await page.keyboard.press("Escape");
    assert.equal(await page.locator("#panel").isVisible(), false);
    assert.ok(await fits());
    await page.setViewportSize({ width: 1280, height: 820 });
    await toggle.click();
  },
};

const checksWithKey = {
  async "without its key the page asks for it, with it it works, and forgets it with the tab"() {
    await page.getByText("This server wants a key").waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), "key");
    await page.keyboard.type(apiKey);
    await page.keyboard.press("Tab");
    await page.waitForFunction(() => document.getElementById("model").length > 0);
    await say("What is the capital of France?");
    await done();
    assert.match(await answer.locator(".body").textContent(), /\w/);
    const kept = () => page.evaluate((key) => [localStorage, sessionStorage].map((s) => JSON.stringify(s).includes(key)), apiKey);
    assert.deepEqual(await kept(), [false, true]);
    await setting("Keep it on this device").check();
    assert.deepEqual(await kept(), [true, false]);
    await page.getByRole("button", { name: "Copy as curl" }).click();
    const command = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(command.includes("$NEMOSERVE_API_KEY") && !command.includes(apiKey), command);
  },
};

/** A conversation with something to see. */
async function picture(path) {
  await fresh();
  await page.setViewportSize({ width: 1280, height: 1000 });
  await setting("Temperature").fill("0");
  await page.getByRole("button", { name: "Insert an example" }).click();
  await say("What is the weather in Paris?");
  await done();
  const result = page.getByRole("textbox", { name: "Result of this call" });
  await result.fill('{"temperature": 21, "condition": "cloudy"}');
  await result.press("Enter");
  await done();
  await setting("Tools").first().fill("");
  await setting("Show each token's probability").check();
  await say("Tell me a short story.");
  await done();
  const least = await answer.locator(".token").evaluateAll((tokens) => tokens
    .map((token, i) => [Number(token.style.getPropertyValue("--p")), i]).sort((a, b) => a[0] - b[0])[0][1]);
  await page.locator("#panel").evaluate((panel) => panel.scrollTo(0, 0));
  await answer.locator(".token").nth(least).hover();
  await page.screenshot({ path });
}

let failed = 0;
expectedRefusals = apiKey ? 1 : 0;
assert.equal((await page.goto(`${base}/`)).status(), 200);
for (const [name, check] of Object.entries(apiKey ? checksWithKey : checks)) {
  let error;
  try {
    await check();
    assert.deepEqual(faults, [], "nothing else went wrong");
  } catch (caught) {
    error = caught;
    failed += 1;
  }
  faults.length = 0;
  console.log(`${error ? "FAILED" : "ok    "} ${name}${error ? `\n${error.stack}` : ""}`);
}
if (screenshot) await picture(screenshot);
await context.close();
await rm(folder, { recursive: true, force: true });
process.exitCode = failed ? 1 : 0;
