// Queries as chips. Enter or a comma adds a chip; Backspace and × remove one. A chip that was not searched for is marked,
// with one sentence below that says why and what to do.
// Property `texts`; `understood` and `suggest` take what the server says; fires `change` if the texts change, `typed` at
// each letter, and `find` {isMore} if the user starts a search, after a `change` if there is a new text.

const NAMED = 5; // unknown words that are named in one sentence

customElements.define("t2s-chips", class extends HTMLElement {
  #texts = [];
  #refused = [];
  #halfKnown = {};
  #known = [];
  #isOfJob = false;

  connectedCallback() {
    this.innerHTML = `
      <div class="t2s-search">
        <div class="t2s-box">
          <ul class="t2s-chips" aria-label="Queries"></ul>
          <input type="text" list="t2s-known" autocomplete="off" autocapitalize="none" spellcheck="false"
            enterkeyhint="done" aria-label="Add a query" aria-describedby="t2s-grammar">
          <datalist id="t2s-known"></datalist>
        </div>
        <button type="button" class="t2s-main" data-do="find">Find</button>
      </div>
      <div class="t2s-refused" role="status"></div>
      <p class="t2s-hint t2s-grammar">
        <span id="t2s-grammar"><b>dog+bicycle</b>: both as one segment. <b>dog|puppy</b>: two words for one thing.
          <b>mouse -computer mouse</b>: exclude something.</span>
        <button type="button" class="t2s-link" data-do="known" aria-expanded="false" hidden></button>
      </p>
      <div class="t2s-words" role="group" aria-label="What the model knows" hidden></div>`;
    this.input = this.querySelector("input");
    this.words = this.querySelector(".t2s-words");
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.input.addEventListener("input", (event) => this.#typed(event));
    this.addEventListener("click", (event) => this.#click(event));
    this.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.words.hidden) return;
      event.stopPropagation();
      this.#openKnown();
      this.querySelector(".t2s-grammar [data-do=known]").focus();
    });
    this.#show();
  }

  get texts() { return this.#texts; }
  set texts(texts) { this.#texts = [...texts]; this.#show(); }

  /** Texts that were not searched for, [{text, reason, wording, close}], and the sentence for each text of which the
   * model knows only some words. */
  understood(refused, halfKnown) {
    this.#refused = refused;
    this.#halfKnown = halfKnown ?? {};
    this.#show();
  }

  /** Names to suggest: what the model knows, or the categories of the job whose image is edited. */
  suggest(names, isOfJob) {
    this.#isOfJob = isOfJob;
    if (String(names) === String(this.#known)) return;
    this.#known = names;
    this.querySelector("datalist").replaceChildren(...names.map((name) => new Option(name)));
    this.words.replaceChildren(...[...names].sort().map((name) => this.#button("word", name, name)));
    this.words.hidden = true;
    this.#showKnown();
  }

  /** Add what was typed, and search. */
  find() {
    const isMore = this.#add(this.input.value);
    this.dispatchEvent(new CustomEvent("find", { detail: { isMore } }));
  }

  /** Take what was typed without Enter as a text. */
  take() { this.#add(this.input.value); }

  #click(event) {
    const { do: what, chip, word, wording, instead } = event.target.closest("button")?.dataset ?? {};
    if (what === "find") this.find();
    else if (what === "known") this.#openKnown();
    else if (word) this.#add(word);
    else if (instead) this.#set(this.#texts.map((text) => (text === chip ? text.replaceAll(wording, instead) : text)));
    else if (chip) this.#set(this.#texts.filter((text) => text !== chip));
    if ((chip && !what) || event.target.closest(".t2s-box")) this.input.focus();
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      if (!this.#add(this.input.value)) this.find();
    } else if (event.key === "Backspace" && !this.input.value && this.#texts.length) {
      event.preventDefault();
      this.#set(this.#texts.slice(0, -1));
    }
  }

  #typed(event) {
    const picked = event.inputType === "insertReplacementText" || !event.inputType; // from the list of suggestions
    if (picked || /,\D|\D,/.test(this.input.value)) this.#add(this.input.value);
    this.dispatchEvent(new CustomEvent("typed"));
  }

  /** Add the texts, and return whether there is a new one. */
  #add(typed) {
    // The server reads other separators and answers with one text for each name.
    const texts = typed.replace(/,(?=\D|$)|(\D),/g, "$1\n").split("\n").map((text) => text.trim().replace(/\s+/g, " ")).filter(Boolean);
    this.input.value = "";
    const all = [...new Set([...this.#texts, ...texts])];
    const isMore = all.length !== this.#texts.length;
    if (isMore) this.#set(all);
    return isMore;
  }

  #set(texts) {
    this.texts = [...new Set(texts)];
    this.dispatchEvent(new CustomEvent("change"));
  }

  #show() {
    if (!this.input) return;
    const refused = this.#refused.filter(({ text }) => this.#texts.includes(text)); // the others were removed since
    const isRefused = new Set(refused.map(({ text }) => text));
    this.querySelector(".t2s-chips").replaceChildren(...this.#texts.map((text) => {
      const chip = document.createElement("li");
      const remove = this.#button("chip", text, "×");
      remove.setAttribute("aria-label", `Remove ${text}`);
      chip.classList.toggle("t2s-unknown", isRefused.has(text));
      if (isRefused.has(text)) {
        chip.title = "Not searched; see below";
        remove.setAttribute("aria-label", `Remove ${text}, which was not searched`);
      }
      chip.append(text, remove);
      return chip;
    }));
    const plain = refused.filter(({ wording, close }) => wording && !close.length);
    const lines = plain.length > 1 ? [...refused.filter((each) => !plain.includes(each)), this.#together(plain)] : refused;
    const halfKnown = this.#texts.filter((text) => this.#halfKnown[text]).map((text) => this.#note(this.#halfKnown[text]));
    this.querySelector(".t2s-refused").replaceChildren(...lines.map((each) => this.#line(each)), ...halfKnown);
    this.input.placeholder = this.#texts.length ? "and …" : "What to find: dog, red car, dog+bicycle";
  }

  /** The sentence for a text that was not searched for, with the ways out. */
  #line({ text, reason, wording, close }) {
    const line = document.createElement("p");
    line.append(reason, " ");
    if (!wording) return line;
    close.forEach((other, place) => {
      const instead = this.#button("chip", text, other);
      Object.assign(instead.dataset, { wording, instead: other });
      line.append(place ? ", " : "Did you mean ", instead);
    });
    line.append(close.length ? "? " : "", this.#button("do", "known", "What it knows"), " · ",
      this.#button("do", "models", "Use real weights"));
    for (const button of line.querySelectorAll("button")) button.className = "t2s-link";
    return line;
  }

  /** Unknown texts without a suggestion, as one. */
  #together(plain) {
    const names = plain.slice(0, NAMED).map(({ wording }) => `“${wording}”`);
    const more = plain.length > NAMED ? [`${plain.length - NAMED} more`] : [];
    const all = [...names, ...more], last = all.pop();
    return { ...plain[0], reason: plain[0].reason.replace(/^“.*?” is /, `${all.join(", ")} and ${last} are `) };
  }

  #note(sentence) {
    return Object.assign(document.createElement("p"), { className: "t2s-half-known", textContent: sentence });
  }

  #openKnown() {
    this.words.hidden = !this.words.hidden;
    this.#showKnown();
    if (!this.words.hidden) this.words.scrollIntoView({ block: "nearest" });
  }

  #showKnown() {
    const button = this.querySelector(".t2s-grammar [data-do=known]");
    button.hidden = !this.#known.length;
    this.querySelector("#t2s-grammar").hidden = this.#isOfJob; // the words there are the categories
    const those = this.#isOfJob ? "categories of this job" : "things that the model knows";
    button.textContent = this.words.hidden ? `The ${this.#known.length} ${those}` : "Hide the list";
    button.setAttribute("aria-expanded", String(!this.words.hidden));
  }

  #button(key, value, text) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.dataset[key] = value;
    return button;
  }
});
