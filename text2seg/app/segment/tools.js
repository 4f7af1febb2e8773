// What can be done to the picture and to the selected segment.
// Property `shown` {selected, parts, accepted, canUndo, canRedo, minus, hint}; fires `do` with the name of the tool.

const TOOLS = [
  // name, label, title, icon path, only with a selected segment
  ["undo", "Undo", "Undo (Ctrl+Z)", "M9 14 4 9l5-5M4 9h9a6 6 0 0 1 0 12h-3"],
  ["redo", "Redo", "Redo (Ctrl+Y)", "m15 14 5-5-5-5M20 9h-9a6 6 0 0 0 0 12h3"],
  ["plus", "Belongs to it", "A click adds to the segment", "M12 5v14M5 12h14", true],
  ["minus", "Does not", "A click takes away from the segment; or hold Shift", "M5 12h14", true],
  ["accept", "Accept", "Accept: it is right as it is (A)", "m4 12 5 5L20 6", true],
  ["split", "Split", "Split into its parts (S)", "M8 4v5l4 3 4-3V4M12 12v8M8 20h8", true],
  ["delete", "Delete", "Delete (Del)", "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13", true],
  ["why", "Why this mask", "The map, the points, the candidates (W)", "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2M12 18v.01", true],
  ["done", "Let go", "Let go of the segment (Esc)", "M6 6l12 12M18 6 6 18", true],
  ["full", "Full screen", "Full screen (F)", "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5"],
  ["other", "Other picture", "Choose another picture", "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4"],
];

const SHORT = new Set(["undo", "redo", "delete", "split", "done", "full", "other", "accept"]); // icons alone on a phone

customElements.define("t2s-tools", class extends HTMLElement {
  connectedCallback() {
    this.setAttribute("role", "toolbar");
    this.setAttribute("aria-label", "Picture and selected segment");
    this.innerHTML = `<p class="t2s-hint" data-part="hint"></p><div class="t2s-bar">${TOOLS.map(
      ([name, label, title, icon]) => `
        <button type="button" data-tool="${name}" title="${title}"${SHORT.has(name) ? " data-short" : ""}>
          <svg viewBox="0 0 24 24" aria-hidden="true"><path d="${icon}"/></svg><span>${label}</span></button>`).join("")}
      </div>`;
    this.addEventListener("click", (event) => {
      const button = event.target.closest("[data-tool]");
      if (button) this.dispatchEvent(new CustomEvent("do", { detail: { name: button.dataset.tool } }));
    });
  }

  set shown({ piece, canUndo, canRedo, minus, hint }) {
    this.querySelector("[data-part=hint]").textContent = hint;
    for (const [name, , , , ofPiece] of TOOLS) this.#tool(name).hidden = Boolean(ofPiece) && !piece;
    this.#tool("undo").disabled = !canUndo;
    this.#tool("redo").disabled = !canRedo;
    this.#tool("split").hidden = !(piece?.parts > 1);
    this.#pressed("plus", !minus);
    this.#pressed("minus", minus);
    this.#pressed("accept", Boolean(piece?.accepted));
  }

  #tool(name) { return this.querySelector(`[data-tool=${name}]`); }

  #pressed(name, is) { this.#tool(name).setAttribute("aria-pressed", String(is)); }
});
