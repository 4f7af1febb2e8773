(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  const sheet = at("sheet"), order = at("order");
  // Controls of FILTERS in page.py, in their order; value `n + 2` of an entry belongs to the n-th of them.
  const filters = [...document.querySelectorAll("#filters [data-kind]")];
  const controls = [...filters, order];
  const defaults = controls.map((control) => control.value);
  const cards = [...sheet.children].map((node) => ({
    node, name: node.dataset.name, place: Number(node.dataset.order), entries: JSON.parse(node.dataset.entries), value: -1,
  }));
  const NEARLY_FOUND = "nearly found";
  let shown = cards, current = null;

  const passes = {
    choice: (control, value) => value === control.value,
    minimum: (control, value) => value >= Number(control.value),
    text: (control, _, card) => card.name.toLowerCase().includes(control.value.trim().toLowerCase()),
  };
  const isActive = (control, n) => control.value.trim() !== defaults[n];

  // Nearly found categories count if nothing was found, or if they are asked for.
  function counted(card) {
    const asked = filters.some((control) => control.value === NEARLY_FOUND);
    const found = card.entries.some((entry) => !entry[1]);
    return card.entries.filter((entry) => !entry[1] || asked || !found);
  }

  function apply() {
    for (const control of filters) {
      if (control.dataset.kind === "minimum") control.nextElementSibling.textContent = Number(control.value).toFixed(2);
    }
    for (const card of cards) {
      // An image without entries is certain: uncertainty 0, and no category or reason.
      const entries = counted(card), candidates = entries.length ? entries : [[0, 0, ...filters.map((control) =>
        control.dataset.kind === "minimum" ? 0 : "")]];
      const kept = candidates.filter((entry) => filters.every((control, n) =>
        !isActive(control, n) || passes[control.dataset.kind](control, entry[n + 2], card)));
      card.node.hidden = !kept.length;
      card.value = Math.max(...(kept.length ? kept : candidates).map((entry) => entry[0]));
    }
    const compare = {
      most: (a, b) => b.value - a.value || a.place - b.place,
      least: (a, b) => a.value - b.value || a.place - b.place,
      name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
    }[order.value];
    cards.sort(compare);
    sheet.append(...cards.map((card) => card.node));
    shown = cards.filter((card) => !card.node.hidden);
    at("count").textContent = shown.length === cards.length ? `${cards.length} image${cards.length === 1 ? "" : "s"}`
      : `${shown.length} of ${cards.length} images`;
    at("nothing").hidden = shown.length > 0;
    if (current && current.node.hidden) mark(null);
  }

  function mark(card) {
    if (current) current.node.classList.remove("current");
    current = card;
    if (!card) return;
    card.node.classList.add("current");
    card.node.focus({ preventScroll: true });
    card.node.scrollIntoView({ block: "nearest" });
  }

  // The address holds the filters, so that a view can be bookmarked or shared.
  function remember() {
    const state = new URLSearchParams();
    controls.forEach((control, n) => { if (control.value !== defaults[n]) state.set(control.id, control.value); });
    try { history.replaceState(null, "", `#${state}`); } catch { /* some viewers of local files forbid it */ }
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    controls.forEach((control, n) => {
      control.value = state.get(control.id) ?? defaults[n];
      if (control.selectedIndex < 0) control.selectedIndex = 0;
    });
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
    if (event.key === "Enter" && event.target.matches(".card")) open(event.target);
    if (!step || !shown.length || large.open) return;
    event.preventDefault();
    const from = shown.indexOf(current);
    mark(shown[from < 0 ? 0 : Math.min(Math.max(from + step, 0), shown.length - 1)]);
  });
  // The large view: the image of a card in the whole window, with zoom; scrolling moves a zoomed image.
  const large = at("large"), box = at("large-image");
  let zoom = 1;

  function setZoom(to) {
    zoom = Math.min(Math.max(to, 1), 8);
    box.style.setProperty("--zoom", zoom);
    at("zoom").textContent = `${Math.round(100 * zoom)} %`;
  }

  function open(node) {
    const image = node.querySelector("img");
    if (!image) return;
    const copy = new Image();
    Object.assign(copy, { src: image.src, alt: image.alt });
    box.replaceChildren(copy);
    at("large-name").textContent = node.dataset.name;
    setZoom(1);
    large.showModal();
    at("large-name").focus();
  }

  sheet.addEventListener("click", (event) => {
    if (event.target.closest(".open")) open(event.target.closest(".card"));
  });
  large.addEventListener("click", (event) => {
    const action = event.target.closest("[data-do]")?.dataset.do;
    if (action === "close") large.close();
    else if (action) setZoom(action === "in" ? zoom * 1.5 : zoom / 1.5);
  });
  large.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") setZoom(zoom * 1.5);
    if (event.key === "-") setZoom(zoom / 1.5);
  });
  recall();
})();
