// The large view: images one by one in the full window, with zoom and, if wished, something beside them.
// text2segLarge.open(items, at, {side, moved, closed, before, after, turn}): `items` are {caption, alt, url}; `side(at)`
// returns the element beside an image, and `moved(at)` is called when an image is shown. If there are more images `before`
// and `after` these, `turn(step)` is called at the end; it may call `open` again. `text2segLarge.put(at, url)` gives an
// image later.

const MOST = 16, STEP = 1.4; // largest factor; factor of one press

const dialog = Object.assign(document.createElement("dialog"), { className: "t2s t2s-large" });
dialog.setAttribute("aria-label", "Large view");
dialog.innerHTML = `
  <header><h3 tabindex="-1" data-part="caption"></h3><div class="t2s-row">
    <button type="button" data-do="back" aria-label="Previous">‹</button><span data-part="place" role="status"></span>
    <button type="button" data-do="next" aria-label="Next">›</button>
    <button type="button" data-do="out" aria-label="Zoom out">−</button><output data-part="zoom">100 %</output>
    <button type="button" data-do="in" aria-label="Zoom in">+</button><button type="button" data-do="fit">Fit</button>
    <button type="button" data-do="close">Close</button></div></header>
  <div class="t2s-large-body"><div class="t2s-large-stage"><img alt="" draggable="false"></div><aside hidden></aside></div>`;
const part = (name) => dialog.querySelector(`[data-part=${name}]`);
const image = dialog.querySelector("img"), stage = dialog.querySelector(".t2s-large-stage"), aside = dialog.querySelector("aside");
let shown = { items: [], at: 0 };
let view = { factor: 1, x: 0, y: 0 };
const pointers = new Map();

function zoom(factor, at = null) {
  const to = Math.min(Math.max(view.factor * factor, 1), MOST);
  const frame = stage.getBoundingClientRect();
  const x = (at?.x ?? frame.x + frame.width / 2) - frame.x - frame.width / 2;
  const y = (at?.y ?? frame.y + frame.height / 2) - frame.y - frame.height / 2;
  const ratio = to / view.factor; // what is under the pointer stays there
  move({ factor: to, x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio });
}

function move(to) {
  const most = [stage.clientWidth, stage.clientHeight].map((side) => side * (to.factor - 1) / 2);
  const within = (value, limit) => Math.min(Math.max(value, -limit), limit);
  view = { factor: to.factor, x: within(to.x, most[0]), y: within(to.y, most[1]) };
  image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.factor})`;
  part("zoom").textContent = `${Math.round(100 * view.factor)} %`;
  stage.classList.toggle("t2s-zoomed", view.factor > 1);
}

function show(at) {
  const { items, side, moved, before = 0, after = 0 } = shown;
  shown.at = Math.min(Math.max(at, 0), items.length - 1);
  const { caption, alt, url } = items[shown.at];
  part("caption").textContent = caption;
  const all = before + items.length + after;
  part("place").textContent = all > 1 ? `${before + shown.at + 1} of ${all}` : "";
  for (const [name, is] of [["back", before + shown.at > 0], ["next", before + shown.at + 1 < all]]) {
    const button = dialog.querySelector(`[data-do=${name}]`);
    button.hidden = all < 2;
    button.disabled = !is;
  }
  image.src = url;
  image.alt = alt ?? caption;
  move({ factor: 1, x: 0, y: 0 });
  const beside = side?.(shown.at);
  aside.hidden = !beside;
  if (beside) aside.replaceChildren(beside);
  moved?.(shown.at);
}

/** Show the next image, or the one before; at the end say that there is none. */
function step(by) {
  const { items, at, before = 0, after = 0, turn } = shown;
  if (items[at + by]) show(at + by);
  else if (by > 0 ? after : before) turn(by);
  else part("place").textContent = `${before + at + 1} of ${before + items.length + after}, the ${by > 0 ? "last" : "first"} image`;
}

function act(name) {
  if (name === "close") dialog.close();
  else if (name === "back" || name === "next") step(name === "next" ? 1 : -1);
  else if (name === "fit") move({ factor: 1, x: 0, y: 0 });
  else zoom(name === "in" ? STEP : 1 / STEP);
}

dialog.addEventListener("click", (event) => {
  const name = event.target.closest("[data-do]")?.dataset.do;
  if (name) act(name);
});
dialog.addEventListener("close", () => {
  shown.closed?.(shown.at);
  aside.replaceChildren();
  image.removeAttribute("src");
});
dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const name = { "+": "in", "=": "in", "-": "out", 0: "fit", ArrowLeft: "back", ArrowRight: "next" }[event.key];
  if (!name) return;
  event.preventDefault();
  act(name);
});
stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(STEP ** (-event.deltaY / 150), event);
}, { passive: false });
stage.addEventListener("dblclick", (event) => (view.factor > 1 ? act("fit") : zoom(3, event)));
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const other = [...pointers.values()].find((each) => each.pointerId !== event.pointerId);
  if (other) { // two fingers
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    zoom(apart(event) / Math.max(apart(before), 1), { x: (event.clientX + other.clientX) / 2, y: (event.clientY + other.clientY) / 2 });
  } else move({ factor: view.factor, x: view.x + event.clientX - before.clientX, y: view.y + event.clientY - before.clientY });
  pointers.set(event.pointerId, event);
});
for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, (event) => pointers.delete(event.pointerId));

window.text2segLarge = {
  open(items, at, more = {}) {
    shown = { items, at, ...more };
    if (!dialog.open) {
      document.querySelector(".gradio-container .contain").append(dialog); // where all style sheets apply
      dialog.showModal();
    }
    show(at);
    part("caption").focus();
  },
  put(at, url) {
    shown.items[at].url = url;
    if (dialog.open && at === shown.at) image.src = url;
  },
  step,
  close: () => dialog.close(),
  get dialog() { return dialog; },
};
