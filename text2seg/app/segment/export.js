// Downloads, and the command and Python code of this session.
// Property `shown` {count, total, selected, command, python}; fires `export` {kind, alone}.

const KINDS = [["all", "All files"], ["coco", "COCO JSON"], ["masks", "Masks"], ["cutouts", "Cut-outs"], ["overlay", "Overlay"]];

customElements.define("t2s-export", class extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `
      <h3>Download <span data-part="count"></span></h3>
      <div class="t2s-kinds">${KINDS.map(([kind, label]) =>
        `<button type="button" data-kind="${kind}">${label}</button>`).join("")}</div>
      <p class="t2s-hint" data-part="none" hidden></p>
      <label class="t2s-check" data-part="alone" hidden><input type="checkbox"> Only the selected segment</label>
      <details><summary>Command and Python code</summary>
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

  set shown({ count, total, selected, command, python }) {
    this.querySelector("[data-part=count]").textContent = `${count} shown`;
    for (const button of this.querySelectorAll("[data-kind]")) button.disabled = !count;
    const none = this.querySelector("[data-part=none]");
    none.hidden = Boolean(count);
    none.textContent = total ? "All segments are hidden. Show one to download it." : "There is nothing to download yet.";
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
    } catch { // only secure pages may write to the clipboard: select the text, so that Ctrl+C copies it
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  }
});
