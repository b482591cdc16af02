// The conversation as elements. A turn is a message of the API; what the page knows besides
// (times, usage, log-probabilities, an error) lies beside it in `view`.

import { button, copyButton, el, grow, milliseconds } from "./dom.js";
import { drawMarkdown } from "./markdown.js";
import { TokenView } from "./tokens.js";

/** What a person said, with a way to say it differently. */
export function userTurn(message, actions) {
  const text = el("div", { class: "bubble" }, message.content);
  const turn = el("article", { class: "turn user", "aria-label": "You" }, text);
  const edit = button("Edit", () => {
    const area = el("textarea", { "aria-label": "Your message", oninput: () => grow(area) });
    area.value = message.content;
    const close = () => turn.replaceChildren(text, bar);
    const done = () => (area.value.trim() ? actions.edit(message, area.value) : close());
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); edit.focus(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done(); }
    });
    turn.replaceChildren(area, el("div", { class: "actions" }, button("Send", done), button("Cancel", close)));
    grow(area);
    area.focus();
  });
  const bar = el("div", { class: "actions" }, edit, copyButton("Copy", () => message.content));
  turn.append(bar);
  return turn;
}

/** What the model says, as it says it: call `update` after each change of the message. */
export class AssistantTurn {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.calls = new Map();
    this.summary = el("summary");
    this.thought = el("div", { class: "thought" });
    this.thinking = el("details", { class: "thinking", hidden: true }, this.summary, this.thought);
    this.body = el("div", { class: "body" });
    this.cards = el("div", { class: "calls" });
    this.error = el("div", { class: "error", role: "alert", hidden: true });
    this.stats = el("p", { class: "stats" });
    this.bar = el("div", { class: "actions" },
      copyButton("Copy", () => message.content),
      button("Regenerate", () => actions.regenerate(message)));
    this.element = el("article", { class: "turn assistant", "aria-label": "Model" },
      this.thinking, this.body, this.cards, this.error, this.stats, this.bar);
  }

  update({ running = false, tokens = false } = {}) {
    const { message } = this;
    const { view } = message;
    const waiting = running && !message.reasoning_content && !message.content && !message.tool_calls?.length;
    this.element.classList.toggle("running", running);
    this.element.classList.toggle("waiting", waiting);
    this.#drawThought(running);
    if (tokens && view.tokens?.length) this.#drawTokens(view.tokens);
    else {
      this.tokenView?.element.remove();
      this.tokenView = undefined;
      drawMarkdown(this.body, message.content);
    }
    for (const call of message.tool_calls ?? []) this.#drawCall(call, running);
    if (this.send) this.send.disabled = running;
    this.error.hidden = !view.error;
    if (view.error) this.error.replaceChildren(...explain(view.error));
    this.stats.textContent = statistics(view, running);
    this.bar.hidden = running;
  }

  #drawThought(running) {
    const { reasoning_content: thought, view } = this.message;
    this.thinking.hidden = !thought;
    if (!thought) return;
    const time = milliseconds(view.thoughtMs ?? 0);
    const count = view.usage?.completion_tokens_details?.reasoning_tokens;
    const open = running && !this.message.content && !this.message.tool_calls?.length;
    this.summary.textContent = open ? `Thinking, ${time}` : `Thought for ${time}${count ? `, ${count} tokens` : ""}`;
    if (this.thought.textContent !== thought) this.thought.textContent = thought;
  }

  #drawTokens(tokens) {
    if (!this.tokenView) {
      this.tokenView = new TokenView();
      this.body.replaceChildren(this.tokenView.element);
    }
    this.tokenView.update(tokens);
  }

  #drawCall(call, running) {
    let card = this.calls.get(call.id);
    if (!card) {
      card = this.#newCard(call);
      this.calls.set(call.id, card);
    }
    const { name, arguments: text } = call.function ?? { name: call.custom.name, arguments: call.custom.input };
    card.name.textContent = name;
    card.arguments.textContent = pretty(text);
    const result = this.message.view.results?.[call.id];
    card.given.hidden = result === undefined;
    card.given.textContent = result ?? "";
    card.ask.hidden = running || result !== undefined;
  }

  #newCard(call) {
    const card = {
      name: el("code", { class: "call-name" }),
      arguments: el("code"),
      given: el("pre", { class: "result", tabindex: "0" }),
      field: el("textarea", { rows: "1", "aria-label": "Result of this call", placeholder: "What the tool answers" }),
    };
    card.field.addEventListener("input", () => grow(card.field));
    card.ask = el("div", { class: "ask" }, card.field);
    card.element = el("section", { class: "call", "aria-label": "Tool call" },
      el("header", {}, el("span", { class: "call-mark" }, "calls"), card.name, el("span", { class: "call-id" }, call.id)),
      el("pre", { tabindex: "0" }, card.arguments), card.ask, card.given);
    card.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.#answer(); }
    });
    if (!this.send) {
      this.send = button("Send the result", () => this.#answer(), { class: "primary small" });
      this.sendRow = el("div", { class: "send-row" }, this.send);
    }
    if (!this.message.view.results) card.ask.append(this.sendRow);
    this.cards.append(card.element);
    return card;
  }

  /** One result per call, all at once: that is what the API wants to see next. */
  #answer() {
    const results = this.message.tool_calls.map(({ id }) => [id, this.calls.get(id).field.value]);
    const empty = results.find(([, text]) => !text.trim());
    if (empty) this.calls.get(empty[0]).field.focus();
    else this.actions.results(this.message, Object.fromEntries(results));
  }
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

function explain(error) {
  const facts = [error.status >= 400 && `HTTP ${error.status}`, error.code, error.param && `parameter ${error.param}`,
    error.retryAfter && `try again in ${error.retryAfter} s`].filter(Boolean).join(" · ");
  return [el("strong", {}, error.message), facts && el("span", {}, facts)].filter(Boolean);
}

/** Time to first token, speed, counts, why it ended. While it runs, chunks stand for tokens. */
function statistics(view, running) {
  const { usage } = view;
  const count = usage?.completion_tokens ?? view.chunks;
  const seconds = ((view.lastMs ?? 0) - (view.firstMs ?? 0)) / 1000;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  return [
    view.firstMs !== undefined && `first token ${milliseconds(view.firstMs)}`,
    // Over less, it is the network's packets that are measured.
    count > 1 && seconds >= 0.05 && `${((count - 1) / seconds).toFixed(1)} tokens/s`,
    count > 0 && `${count} tokens`,
    usage && `prompt ${usage.prompt_tokens}${cached ? `, ${cached} cached` : ""}`,
    !running && view.finish,
  ].filter(Boolean).join(" · ");
}
