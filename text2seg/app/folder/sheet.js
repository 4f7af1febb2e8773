// The contact sheet: buttons and keys for verdicts, boxes for segments. What changes shows at once and is then reported.
window.text2segContactSheet = (element, trigger, watch) => {
  const tiles = () => [...element.querySelectorAll(".t2s-tile")];
  const report = (tile, change) => trigger("select", { place: Number(tile.dataset.place), ...change });

  function decide(tile, verdict) {
    const taken = tile.classList.contains(verdict) ? null : verdict;
    tile.classList.remove("accepted", "rejected");
    if (taken) tile.classList.add(taken);
    for (const button of tile.querySelectorAll("[data-verdict]")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === taken));
    }
    report(tile, { verdict: taken });
  }

  function go(from, step) {
    const all = tiles();
    const at = from ? all.indexOf(from) + step : 0;
    const next = all[Math.min(Math.max(at, 0), all.length - 1)];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-verdict]");
    if (button) decide(button.closest(".t2s-tile"), button.dataset.verdict);
  });

  element.addEventListener("change", (event) => {
    const box = event.target.closest("[data-segment]");
    if (!box) return;
    box.closest(".segment").classList.toggle("dropped", !box.checked);
    report(box.closest(".t2s-tile"), { segment: Number(box.dataset.segment), keep: box.checked });
  });

  // Another page is written into the elements of the one before; boxes that were pressed keep their state unless told.
  watch("value", () => {
    for (const box of element.querySelectorAll("[data-segment]")) box.checked = box.defaultChecked;
  });

  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const tile = event.target.closest(".t2s-tile");
    const verdict = { a: "accepted", r: "rejected" }[event.key];
    const step = { j: 1, k: -1 }[event.key];
    if (verdict && tile) decide(tile, verdict);
    if (verdict || step) {
      event.preventDefault();
      go(tile, step ?? 1);
    }
  });
};

// The editor comes without a name that a screen reader could say.
document.addEventListener("focusin", ({ target }) => {
  if (target.closest?.("#folder-ontology .cm-content")) target.setAttribute("aria-label", "Ontology, YAML");
});
