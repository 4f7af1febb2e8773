// Marks: verdicts and categories of annotations, kept in the browser until they are downloaded as a file (docs/review.md).
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  const about = JSON.parse(at("about").textContent);
  const key = `text2seg-marks-${about.sha256}`;
  const rows = new Map(); // of each annotation on the page, by its id
  for (const node of document.querySelectorAll("[data-annotation]")) {
    const select = node.querySelector("select");
    const image = node.closest(".card").dataset.name;
    rows.set(Number(node.dataset.annotation), { node, select, image, category: select.value });
  }
  const marks = new Map(); // as in the file, by the id of the annotation
  let others = []; // marks of a file that belong to images or annotations that are not on this page
  let isSaved = true;
  let inFile = ""; // the marks, as JSON, when they were last downloaded or opened

  function draw(id) {
    const { node, select, category } = rows.get(id), mark = marks.get(id);
    for (const button of node.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === mark?.verdict));
    }
    node.closest("li").classList.toggle("rejected", mark?.verdict === "rejected");
    if (mark?.category) fill(select);
    select.value = mark?.category ?? category;
  }

  function tally() {
    const here = `${marks.size} of ${rows.size} annotation${rows.size === 1 ? "" : "s"} marked`;
    at("marked").textContent = here + (others.length ? `, and ${others.length} not on this page` : "");
    at("save").disabled = !marks.size && !others.length;
  }

  function all() {
    return JSON.stringify([...[...marks.values()].sort((a, b) => a.annotation - b.annotation), ...others]);
  }

  function keep(name, text) {
    try { localStorage.setItem(name, text); } catch { /* some viewers of local files forbid it */ }
  }

  function changed() {
    isSaved = false;
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

  /** Offer all categories. A page has many fields, so each is filled when it is first used. */
  function fill(select) {
    if (select.options.length > 1) return;
    const names = about.categories.filter((name) => name !== select.value);
    select.append(...names.map((name) => new Option(name)));
  }

  function take(entries) {
    others = [];
    for (const id of [...marks.keys()]) set(id, null);
    for (const mark of entries) {
      if (rows.get(mark.annotation)?.image === mark.image) set(mark.annotation, mark.verdict, mark.category);
      else others.push(mark);
    }
    tally();
  }

  const sheet = at("sheet");
  sheet.addEventListener("click", ({ target }) => {
    const verdict = target.dataset.verdict, id = Number(target.closest("[data-annotation]")?.dataset.annotation);
    if (!verdict) return;
    const mark = marks.get(id);
    set(id, mark?.verdict === verdict ? null : verdict, mark?.category);
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
    const verdict = { a: "accepted", r: "rejected" }[event.key];
    const nodes = verdict ? [...document.querySelectorAll(".card.current [data-annotation]")] : [];
    if (!nodes.length) return;
    const ids = nodes.map((node) => Number(node.dataset.annotation));
    const taken = ids.every((id) => marks.get(id)?.verdict === verdict) ? null : verdict;
    for (const id of ids) set(id, taken, marks.get(id)?.category);
    changed();
  });

  at("save").addEventListener("click", () => {
    const dataset = { name: about.name, sha256: about.sha256 };
    const content = JSON.stringify({ text2seg_marks: 1, dataset, marks: JSON.parse(all()) }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = `${about.name.replace(/\.[^.]*$/, "")}-marks.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    isSaved = true;
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
    const isLost = (marks.size || others.length) && all() !== inFile;
    if (isLost && !confirm(`Your marks are not downloaded. Replace them with those of ${file.name}?`)) return;
    take(content.marks);
    changed();
    areInFile();
  });
  window.addEventListener("beforeunload", (event) => { if (!isSaved) event.preventDefault(); });

  let kept = [];
  try {
    kept = JSON.parse(localStorage.getItem(key)) ?? [];
    inFile = localStorage.getItem(`${key}-in-file`) ?? "";
  } catch { /* some viewers of local files forbid it */ }
  take(kept);
})();
