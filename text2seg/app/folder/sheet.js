// Review of the images: buttons and keys for verdicts, checkboxes and categories of segments, and the large view. Each
// change is shown, then sent: `select` {place, …}; `enlarge` {place} asks for a large image, `edit` {place, segment}
// opens the editor, and `redraw` asks for the page again after categories were corrected.
// A key sets a mark, and `u` takes it back; a button that is pressed already takes its mark back.
// Decisions have numbers. A page names the last one that it knows (`data-decided`), and later ones are made on it again.

const KEYS = { a: { verdict: "accepted", step: 1 }, r: { verdict: "rejected", step: 1 }, u: { verdict: null, step: 0 },
  j: { step: 1 }, k: { step: -1 } };
const keyOf = (event) => (event.ctrlKey || event.metaKey || event.altKey ? undefined : KEYS[event.key]);
let draw = null; // takes the small and the large image of a place
const drawn = new Map(); // numbers of the last answers that were drawn, by place
let edited = null; // place of the image that was opened in the editor last, where the review goes on
let number = 0; // of the last decision
const decisions = []; // those that no page is known to have, oldest first
let mounted = new AbortController(); // of the component, which Gradio mounts again when its tab is shown again

window.text2segPictures = (props, watch) => {
  watch("value", () => { if (props.value) draw?.(props.value); });
};

window.text2segContactSheet = (element, send, watch) => {
  const tiles = () => [...element.querySelectorAll(".t2s-tile")];
  const tileOf = (place) => element.querySelector(`.t2s-tile[data-place="${place}"]`);
  const placeOf = (target) => Number(target.closest("[data-place]").dataset.place);
  const bodies = new Map(); // of tiles, which move to the large view and back
  let isCorrected = false;
  let isAsked = false; // for the next or the previous page
  let turning = 0; // 1 or -1 while a key or the large view waits for the next or the previous page
  let reached = null; // the tile where the keys go on, on the page that they turned to

  const jobOf = () => element.querySelector(".t2s-sheet")?.dataset.job;
  const coloursOf = () => JSON.parse(element.querySelector(".t2s-sheet").dataset.colours); // of the categories
  const bodyOf = (tile) => bodies.get(tile) ?? tile.querySelector(".t2s-tile-body");
  function report(change) {
    number += 1;
    decisions.push({ ...change, number, job: jobOf() });
    show(change);
    send.select({ ...change, number, isLarge: text2segLarge.dialog.open });
  }

  /** Show a decision on its tile, if the tile is on this page. */
  function show({ place, verdict, segment, keep, category }) {
    const tile = tileOf(place);
    if (!tile) return;
    const body = bodyOf(tile);
    if (segment === undefined) {
      tile.classList.remove("accepted", "rejected");
      if (verdict) tile.classList.add(verdict);
      if (bodies.has(tile)) showLarge(tile);
      for (const button of body.querySelectorAll("[data-verdict]")) {
        button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
      }
      return;
    }
    const box = body.querySelector(`[data-segment="${segment}"]`), entry = box?.closest(".segment");
    if (!entry) return;
    const select = entry.querySelector("[data-category]");
    box.checked = keep ?? true;
    select.value = category ?? select.dataset.before; // only an accepted segment has a corrected category
    entry.querySelector("[data-verdict-of]")?.remove();
    entry.classList.toggle("rejected", !box.checked);
    entry.querySelector("b").textContent = select.value;
    entry.querySelector(".swatch").style.borderColor = coloursOf()[select.value];
  }

  /** Show in the large view that an image is rejected. */
  const showLarge = (tile) => text2segLarge.dialog.classList.toggle("t2s-rejected", tile?.classList.contains("rejected") ?? false);

  let put = null; // takes the large image of a place
  draw = ({ place, small, large, answer }) => {
    if (answer < (drawn.get(place) ?? 0)) return; // made before the last decision
    drawn.set(place, answer);
    const image = tileOf(place)?.querySelector("img");
    if (small && image) image.src = small.url;
    if (large) put?.(place, large.url);
  };

  function focus(tile) {
    tile?.focus({ preventScroll: true });
    tile?.scrollIntoView({ block: "nearest" });
  }

  /** Go to another image, also over the end of a page. */
  function go(from, step) {
    const all = tiles(), next = all[all.indexOf(from) + step];
    if (next) focus(next);
    else if (beyond(step) > 0) turn(step);
    else say(step > 0 ? "This is the last image." : "This is the first image.");
  }

  const say = (words) => { document.querySelector("#folder-end p").textContent = words; };

  function comeBack() {
    for (const [tile, body] of bodies) {
      body.remove();
      if (!tile.querySelector(".t2s-tile-body")) tile.append(body); // the page may have been drawn again meanwhile
    }
    bodies.clear();
  }

  /** How many images there are before and after this page, with the same verdict. */
  const beyond = (step) => {
    const { first = 0, fitting = 0 } = element.querySelector(".t2s-sheet")?.dataset ?? {};
    return step > 0 ? Number(fitting) - Number(first) - tiles().length : Number(first);
  };

  function turn(step) {
    if (turning) return;
    comeBack();
    turning = step;
    document.querySelector(step > 0 ? "#folder-next" : "#folder-back").click();
  }

  /** Show an image large, with its segments beside it. */
  function open(tile) {
    const all = tiles().filter((each) => each.querySelector("img"));
    const items = all.map((each) => ({ caption: each.dataset.name, url: each.querySelector("img").src }));
    const at = new Map(all.map((each, number) => [placeOf(each), number]));
    put = (place, url) => { if (at.has(place)) text2segLarge.put(at.get(place), url); };
    text2segLarge.open(items, all.indexOf(tile), {
      before: beyond(-1),
      after: beyond(1),
      turn,
      side: (number) => {
        comeBack();
        const body = all[number].querySelector(".t2s-tile-body");
        bodies.set(all[number], body);
        for (const more of body.querySelectorAll("details")) more.open = true; // there is room for all segments
        showLarge(all[number]);
        return body;
      },
      moved: (number) => send.enlarge({ place: placeOf(all[number]) }),
      closed: (number) => {
        comeBack();
        showLarge(null);
        put = null;
        turning = 0;
        focus(all[number].isConnected ? all[number] : tiles()[0]);
        if (isCorrected) send.redraw();
        isCorrected = false;
      },
    });
  }

  function clicked(event) {
    const { verdict, edit } = event.target.closest("button")?.dataset ?? {};
    const tile = event.target.closest(".t2s-tile:has(img)"); // not in the large view, which holds the body of a tile
    if (event.detail > 1) return; // a double click counts once
    edited = null;
    say("");
    if (verdict) {
      const place = placeOf(event.target);
      report({ place, verdict: tileOf(place)?.classList.contains(verdict) ? null : verdict });
    } else if (tile && !event.target.closest("label, select, summary, button:not(.stage)")) open(tile);
    else if (edit !== undefined) {
      const place = placeOf(event.target);
      isCorrected = false;
      edited = place;
      text2segLarge.close();
      send.edit({ place, segment: Number(edit) });
    }
  }

  function changed(event) {
    const { segment, category } = event.target.dataset;
    if (!segment && !category) return;
    const entry = event.target.closest(".segment");
    const box = entry.querySelector("[data-segment]"), select = entry.querySelector("[data-category]");
    const place = placeOf(entry);
    isCorrected ||= Boolean(category) || select.value !== select.dataset.before;
    if (segment) report({ place, segment: Number(segment), keep: box.checked });
    else report({ place, segment: Number(category), category: select.value });
  }

  /** Take no presses while the page that was asked for is on its way: it shows other images in these places. */
  function settle() {
    const sheet = element.querySelector(".t2s-sheet");
    if (sheet) sheet.inert = isAsked || sheet.dataset.shown !== document.querySelector("#folder-shown input:checked")?.value;
  }

  mounted.abort(); // the dialog of the large view is there for all mounts
  mounted = new AbortController();
  const { signal } = mounted;
  document.addEventListener("input", (event) => { if (event.target.closest("#folder-shown")) settle(); }, { signal });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#folder-back, #folder-next")) return;
    isAsked = true;
    reached = null;
    say("");
    settle();
  }, { signal });
  for (const part of [element, text2segLarge.dialog]) {
    part.addEventListener("click", (event) => { if (event.target.closest("[data-place]")) clicked(event); }, { signal });
    part.addEventListener("change", (event) => { if (event.target.closest("[data-place]")) changed(event); }, { signal });
  }

  // A new page reuses the elements of the page before, so checkboxes keep their state unless it is reset.
  watch("value", () => {
    for (const box of element.querySelectorAll("[data-segment]")) box.checked = box.defaultChecked;
    for (const option of element.querySelectorAll("[data-category] option")) option.selected = option.defaultSelected;
    const { decided = 0 } = element.querySelector(".t2s-sheet")?.dataset ?? {};
    while (decisions[0]?.number <= Number(decided)) decisions.shift();
    decisions.filter(({ job }) => job === jobOf()).forEach(show);
    isAsked = false;
    settle();
    const isLarge = text2segLarge.dialog.open, all = tiles().filter((each) => !isLarge || each.querySelector("img"));
    if (turning) {
      reached = all.at(turning > 0 ? 0 : -1);
      if (!isLarge) focus(reached);
      else if (reached) open(reached);
    }
    turning = 0;
    goOn(); // the tile with the focus may be another one now
  });

  /** Show the page that was asked for from its top, unless the keys go on elsewhere on it. */
  window.text2segTurned = () => {
    if (reached) return;
    element.scrollIntoView();
    text2segFocus("#folder-sheet .t2s-tile");
  };
  window.text2segNotTurned = () => {
    isAsked = false;
    turning = 0;
    settle();
  };

  /** Go on at the image that was edited, once it is visible again and unless the visitor is somewhere else. */
  function goOn() {
    const place = edited;
    const look = () => {
      if (signal.aborted || place !== edited) return;
      const tile = tileOf(place);
      if (!tile?.checkVisibility()) { requestAnimationFrame(look); return; }
      const { activeElement: focused } = document;
      if (focused === document.body || !focused.checkVisibility()) focus(tile);
    };
    if (place !== null) look();
  }
  window.text2segGoOn = goOn;
  goOn();

  element.addEventListener("keydown", (event) => {
    const tile = event.target.closest(".t2s-tile"), key = keyOf(event);
    if (!tile || event.target.matches("select")) return;
    edited = null;
    say("");
    if (event.key === "Enter" && event.target === tile && tile.querySelector("[data-open]")) open(tile);
    if (!key) return;
    event.preventDefault();
    if ("verdict" in key) report({ place: placeOf(tile), verdict: key.verdict });
    if (key.step) go(tile, key.step);
  }, { signal });
  // The keys begin at the first image wherever the focus is, unless it is where letters are typed.
  document.addEventListener("keydown", (event) => {
    const { target } = event;
    const isTyped = target.closest("textarea, select, [contenteditable=true], dialog, input:not([type=radio], [type=checkbox])");
    if (isTyped || element.contains(target) || !keyOf(event)) return;
    if (element.querySelector(".t2s-sheet")?.checkVisibility()) focus(tiles()[0]);
  }, { signal });
  text2segLarge.dialog.addEventListener("keydown", (event) => {
    const [tile] = bodies.keys(), key = keyOf(event);
    if (!tile || !key || event.target.matches("select")) return;
    if ("verdict" in key) report({ place: placeOf(tile), verdict: key.verdict });
    if (key.step) text2segLarge.step(key.step);
  }, { signal });
};

// In the editor of Gradio, Tab would indent a line; it goes on to the next field, as everywhere else.
document.addEventListener("keydown", (event) => {
  if (event.key === "Tab" && event.target.closest("#folder-ontology .cm-content")) event.stopPropagation();
}, { capture: true });

// The editor, which is loaded later, has no name for screen readers.
new MutationObserver(() => {
  document.querySelector("#folder-ontology .cm-content:not([aria-label])")?.setAttribute("aria-label", "Ontology, YAML");
}).observe(document, { childList: true, subtree: true });
