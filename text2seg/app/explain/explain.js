// The list of explanation tools: a select field with the tools by group, and the summary of the chosen one.

const isRunning = () => document.querySelector("#explain-stop:enabled") !== null;
window.text2segRuns = isRunning;

addEventListener("beforeunload", (event) => {
  if (isRunning()) event.preventDefault(); // the browser asks
});

// The image of the Segment tab is offered again once that tab has it again.
document.addEventListener("text2seg-resumed", () => document.querySelector("#explain-offer")?.click());

/** The update of a button that makes it active or inactive. */
window.text2segCan = (interactive) => ({ __type__: "update", interactive });

// The tool that was chosen, also before a reload; it counts from then on, whatever Gradio still mounts or loads.
let chosen = text2segKept("t2s-tool");
window.text2segTool = (name) => chosen ?? name;

/** The values of all forms with one more: a field that is as the form first showed it has none. */
window.text2segNoted = (typed, tool, field, value, usual) => {
  const all = text2segTyped(typed); // Gradio may not hold yet what there was before a reload
  const { [field]: before, ...others } = all[tool] ?? {};
  const isUsual = JSON.stringify(value) === JSON.stringify(usual);
  const noted = { ...all, [tool]: isUsual ? others : { ...others, [field]: value } };
  text2segKeep("t2s-typed", noted);
  return noted;
};

/** The values of all forms before a reload. */
window.text2segTyped = (typed) => text2segKept("t2s-typed", typed);

const chosenTool = () => document.querySelector("#explain-tool select").value;
const isFormThere = () => document.querySelector(`#fields-of-${chosenTool()}`) !== null;

// Run waits for the form of the chosen tool, which Gradio puts in place meanwhile: it runs with values that can be seen.
document.addEventListener("click", (event) => {
  const run = event.target.closest?.("#explain-run");
  if (!run || isFormThere()) return;
  event.preventDefault();
  event.stopPropagation();
  const press = () => { if (isFormThere()) run.click(); else setTimeout(press, 50); };
  press();
}, true);

// The form of the tool before takes no more values: that of the chosen one, or the same one again, will replace it.
for (const kind of ["beforeinput", "pointerdown", "click"]) {
  document.addEventListener(kind, (event) => {
    const form = event.target.closest?.("[id^=fields-of-]");
    if (!form || form.id === `fields-of-${text2segTool(form.id.slice("fields-of-".length))}`) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
}

customElements.define("t2s-tool-list", class extends HTMLElement {
  connect({ props, trigger, watch }) {
    this.innerHTML = `<label><span>Tool</span><select></select></label><p class="t2s-note"></p>`;
    const select = this.querySelector("select");
    const tools = props.groups.flatMap((each) => each.tools);
    select.append(...props.groups.map(({ group, tools: listed }) => {
      const options = Object.assign(document.createElement("optgroup"), { label: group });
      options.append(...listed.map(({ name, title }) => new Option(title, name)));
      return options;
    }));
    const show = () => {
      if (props.value !== text2segTool(props.value)) props.value = chosen; // Gradio has put the first one in place again
      select.value = props.value;
      this.querySelector("p").textContent = tools.find((each) => each.name === props.value)?.summary ?? "";
    };
    if (!tools.some(({ name }) => name === chosen)) chosen = null;
    const isBefore = chosen !== null && props.value !== chosen; // as after a reload
    const take = (name) => {
      this.querySelector("[data-ask]")?.remove();
      chosen = name;
      text2segKeep("t2s-tool", chosen);
      props.value = chosen;
      show();
      trigger("input");
    };
    select.addEventListener("change", () => {
      const name = select.value;
      if (!isRunning()) return take(name);
      select.value = props.value;
      this.#ask(() => take(name), () => select.focus());
    });
    watch("value", show);
    show();
    if (isBefore) take(chosen);
  }

  /** Ask before another tool stops the run. */
  #ask(leave, stay) {
    this.querySelector("[data-ask]")?.remove();
    const ask = Object.assign(document.createElement("div"), { className: "t2s" });
    ask.dataset.ask = "";
    ask.innerHTML = `<p class="t2s-alert t2s-plain" role="alert">Choosing another tool stops this run. Stop it? </p>`;
    const button = (text, act) => {
      const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      made.addEventListener("click", () => {
        ask.remove();
        act();
      });
      return made;
    };
    ask.firstChild.append(button("Stop it", leave), " ", button("Go on", stay));
    this.append(ask);
    ask.querySelector("button:last-child").focus();
    const ended = new MutationObserver(() => {
      if (isRunning()) return;
      ended.disconnect();
      const isAnswering = ask.contains(document.activeElement);
      ask.remove();
      if (isAnswering) stay();
    });
    ended.observe(document.querySelector("#explain-stop"), { attributes: true, attributeFilter: ["disabled"] });
  }
});

// The panels of a result. A panel opens in the large view.
// Value: {columns, panels: [{file, caption, width, height}]}, or null; a panel without a file keeps its place free.

const WIDE = 2.5; // a panel that is as much wider than high, such as a line of words, takes more room

customElements.define("t2s-panels", class extends HTMLElement {
  connect({ props, watch }) {
    this.addEventListener("click", (event) => {
      const button = event.target.closest("[data-panel]");
      if (button) this.#open(Number(button.dataset.panel));
    });
    watch("value", () => this.#show(props.value));
    this.#show(props.value);
  }

  #show(value) {
    this.panels = (value?.panels ?? []).map((panel) => ({ ...panel, url: panel.file?.url }));
    this.hidden = !this.panels.length;
    this.style.setProperty("--t2s-columns", value?.columns ?? 1);
    this.replaceChildren(...this.panels.map(({ url, caption, width, height }, at) => {
      const figure = document.createElement("figure");
      if (!url) return figure;
      figure.classList.toggle("t2s-wide", width > WIDE * height);
      const button = Object.assign(document.createElement("button"), { type: "button", title: "Show large" });
      button.dataset.panel = at;
      button.append(Object.assign(new Image(), { src: url, alt: caption, width, height, decoding: "async" }));
      figure.append(button, Object.assign(document.createElement("figcaption"), { textContent: caption }));
      return figure;
    }));
  }

  #open(at) {
    const drawn = this.panels.filter((panel) => panel.url);
    text2segLarge.open(drawn, drawn.indexOf(this.panels[at]), {
      closed: (last) => this.querySelector(`[data-panel="${this.panels.indexOf(drawn[last])}"]`)?.focus(),
    });
  }
});

// The tables and notes of a result. Value: {tables: [{title, columns, rows, isNumber, name, file}], notes}, or null.
// Cells are texts; a column of numbers is aligned on the right.

const HEAD = () => "th";

customElements.define("t2s-tables", class extends HTMLElement {
  connect({ props, watch }) {
    watch("value", () => this.#show(props.value));
    this.#show(props.value);
  }

  #show(value) {
    const { tables = [], notes = [] } = value ?? {};
    this.hidden = !tables.length && !notes.length;
    this.replaceChildren(...tables.map((table) => this.#table(table)), ...notes.map((text) => this.#element("p", text, "t2s-note")));
  }

  #table({ title, columns, rows, isNumber, name, file }) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const link = Object.assign(this.#element("a", "CSV"), { href: file.url, download: name, title: `Download ${name}` });
    caption.append(this.#element("h4", title), link);
    const scroll = Object.assign(document.createElement("div"), { className: "t2s-scroll", tabIndex: 0 });
    const table = document.createElement("table");
    const of = (cells, names) => {
      const row = document.createElement("tr");
      row.append(...cells.map((cell, at) => {
        const element = this.#element(names(at), cell, isNumber[at] ? "t2s-number" : "");
        if (element.localName === "th") element.scope = names === HEAD ? "col" : "row";
        return element;
      }));
      return row;
    };
    table.createTHead().append(of(columns, HEAD));
    table.createTBody().append(...rows.map((row) => of(row, (at) => (at ? "td" : "th"))));
    table.setAttribute("aria-label", title);
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", title);
    scroll.append(table);
    figure.append(caption, scroll);
    return figure;
  }

  #element(name, text, className = "") {
    return Object.assign(document.createElement(name), { textContent: text, className });
  }
});

// The question before a long run. "Start" presses Run again.

let agreed = false;

/** Return whether "Start" was pressed since the last run. */
window.text2segAgreed = () => {
  const now = agreed;
  agreed = false;
  return now;
};

document.addEventListener("click", (event) => {
  const name = event.target.closest?.("#explain-question [data-do]")?.dataset.do;
  if (!name) return;
  agreed = name === "begin-run";
  event.target.closest("[data-ask]").hidden = true; // the next run clears it
  const run = document.querySelector("#explain-run");
  if (agreed) run.click();
  else run.focus();
});

// From a press of Run to the first word of the server about the run, which has a header.

let number = 0; // of the last press of Run
let goesOn = false; // between the press and the answer whether to ask before
let before = {}; // what that press took away
let waiting = 0;
let place = 0; // runs before this one in the queue
let dropped = 0; // those of them that this page has given up; they end before the next one begins
let says = null; // what the page waits for, by the place

const show = () => {
  const said = document.querySelector("#explain-status [data-sent]");
  if (said && says) said.textContent = says();
};
document.addEventListener("text2seg-queue", ({ detail }) => {
  place = detail.before;
  show();
});

/** Say later what the page waits for: these words, or `queued` with the number of runs before, if there are any. */
window.text2segWaits = (words, milliseconds, queued = "") => {
  clearTimeout(waiting);
  says = null;
  place = 0;
  waiting = setTimeout(() => {
    says = () => (queued && place > dropped ? queued + (place - dropped) : words);
    show();
  }, milliseconds);
};

window.text2segNumber = () => number;

window.text2segRan = () => { dropped = Math.max(0, dropped - 1); };

/** Return, once for each press, whether nobody has given up the run since. */
window.text2segGoesOn = () => {
  const now = goesOn;
  goesOn = false;
  return now;
};

/** Return whether a run waits, so that it can be given up at once. */
window.text2segGivesUp = () => isRunning() && !document.querySelector("#explain-status .t2s-status header");

/** Give up a run that waits. Return the status from before it, or nothing if another one is there already. */
window.text2segGiveUp = () => {
  if (!text2segGivesUp()) return null;
  clearTimeout(waiting);
  if (!goesOn) dropped += 1;
  goesOn = false;
  used[before.tool] = before.used;
  return document.querySelector("#explain-status [data-sent]") ? before.status : null;
};

// A result of values that were typed before the last change looks outdated.

const OUTDATED = '<div class="t2s"><p class="t2s-alert t2s-plain" role="status">'
  + "This result is of the values before your change. Press Run.</p></div>";
const used = {}; // values of the last run of each tool; none is the same as those of the example

const mark = (is) => document.querySelector("#explain-result")?.toggleAttribute("data-outdated", is);

const valuesOf = (typed) => JSON.stringify(Object.entries(typed?.[chosenTool()] ?? {}).sort());

window.text2segBegin = (typed, status) => {
  number += 1;
  goesOn = true;
  before = { tool: chosenTool(), used: used[chosenTool()], status };
  used[before.tool] = valuesOf(typed);
  mark(false);
};
window.text2segClear = () => {
  before.status = null;
  mark(false);
};

/** Mark the result if it is of other values, and return a note that says so, else "". */
window.text2segOutdated = (typed) => {
  const is = Boolean(document.querySelector("#explain-status .t2s-title")) && valuesOf(typed) !== (used[chosenTool()] ?? "[]");
  mark(is);
  return is ? OUTDATED : "";
};
