// What was found: each query with its colour and what became of it, and its segments.
// Property `shown` {queries, pieces, visible, hidden, selected, arming}; fires `select`, `toggle`, `arm`, `hover`.

customElements.define("t2s-legend", class extends HTMLElement {
  connectedCallback() {
    this.innerHTML = `<h3>Found</h3><ul></ul>`;
    this.addEventListener("click", (event) => {
      const { piece, toggle, arm } = event.target.closest("button")?.dataset ?? {};
      if (piece) this.#fire("select", { number: Number(piece) });
      else if (toggle) this.#fire("toggle", { query: toggle });
      else if (arm) this.#fire("arm", { query: arm });
    });
    for (const kind of ["pointerover", "focusin"]) {
      this.addEventListener(kind, (event) => this.#hover(event.target.closest("[data-piece]")));
    }
    for (const kind of ["pointerleave", "focusout"]) this.addEventListener(kind, () => this.#hover(null));
  }

  set shown(shown) {
    const { activeElement: focused } = document;
    const again = this.contains(focused) ? { ...focused.dataset } : null;
    this.querySelector("ul").replaceChildren(...shown.queries.map((query) => this.#entry(query, shown)));
    if (again) {
      const key = Object.keys(again)[0];
      this.querySelector(`[data-${key}="${CSS.escape(again[key])}"]`)?.focus({ preventScroll: true });
    }
  }

  hint(number) {
    for (const button of this.querySelectorAll("[data-piece]")) {
      button.classList.toggle("t2s-hover", Number(button.dataset.piece) === number);
    }
  }

  #entry(query, { pieces, visible, hidden, selected, arming }) {
    const entry = document.createElement("li");
    const own = pieces.filter((piece) => piece.query === query.name);
    entry.classList.toggle("t2s-absent", !query.found);
    entry.style.setProperty("--t2s-colour", query.colour);
    const head = document.createElement("div");
    head.className = "t2s-query";
    const name = this.#made("div", "t2s-name", "");
    name.append(this.#made("strong", "", query.name), " ", this.#made("span", "", query.verdict));
    head.append(this.#made("i", "t2s-swatch", ""), name);
    if (own.length) {
      const isHidden = hidden.has(query.name);
      head.append(this.#button("toggle", query.name, isHidden ? "Show" : "Hide", !isHidden, `Show ${query.name}`));
    }
    const by = this.#button("arm", query.name, "+", arming === query.name, `Add a ${query.name} by hand`);
    by.title = `Add one by hand: then click on it`;
    head.append(by);
    entry.append(head);
    if (own.length) entry.append(this.#pieces(own, visible, selected));
    return entry;
  }

  #pieces(own, visible, selected) {
    const list = this.#made("div", "t2s-pieces", "");
    list.append(...own.map((piece, place) => {
      const marks = (piece.accepted ? " ✓" : "") + (piece.byHand ? " by hand" : "");
      const name = `${piece.query} ${place + 1}, score ${piece.score.toFixed(2)}${marks}`;
      const button = this.#button("piece", piece.number, `${piece.score.toFixed(2)}${marks}`, piece.number === selected, name);
      button.classList.toggle("t2s-left-out", !visible.has(piece.number));
      return button;
    }));
    return list;
  }

  #button(key, value, text, pressed, label) {
    const button = this.#made("button", "", text);
    button.type = "button";
    button.dataset[key] = value;
    button.setAttribute("aria-pressed", String(pressed));
    button.setAttribute("aria-label", label);
    return button;
  }

  #made(name, className, text) {
    return Object.assign(document.createElement(name), { className, textContent: text });
  }

  #hover(button) { this.#fire("hover", { number: Number(button?.dataset.piece ?? 0) }); }

  #fire(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
});
