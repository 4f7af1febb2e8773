// What a visitor takes home. Property `shown` {count, chosen, command, python}; fires `export` {kind, chosen}.

const KINDS = [["all", "Everything"], ["coco", "COCO JSON"], ["masks", "Masks"], ["cutouts", "Cut-outs"], ["overlay", "Overlay"]];

customElements.define("t2s-export", class extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `
      <h3>Export <span data-part="count"></span></h3>
      <div class="t2s-kinds">${KINDS.map(([kind, label]) =>
        `<button type="button" data-kind="${kind}">${label}</button>`).join("")}</div>
      <label class="t2s-check" data-part="alone" hidden><input type="checkbox"> only the selected segment</label>
      <details><summary>Copy the command</summary>
        ${[["command", "Command line"], ["python", "Python"]].map(([name, label]) => `
          <figure><figcaption>${label} <button type="button" data-copy="${name}">Copy</button></figcaption>
            <pre tabindex="0" aria-label="${label}" data-code="${name}"></pre></figure>`).join("")}
      </details>`;
    this.addEventListener("click", (event) => {
      const { kind, copy } = event.target.dataset;
      if (kind) this.dispatchEvent(new CustomEvent("export", { detail: { kind, alone: this.#alone.checked } }));
      if (copy) this.#copy(event.target, this.querySelector(`[data-code=${copy}]`));
    });
  }

  set shown({ count, selected, command, python }) {
    this.querySelector("[data-part=count]").textContent = `${count} shown`;
    this.querySelector("[data-part=alone]").hidden = !selected;
    if (!selected) this.#alone.checked = false;
    this.querySelector("[data-code=command]").textContent = command;
    this.querySelector("[data-code=python]").textContent = python;
  }

  get #alone() { return this.querySelector("[type=checkbox]"); }

  async #copy(button, code) {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // a page that is not served securely may not: the text is marked, so that Ctrl+C takes it
      getSelection().selectAllChildren(code);
      button.textContent = "Marked: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  }
});
