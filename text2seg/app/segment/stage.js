// The picture with its segments: one SVG in pixels of the picture, so that a click has the right place however the
// picture is scaled. Before there is a picture, the place to drop one.
// Property `shown` {picture, pieces, selected, opacity, arming}; fires `select`, `point`, `file`, `example`.

const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

customElements.define("t2s-stage", class extends HTMLElement {
  #shown = { picture: null, pieces: [], selected: 0 };

  connectedCallback() {
    this.innerHTML = `
      <div class="t2s-empty">
        <button type="button" class="t2s-drop" data-do="choose">
          <svg viewBox="0 0 48 48" aria-hidden="true"><rect x="5" y="9" width="38" height="30" rx="4"/>
            <circle cx="16" cy="19" r="3.5"/><path d="M6 35l12-11 8 7 7-6 9 8"/></svg>
          <strong>Drop a picture here, paste one, or choose a file</strong>
          <span>JPEG, PNG, WebP, TIFF …</span>
        </button>
        <p class="t2s-heading" data-part="try" hidden>Or try one of these</p>
        <div class="t2s-examples" data-part="examples"></div>
      </div>
      <div class="t2s-figure" hidden>
        <svg class="t2s-picture" role="group" tabindex="-1" preserveAspectRatio="xMidYMid meet">
          <image x="0" y="0" preserveAspectRatio="none"></image><g data-part="pieces"></g><g data-part="points"></g>
        </svg>
        <span class="t2s-tip" hidden></span>
      </div>
      <div class="t2s-busy" hidden></div>
      <input type="file" accept="image/*" hidden>`;
    this.svg = this.querySelector("svg.t2s-picture");
    this.tip = this.querySelector(".t2s-tip");
    const input = this.querySelector("input[type=file]");
    input.addEventListener("change", () => { this.#files(input.files); input.value = ""; });
    this.addEventListener("click", (event) => this.#click(event));
    this.addEventListener("keydown", (event) => this.#key(event));
    this.svg.addEventListener("pointermove", (event) => this.#hover(event));
    this.svg.addEventListener("pointerleave", () => this.hint(0));
    for (const kind of ["dragenter", "dragover"]) {
      this.addEventListener(kind, (event) => { event.preventDefault(); this.classList.add("t2s-over"); });
    }
    for (const kind of ["dragleave", "drop"]) this.addEventListener(kind, () => this.classList.remove("t2s-over"));
    this.addEventListener("drop", (event) => { event.preventDefault(); this.#files(event.dataTransfer.files); });
  }

  set examples(examples) {
    this.querySelector("[data-part=try]").hidden = !examples.length;
    this.querySelector("[data-part=examples]").replaceChildren(...examples.map((example, number) => {
      const button = document.createElement("button");
      const picture = new Image();
      Object.assign(picture, { src: example.thumbnail, alt: "" });
      const words = document.createElement("span");
      words.textContent = example.texts.join(", ");
      Object.assign(button, { type: "button", className: "t2s-example" });
      button.dataset.example = number;
      button.setAttribute("aria-label", `Example: ${example.texts.join(", ")}`);
      button.append(picture, words);
      return button;
    }));
  }

  set busy(text) {
    const busy = this.querySelector(".t2s-busy");
    busy.hidden = !text;
    busy.textContent = text;
    this.svg.setAttribute("aria-busy", String(Boolean(text)));
  }

  choose() { this.querySelector("input[type=file]").click(); }

  set shown(shown) {
    const { picture } = this.#shown = { ...this.#shown, ...shown };
    this.querySelector(".t2s-empty").hidden = Boolean(picture);
    this.querySelector(".t2s-figure").hidden = !picture;
    if (!picture) return;
    this.svg.setAttribute("viewBox", `0 0 ${picture.width} ${picture.height}`);
    this.svg.setAttribute("aria-label", `${picture.name}, ${this.#shown.pieces.length} segments`);
    this.svg.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.svg.style.setProperty("--t2s-ratio", picture.width / picture.height);
    this.svg.style.setProperty("--t2s-opacity", this.#shown.opacity);
    const image = this.svg.querySelector("image");
    if (image.getAttribute("href") !== picture.file.url) image.setAttribute("href", picture.file.url);
    image.setAttribute("width", picture.width);
    image.setAttribute("height", picture.height);
    this.svg.classList.toggle("t2s-aiming", Boolean(this.#shown.selected || this.#shown.arming));
    this.#draw();
  }

  /** Let the segment of this number shine; 0 for none. */
  hint(number, at) {
    for (const path of this.svg.querySelectorAll("[data-piece]")) {
      path.classList.toggle("t2s-hover", Number(path.dataset.piece) === number);
    }
    const piece = this.#shown.pieces.find((each) => each.number === number);
    this.tip.hidden = !(piece && at);
    if (this.tip.hidden) return;
    this.tip.textContent = `${piece.query} ${piece.score.toFixed(2)}`;
    const frame = this.tip.parentElement.getBoundingClientRect();
    this.tip.style.left = `${Math.min(at.x - frame.left + 14, frame.width - 130)}px`;
    this.tip.style.top = `${at.y - frame.top + 16}px`;
  }

  #draw() {
    const { pieces, selected } = this.#shown;
    const focused = this.contains(document.activeElement) ? document.activeElement.dataset?.piece : null;
    const largestFirst = [...pieces].sort((one, other) => other.area - one.area); // small ones stay within reach
    this.svg.querySelector("[data-part=pieces]").replaceChildren(...largestFirst.map((piece) => drawn("path", {
      d: piece.path, fill: piece.colour, stroke: piece.colour, "fill-rule": "evenodd", role: "button", tabindex: 0,
      "data-piece": piece.number, "aria-pressed": piece.number === selected, "vector-effect": "non-scaling-stroke",
      "aria-label": `${piece.query}, score ${piece.score.toFixed(2)}${piece.accepted ? ", accepted" : ""}`,
    })));
    const chosen = pieces.find((piece) => piece.number === selected);
    const rims = chosen ? ["t2s-halo", "t2s-rim"] : [];
    this.svg.querySelector("[data-part=points]").replaceChildren(
      ...rims.map((name) => drawn("path", { d: chosen.path, class: name, "vector-effect": "non-scaling-stroke" })),
      ...(chosen?.points ?? []).map(([x, y, label]) => drawn("path", {
        d: `M${x} ${y}h.001`, class: label ? "t2s-plus" : "t2s-minus", "vector-effect": "non-scaling-stroke",
      })));
    if (focused) this.svg.querySelector(`[data-piece="${focused}"]`)?.focus({ preventScroll: true });
  }

  #click(event) {
    const example = event.target.closest("[data-example]");
    if (example) this.#fire("example", { number: Number(example.dataset.example) });
    else if (event.target.closest("[data-do=choose]")) this.choose();
    else if (this.svg.contains(event.target)) {
      if (this.#shown.selected || this.#shown.arming) this.#fire("point", { ...this.#place(event), minus: event.shiftKey });
      else this.#fire("select", { number: Number(event.target.dataset.piece ?? 0) });
    }
  }

  /** Where in the picture, in its pixels, an event is. */
  #place(event) {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    return { x, y };
  }

  #key(event) {
    const { pieces, selected } = this.#shown;
    const focused = Number(event.target.dataset?.piece ?? 0);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!this.svg.contains(event.target) || !pieces.length) return;
    if (step) {
      const at = pieces.findIndex((piece) => piece.number === (focused || selected));
      const next = pieces[(at + step + pieces.length) % pieces.length].number;
      event.preventDefault();
      this.#fire("select", { number: next });
      this.svg.querySelector(`[data-piece="${next}"]`)?.focus();
    } else if (["Enter", " "].includes(event.key) && focused) {
      event.preventDefault();
      this.#fire("select", { number: focused });
    }
  }

  #hover(event) {
    const number = Number(event.target.dataset?.piece ?? 0);
    this.hint(number, { x: event.clientX, y: event.clientY });
    this.#fire("hover", { number });
  }

  #files(files) {
    if (files?.length) this.#fire("file", { file: files[0] });
  }

  #fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
});
