// The page: holds the conversation, runs requests, wires keys and buttons.

import { curl, listModels, streamChat } from "./api.js";
import { $, button, copy, el, grow } from "./dom.js";
import { key, offerModels, requestBody, restoreSettings, wantsTokens, wrongField } from "./settings.js";
import { hide as hideTip } from "./tokens.js";
import { AssistantTurn, userTurn } from "./turns.js";

const STORE = "nemoserve.conversation";
const EXAMPLES = ["What is the capital of France?", "Tell me a short story.", "Why is the sky blue?"];
const WIDE = matchMedia("(min-width: 1000px)");

let messages = [];
/** The answer that is being written: {abort, turn}. */
let running;
const turns = new Map();

// -- the conversation ---------------------------------------------------------------------------

const actions = {
  edit(message, text) {
    cutAt(message);
    ask(text);
  },
  regenerate(message) {
    cutAt(message);
    answer();
  },
  results(message, results) {
    message.view.results = results;
    turns.get(message)?.update({ tokens: wantsTokens() });
    for (const [id, content] of Object.entries(results)) messages.push({ role: "tool", tool_call_id: id, content });
    answer();
  },
};

function cutAt(message) {
  running?.abort.abort();
  messages.length = messages.indexOf(message);
  draw();
}

function ask(text) {
  messages.push({ role: "user", content: text });
  drawLast();
  answer();
}

/** Asks the model for the next message and draws it as it comes. */
async function answer() {
  const wrong = wrongField();
  if (wrong) {
    openPanel(true);
    $(wrong).focus();
    return;
  }
  const body = requestBody(messages.filter(isSent).map(sent));
  const message = { role: "assistant", content: "", view: { chunks: 0 } };
  messages.push(message);
  drawLast();
  const turn = turns.get(message);
  const run = { abort: new AbortController(), turn };
  running = run;
  show("running", true);
  announce("The model is answering.");
  const begin = performance.now();
  const redraw = frames(() => {
    turn.update({ running: running === run, tokens: wantsTokens() });
    stick();
  });
  try {
    for await (const chunk of streamChat(body, key(), run.abort.signal)) {
      take(message, chunk, performance.now() - begin);
      redraw();
    }
  } catch (error) {
    if (error.name === "AbortError") message.view.finish = "stopped";
    else message.view.error = plain(error);
    if (error.status === 401) openKey();
  }
  if (running === run) {
    running = undefined;
    show("running", false);
  }
  turn.update({ tokens: wantsTokens() });
  stick();
  save();
  const calls = message.tool_calls?.length;
  announce(message.view.error ? "The request failed." : calls ? "The model calls a tool." : "The answer is complete.");
}

/** Adds a chunk to the message. */
function take(message, chunk, ms) {
  const { view } = message;
  if (chunk.usage) view.usage = chunk.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  const { delta } = choice;
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought || delta.content || delta.tool_calls) {
    view.firstMs ??= ms;
    view.lastMs = ms;
    view.chunks += 1;
  }
  if (thought) {
    message.reasoning_content = (message.reasoning_content ?? "") + thought;
    view.thoughtMs = ms;
  }
  message.content += delta.content ?? "";
  for (const part of delta.tool_calls ?? []) {
    message.tool_calls ??= [];
    const call = (message.tool_calls[part.index] ??= { id: part.id, type: part.type });
    for (const kind of ["function", "custom"]) {
      for (const [name, text] of Object.entries(part[kind] ?? {})) {
        call[kind] ??= {};
        call[kind][name] = (call[kind][name] ?? "") + text;
      }
    }
  }
  if (choice.logprobs?.content) (view.tokens ??= []).push(...choice.logprobs.content);
  if (choice.finish_reason) view.finish = choice.finish_reason;
}

/** What failed before it said anything is not part of the conversation. */
function isSent(message) {
  return message.role !== "assistant" || message.content || message.reasoning_content || message.tool_calls?.length;
}

function sent({ view, ...message }) {
  return message;
}

function plain(error) {
  const { status, code, param, retryAfter } = error;
  const message = error instanceof TypeError ? "the server cannot be reached" : error.message;
  return { status, code, param, retryAfter, message };
}

// -- drawing ------------------------------------------------------------------------------------

function draw() {
  turns.clear();
  $("log").replaceChildren();
  if (!messages.length) $("log").append(welcome());
  for (const message of messages) drawOne(message);
  save();
}

function drawLast() {
  $("log").querySelector(".welcome")?.remove();
  drawOne(messages.at(-1));
  save();
  follow = true;
  stick();
}

function drawOne(message) {
  // A tool's result stands in the card of its call.
  if (message.role === "tool") return;
  if (message.role === "user") {
    $("log").append(userTurn(message, actions));
    return;
  }
  const turn = new AssistantTurn(message, actions);
  turns.set(message, turn);
  $("log").append(turn.element);
  turn.update({ tokens: wantsTokens() });
}

function welcome() {
  return el("div", { class: "welcome" },
    el("h2", {}, "Ask the model something"),
    el("p", { id: "about", class: "note" }, about),
    el("div", { class: "examples" }, ...EXAMPLES.map((text) => button(text, () => ask(text)))));
}

/** At most one redraw a frame, however many chunks come. */
function frames(redraw) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      redraw();
    });
  };
}

/** Follows the end of the text unless somebody scrolled up to read. */
let follow = true;
function stick() {
  const log = $("log");
  if (follow) log.scrollTop = log.scrollHeight;
}

function show(state, on) {
  document.body.classList.toggle(state, on);
  $("log").setAttribute("aria-busy", String(on));
  $("send").hidden = on;
  $("stop").hidden = !on;
}

function announce(text) {
  $("status").textContent = text;
}

// -- the panel, the key, the models -----------------------------------------------------------------

function openPanel(open) {
  document.body.classList.toggle("panel-open", open);
  $("panel").inert = !open;
  $("panel-toggle").setAttribute("aria-expanded", String(open));
}

function openKey() {
  openPanel(true);
  $("key").focus();
}

let about = "";
async function loadModels() {
  try {
    const models = await listModels(key());
    offerModels(models);
    about = models[0]?.description ?? "";
  } catch (error) {
    about = error.status === 401 ? "This server wants a key. Put it into the settings." : `${plain(error).message}.`;
    if (error.status === 401) openKey();
  }
  if ($("about")) $("about").textContent = about;
}

// -- wiring -------------------------------------------------------------------------------------

function save() {
  const kept = (withTokens) => JSON.stringify(messages, (name, value) => (name === "tokens" && !withTokens ? undefined : value));
  try {
    localStorage.setItem(STORE, kept(true));
  } catch {
    // Full: log-probabilities are the bulk of it.
    try {
      localStorage.setItem(STORE, kept(false));
    } catch {
      localStorage.removeItem(STORE);
    }
  }
}

function submit() {
  const text = $("prompt").value;
  if (!text.trim() || running) return;
  $("prompt").value = "";
  grow($("prompt"));
  ask(text);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("prompt").addEventListener("input", () => grow($("prompt")));
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", () => running?.abort.abort());
$("clear").addEventListener("click", () => {
  running?.abort.abort();
  messages = [];
  draw();
  $("prompt").focus();
});
$("log").addEventListener("scroll", () => {
  const log = $("log");
  follow = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  hideTip();
});
$("logprobs").addEventListener("change", () => {
  for (const turn of turns.values()) turn.update({ running: running?.turn === turn, tokens: wantsTokens() });
});
$("curl").addEventListener("click", () => {
  const draft = $("prompt").value.trim();
  const last = messages.findLastIndex(({ role }) => role !== "assistant");
  const asked = messages.slice(0, last + 1).filter(isSent).map(sent);
  const text = draft || (asked.length ? "" : EXAMPLES[0]);
  copy(curl(requestBody(text ? [...messages.filter(isSent).map(sent), { role: "user", content: text }] : asked), key()), $("curl"));
});
$("panel-toggle").addEventListener("click", () => {
  const open = !document.body.classList.contains("panel-open");
  openPanel(open);
  if (open && !WIDE.matches) $("panel-close").focus();
});
$("panel-close").addEventListener("click", () => {
  openPanel(false);
  $("panel-toggle").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  hideTip();
  if (running) running.abort.abort();
  else if (document.body.classList.contains("panel-open") && !WIDE.matches) $("panel-close").click();
});

restoreSettings(loadModels);
openPanel(WIDE.matches);
try {
  messages = JSON.parse(localStorage.getItem(STORE) ?? "[]");
} catch {
  messages = [];
}
draw();
stick();
loadModels();
if (WIDE.matches) $("prompt").focus();
