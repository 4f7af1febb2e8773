// What to look for, as chips: Enter or a comma makes one of what was typed, Backspace and × take one away.
// Property `texts`; fires `change` when they change and `look` when a person wants to look again.

customElements.define("t2s-chips", class extends HTMLElement {
  #texts = [];

  connectedCallback() {
    this.innerHTML = `
      <div class="t2s-ask">
        <div class="t2s-box">
          <ul class="t2s-chips" aria-label="What to look for"></ul>
          <input type="text" list="t2s-known" autocomplete="off" autocapitalize="none" spellcheck="false"
            enterkeyhint="done" aria-label="Add what to look for" aria-describedby="t2s-grammar">
          <datalist id="t2s-known"></datalist>
        </div>
        <button type="button" class="t2s-main" data-do="look">Find</button>
      </div>
      <p class="t2s-hint" id="t2s-grammar">
        <b>person+bench</b> is one thing of two, <b>dog|puppy</b> two words for one,
        <b>mouse -computer mouse</b> leaves something out.
      </p>`;
    this.input = this.querySelector("input");
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.input.addEventListener("input", (event) => this.#typed(event));
    this.addEventListener("click", (event) => {
      const chip = event.target.closest("[data-chip]");
      if (chip) this.#set(this.#texts.filter((_, place) => place !== Number(chip.dataset.chip)));
      else if (event.target.closest("[data-do=look]")) this.look();
      if (chip || event.target.closest(".t2s-box")) this.input.focus();
    });
    this.#show();
  }

  get texts() { return this.#texts; }
  set texts(texts) { this.#texts = [...texts]; this.#show(); }

  set known(names) {
    this.querySelector("datalist").replaceChildren(...names.map((name) => new Option(name)));
  }

  /** Take what stands in the field as well, and ask for a look. */
  look() {
    this.#add(this.input.value);
    this.dispatchEvent(new CustomEvent("look"));
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.input.value.trim()) this.#add(this.input.value);
      else this.look();
    } else if (event.key === "Backspace" && !this.input.value && this.#texts.length) {
      event.preventDefault();
      this.#set(this.#texts.slice(0, -1));
    }
  }

  #typed(event) {
    const picked = event.inputType === "insertReplacementText" || !event.inputType; // from the list of known things
    if (picked || /,\D|\D,/.test(this.input.value)) this.#add(this.input.value);
  }

  #add(typed) {
    // What else may stand between names is read by the server, which answers with one text for each.
    const texts = typed.replace(/,(?=\D|$)|(\D),/g, "$1\n").split("\n").map((text) => text.trim().replace(/\s+/g, " ")).filter(Boolean);
    this.input.value = "";
    const all = [...new Set([...this.#texts, ...texts])];
    if (all.length !== this.#texts.length) this.#set(all);
  }

  #set(texts) {
    this.texts = texts;
    this.dispatchEvent(new CustomEvent("change"));
  }

  #show() {
    if (!this.input) return;
    this.querySelector("ul").replaceChildren(...this.#texts.map((text, place) => {
      const chip = document.createElement("li");
      const remove = document.createElement("button");
      remove.type = "button";
      remove.dataset.chip = place;
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Remove ${text}`);
      chip.append(text, remove);
      return chip;
    }));
    this.input.placeholder = this.#texts.length ? "and …" : "What do you want to cut out? dog, red car, person+bench";
  }
});
