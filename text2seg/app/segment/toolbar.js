// Tools and actions in one row above the image. Labels disappear where the row is too narrow for them; on a phone each
// button has a short one below its icon.
// There, a press of a chosen tool takes the place of “Select”.
// A new button is one line in BUTTONS, its action in `#do` of segment.js and, if the server has to answer, one class in
// requests.py.
// Property `shown` {piece, tool, isAll, canUndo, canRedo, isLabelled, hint}; fires `do` with the name of the button, `name`
// {number, name, isLeft} for the segment that was selected while the name was typed, with Enter or on leaving the field, and
// `lost` when the button with the focus disappears.

const BUTTONS = [
  // name, label, label on a phone, title, icon path, group: "piece" needs a selected segment; on narrow screens
  // the groups "free" and "image" make room for it
  ["select", "Select", "Select", "A click selects a segment (V)", "M5 3l5.5 16 2.6-6.4L19.5 10z", "piece"],
  ["plus", "Add to mask", "Add", "A click adds a place to the mask (+, or Ctrl-click)", "M12 5v14M5 12h14", "piece"],
  ["minus", "Remove from mask", "Remove", "A click removes a place from the mask (-, or Shift-click)", "M5 12h14", "piece"],
  ["accept", "Accept", "Accept", "Accept this segment (A)", "m4 12 5 5L20 6", "piece"],
  ["split", "Split", "Split", "Split into connected parts (S)", "M8 4v5l4 3 4-3V4M12 12v8M8 20h8", "piece"],
  ["delete", "Delete", "Delete", "Delete this segment (Del)", "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13", "piece"],
  ["why", "Why this mask", "Why", "Show the map, the points and the candidates (W)", "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2M12 18v.01", "piece"],
  ["deselect", "Deselect", "Done", "Deselect (Esc)", "M6 6l12 12M18 6 6 18", "piece"],
  ["everything", "Everything", "All", "Show all masks, without words (E)", "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z", "free"],
  ["box", "Box", "Box", "Drag a box around a thing (B)", "M4 4h3M10 4h4M17 4h3v3M20 10v4M20 17v3h-3M14 20h-4M7 20H4v-3M4 14v-4M4 7V4", "free"],
  ["undo", "Undo", "Undo", "Undo (Ctrl+Z)", "M9 14 4 9l5-5M4 9h9a6 6 0 0 1 0 12h-3", ""],
  ["redo", "Redo", "Redo", "Redo (Ctrl+Y)", "m15 14 5-5-5-5M20 9h-9a6 6 0 0 0 0 12h3", ""],
  ["full", "Full screen", "Full", "Full screen (F)", "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5", "image"],
  ["start", "Another image", "Image", "Open another image, or an example", "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4", "image"],
];

const LOSES = { undo: 1, redo: 1, full: 1, deselect: 1, box: 2, everything: 2, accept: 2, split: 2, delete: 2, start: 2 }; // labels, in this order
const SHORT = 3; // then the other buttons have their short labels
const NONE = 4; // then no button has a label
const NARROW = 5; // then some buttons make room for those of the selected segment

customElements.define("t2s-toolbar", class extends HTMLElement {
  #of = { number: 0, query: "" }; // the segment that the name field is about

  connectedCallback() {
    this.innerHTML = `<div class="t2s-bar" role="toolbar" aria-label="Image and selected segment">${BUTTONS.map(
      ([name, label, short, title, icon, group]) => `
        <button type="button" data-tool="${name}" data-group="${group}" title="${title}" aria-label="${label}">
          <svg viewBox="0 0 24 24" aria-hidden="true"><path d="${icon}"/></svg><span data-short="${short}">${label}</span></button>`).join("")}
      </div><div class="t2s-below"><p class="t2s-hint" data-part="hint"></p>
        <form data-part="name" hidden><label>Name <input type="text" list="t2s-known" maxlength="100" autocomplete="off"
          autocapitalize="none" spellcheck="false" enterkeyhint="done"></label><button>Set</button></form></div>
      <p class="t2s-alert" role="alert" data-part="refused" hidden></p>`;
    this.form = this.querySelector("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#name();
    });
    this.form.addEventListener("input", () => this.refuse(""));
    this.form.addEventListener("focusout", ({ relatedTarget }) => {
      const isLeft = !this.form.contains(relatedTarget) && document.activeElement !== this.#input; // not only the window
      if (isLeft) this.tellName();
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.#input.value = this.#of.query;
      this.refuse("");
      this.dispatchEvent(new CustomEvent("lost"));
    });
    this.addEventListener("click", (event) => {
      const button = event.target.closest("[data-tool]");
      const byKey = event.detail === 0;
      if (button) this.dispatchEvent(new CustomEvent("do", { detail: { name: button.dataset.tool, byKey } }));
    });
    new ResizeObserver(() => this.#fit()).observe(this);
    document.addEventListener("fullscreenchange", () => this.#nameFull());
  }

  set shown({ piece, tool, isAll, canUndo, canRedo, isLabelled, hint }) {
    this.querySelector("[data-part=hint]").textContent = hint;
    const focused = this.contains(document.activeElement) ? document.activeElement : null;
    for (const [name, , , , , group] of BUTTONS) this.#button(name).hidden = group === "piece" && !piece;
    this.#button("start").hidden = Boolean(isLabelled); // the image of a job first goes back to its review
    this.#button("undo").disabled = !canUndo;
    this.#button("redo").disabled = !canRedo;
    this.#button("split").hidden = !(piece?.parts > 1);
    for (const name of ["select", "plus", "minus", "box"]) this.#press(name, name === tool);
    this.#press("everything", isAll);
    this.form.hidden = !piece?.canBeNamed;
    const { number = 0, query = "" } = piece ?? {};
    const isOther = number !== this.#of.number || query !== this.#of.query;
    this.#of = { number, query };
    if (isOther) { // else what is being typed stays
      this.#input.value = query;
      this.refuse("");
    }
    this.#press("accept", Boolean(piece?.accepted));
    this.querySelector(".t2s-bar").classList.toggle("t2s-of-piece", Boolean(piece));
    this.#fit();
    if (focused?.hidden || focused?.disabled) this.dispatchEvent(new CustomEvent("lost"));
  }

  /** The button of the full screen also ends it. */
  #nameFull() {
    const [, label, short, title] = document.fullscreenElement
      ? ["full", "Exit full screen", "Exit", "Exit full screen (F or Esc)"] : BUTTONS.find(([name]) => name === "full");
    const button = this.#button("full"), text = button.querySelector("span");
    Object.assign(button, { title, ariaLabel: label });
    text.textContent = label;
    text.dataset.short = short;
    this.#fit();
  }

  /** Tell the name that was typed, if there is one. */
  #name(isLeft = false) {
    const { number } = this.#of, name = this.#typed();
    if (number && name) this.dispatchEvent(new CustomEvent("name", { detail: { number, name, isLeft } }));
  }

  /** Tell the name that is being typed. */
  tellName() {
    if (this.#typed() !== this.#of.query) this.#name(true);
  }

  /** Show why the name was refused, until it changes; empty for nothing. */
  refuse(why) {
    const refused = this.querySelector("[data-part=refused]");
    refused.hidden = !why;
    refused.textContent = why;
  }

  #typed() { return this.#input.value.trim(); }

  /** Put the focus on a button. */
  focusOn(name) { this.#button(name).focus(); }

  /** Put the focus on the name of the selected segment. */
  focusOnName() {
    this.#input.focus();
    this.#input.select();
  }

  /** Leave out as many labels as the width needs. */
  #fit() {
    const bar = this.querySelector(".t2s-bar");
    for (let lost = 0; lost <= NARROW; lost += 1) {
      bar.classList.toggle("t2s-narrow", lost === NARROW);
      for (const [name] of BUTTONS) {
        const { classList } = this.#button(name);
        classList.toggle("t2s-icon", lost >= (LOSES[name] ?? NONE));
        classList.toggle("t2s-short", !(name in LOSES) && lost === SHORT);
      }
      if (bar.scrollWidth <= bar.clientWidth) break;
    }
  }

  get #input() { return this.form.querySelector("input"); }

  #button(name) { return this.querySelector(`[data-tool=${name}]`); }

  #press(name, isPressed) { this.#button(name).setAttribute("aria-pressed", String(isPressed)); }
});
