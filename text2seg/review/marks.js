// Marks: verdicts on images and annotations, and categories, kept in the browser until they are downloaded as a file (docs/review.md).
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  const about = JSON.parse(at("about").textContent);
  const key = `text2seg-marks-${about.sha256}${about.begun ? `-${about.begun}` : ""}`; // each start has its own
  const rows = new Map(); // of each annotation on the page, by its id
  for (const node of document.querySelectorAll("[data-annotation]")) {
    const select = node.querySelector("select");
    const image = node.closest(".card").dataset.name;
    rows.set(Number(node.dataset.annotation), { node, select, image, category: select.value });
  }
  const cards = new Map([...document.querySelectorAll(".card")].map((card) => [card.dataset.name, card]));
  const images = new Map(); // verdicts by file name
  const marks = new Map(); // as in the file, by the id of the annotation
  let others = []; // marks of a file that belong to images or annotations that are not on this page
  let isChanged = false; // since the page was opened
  let inFile = "[]"; // the marks, as JSON, when they were last downloaded or opened

  function press(node, verdict) {
    for (const button of node.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
    }
  }

  function draw(id) {
    const { node, select, category } = rows.get(id), mark = marks.get(id);
    press(node, mark?.verdict);
    node.closest("li").classList.toggle("rejected", mark?.verdict === "rejected");
    if (mark?.category) fill(select);
    select.value = mark?.category ?? category;
  }

  function tally() {
    const here = `${marks.size} of ${rows.size} annotation${rows.size === 1 ? "" : "s"} marked`;
    const whole = images.size ? `, ${images.size} image${images.size === 1 ? "" : "s"}` : "";
    at("marked").textContent = here + whole + (others.length ? `, and ${others.length} not on this page` : "");
    at("save").disabled = all() === "[]";
  }

  function all() {
    const whole = [...images].sort().map(([image, verdict]) => ({ image, verdict }));
    return JSON.stringify([...whole, ...[...marks.values()].sort((a, b) => a.annotation - b.annotation), ...others]);
  }

  function keep(name, text) {
    try { localStorage.setItem(name, text); } catch { /* some viewers of local files forbid it */ }
  }

  function changed() {
    isChanged = true;
    tally();
    keep(key, all());
  }

  function areInFile() {
    inFile = all();
    keep(`${key}-in-file`, inFile);
  }

  /** Set the verdict of an annotation; null removes its mark. */
  function set(id, verdict, category) {
    const row = rows.get(id);
    if (!verdict) marks.delete(id);
    else {
      const isCorrected = verdict === "accepted" && category && category !== row.category;
      marks.set(id, { image: row.image, annotation: id, verdict, ...(isCorrected ? { category } : {}) });
    }
    draw(id);
  }

  /** Set the verdict on a whole image; null removes it. */
  function setImage(name, verdict) {
    images.delete(name);
    if (verdict) images.set(name, verdict);
    const card = cards.get(name);
    card.classList.toggle("rejected", verdict === "rejected");
    press(card.querySelector("[data-image]"), verdict);
  }

  /** Offer all categories. A page has many fields, so each is filled when it is first used. */
  function fill(select) {
    if (select.options.length > 1) return;
    const names = about.categories.filter((name) => name !== select.value);
    select.append(...names.map((name) => new Option(name)));
  }

  function take(entries) {
    others = [];
    for (const id of [...marks.keys()]) set(id, null);
    for (const name of [...images.keys()]) setImage(name, null);
    for (const mark of entries) {
      if (mark.annotation == null && cards.has(mark.image)) setImage(mark.image, mark.verdict);
      else if (rows.get(mark.annotation)?.image === mark.image) set(mark.annotation, mark.verdict, mark.category);
      else others.push(mark);
    }
    tally();
  }

  const sheet = at("sheet");
  sheet.addEventListener("click", ({ target }) => {
    const verdict = target.dataset.verdict;
    if (!verdict) return;
    if (target.closest("[data-image]")) {
      const { name } = target.closest(".card").dataset;
      setImage(name, images.get(name) === verdict ? null : verdict);
    } else {
      const id = Number(target.closest("[data-annotation]").dataset.annotation), mark = marks.get(id);
      set(id, mark?.verdict === verdict ? null : verdict, mark?.category);
    }
    changed();
  });
  for (const event of ["focusin", "pointerdown"]) {
    sheet.addEventListener(event, ({ target }) => { if (target.matches("[data-annotation] select")) fill(target); });
  }
  sheet.addEventListener("change", ({ target }) => {
    const node = target.closest("[data-annotation]");
    if (!node) return;
    set(Number(node.dataset.annotation), "accepted", target.value);
    changed();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select") || at("large").open) return;
    const verdict = { a: "accepted", r: "rejected", u: null }[event.key]; // a key sets marks, and `u` takes them back
    const nodes = verdict === undefined ? [] : [...document.querySelectorAll(".card.current [data-annotation]")];
    if (!nodes.length) return;
    for (const id of nodes.map((node) => Number(node.dataset.annotation))) set(id, verdict, marks.get(id)?.category);
    changed();
  });

  at("save").addEventListener("click", () => {
    const dataset = { name: about.file, sha256: about.sha256 };
    const content = JSON.stringify({ text2seg_marks: 1, dataset, marks: JSON.parse(all()) }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = `${about.name.replace(/\.[^.]*$/, "")}-marks.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    areInFile();
  });
  at("load").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", async () => {
    const [file] = at("file").files;
    if (!file) return;
    let content = null;
    try { content = JSON.parse(await file.text()); } catch { /* said below */ }
    at("file").value = "";
    const isMarks = content?.text2seg_marks === 1 && Array.isArray(content.marks);
    at("problem").textContent = !isMarks ? `${file.name} is not a file of marks.`
      : content.dataset?.sha256 !== about.sha256 ? `${file.name} has marks of another dataset, ${content.dataset?.name}.` : "";
    if (at("problem").textContent) return;
    const isLost = all() !== "[]" && all() !== inFile;
    if (isLost && !confirm(`Your marks are not downloaded. Replace them with those of ${file.name}?`)) return;
    take(content.marks);
    changed();
    areInFile();
  });
  window.addEventListener("beforeunload", (event) => { if (isChanged && all() !== inFile) event.preventDefault(); });

  take(about.marks);
  inFile = all();
  try {
    const kept = JSON.parse(localStorage.getItem(key));
    if (kept) take(kept);
    inFile = localStorage.getItem(`${key}-in-file`) ?? inFile;
  } catch { /* some viewers of local files forbid it */ }
})();
