// What the panel says, as parameters of a request; kept in the browser.

import { $, grow } from "./dom.js";

const STORE = "nemoserve.settings";
const KEY = "nemoserve.key";
const TEXTS = ["model", "system", "effort", "budget", "temperature", "top-p", "max-tokens", "seed", "stop-strings",
  "format", "schema", "tools", "tool-choice", "extra"];
const JSONS = { tools: Array.isArray, schema: isObject, extra: isObject };

const EXAMPLE_TOOLS = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string", description: "Name of the city." } }, required: ["city"] },
  },
}];
const EXAMPLE_SCHEMA = {
  type: "object",
  properties: { country: { type: "string" }, capital: { type: "string" } },
  required: ["country", "capital"],
  additionalProperties: false,
};

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export const key = () => $("key").value.trim();
export const wantsTokens = () => $("logprobs").checked;

/** Fills the form from the last visit. `onKey` is called when another key is given. */
export function restoreSettings(onKey) {
  const saved = JSON.parse(localStorage.getItem(STORE) ?? "{}");
  for (const id of TEXTS) if (saved[id] !== undefined && id !== "model") $(id).value = saved[id];
  $("logprobs").checked = saved.logprobs ?? false;
  const kept = localStorage.getItem(KEY);
  $("remember").checked = kept !== null;
  $("key").value = kept ?? sessionStorage.getItem(KEY) ?? "";

  $("settings").addEventListener("input", () => changed());
  $("model").addEventListener("change", () => save());
  $("key").addEventListener("change", () => { keepKey(); onKey(); });
  $("remember").addEventListener("change", keepKey);
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  $("tools-example").addEventListener("click", () => insert("tools", EXAMPLE_TOOLS));
  $("format").addEventListener("change", () => {
    if ($("format").value === "json_schema" && !$("schema").value.trim()) insert("schema", EXAMPLE_SCHEMA);
  });
  $("reset").addEventListener("click", () => {
    for (const id of TEXTS) if (id !== "model") $(id).value = "";
    $("logprobs").checked = false;
    // Whoever draws tokens must hear of it.
    $("logprobs").dispatchEvent(new Event("change", { bubbles: true }));
    changed();
  });
  changed();
}

/** Offers the names, the last used one first. */
export function offerModels(models) {
  const saved = JSON.parse(localStorage.getItem(STORE) ?? "{}").model;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === saved)));
}

function insert(id, value) {
  $(id).value = JSON.stringify(value, null, 2);
  changed();
}

function changed() {
  $("schema-box").hidden = $("format").value !== "json_schema";
  for (const id of Object.keys(JSONS)) read(id);
  for (const area of $("settings").querySelectorAll("textarea")) grow(area);
  save();
}

function save() {
  const values = Object.fromEntries(TEXTS.map((id) => [id, $(id).value]));
  localStorage.setItem(STORE, JSON.stringify({ ...values, logprobs: wantsTokens() }));
}

function keepKey() {
  localStorage.removeItem(KEY);
  sessionStorage.removeItem(KEY);
  if (key()) ($("remember").checked ? localStorage : sessionStorage).setItem(KEY, key());
}

/** The field's JSON; `undefined` if it is empty, `null` if it is wrong, which the field then says. */
function read(id) {
  const text = $(id).value.trim();
  let value;
  let error = "";
  try {
    value = text ? JSON.parse(text) : undefined;
    if (text && !JSONS[id](value)) error = `must be a JSON ${id === "tools" ? "list" : "object"}`;
  } catch (reason) {
    error = `is not JSON: ${reason.message}`;
  }
  $(`${id}-error`).textContent = error;
  $(id).setAttribute("aria-invalid", String(error !== ""));
  return error ? null : value;
}

/** The first field that holds no valid JSON and would be sent. */
export function wrongField() {
  const used = Object.keys(JSONS).filter((id) => id !== "schema" || $("format").value === "json_schema");
  return used.find((id) => read(id) === null);
}

/** The body of a request. Empty fields are left out, so the server's defaults hold. */
export function requestBody(messages) {
  const number = (id) => ($(id).value.trim() === "" ? undefined : Number($(id).value));
  const system = $("system").value.trim();
  const stop = $("stop-strings").value.split("\n").filter(Boolean);
  const format = $("format").value;
  const tools = read("tools");
  const body = {
    model: $("model").value,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: number("temperature"),
    top_p: number("top-p"),
    max_completion_tokens: number("max-tokens"),
    seed: number("seed"),
    stop: stop.length ? stop : undefined,
    reasoning_effort: $("effort").value || undefined,
    reasoning_budget: number("budget"),
  };
  if (wantsTokens()) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  if (format === "json_object") body.response_format = { type: format };
  if (format === "json_schema") {
    body.response_format = { type: format, json_schema: { name: "answer", schema: read("schema") ?? {} } };
  }
  if (tools?.length) Object.assign(body, { tools, tool_choice: $("tool-choice").value || undefined });
  return { ...body, ...read("extra") };
}
