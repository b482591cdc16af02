// Elements from text, never from markup.

export const $ = (id) => document.getElementById(id);

/** `el("p", {class: "note"}, "text", child)`; `on…` adds a listener, `undefined` and `false` add nothing. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== false));
  return element;
}

export function button(label, onclick, attributes = {}) {
  return el("button", { type: "button", class: "quiet", onclick, ...attributes }, label);
}

/** A button that copies, and says so for a moment. */
export function copyButton(label, text) {
  const made = button(label, () => copy(text(), made));
  return made;
}

export async function copy(text, from) {
  const label = from.textContent;
  try {
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {
    // No clipboard outside https and localhost: a selection is the next best thing.
    from.textContent = copyBySelection(text) ? "Copied" : "Copying failed";
  }
  from.disabled = true;
  setTimeout(() => {
    from.textContent = label;
    from.disabled = false;
  }, 1200);
}

function copyBySelection(text) {
  const area = el("textarea", { class: "hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

/** Makes a text area as tall as its text. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

export function milliseconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
