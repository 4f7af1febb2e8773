// Sliders. The first two work in the browser; the others start a new search.
// Property `shown` {threshold, presence}; fires `paint` {opacity, most} and `find` {threshold, presence}.

const ALL = 21; // end of the slider: no limit

const SLIDERS = [
  // name, label, what it does, title, min, max, step, start value
  ["opacity", "Opacity", "of the colours over the image", "", 0, 1, 0.05, 0.45],
  ["most", "At most", "segments for each word, the best first", "", 1, ALL, 1, ALL],
  ["threshold", "Threshold", "for points: lower ones cover more of a thing",
    "Smallest value of the similarity map for a positive point, relative to its peak", 0.05, 1, 0.05, 0.8],
  ["presence", "Presence", "how sure the model must be: lower finds more, also what is not there",
    "Smallest presence score, from 0 to 1", 0, 1, 0.05, 0.5],
];

const PATIENCE = 150; // milliseconds without a move before a new search

customElements.define("t2s-sliders", class extends HTMLElement {
  connectedCallback() {
    this.innerHTML = SLIDERS.map(([name, label, hint, title, min, max, step, value]) => `
      <label title="${title}"><span>${label}</span>
        <input type="range" name="${name}" min="${min}" max="${max}" step="${step}" value="${value}"
          aria-label="${label}" aria-describedby="t2s-${name}-hint">
        <output></output><small id="t2s-${name}-hint">${hint}</small></label>`).join("");
    this.addEventListener("input", (event) => this.#moved(event.target.name));
    this.#tell();
  }

  set shown({ threshold, presence }) {
    if (this.#waiting) return; // the slider has moved since the request
    this.#input("threshold").value = threshold;
    this.#input("presence").value = presence;
    this.#tell();
  }

  /** Set the sliders that work in the browser; a missing value keeps its slider. */
  set local({ opacity, most }) {
    if (opacity !== undefined) this.#input("opacity").value = opacity;
    if (most !== undefined) this.#input("most").value = most ?? ALL;
    this.#tell();
  }

  get opacity() { return Number(this.#input("opacity").value); }

  get most() { return this.#input("most").valueAsNumber === ALL ? Infinity : this.#input("most").valueAsNumber; }

  #waiting = 0;
  #asked = {}; // values of the sliders that have moved since the last search

  #moved(name) {
    this.#tell();
    if (name === "opacity" || name === "most") this.dispatchEvent(new CustomEvent("paint"));
    else {
      this.#asked[name] = this.#input(name).valueAsNumber;
      clearTimeout(this.#waiting);
      this.#waiting = setTimeout(() => {
        const detail = this.#asked;
        this.#waiting = 0;
        this.#asked = {};
        this.dispatchEvent(new CustomEvent("find", { detail }));
      }, PATIENCE);
    }
  }

  #tell() {
    for (const input of this.querySelectorAll("input")) {
      const { name, valueAsNumber: value } = input;
      const text = name === "most" ? (value === ALL ? "all" : String(value)) : value.toFixed(2);
      input.nextElementSibling.textContent = text;
      input.setAttribute("aria-valuetext", text);
    }
  }

  #input(name) { return this.querySelector(`[name=${name}]`); }
});
