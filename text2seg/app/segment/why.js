// Why a segment has its mask: the similarity map with the points, and SAM's candidates, each of which can be taken. For a
// query without a segment: its map, and why it was not found.
// Property `explanation` {number, query, colour, reason, points, candidates, file, image}, null closes it; fires `close`
// and `take` {number, candidate}.

const two = (number) => number.toFixed(2);

function table(caption, points) {
  const rows = points.map(({ x, y, map, own }) => `<tr>${[Math.round(x), Math.round(y), two(map), own ? "you" : "model"].map(
    (cell) => `<td>${cell}</td>`).join("")}</tr>`).join("");
  return points.length ? `<table><caption>${caption}</caption><thead><tr><th scope="col">x</th><th scope="col">y</th>
    <th scope="col">map</th><th scope="col">set by</th></tr></thead><tbody>${rows}</tbody></table>` : "";
}

function panel({ image, url, content, caption, isChosen = false, more = "" }) {
  return `<figure class="t2s-panel${isChosen ? " t2s-chosen" : ""}">
    <svg viewBox="0 0 ${image.width} ${image.height}" role="img" aria-label="${caption.replace(/<[^>]+>/g, "")}">
      <image href="${url}" width="${image.width}" height="${image.height}" preserveAspectRatio="none"/>${content}</svg>
    <figcaption>${caption}${more}</figcaption></figure>`;
}

customElements.define("t2s-why", class extends HTMLElement {
  #number = 0;
  #query = "";

  connectedCallback() {
    this.setAttribute("role", "region");
    this.addEventListener("click", (event) => {
      const { do: what, candidate } = event.target.closest("button")?.dataset ?? {};
      if (what === "close") this.dispatchEvent(new CustomEvent("close"));
      else if (candidate) {
        const detail = { number: this.#number, candidate: Number(candidate) };
        this.dispatchEvent(new CustomEvent("take", { detail }));
      }
    });
  }

  /** What was explained last: a segment, or a query, whose number is 0. */
  get about() { return { number: this.#number, query: this.#query }; }

  set explanation(explanation) {
    this.hidden = !explanation;
    if (!explanation) return;
    const { number, image, file, colour, points, candidates, isFlat, isNamed } = explanation;
    const heading = number ? "Why this mask" : "Why not found";
    const positive = points.filter((each) => each.positive);
    const negative = points.filter((each) => !each.positive);
    const count = points.length ? `, ${positive.length} positive and ${negative.length} negative points` : "";
    const arePointsOpen = number === this.#number && Boolean(this.querySelector("details")?.open);
    this.#number = number;
    this.#query = explanation.query;
    this.setAttribute("aria-label", heading);
    this.innerHTML = `
      <header><h3 tabindex="-1">${heading}: <span data-part="query"></span></h3>
        <button type="button" data-do="close" aria-label="Close">×</button></header>
      <p data-part="reason"></p>
      <div class="t2s-panels">
        ${panel({ image, url: file.url, content: '<g data-part="marks"></g>',
          caption: `${isNamed ? "The image" : "Similarity map"}${count}` })}
        ${candidates.map((each, place) => panel({ image, url: image.file.url, isChosen: each.chosen,
          content: `<path d="${each.path}" fill="${colour}" fill-rule="evenodd" fill-opacity="0.55" stroke="${colour}"
            stroke-width="2" vector-effect="non-scaling-stroke"/>`,
          caption: `<b>Candidate ${place + 1}${each.chosen ? " (chosen)" : ""}</b>
            SAM ${two(each.sam)}${isNamed ? "" : `, map ${two(each.map)}`}`,
          more: each.chosen || !each.path ? "" : `<button type="button" data-candidate="${place}"
            aria-label="Take this one, candidate ${place + 1}">Take this one</button>` }))
          .join("")}
      </div>
      <p class="t2s-hint">${isNamed ? "" : isFlat ? "The map is flat: no place is more like the word than another."
        : "Bright places of the map are most like the word, dark ones least."}
        ${points.length ? "Full dots are positive points, hollow ones negative; yours have a ring." : ""}</p>
      ${points.length ? `<details${arePointsOpen ? " open" : ""}><summary>Points</summary>
        <div class="t2s-tables">${table("Positive", positive)}${table("Negative", negative)}</div></details>` : ""}`;
    this.querySelector("[data-part=query]").textContent = explanation.query;
    this.querySelector("[data-part=reason]").textContent = explanation.reason;
    this.querySelector("[data-part=marks]").append(...customElements.get("t2s-stage").marks(points));
    this.querySelector("h3").focus({ preventScroll: true });
    this.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
});
