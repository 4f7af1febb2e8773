// Why a segment is as it is: the picture, and its numbers as tables. Property `told`, none closes it; fires `close`.

const two = (number) => number.toFixed(2);

function table(caption, heads, rows) {
  const body = rows.map(({ cells, marked }) =>
    `<tr${marked ? ' class="t2s-won"' : ""}>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`).join("");
  return `<table><caption>${caption}</caption>
    <thead><tr>${heads.map((head) => `<th scope="col">${head}</th>`).join("")}</tr></thead><tbody>${body}</tbody></table>`;
}

function points(caption, all) {
  const rows = all.map((each) => ({ cells: [Math.round(each.x), Math.round(each.y), two(each.map)] }));
  return rows.length ? table(caption, ["x", "y", "map"], rows) : "";
}

customElements.define("t2s-why", class extends HTMLElement {
  connectedCallback() {
    this.setAttribute("role", "region");
    this.setAttribute("aria-label", "Why this mask");
    this.addEventListener("click", (event) => {
      if (event.target.closest("[data-do=close]")) this.dispatchEvent(new CustomEvent("close"));
    });
  }

  set told(told) {
    this.hidden = !told;
    if (!told) return;
    this.innerHTML = `
      <header><h3 tabindex="-1">Why this mask: <span data-part="query"></span></h3>
        <button type="button" data-do="close" aria-label="Close">×</button></header>
      <p data-part="reason"></p>
      <div class="t2s-strip" tabindex="0" aria-label="Map, candidates and mask"><img alt="The map with its points,
        SAM's candidates, and the mask that was chosen"></div>
      <div class="t2s-tables">
        ${table("Candidates of SAM", ["", "SAM's score", "agrees with the map", ""], told.candidates.map((each, place) => ({
          cells: [place + 1, two(each.sam), two(each.map), each.won ? "taken" : ""], marked: each.won })))}
        ${points("Points on it", told.points.filter((each) => each.positive))}
        ${points("Points off it", told.points.filter((each) => !each.positive))}
      </div>`;
    this.querySelector("[data-part=query]").textContent = told.query;
    this.querySelector("[data-part=reason]").textContent = told.reason;
    this.querySelector("img").src = told.file.url;
    this.querySelector("h3").focus({ preventScroll: true });
    this.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
});
