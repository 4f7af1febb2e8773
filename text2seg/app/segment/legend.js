// The results: each query with its colour, its verdict and its segments.
// Property `shown` {queries, pieces, visible, hidden, selected, adding}; fires `select`, `toggle`, `add`, `hover`,
// `why-not`.

const FEW = 8; // more queries than this: those that are found come first

customElements.define("t2s-legend", class extends HTMLElement {
  #selected = 0;

  connectedCallback() {
    this.innerHTML = `<h3>Results</h3><ul></ul>`;
    this.addEventListener("click", (event) => {
      const { piece, toggle, add, why } = event.target.closest("button")?.dataset ?? {};
      const byKey = event.detail === 0;
      if (piece) this.#fire("select", { number: Number(piece) });
      else if (why) this.#fire("why-not", { query: why });
      else if (toggle) this.#fire("toggle", { query: toggle });
      else if (add) this.#fire("add", { query: add, byKey });
    });
    for (const kind of ["pointerover", "focusin"]) {
      this.addEventListener(kind, (event) => this.#hover(event.target.closest("[data-piece]")));
    }
    for (const kind of ["pointerleave", "focusout"]) this.addEventListener(kind, () => this.#hover(null));
  }

  set shown(shown) {
    const { activeElement: focused } = document;
    const again = this.contains(focused) ? { ...focused.dataset } : null;
    const list = this.querySelector("ul");
    const { scrollTop } = list;
    const foundFirst = [...shown.queries].sort((one, other) => other.found - one.found);
    const inOrder = shown.queries.length > FEW ? foundFirst : shown.queries;
    list.replaceChildren(...inOrder.map((query) => this.#entry(query, shown)));
    list.scrollTop = scrollTop;
    if (shown.selected && shown.selected !== this.#selected) this.#showPiece(list, shown.selected);
    this.#selected = shown.selected;
    if (again) {
      const key = Object.keys(again)[0];
      const same = key && this.querySelector(`[data-${key}="${CSS.escape(again[key])}"]`); // it may have been deleted
      (same || this.querySelector("button"))?.focus({ preventScroll: true });
    }
  }

  /** Scroll the list, not the page, to a segment. */
  #showPiece(list, number) {
    const piece = list.querySelector(`[data-piece="${number}"]`)?.getBoundingClientRect();
    const { top, bottom } = list.getBoundingClientRect();
    if (piece?.bottom > bottom) list.scrollTop += piece.bottom - bottom + 6;
    else if (piece?.top < top) list.scrollTop -= top - piece.top + 6;
  }

  /** Put the focus on the button that explains why a query was not found. Return whether there is one. */
  focusOnWhyNot(query) {
    const button = this.querySelector(`[data-why="${CSS.escape(query)}"]`);
    button?.focus();
    return Boolean(button);
  }

  hint(number) {
    for (const button of this.querySelectorAll("[data-piece]")) {
      button.classList.toggle("t2s-hover", Number(button.dataset.piece) === number);
    }
  }

  #entry(query, { pieces, visible, hidden, selected, adding }) {
    const entry = document.createElement("li");
    const queryPieces = pieces.filter((piece) => piece.query === query.name);
    entry.classList.toggle("t2s-absent", !query.found);
    entry.style.setProperty("--t2s-colour", query.colour);
    const head = document.createElement("div");
    head.className = "t2s-query";
    const name = this.#element("div", "t2s-name", "");
    name.append(this.#element("strong", "", query.name), " ", this.#element("span", "", query.verdict));
    head.append(this.#element("i", "t2s-swatch", ""), name);
    if (queryPieces.length) {
      const does = hidden.has(query.name) ? "Show" : "Hide";
      const toggle = this.#button("toggle", query.name, does, false, `${does} ${query.name}`);
      toggle.removeAttribute("aria-pressed");
      head.append(toggle);
    }
    if (!query.found && !query.isGone) { // deleted and renamed ones were found
      const why = this.#button("why", query.name, "Why not?", false, `Why ${query.name} was not found`);
      why.removeAttribute("aria-pressed");
      why.title = "Show its similarity map";
      head.append(why);
    }
    const by = this.#button("add", query.name, "+", adding === query.name, `Add by hand: ${query.name}`);
    by.title = `Add one by hand: press, then click it in the image`;
    head.append(by);
    entry.append(head);
    if (queryPieces.length) entry.append(this.#pieces(queryPieces, visible, selected));
    return entry;
  }

  #pieces(queryPieces, visible, selected) {
    const list = this.#element("div", "t2s-pieces", "");
    list.append(...queryPieces.map((piece, place) => {
      const marks = (piece.accepted ? " ✓" : "") + (piece.byHand ? " by hand" : "") + (piece.isUncertain ? " uncertain" : "");
      const name = `${piece.query} ${place + 1}, score ${piece.score.toFixed(2)}${marks}`;
      const button = this.#button("piece", piece.number, `${piece.score.toFixed(2)}${marks}`, piece.number === selected, name);
      const [sam, coco] = [piece.score, piece.cocoScore].map((score) => score.toFixed(2));
      button.title = sam === coco ? "SAM's score" : `SAM's score; with the presence, as in a COCO file: ${coco}`;
      button.classList.toggle("t2s-not-shown", !visible.has(piece.number));
      return button;
    }));
    return list;
  }

  #button(key, value, text, pressed, label) {
    const button = this.#element("button", "", text);
    button.type = "button";
    button.dataset[key] = value;
    button.setAttribute("aria-pressed", String(pressed));
    button.setAttribute("aria-label", label);
    return button;
  }

  #element(name, className, text) {
    return Object.assign(document.createElement(name), { className, textContent: text });
  }

  #hover(button) { this.#fire("hover", { number: Number(button?.dataset.piece ?? 0) }); }

  #fire(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
});
