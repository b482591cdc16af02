// An answer as its tokens, coloured by probability; hover or focus shows what else was likely.

import { $, el } from "./dom.js";

/** Shows the entries of `logprobs.content`; call `update` when there are more. */
export class TokenView {
  constructor() {
    // One stop for the tab key; the arrows go from token to token.
    this.element = el("div", { class: "tokens", role: "group", "aria-label": "Answer, token by token; arrow keys move" });
    this.entries = [];
    // A character may span tokens: the last of them shows it.
    this.decoder = new TextDecoder();
    this.element.addEventListener("pointerover", (event) => this.#show(event.target));
    this.element.addEventListener("pointerleave", hide);
    this.element.addEventListener("focusin", (event) => this.#show(event.target));
    this.element.addEventListener("focusout", hide);
    this.element.addEventListener("keydown", (event) => this.#move(event));
  }

  update(entries) {
    // The list grows in place, so what is drawn already is counted here.
    const first = this.element.children.length;
    this.entries = entries;
    const spans = entries.slice(first).map((entry, i) => {
      const text = entry.bytes ? this.decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
      const span = el("span", { class: "token", tabindex: first + i === 0 ? "0" : "-1" }, text);
      span.style.setProperty("--p", Math.exp(entry.logprob).toFixed(3));
      return span;
    });
    this.element.append(...spans);
  }

  #show(target) {
    const index = [...this.element.children].indexOf(target);
    if (index >= 0) show(target, this.entries[index]);
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const from = event.target;
    const to = step === 1 ? from.nextElementSibling : from.previousElementSibling;
    if (!step || !to) return;
    event.preventDefault();
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}

const percent = (logprob) => {
  const p = Math.exp(logprob) * 100;
  return p >= 99.95 ? "100 %" : p >= 0.1 ? `${p.toFixed(1)} %` : "<0.1 %";
};
const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");

function show(target, entry) {
  const tip = $("tip");
  const rows = entry.top_logprobs.map((other) => {
    const bar = el("span", { class: "tip-bar" });
    bar.style.setProperty("--p", Math.exp(other.logprob));
    const chosen = other.token === entry.token;
    return el("li", { class: chosen ? "chosen" : undefined },
      el("code", {}, visible(other.token)), bar, el("span", { class: "tip-p" }, percent(other.logprob)));
  });
  tip.replaceChildren(
    el("p", {}, el("code", {}, visible(entry.token)), ` ${percent(entry.logprob)}`),
    el("ol", {}, ...rows),
  );
  tip.hidden = false;
  target.setAttribute("aria-describedby", "tip");
  const at = target.getClientRects()[0] ?? target.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left), innerWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
}

export function hide() {
  $("tip").hidden = true;
}
