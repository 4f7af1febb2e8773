// How much is shown and how strict the search is. The first two work in the browser alone, the others ask again.
// Property `shown` {threshold, presence}; fires `paint` {opacity, most} and `look` {threshold, presence}.

const ALL = 21; // the slider's end: no limit

const SLIDERS = [
  // name, label, what it does, least, most, step, begins at
  ["opacity", "Opacity", "How much the colours cover", 0, 1, 0.05, 0.45],
  ["most", "At most", "So many segments of a kind, the best", 1, ALL, 1, ALL],
  ["threshold", "Threshold", "How close to the map's peak points have to lie", 0.05, 1, 0.05, 0.8],
  ["presence", "Presence", "How sure it has to be that a thing is there", 0, 1, 0.05, 0.5],
];

const PATIENCE = 150; // milliseconds without a move before it is looked again

customElements.define("t2s-sliders", class extends HTMLElement {
  connectedCallback() {
    this.innerHTML = SLIDERS.map(([name, label, title, min, max, step, value]) => `
      <label title="${title}"><span>${label}</span>
        <input type="range" name="${name}" min="${min}" max="${max}" step="${step}" value="${value}">
        <output></output></label>`).join("");
    this.addEventListener("input", (event) => this.#moved(event.target.name));
    this.#tell();
  }

  set shown({ threshold, presence }) {
    if (this.#waiting) return; // the hand on the slider is ahead of the answer
    this.#input("threshold").value = threshold;
    this.#input("presence").value = presence;
    this.#tell();
  }

  get opacity() { return Number(this.#input("opacity").value); }

  get most() { return this.#input("most").valueAsNumber === ALL ? Infinity : this.#input("most").valueAsNumber; }

  #waiting = 0;

  #moved(name) {
    this.#tell();
    if (name === "opacity" || name === "most") this.dispatchEvent(new CustomEvent("paint"));
    else {
      clearTimeout(this.#waiting);
      this.#waiting = setTimeout(() => {
        this.#waiting = 0;
        this.dispatchEvent(new CustomEvent("look", { detail: { [name]: this.#input(name).valueAsNumber } }));
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
