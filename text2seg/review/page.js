(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  const sheet = at("sheet"), controls = ["category", "reason", "least", "name", "order"].map(at);
  const [category, reason, least, name, order] = controls;
  const tiles = [...sheet.children].map((node) => ({
    node, name: node.dataset.name, place: Number(node.dataset.order), items: JSON.parse(node.dataset.items), value: -1,
  }));
  const defaults = controls.map((control) => control.value);
  let shown = tiles, current = null;

  // What of an image counts: its annotations, or what was nearly found where there is none or one asks for it.
  function chosen(tile) {
    const found = tile.items.some((item) => item[2] !== "missed");
    return tile.items.filter((item) =>
      (!category.value || item[0] === category.value) &&
      (reason.value ? item[2] === reason.value : item[2] !== "missed" || !found));
  }

  function apply() {
    const limit = Number(least.value), wanted = name.value.trim().toLowerCase();
    at("leastvalue").textContent = limit.toFixed(2);
    for (const tile of tiles) {
      const items = chosen(tile), any = !category.value && !reason.value;
      tile.value = items.length ? Math.max(...items.map((item) => item[1])) : any ? 0 : null;
      tile.node.hidden = tile.value === null || (limit > 0 && tile.value < limit) ||
        !tile.name.toLowerCase().includes(wanted);
    }
    const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
    const by = {
      most: (a, b) => b.value - a.value || a.place - b.place,
      fewest: (a, b) => a.value - b.value || a.place - b.place,
      name: byName,
    }[order.value];
    tiles.sort(by);
    sheet.append(...tiles.map((tile) => tile.node));
    shown = tiles.filter((tile) => !tile.node.hidden);
    at("count").textContent = shown.length === tiles.length ? `${tiles.length} image${tiles.length === 1 ? "" : "s"}`
      : `${shown.length} of ${tiles.length} images`;
    at("nothing").hidden = shown.length > 0;
    if (current && current.node.hidden) mark(null);
  }

  function mark(tile) {
    if (current) current.node.classList.remove("current");
    current = tile;
    if (!tile) return;
    tile.node.classList.add("current");
    tile.node.focus({ preventScroll: true });
    tile.node.scrollIntoView({ block: "nearest" });
  }

  // The filters stand in the address, so that a view can be kept or passed on.
  function remember() {
    const state = new URLSearchParams();
    controls.forEach((control, n) => { if (control.value !== defaults[n]) state.set(control.id, control.value); });
    try { history.replaceState(null, "", `#${state}`); } catch { /* some viewers of local files forbid it */ }
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    controls.forEach((control, n) => { control.value = state.get(control.id) ?? defaults[n]; });
    for (const select of [category, reason, order]) if (select.selectedIndex < 0) select.selectedIndex = 0;
    apply();
  }

  const changed = () => { apply(); remember(); };
  controls.forEach((control) => control.addEventListener("input", changed));
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("reset").addEventListener("click", () => { controls.forEach((c, n) => { c.value = defaults[n]; }); changed(); });
  window.addEventListener("hashchange", recall);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
    const step = { j: 1, k: -1 }[event.key];
    if (!step || !shown.length) return;
    event.preventDefault();
    const from = shown.indexOf(current);
    mark(shown[from < 0 ? 0 : Math.min(Math.max(from + step, 0), shown.length - 1)]);
  });
  recall();
})();
