// The Segment tab as a whole: asks the server (see requests.js), and updates the parts of the page.
// Every answer holds the whole state of the session. Only the browser knows the selected segment, the hidden queries and
// the tool of the next click. It keeps the token of the session, so that a reloaded page finds image, words and
// corrections again.

const KEPT = "text2seg-segment"; // where the browser keeps what a reload needs, for this window only

/** Whether the visitor made or accepted a segment. */
const isOwn = (piece) => piece.byHand || piece.accepted;

customElements.define("t2s-segment", class extends HTMLElement {
  #view = { texts: [], queries: [], pieces: [], refused: [], image: null, canUndo: false, canRedo: false };
  #local = { selected: 0, hidden: new Set(), tool: "select", adding: "", isStart: false, isAll: false, threshold: null,
    presence: null };
  #regions = []; // everything that was found without words
  #ofExample = []; // words of the last example, which leave with it
  #question = null; // what the two answers to the open question do
  #requests = new text2segRequests({
    busy: (busy) => { this.stage.busy = busy; },
    failed: (why) => this.failed(why),
  });
  #lost = []; // masks of the visitor's own that the last searches took away
  #pressed = null; // the button that waits for a name
  #downloaded = ""; // masks of the visitor's own in the last download
  #wasFull = false; // before an explanation was opened

  connectedCallback() {
    for (const name of ["chips", "stage", "toolbar", "legend", "sliders", "export", "why"]) {
      this[name] = this.querySelector(`t2s-${name}`);
      customElements.upgrade(this[name]);
    }
    this.#listen();
  }

  connect({ send, stop, resumedEditing, props, watch, upload }) {
    this.resumedEditing = resumedEditing;
    this.props = props;
    this.stage.examples = props.examples;
    this.chips.suggest(props.known, false);
    this.querySelector("[data-part=unfamiliar] span").textContent = props.unfamiliar;
    watch("value", () => this.#answered(props.value));
    if (props.value?.queries) this.#answered(props.value); // the tab was hidden and is back
    else this.#resume();
    this.#requests.connect({ send, stop, upload });
  }

  /** Report a broken connection, or an answer without an error message. */
  failed(why = "The server did not answer. Please try again.") {
    this.#requests.drop();
    this.#note(why);
    this.#requests.next();
    this.#show();
  }

  #listen() {
    const on = (part, name, react) => part.addEventListener(name, (event) => react(event.detail ?? {}));
    on(this.chips, "change", () => this.#changed());
    on(this.chips, "typed", () => this.#note(""));
    on(this.chips, "find", ({ isMore }) => {
      this.#local.isStart = false;
      if (!isMore || !this.#view.image) this.#find();
      this.#show();
    });
    on(this.stage, "file", ({ file }) => this.#open(file));
    on(this.stage, "example", ({ number }) => this.#begin({ do: "example", number }));
    on(this.stage, "back", () => this.#do("start"));
    on(this.stage, "point", (place) => this.#point(place));
    on(this.stage, "box", ({ box }) => this.#box(box));
    on(this.stage, "pick", ({ region }) => this.#send({ do: "pick", region }, (view) => this.#selectLast(view)));
    on(this.stage, "stop", () => this.#requests.stop());
    on(this.stage, "say", ({ text }) => { this.querySelector("[data-part=said]").textContent = text; });
    for (const part of [this.stage, this.legend]) {
      on(part, "select", ({ number }) => {
        this.#select(number);
        if (part === this.legend) this.#reveal();
      });
      on(part, "hover", ({ number }) => (part === this.stage ? this.legend : this.stage).hint(number));
    }
    on(this.legend, "toggle", ({ query }) => this.#toggle(query));
    on(this.legend, "add", ({ query, byKey }) => { this.#add(query, byKey); this.#reveal(); });
    on(this.legend, "why-not", ({ query }) => this.#send({ do: "why-not", query }));
    on(this.sliders, "paint", () => this.#show());
    on(this.sliders, "find", (asked) => {
      Object.assign(this.#local, asked);
      if (this.chips.texts.length) this.#find();
      this.#keep();
    });
    on(this.toolbar, "do", ({ name, byKey }) => this.#do(name, byKey));
    on(this.toolbar, "name", (named) => this.#name(named));
    on(this.toolbar, "lost", () => this.stage.focusOn());
    on(this.export, "export", ({ kind, alone }) => this.#send(
      { do: "export", kind, pieces: alone ? [this.#local.selected] : this.#visible().map((piece) => piece.number) }));
    on(this.why, "close", () => this.#closeWhy());
    on(this.why, "take", ({ number, candidate }) => this.#send({ do: "take", piece: number, candidate }));
    this.querySelector("[data-part=ask]").addEventListener("click", ({ target: { dataset } }) => {
      const { yes, no } = this.#question;
      if (!["yes", "no"].includes(dataset.do)) return;
      this.#ask();
      (dataset.do === "yes" ? yes : no)();
    });
    this.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("fullscreenchange", () => this.#moveMessages());
    document.addEventListener("paste", (event) => this.#paste(event));
    document.addEventListener("click", (event) => this.#beforeSaving(event), true);
  }

  #send(what, then = null) {
    this.#note("");
    if (what.do !== "find" || !this.#question?.loses) this.#ask(); // a question about an image stays during searches
    this.#requests.send(what, then);
  }

  #answered(view) {
    const request = this.#requests.answered(view);
    if (!request) return;
    const { what, then } = request;
    const isNew = ["open", "example"].includes(what?.do) && !view.error;
    const gone = what?.do === "find" && !view.error ? this.#gone(view) : "";
    if (what && what.do !== "find") this.#lost = [];
    this.#view = view;
    this.chips.suggest(view.known, view.isLabelled);
    this.chips.understood(view.refused, view.halfKnown);
    this.#note(view.isStopped ? "Stopped. Nothing has changed." : view.error, !view.isStopped);
    if (gone) this.#note(gone, false, true);
    if (what?.do === "everything" && (view.isStopped || view.error)) this.#local.isAll = false;
    if (what?.do === "everything" && view.seconds) this.#askTime(view.seconds);
    if (view.regions) this.#regions = view.regions;
    if (what?.do === "everything" && view.regions && !view.regions.length) {
      this.#local.isAll = false;
      this.#note("Nothing was found without words. Draw a box around a thing, or type what to find.", false);
    }
    if (isNew) this.#opened(what.do, view);
    if (view.opened && !what) this.#putInto(view);
    if (what?.do === "resume" && !view.error) this.#resumed(view);
    const isUndo = ["undo", "redo"].includes(what?.do) && !view.error;
    const isChanged = this.#requests.waits("find"); // the words, since then
    const isFound = what?.do === "find" && !view.error && !view.isStopped && String(what.texts) === String(this.chips.texts);
    if (isFound || (isUndo && !isChanged)) this.chips.texts = view.texts; // one chip may hold several names
    if (isUndo && !this.#requests.waits()) Object.assign(this.#local, view.given);
    if (!view.pieces.some((piece) => piece.number === this.#local.selected)) this.#deselect();
    if (!view.error) then?.(view);
    if (view.why) this.why.explanation = { ...view.why, image: view.image };
    else if (what && what.do !== "export" && !view.error) this.why.explanation = null; // it explained a mask that has changed
    if (view.file && what) this.#save(view.file, what);
    if (what?.do === "name") this.#named(what, view.error);
    this.#say(what);
    this.#requests.next();
    this.#show();
  }

  /** A sentence about masks of the visitor's own that a search took away with their words; empty if there are none. */
  #gone({ pieces, texts }) {
    const kept = new Set(pieces.map(({ number }) => number));
    const before = texts.every((text) => this.#view.texts.includes(text)) ? this.#lost : []; // one word after the other
    const lost = this.#lost = [...before, ...this.#view.pieces.filter(isOwn)].filter(({ number }) => !kept.has(number));
    const words = [...new Set(lost.map(({ query }) => `“${query}”`))].join(", ");
    if (!lost.length) return "";
    return lost.length === 1 ? `A mask that you made or accepted went with ${words}.`
      : `${lost.length} masks that you made or accepted went with ${words}.`;
  }

  /** Begin with a new image. */
  #opened(how, view) {
    Object.assign(this.#local, { selected: 0, adding: "", tool: "select", hidden: new Set(), isStart: false, isAll: false });
    this.#regions = [];
    this.why.explanation = null;
    if (how === "example") {
      const typed = this.chips.texts.filter((text) => !this.#ofExample.includes(text));
      this.#ofExample = view.texts;
      this.chips.texts = [...new Set([...view.texts, ...typed])];
      const { threshold, presence } = this.#local; // the visitor's own
      if (this.chips.texts.length > view.texts.length || threshold !== null || presence !== null) this.#find();
      const { activeElement: focused } = document;
      if (focused === document.body || this.stage.contains(focused)) setTimeout(() => this.stage.focusOn()); // its button is gone
    } else {
      if (this.chips.texts.length) this.#find();
      this.chips.take();
      const { activeElement: focused } = document;
      if (focused === document.body || this.contains(focused)) setTimeout(() => this.chips.input.focus({ preventScroll: true }));
    }
  }

  /** Show an image that another tab has put into the editor, and focus its segment once the tab is visible. */
  #putInto(view) {
    this.#requests.drop({ isOutdated: true });
    Object.assign(this.#local, { adding: "", tool: "select", hidden: new Set(), isStart: false, isAll: false, ...view.given,
      ...view.opened });
    this.why.explanation = null;
    this.chips.texts = view.texts;
    this.#keep(); // even without a token: a reload must not open the image before
    if (!view.isLabelled) return; // the review goes on
    const focus = () => {
      if (!this.checkVisibility()) return setTimeout(focus, 50);
      document.querySelector("#folder-return")?.scrollIntoView(); // the way back stays in view
      const piece = this.stage.querySelector(`[data-piece="${view.opened.selected}"]`);
      return (piece ?? this.chips.input).focus({ preventScroll: true });
    };
    requestAnimationFrame(focus);
  }

  // A reloaded page asks for its session by the token that this window has kept.

  #resume() {
    const { token, texts = [], ofExample = [], hidden = [], opacity, most, threshold = null, presence = null } = text2segKept(KEPT, {});
    if (this.#requests.waits()) return; // the user was faster
    Object.assign(this.#local, { hidden: new Set(hidden), threshold, presence });
    this.#ofExample = ofExample;
    this.sliders.local = { opacity, most };
    if (!this.chips.texts.length) this.chips.texts = texts;
    if (token) this.#send({ do: "resume", token });
  }

  #resumed(view) {
    if (!view.image) {
      this.#note("The server no longer has your last image. It keeps an image for one hour, and not over a restart.");
      this.#keep(); // without the token
      return;
    }
    document.dispatchEvent(new Event("text2seg-resumed"));
    if (view.isLabelled) this.resumedEditing();
    if (!this.chips.texts.length) this.chips.texts = view.texts;
    const { texts } = this.chips, { threshold, presence } = this.#local;
    const isOther = String(texts) !== String(view.texts) || threshold !== view.given.threshold || presence !== view.given.presence;
    if (texts.length && isOther) this.#find(); // changed just before the reload
  }

  #keep() {
    const { token } = this.#view;
    const most = Number.isFinite(this.sliders.most) ? this.sliders.most : null;
    const { opacity } = this.sliders, { hidden, threshold, presence } = this.#local;
    text2segKeep(KEPT, { token, texts: this.chips.texts, ofExample: this.#ofExample, hidden: [...hidden], opacity, most,
      threshold, presence });
  }

  // Searches and images.

  #changed() {
    const { image, queries, refused } = this.#view;
    this.#note(image || this.#isComing() || !this.chips.texts.length ? "" : "Now choose an image: drop one, paste one or choose an example.", false);
    this.#keep();
    if (image && this.chips.texts.length) this.#find();
    else if (queries.length || refused.length) this.#send({ do: "find", texts: [] }); // results go with their words
  }

  /** Whether an image is being opened. */
  #isComing() { return this.#requests.has("open", "example", "resume"); }

  #find() {
    const texts = this.chips.texts;
    if (!this.#view.image && this.#isComing()) return; // the search runs once the image is open
    if (!this.#view.image) {
      this.#note("Choose an image first: drop one, paste one or choose an example.");
      this.stage.focusOn();
    } else if (!texts.length) {
      this.#note("Type what to find, then press Enter.");
      this.chips.input.focus();
    } else this.#send({ do: "find", texts, threshold: this.#local.threshold, presence: this.#local.presence });
  }

  #open(file) {
    const { uploadMb } = this.props ?? {};
    if (file.size > uploadMb * 1e6) {
      this.#note(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; the limit is ${uploadMb} MB. Make it smaller.`);
    } else if (/\.zip$/i.test(file.name)) this.#note(`${file.name} is not an image. “Label a folder” takes zips of images.`);
    else this.#begin({ do: "open", file });
  }

  /** Open another image. Ask first if masks that the visitor made, and has not downloaded, are lost by it. */
  #begin(what) {
    const { image, pieces, isLabelled } = this.#view;
    const masksOfOwn = pieces.filter(isOwn), own = masksOfOwn.length;
    if (isLabelled) this.#note(`You edit ${image.name} of a job. Save it and go back, or go back without saving, then open another image.`);
    else if (!own || JSON.stringify(masksOfOwn) === this.#downloaded) this.#send(what);
    else {
      const masks = own === 1 ? "1 mask that you made or accepted is" : `${own} masks that you made or accepted are`;
      this.#ask(`${masks} lost when another image replaces ${image.name}.`, {
        loses: true,
        yes: ["Replace it", () => this.#send(what)],
        no: [`Stay with ${image.name}`, () => { this.#local.isStart = false; this.#show(); this.stage.focusOn(); }],
      });
    }
  }

  #paste(event) {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file && this.checkVisibility()) this.#open(file);
  }

  #save({ name, file }, { kind, pieces }) {
    Object.assign(document.createElement("a"), { href: file.url, download: name }).click();
    const own = this.#view.pieces.filter((piece) => isOwn(piece) && pieces.includes(piece.number));
    if (kind !== "overlay") this.#downloaded = JSON.stringify(own);
  }

  // Edits of segments.

  #deselect() { Object.assign(this.#local, { selected: 0, adding: "", tool: "select" }); }

  #select(number) {
    if (number !== this.#local.selected) this.#deselect();
    this.#local.selected = number;
    this.#note("");
    this.#show();
  }

  /** Scroll to the image and its tools if a phone has them above the screen. */
  #reveal() {
    if (this.toolbar.getBoundingClientRect().top < 0) this.toolbar.scrollIntoView();
  }

  #add(query, byKey) {
    const adding = this.#local.adding === query ? "" : query;
    this.#deselect();
    this.#local.adding = adding;
    this.#show();
    if (adding && byKey) this.stage.focusOn(); // there, arrow keys and Enter set the point
  }

  #toggle(query) {
    if (!this.#local.hidden.delete(query)) this.#local.hidden.add(query);
    this.#show();
  }

  #point({ x, y, positive }) {
    const { selected, adding } = this.#local;
    if (selected) this.#send({ do: "point", piece: selected, x, y, positive });
    else {
      this.#send({ do: "point", query: adding, x, y, positive }, (view) => {
        Object.assign(this.#local, { adding: "", selected: Math.max(...view.pieces.map((piece) => piece.number)) });
      });
    }
  }

  #box(box) {
    const { adding: query } = this.#local;
    this.#send({ do: "box", box, query }, (view) => this.#selectLast(view, !query));
  }

  /** Select the newest segment, which waits for its name. */
  #selectLast(view, isNameless = true) {
    this.#deselect();
    this.#local.selected = Math.max(...view.pieces.map((piece) => piece.number));
    if (isNameless) setTimeout(() => this.toolbar.focusOnName());
  }

  #name({ number, name, isLeft }) {
    this.#send({ do: "name", piece: number, name }, () => { if (!isLeft) setTimeout(() => this.stage.focusOn()); });
  }

  /** Show why a name was refused, beside its field; else press the button that waited for it. */
  #named({ piece }, refused) {
    const pressed = this.#pressed;
    this.#pressed = null;
    if (refused && piece === this.#local.selected) {
      this.#note("");
      this.toolbar.refuse(refused);
      if (pressed) this.toolbar.focusOnName();
    } else if (!refused && pressed) setTimeout(() => pressed.click()); // once the field has its name
  }

  /** An image of a job is saved with the name that is being typed, or not at all. */
  #beforeSaving(event) {
    const button = event.target.closest?.("#folder-take");
    if (!button) return;
    if (!this.#requests.has("name")) this.toolbar.tellName();
    if (!this.#requests.has("name")) return;
    event.preventDefault();
    event.stopPropagation();
    this.#pressed = button;
  }

  /** Show or hide everything that was found without words. The first time, find it. */
  #everything() {
    this.#local.isAll = !this.#local.isAll;
    this.#ask();
    if (this.#local.isAll && !this.#regions.length) this.#send({ do: "everything" });
  }

  /** Ask a question with two answers, each a label and what it does; without a text there is nothing to ask. The focus
   * is on the answer that loses nothing. */
  #ask(text = "", { yes: [begin, yes] = [], no: [leave, no] = [], loses = false } = {}) {
    const ask = this.querySelector("[data-part=ask]");
    ask.hidden = !text;
    if (!text) return;
    this.#question = { yes, no, loses };
    ask.querySelector("span").textContent = text;
    ask.querySelector("[data-do=yes]").textContent = begin;
    ask.querySelector("[data-do=no]").textContent = leave;
    ask.querySelector(loses ? "[data-do=no]" : "[data-do=yes]").focus();
  }

  /** Say how long everything takes, and ask whether to begin. */
  #askTime(seconds) {
    const time = seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
    this.#ask(`Finding everything takes about ${time} on this computer.`, {
      yes: ["Start", () => this.#send({ do: "everything", sure: true })],
      no: ["Not now", () => { this.#local.isAll = false; this.#show(); }],
    });
  }

  #do(name, byKey = false) {
    const { selected: piece } = this.#local;
    if (document.fullscreenElement && ["why", "start"].includes(name)) { // their place is outside
      this.#wasFull = name === "why";
      document.exitFullscreen();
    }
    if (name === "undo" || name === "redo") this.#send({ do: name });
    else if (name === "full") this.#full();
    else if (name === "everything") this.#everything();
    else if (name === "box") {
      const isOn = this.#local.tool === "box";
      this.#deselect();
      this.#local.tool = isOn ? "select" : "box";
    } else if (name === "start") this.#local.isStart = !this.#local.isStart;
    else if (["select", "plus", "minus"].includes(name)) this.#local.tool = this.#local.tool === name ? "select" : name;
    else if (name === "deselect") this.#deselect();
    else if (piece) this.#send({ do: name, piece });
    this.#show();
    const isTool = ["plus", "minus", "box"].includes(name);
    if ((byKey && isTool) || name === "start") this.stage.focusOn(); // there, arrow keys and Enter set points
  }

  #closeWhy() {
    const { number, query } = this.why.about;
    this.why.explanation = null;
    if (this.#wasFull) this.#full();
    this.#wasFull = false;
    if (!number && this.legend.focusOnWhyNot(query)) return;
    if (this.#local.selected) this.toolbar.focusOn("why");
    else this.stage.focusOn();
  }

  /** Show a part on the full screen, with the focus in it. */
  async #fill(part) {
    await part.requestFullscreen();
    if (!part.contains(document.activeElement)) this.stage.focusOn();
  }

  /** Show messages and questions on the full screen, which hides everything outside of it. */
  #moveMessages() {
    const desk = this.querySelector("[data-part=desk]");
    const messages = ["note", "ask"].map((part) => this.querySelector(`[data-part=${part}]`));
    if (document.fullscreenElement === desk) desk.prepend(...messages);
    else this.querySelector(".t2s-layout").before(...messages);
  }

  #full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.#fill(this.querySelector("[data-part=desk]"));
  }

  #key(event) {
    const { selected, adding, isStart, tool } = this.#local;
    const control = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
    const isTyped = event.target.matches("input[type=text]") && !(control && !event.target.value); // nothing to undo there
    if (isTyped || !this.#view.image) return;
    if (key === "escape" && !this.why.hidden) { this.#closeWhy(); return; }
    const name = control
      ? { z: event.shiftKey ? "redo" : "undo", y: "redo" }[key]
      : { delete: "delete", backspace: "delete", a: "accept", s: "split", w: "why", f: "full", "+": "plus", "-": "minus",
        v: "select", e: "everything", b: "box", escape: isStart ? "start" : tool === "select" ? "deselect" : "select" }[key];
    const isFree = control || ["full", "start", "everything", "box"].includes(name);
    if (!name || (!isFree && !selected && !adding && tool !== "box")) return;
    event.preventDefault();
    this.#do(name, true);
  }

  // Display.

  /** Visible segments, without hidden queries: all that the visitor made or accepted, and the best others of each query,
   * as many as the slider allows. */
  #visible() {
    const { pieces } = this.#view;
    const isBefore = (one, other) => !isOwn(one)
      && (one.score > other.score || (one.score === other.score && one.number < other.number));
    const rank = (piece) => pieces.filter((other) => other.query === piece.query && isBefore(other, piece)).length;
    return pieces.filter((piece) => !this.#local.hidden.has(piece.query)
      && (isOwn(piece) || rank(piece) < this.sliders.most));
  }

  #show() {
    const view = this.#view;
    const pieces = this.#visible();
    if (this.#local.selected && !pieces.some(({ number }) => number === this.#local.selected)) this.#deselect(); // hidden
    const { selected, adding, tool, hidden, isStart, isAll } = this.#local;
    const picked = new Set(view.pieces.map((each) => each.region));
    const regions = isAll ? this.#regions.filter(({ number }) => !picked.has(number)) : [];
    const piece = view.pieces.find((each) => each.number === selected);
    const isOpen = Boolean(view.image) && !isStart;
    this.classList.toggle("t2s-open", isOpen);
    const side = this.querySelector("[data-part=side]");
    const isLost = side.contains(document.activeElement);
    side.hidden = !isOpen || !view.queries.length;
    if (isLost && side.hidden) setTimeout(() => this.stage.focusOn());
    this.querySelector("[data-part=unfamiliar]").hidden = !isOpen || !view.isUnfamiliar;
    this.toolbar.hidden = !isOpen;
    if (isStart) this.why.explanation = null;
    this.stage.shown = { image: view.image, pieces, regions, selected, tool, adding, isStart, opacity: this.sliders.opacity };
    this.toolbar.shown = { ...view, piece, tool, isAll, hint: this.#hint(piece) };
    this.legend.shown = { ...view, visible: new Set(pieces.map((each) => each.number)), hidden, selected, adding };
    const { threshold, presence } = this.#local; // a slider may have moved since the request
    if (view.image) this.sliders.shown = { threshold: threshold ?? view.threshold, presence: presence ?? view.presence };
    this.export.shown = { count: pieces.length, total: view.pieces.length, selected, command: view.command, python: view.python };
    if (view.token) this.#keep();
  }

  #hint(piece) {
    const { adding, tool } = this.#local;
    const isTouch = matchMedia("(pointer: coarse)").matches, isPhone = matchMedia("(max-width: 560px)").matches;
    const click = isTouch ? "Tap" : "Click";
    const drag = isTouch ? "Draw" : "Drag";
    const keys = isTouch ? "" : " Keys: arrows and Enter.";
    if (adding) return `${click} the ${adding} in the image or ${drag.toLowerCase()} a box around it.${keys}`;
    if (tool === "box") return `${drag} a box around a thing.${isTouch ? "" : " Keys: arrows and Enter for each of two corners."}`;
    if (piece && tool === "plus") return `${click} a place to add it to the mask.${keys}`;
    if (piece && tool === "minus") return `${click} a place to remove it from the mask.${keys}`;
    if (piece) {
      return isPhone ? "To correct the mask, choose “Add” or “Remove”."
        : isTouch ? "To correct the mask, choose “Add to mask” or “Remove from mask”."
        : "Correct the mask: Ctrl-click adds a place, Shift-click removes one.";
    }
    if (this.#local.isAll && this.#regions.length) {
      return `${click} one of the ${this.#regions.length} masks to pick it, then type its name. Those that are not picked are not downloaded.`;
    }
    if (this.#view.pieces.length) return `${click} a segment to correct it or to see why it has this mask.`;
    if (this.#view.isUnfamiliar) return "";
    return this.#view.queries.length ? "Nothing found. Try other words or a lower presence, or use + to add a segment."
      : "Type what to find, or find everything without words, or draw a box around a thing.";
  }

  #note(text, isWrong = true, canUndo = false) {
    const note = this.querySelector("[data-part=note]");
    note.classList.toggle("t2s-plain", !isWrong);
    note.hidden = !text;
    note.textContent = text ?? "";
    if (!canUndo) return;
    const undo = Object.assign(document.createElement("button"), { type: "button", textContent: "Bring back" });
    undo.addEventListener("click", () => { this.#do("undo"); this.chips.input.focus(); }); // the button goes
    note.append(undo);
  }

  #say(what) {
    const verdicts = this.#view.queries.map((query) => `${query.name}: ${query.verdict}`).join("; ");
    if (what) this.querySelector("[data-part=said]").textContent = ["find", "example", "resume"].includes(what.do) ? verdicts : "";
  }
});
