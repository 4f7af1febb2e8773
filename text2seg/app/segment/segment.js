// The conductor: asks the server one thing after the other, and shows each part what it has to know. What is asked before
// there is a server to ask, or while it answers, waits for its turn.
// What the server knows comes back whole with every answer; here lives only what no server has to know: the selected
// segment, hidden queries, the sign of the next click.

const PATIENCE = 180_000; // milliseconds without an answer, a long queue included, before it counts as lost

customElements.define("t2s-segment", class extends HTMLElement {
  #view = { texts: [], queries: [], pieces: [], picture: null, canUndo: false, canRedo: false };
  #own = { selected: 0, hidden: new Set(), minus: false, arming: "", threshold: null, presence: null };
  #waiting = [];
  #turn = 0;
  #sent = null;
  #patience = 0;

  connectedCallback() {
    for (const name of ["chips", "stage", "tools", "legend", "sliders", "export", "why"]) {
      this[name] = this.querySelector(`t2s-${name}`);
      customElements.upgrade(this[name]);
    }
    this.#listen();
  }

  connect({ ask, props, watch, upload }) {
    this.ask = ask;
    this.props = props;
    this.upload = upload;
    this.stage.examples = props.examples;
    this.chips.known = props.known;
    watch("value", () => this.#answered(props.value));
    if (props.value?.queries) this.#answered(props.value); // the tab was away and is back
    this.#next();
  }

  /** The connection broke, or the server could not even say what is wrong. */
  failed(why = "The server did not answer. Please try again.") {
    this.#sent = null;
    this.#waiting = [];
    this.#note(why);
    this.#next();
    this.#show();
  }

  #listen() {
    const on = (part, name, react) => part.addEventListener(name, (event) => react(event.detail ?? {}));
    on(this.chips, "change", () => { if (this.#view.picture) this.#look(); });
    on(this.chips, "look", () => this.#look());
    on(this.stage, "file", ({ file }) => this.#open(file));
    on(this.stage, "example", ({ number }) => this.#send({ do: "example", number }));
    on(this.stage, "point", (place) => this.#point(place));
    for (const part of [this.stage, this.legend]) {
      on(part, "select", ({ number }) => this.#select(number));
      on(part, "hover", ({ number }) => (part === this.stage ? this.legend : this.stage).hint(number));
    }
    on(this.legend, "toggle", ({ query }) => this.#toggle(query));
    on(this.legend, "arm", ({ query }) => this.#arm(query));
    on(this.sliders, "paint", () => this.#show());
    on(this.sliders, "look", (asked) => { Object.assign(this.#own, asked); this.#look(); });
    on(this.tools, "do", ({ name }) => this.#do(name));
    on(this.export, "export", ({ kind, alone }) => this.#send(
      { do: "export", kind, pieces: alone ? [this.#own.selected] : this.#visible().map((piece) => piece.number) }));
    on(this.why, "close", () => { this.why.told = null; });
    this.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("paste", (event) => this.#paste(event));
  }

  // Asking: one thing at a time. Of several looks in a row only the last; another picture makes what waits pointless.

  #send(what, then = null) {
    const isNew = what.do === "open" || what.do === "example";
    this.#waiting = isNew ? [] : this.#waiting.filter((each) => what.do !== "look" || each.what.do !== "look");
    this.#waiting.push({ what, then, texts: this.chips.texts });
    this.#next();
  }

  #next() {
    if (!this.#sent && this.ask && this.#waiting.length) this.#ask(this.#waiting.shift());
    clearTimeout(this.#patience);
    if (this.#sent) this.#patience = setTimeout(() => this.failed(), PATIENCE);
    const names = { open: "Opening …", look: "Looking …", example: "Looking …", point: "Cutting …", why: "Asking …",
      export: "Packing …" };
    const [now] = [this.#sent, ...this.#waiting].filter(Boolean);
    this.stage.busy = now ? names[now.what.do] ?? "…" : "";
  }

  async #ask(asked) {
    const sent = this.#sent = { ...asked, turn: (this.#turn += 1) };
    let { file, ...what } = sent.what;
    if (file) {
      try {
        what = { ...what, path: (await this.upload(file)).path };
      } catch (error) {
        if (this.#sent === sent) this.failed(`${file.name} could not be sent: ${error.message ?? error}`);
      }
    }
    if (this.#sent === sent) this.ask({ ...what, turn: sent.turn });
  }

  #answered(view) {
    const { what, then, texts } = view.turn && view.turn === this.#sent?.turn ? this.#sent : {};
    if (view.turn && !what && this.#sent) return; // an answer from before the connection broke
    const isNew = ["open", "example"].includes(what?.do) && !view.error;
    this.#view = view;
    this.chips.known = view.known;
    if (what) this.#sent = null;
    this.#note(view.error);
    if (isNew) {
      Object.assign(this.#own, { selected: 0, arming: "", hidden: new Set(), threshold: null, presence: null });
      this.why.told = null;
    }
    if (isNew && what.do === "example") {
      const typed = this.chips.texts.filter((text) => !texts.includes(text)); // while it was waited for
      this.chips.texts = [...new Set([...view.texts, ...typed])];
      if (this.chips.texts.length > view.texts.length) this.#look();
    }
    if (isNew && what.do === "open" && this.chips.texts.length) this.#look();
    const asked = what?.do === "look" && String(what.texts) === String(this.chips.texts); // one chip may be several names
    if (asked && !view.error) this.chips.texts = view.texts;
    if (!view.pieces.some((piece) => piece.number === this.#own.selected)) this.#own.selected = 0;
    if (!view.error) then?.(view);
    if (view.why) this.why.told = view.why;
    else if (what && what.do !== "export" && !view.error) this.why.told = null; // it was about a mask from before
    if (view.file && what) this.#save(view.file);
    this.#say(what);
    this.#next();
    this.#show();
  }

  #look() {
    const texts = this.chips.texts;
    const isComing = [this.#sent, ...this.#waiting].some((each) => ["open", "example"].includes(each?.what.do));
    if (!this.#view.picture && isComing) return; // it is looked at when it is there
    if (!this.#view.picture) this.#note("Choose a picture first: drop one, paste one or take an example.");
    else if (!texts.length) this.#note("Type what you want to see, then press Enter.");
    else this.#send({ do: "look", texts, threshold: this.#own.threshold, presence: this.#own.presence });
  }

  #open(file) {
    const { uploadMb } = this.props ?? {};
    if (file.size > uploadMb * 1e6) {
      this.#note(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, and ${uploadMb} is the most here; make it smaller.`);
    } else this.#send({ do: "open", file });
  }

  #paste(event) {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file && this.checkVisibility()) this.#open(file);
  }

  #save({ name, file }) {
    Object.assign(document.createElement("a"), { href: file.url, download: name }).click();
  }

  // What a person does to segments.

  #select(number) {
    Object.assign(this.#own, { selected: number === this.#own.selected ? 0 : number, arming: "", minus: false });
    this.#show();
  }

  #arm(query) {
    Object.assign(this.#own, { selected: 0, minus: false, arming: this.#own.arming === query ? "" : query });
    this.#show();
  }

  #toggle(query) {
    if (!this.#own.hidden.delete(query)) this.#own.hidden.add(query);
    this.#show();
  }

  #point({ x, y, minus }) {
    const { selected, arming } = this.#own;
    const positive = !(minus || this.#own.minus);
    if (selected) this.#send({ do: "point", piece: selected, x, y, positive });
    else {
      this.#send({ do: "point", query: arming, x, y, positive }, (view) => {
        Object.assign(this.#own, { arming: "", selected: Math.max(...view.pieces.map((piece) => piece.number)) });
      });
    }
  }

  #do(name) {
    const { selected: piece } = this.#own;
    if (name === "undo" || name === "redo") this.#send({ do: name });
    else if (name === "full") this.#full();
    else if (name === "other") this.stage.choose();
    else if (name === "plus" || name === "minus") this.#own.minus = name === "minus";
    else if (name === "done") Object.assign(this.#own, { selected: 0, arming: "" });
    else if (piece) this.#send({ do: name, piece });
    this.#show();
  }

  #full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.querySelector("[data-part=desk]").requestFullscreen();
  }

  #key(event) {
    if (event.target.matches("input[type=text]") || !this.#view.picture) return;
    const key = event.key.toLowerCase();
    const control = event.ctrlKey || event.metaKey;
    const name = control
      ? { z: event.shiftKey ? "redo" : "undo", y: "redo" }[key]
      : { delete: "delete", backspace: "delete", escape: "done", a: "accept", s: "split", w: "why", f: "full" }[key];
    if (!name || (name !== "full" && !control && !this.#own.selected && !this.#own.arming)) return;
    event.preventDefault();
    this.#do(name);
  }

  // Showing.

  /** Segments that are to be seen: of each kind the best, so many as the slider says, and none that is hidden. */
  #visible() {
    const { pieces } = this.#view;
    const rank = (piece) => pieces.filter((other) => other.query === piece.query
      && (other.score > piece.score || (other.score === piece.score && other.number < piece.number))).length;
    return pieces.filter((piece) => !this.#own.hidden.has(piece.query) && rank(piece) < this.sliders.most);
  }

  #show() {
    const view = this.#view;
    const { selected, arming, minus, hidden } = this.#own;
    const pieces = this.#visible();
    const piece = view.pieces.find((each) => each.number === selected);
    this.classList.toggle("t2s-open", Boolean(view.picture));
    this.querySelector("[data-part=side]").hidden = !view.queries.length;
    this.tools.hidden = !view.picture;
    this.stage.shown = { picture: view.picture, pieces, selected, arming, opacity: this.sliders.opacity };
    this.tools.shown = { ...view, piece, minus, hint: this.#hint(piece) };
    this.legend.shown = { ...view, visible: new Set(pieces.map((each) => each.number)), hidden, selected, arming };
    const { threshold, presence } = this.#own; // the hand on a slider is ahead of the answer
    if (view.queries.length) {
      this.sliders.shown = { threshold: threshold ?? view.threshold, presence: presence ?? view.presence };
    }
    this.export.shown = { count: pieces.length, selected, command: view.command, python: view.python };
  }

  #hint(piece) {
    const [click, minus] = matchMedia("(pointer: coarse)").matches
      ? ["Tap", "with “Does not” pressed"]
      : ["Click", "with Shift, or “Does not” pressed"];
    if (this.#own.arming) return `${click} on the ${this.#own.arming} in the picture.`;
    if (piece) return `${click} what belongs to the ${piece.query}; ${minus}, what does not.`;
    if (this.#view.pieces.length) return `${click} a segment to correct it or to see why it is there.`;
    return this.#view.queries.length ? "Nothing found. Try other words, a lower presence, or + to point at it." : "";
  }

  #note(text) {
    const note = this.querySelector("[data-part=note]");
    note.hidden = !text;
    note.textContent = text ?? "";
  }

  #say(what) {
    const told = this.#view.queries.map((query) => `${query.name}: ${query.verdict}`).join("; ");
    if (what && ["look", "example"].includes(what.do)) this.querySelector("[data-part=said]").textContent = told;
  }
});
