// The image with its segments: one SVG in pixels of the image, so that clicks need no scaling. Before there is an
// image, and to open another, a place to drop one and the examples.
// A click selects. It sets a point only with a tool, with a modifier key on the selected segment, or to add a segment.
// With the tool "box", or to add a segment, dragging draws a box. A click on a region, one of the masks that were found
// without words, picks it.
// Property `shown` {image, pieces, regions, selected, tool, adding, opacity, isStart}; fires `select`, `point`, `box`,
// `pick`, `file`, `example`, `back`, `stop`, `say`.

const SVG = "http://www.w3.org/2000/svg";
const SLIP = 5; // pixels of the screen that a click may move before it is a drag
const STEPS = 40; // steps of the arrow keys along the longer side of the image; with Shift, five times as many

function drawn(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Dots for points {x, y, positive, own}: negative ones are hollow, those of the person are larger and have a ring. */
function marks(points) {
  return points.flatMap(({ x, y, positive, own }) => {
    const kinds = ["t2s-under", positive ? "t2s-plus" : "t2s-minus", ...(positive ? [] : ["t2s-hole"])];
    return kinds.map((kind) => drawn("path", {
      d: `M${x} ${y}h.001`, class: `t2s-point ${kind}${own ? " t2s-own" : ""}`, "vector-effect": "non-scaling-stroke",
    }));
  });
}

customElements.define("t2s-stage", class extends HTMLElement {
  static marks = marks;

  #shown = { image: null, pieces: [], regions: [], selected: 0, tool: "select" };
  #cursor = null; // place of the cross that the arrow keys move, in pixels of the image
  #corner = null; // first corner of a box, in pixels of the image
  #drag = null; // where a box begins that is dragged, on the screen
  #hasDragged = false; // the click that follows is the end of a box

  connectedCallback() {
    this.innerHTML = `
      <div class="t2s-empty">
        <button type="button" class="t2s-back" data-do="back" hidden></button>
        <button type="button" class="t2s-drop" data-do="choose">
          <svg viewBox="0 0 48 48" aria-hidden="true"><rect x="5" y="9" width="38" height="30" rx="4"/>
            <circle cx="16" cy="19" r="3.5"/><path d="M6 35l12-11 8 7 7-6 9 8"/></svg>
          <strong>Drop an image here, paste one, or choose a file</strong>
          <span>JPEG, PNG, WebP, TIFF …</span>
        </button>
        <p class="t2s-heading" data-part="try" hidden>Or try one of these</p>
        <div class="t2s-examples" data-part="examples"></div>
      </div>
      <div class="t2s-figure" hidden>
        <svg class="t2s-image" role="group" tabindex="0" preserveAspectRatio="xMidYMid meet">
          <image x="0" y="0" preserveAspectRatio="none"></image><g data-part="regions"></g><g data-part="pieces"></g><g data-part="points"></g>
          <g data-part="cursor"></g>
        </svg>
        <span class="t2s-tip" hidden></span>
      </div>
      <div class="t2s-busy" hidden><span></span> <button type="button" data-do="stop" hidden>Stop</button></div>
      <input type="file" accept="image/*" hidden>`;
    this.svg = this.querySelector("svg.t2s-image");
    this.tip = this.querySelector(".t2s-tip");
    const input = this.querySelector("input[type=file]");
    input.addEventListener("change", () => { this.#files(input.files); input.value = ""; });
    this.addEventListener("click", (event) => this.#click(event));
    this.addEventListener("keydown", (event) => this.#key(event));
    const figure = this.querySelector(".t2s-figure"); // a box may begin and end beside the image
    figure.addEventListener("pointerdown", (event) => this.#press(event));
    figure.addEventListener("pointerup", (event) => this.#release(event));
    this.svg.addEventListener("pointermove", (event) => (this.#drag ? this.#stretch(event) : this.#hover(event)));
    this.svg.addEventListener("pointercancel", () => this.#aim(null));
    this.svg.addEventListener("pointerleave", () => { this.hint(0); this.#light(0); });
    this.svg.addEventListener("focusout", (event) => { if (!this.svg.contains(event.relatedTarget)) this.#aim(null); });
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
      const thumbnail = new Image();
      Object.assign(thumbnail, { src: example.thumbnail, alt: "" });
      const words = document.createElement("span");
      words.textContent = example.texts.join(", ");
      Object.assign(button, { type: "button", className: "t2s-example" });
      button.dataset.example = number;
      button.setAttribute("aria-label", `Example: ${example.texts.join(", ")}`);
      button.append(thumbnail, words);
      return button;
    }));
  }

  set busy({ text, canStop = false }) {
    const busy = this.querySelector(".t2s-busy");
    const isLost = busy.contains(document.activeElement) && !(text && canStop);
    busy.hidden = !text;
    busy.querySelector("span").textContent = text;
    busy.querySelector("button").hidden = !canStop;
    this.svg.setAttribute("aria-busy", String(Boolean(text)));
    if (isLost) this.focusOn();
  }

  choose() { this.querySelector("input[type=file]").click(); }

  /** Put the focus on the image, or on the place to drop one. */
  focusOn() {
    const { image, isStart } = this.#shown;
    (image && !isStart ? this.svg : this.querySelector("[data-do=choose]")).focus({ preventScroll: true });
  }

  set shown(shown) {
    const { image, isStart, selected, tool, adding } = this.#shown = { ...this.#shown, ...shown };
    this.querySelector(".t2s-empty").hidden = Boolean(image) && !isStart;
    this.querySelector(".t2s-figure").hidden = !image || isStart;
    const back = this.querySelector("[data-do=back]");
    back.hidden = !image;
    if (!image) return;
    back.textContent = `← Back to ${image.name}`;
    this.svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    this.svg.setAttribute("aria-label", `${image.name}, ${this.#shown.pieces.length} segment${this.#shown.pieces.length === 1 ? "" : "s"}`);
    this.svg.style.aspectRatio = `${image.width} / ${image.height}`;
    this.svg.style.setProperty("--t2s-ratio", image.width / image.height);
    this.svg.style.setProperty("--t2s-opacity", this.#shown.opacity);
    const shownImage = this.svg.querySelector("image");
    if (shownImage.getAttribute("href") !== image.file.url) shownImage.setAttribute("href", image.file.url);
    shownImage.setAttribute("width", image.width);
    shownImage.setAttribute("height", image.height);
    this.svg.classList.toggle("t2s-pointing", Boolean(adding || (selected && ["plus", "minus"].includes(tool))));
    this.svg.classList.toggle("t2s-boxing", Boolean(adding || tool === "box"));
    this.#draw();
    if (!this.#isPointing && !this.#isBoxing) this.#aim(null);
  }

  /** Whether a click sets a point. */
  get #isPointing() { return this.svg.classList.contains("t2s-pointing"); }

  /** Whether dragging draws a box. */
  get #isBoxing() { return this.svg.classList.contains("t2s-boxing"); }

  /** Light up the region with this number; 0 for none. */
  #light(number, at) {
    this.svg.classList.toggle("t2s-lit", Boolean(number));
    for (const path of this.svg.querySelectorAll("[data-region]")) {
      path.classList.toggle("t2s-hover", Number(path.dataset.region) === number);
    }
    if (number) this.#tip(`mask ${number}`, at);
  }

  #tip(text, at) {
    this.tip.hidden = false;
    this.tip.textContent = text;
    const frame = this.tip.parentElement.getBoundingClientRect();
    this.tip.style.left = `${Math.min(at.x - frame.left + 14, frame.width - 130)}px`;
    this.tip.style.top = `${at.y - frame.top + 16}px`;
  }

  /** Highlight the segment with this number; 0 for none. */
  hint(number, at) {
    for (const path of this.svg.querySelectorAll("[data-piece]")) {
      path.classList.toggle("t2s-hover", Number(path.dataset.piece) === number);
    }
    const piece = this.#shown.pieces.find((each) => each.number === number);
    this.tip.hidden = true;
    if (piece && at) this.#tip(`${piece.query} ${piece.score.toFixed(2)}`, at);
  }

  #draw() {
    const { pieces, regions, selected } = this.#shown;
    this.tip.hidden = true; // what it named may be gone
    const { piece: focused, region } = this.svg.contains(document.activeElement) ? document.activeElement.dataset : {};
    const byArea = (one, other) => other.area - one.area; // the largest first: small ones stay clickable
    const largestFirst = [...pieces].sort(byArea);
    this.svg.querySelector("[data-part=regions]").replaceChildren(...[...regions].sort(byArea).map((each) => drawn("path", {
      d: each.path, fill: each.colour, stroke: each.colour, "fill-rule": "evenodd", role: "button", tabindex: 0,
      "data-region": each.number, "vector-effect": "non-scaling-stroke", "aria-label": `Pick mask ${each.number}`,
    })));
    if (region) (this.svg.querySelector(`[data-region="${region}"]`) ?? this.svg).focus({ preventScroll: true });
    this.svg.querySelector("[data-part=pieces]").replaceChildren(...largestFirst.map((piece) => drawn("path", {
      d: piece.path, fill: piece.colour, stroke: piece.colour, "fill-rule": "evenodd", role: "button", tabindex: 0,
      "data-piece": piece.number, "aria-pressed": piece.number === selected, "vector-effect": "non-scaling-stroke",
      "aria-label": `${piece.query}, score ${piece.score.toFixed(2)}${piece.accepted ? ", accepted" : ""}`,
    })));
    const chosen = pieces.find((piece) => piece.number === selected);
    const rims = chosen ? ["t2s-halo", "t2s-rim"] : [];
    this.svg.querySelector("[data-part=points]").replaceChildren(
      ...rims.map((name) => drawn("path", { d: chosen.path, class: name, "vector-effect": "non-scaling-stroke" })),
      ...marks(chosen?.points ?? []));
    if (!focused) return;
    const again = this.svg.querySelector(`[data-piece="${focused}"]`) ?? this.svg; // it may have been deleted
    again.focus({ preventScroll: true });
  }

  #click(event) {
    const example = event.target.closest("[data-example]");
    if (example) this.#fire("example", { number: Number(example.dataset.example) });
    else if (event.target.closest("[data-do=choose]")) this.choose();
    else if (event.target.closest("[data-do=back]")) this.#fire("back", {});
    else if (event.target.closest("[data-do=stop]")) this.#fire("stop", {});
    else if (this.svg.contains(event.target)) this.#clickImage(event);
  }

  #clickImage(event) {
    const { selected, tool } = this.#shown;
    const adds = event.ctrlKey || event.metaKey || event.altKey;
    const isModified = selected && (event.shiftKey || adds);
    const { piece = 0, region } = event.target.dataset;
    if (this.#hasDragged) this.#hasDragged = false;
    else if (!this.#isPointing && !isModified && region) this.#fire("pick", { region: Number(region) });
    else if (!this.#isPointing && !isModified) this.#fire("select", { number: Number(piece) });
    else if (event.detail <= 1) { // the second click of a double-click sets no other point
      this.#fire("point", { ...this.#placeOf(event), positive: !event.shiftKey && (adds || tool !== "minus") });
    }
  }

  /** Place of the pointer in pixels of the image; the nearest one if the pointer is beside it. */
  #placeOf(event) {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    const { width, height } = this.svg.viewBox.baseVal;
    return { x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) };
  }

  #press(event) {
    this.#hasDragged = false;
    if (!this.#isBoxing || event.button || !event.isPrimary) return;
    this.#drag = { x: event.clientX, y: event.clientY };
    this.#corner = this.#placeOf(event);
  }

  #stretch(event) {
    if (!this.#hasDragged && Math.hypot(event.clientX - this.#drag.x, event.clientY - this.#drag.y) < SLIP) return;
    if (!this.#hasDragged) this.svg.setPointerCapture(event.pointerId);
    this.#hasDragged = true;
    this.#drawBox(this.#placeOf(event));
  }

  #release(event) {
    const { x, y } = this.#corner ?? {};
    const isBox = this.#drag && this.#hasDragged;
    const end = this.#placeOf(event);
    if (this.#drag) this.#aim(null);
    if (isBox) this.#fireBox({ x, y }, end);
  }

  #fireBox(one, other) {
    const [left, right] = [one.x, other.x].sort((a, b) => a - b);
    const [top, bottom] = [one.y, other.y].sort((a, b) => a - b);
    this.#fire("box", { box: [left, top, right, bottom] });
  }

  /** Draw a box from the first corner to a place. */
  #drawBox({ x, y }) {
    const { x: left, y: top } = this.#corner;
    this.#drawLines(`M${left} ${top}H${x}V${y}H${left}Z`);
  }

  #key(event) {
    if (!this.svg.contains(event.target) || event.ctrlKey || event.metaKey) return;
    const [dx, dy] = { ArrowRight: [1, 0], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowUp: [0, -1] }[event.key] ?? [0, 0];
    const isPress = ["Enter", " "].includes(event.key);
    if (!dx && !dy && !isPress) return;
    const focused = Number(event.target.dataset?.piece ?? 0);
    if (this.#isBoxing && !this.#isPointing && isPress && this.#cursor) this.#setCorner();
    else if (this.#isPointing && isPress && this.#cursor) {
      this.#fire("point", { ...this.#cursor, positive: !event.shiftKey && this.#shown.tool !== "minus" });
    } else if ((this.#isPointing || this.#isBoxing) && !isPress) this.#move(dx, dy, event.shiftKey ? 5 * STEPS : STEPS);
    else if (isPress && event.target.dataset.region) this.#fire("pick", { region: Number(event.target.dataset.region) });
    else if (!isPress && event.target.dataset.region) this.#stepRegion(dx + dy, event.target);
    else if (isPress && focused) this.#fire("select", { number: focused });
    else if (!isPress && this.#shown.pieces.length) this.#step(dx + dy, focused);
    else return;
    event.preventDefault();
  }

  /** Select the next segment. */
  #step(step, focused) {
    const { pieces, selected } = this.#shown;
    const at = pieces.findIndex((piece) => piece.number === (focused || selected));
    const next = pieces[(at + step + pieces.length) % pieces.length].number;
    this.#fire("select", { number: next });
    this.svg.querySelector(`[data-piece="${next}"]`)?.focus();
  }

  /** Focus the next region. */
  #stepRegion(step, from) {
    const all = [...this.svg.querySelectorAll("[data-region]")].sort((a, b) => a.dataset.region - b.dataset.region);
    all[(all.indexOf(from) + step + all.length) % all.length].focus();
  }

  /** Take the place of the cross as a corner of a box; the second one completes it. */
  #setCorner() {
    const [first, place] = [this.#corner, this.#cursor];
    if (first) {
      this.#aim(null);
      this.#fireBox(first, place);
    } else this.#corner = place;
  }

  /** Move the cross by one step. It begins in the middle of the selected segment, or of the image. */
  #move(dx, dy, steps) {
    const { image, selected } = this.#shown;
    const step = Math.max(image.width, image.height) / steps;
    const box = this.svg.querySelector(`[data-piece="${selected}"]`)?.getBBox()
      ?? { x: 0, y: 0, width: image.width, height: image.height };
    const { x, y } = this.#cursor ?? { x: box.x + box.width / 2, y: box.y + box.height / 2 };
    const within = (value, most) => Math.min(Math.max(value, 0), most);
    this.#aim({ x: within(x + dx * step, image.width - 1), y: within(y + dy * step, image.height - 1) });
    const { x: across, y: down } = this.#cursor;
    this.#fire("say", { text: `${Math.round(across)}, ${Math.round(down)}` });
  }

  /** Draw the cross at a place; null removes it. */
  #aim(place) {
    this.#cursor = place;
    if (!place) this.#corner = this.#drag = null;
    const { width, height } = this.#shown.image ?? {};
    if (place && this.#corner) this.#drawBox(place);
    else this.#drawLines(place ? `M${place.x} 0V${height}M0 ${place.y}H${width}` : "");
  }

  /** Draw the cross or a box, given as an SVG path; "" draws nothing. */
  #drawLines(lines) {
    this.svg.querySelector("[data-part=cursor]").replaceChildren(...(lines ? ["t2s-cross-under", "t2s-cross"] : []).map(
      (name) => drawn("path", { d: lines, class: name, "vector-effect": "non-scaling-stroke" })));
  }

  #hover(event) {
    const number = Number(event.target.dataset?.piece ?? 0);
    const at = { x: event.clientX, y: event.clientY };
    this.hint(number, at);
    this.#light(Number(event.target.dataset?.region ?? 0), at);
    this.#fire("hover", { number });
  }

  #files(files) {
    if (files?.length) this.#fire("file", { file: files[0] });
  }

  #fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
});
