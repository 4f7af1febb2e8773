// The conductor: asks the server one thing after the other, and shows each part what it has to know.
// What the server knows comes back whole with every answer; here lives only what no server has to know: the selected
// segment, hidden queries, the sign of the next click.

const PATIENCE = 180_000; // milliseconds without an answer, a long queue included, before it counts as lost

customElements.define("t2s-segment", class extends HTMLElement {
  #view = { texts: [], queries: [], pieces: [], picture: null, canUndo: false, canRedo: false };
  #own = { selected: 0, hidden: new Set(), minus: false, arming: "", threshold: null, presence: null };
  #waiting = [];
  #turn = 0;
  #sent = null;
  #uploading = false;
  #patience = 0;

  connect({ ask, props, watch }) {
    this.ask = ask;
    this.props = props;
    for (const name of ["chips", "stage", "tools", "legend", "sliders", "export", "why"]) {
      this[name] = this.querySelector(`t2s-${name}`);
    }
    this.stage.examples = props.examples;
    this.chips.known = props.known;
    this.#listen();
    watch("value", () => this.#answered(props.value));
    if (props.value?.queries) this.#answered(props.value); // the tab was away and is back
  }

  /** The connection broke, or the server could not even say what is wrong. */
  failed() {
    this.#sent = null;
    this.#uploading = false;
    this.#waiting = [];
    this.#note("The server did not answer. Please try again.");
    this.#next();
    this.#show();
  }

  #listen() {
    const on = (part, name, react) => part.addEventListener(name, (event) => react(event.detail ?? {}));
    on(this.chips, "change", () => this.#look());
    on(this.chips, "look", () => this.#look());
    on(this.stage, "file", ({ file }) => this.#upload(file));
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

  // Asking: one thing at a time, of several looks in a row only the last.

  #send(what, then = null) {
    if (what.do === "look") this.#waiting = this.#waiting.filter((each) => each.what.do !== "look");
    this.#waiting.push({ what, then });
    this.#next();
  }

  #next() {
    if (!this.#sent && !this.#uploading && this.#waiting.length) {
      this.#sent = { ...this.#waiting.shift(), turn: (this.#turn += 1) };
      this.ask({ ...this.#sent.what, turn: this.#turn });
    }
    clearTimeout(this.#patience);
    if (this.#sent || this.#uploading) this.#patience = setTimeout(() => this.failed(), PATIENCE);
    const names = { look: "Looking …", example: "Looking …", point: "Cutting …", why: "Asking …", export: "Packing …" };
    this.stage.busy = this.#uploading ? "Opening …" : this.#sent ? names[this.#sent.what.do] ?? "…" : "";
  }

  #answered(view) {
    const { what, then } = view.turn && view.turn === this.#sent?.turn ? this.#sent : {};
    if (view.turn && !what && this.#sent) return; // an answer from before the connection broke
    const isOther = view.picture?.file.url !== this.#view.picture?.file.url;
    this.#view = view;
    this.chips.known = view.known;
    if (what) this.#sent = null;
    else this.#uploading = false;
    this.#note(view.error);
    if (isOther || what?.do === "example") {
      Object.assign(this.#own, { selected: 0, arming: "", hidden: new Set(), threshold: null, presence: null });
      this.why.told = null;
    }
    const asked = what?.do === "look" && String(what.texts) === String(this.chips.texts); // one chip may be several names
    if ((what?.do === "example" || asked) && !view.error) this.chips.texts = view.texts;
    if (!what && !view.error && isOther && this.chips.texts.length) this.#look();
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
    if (!this.#view.picture) return;
    if (!texts.length) {
      this.#note("Type what you want to see, then press Enter.");
      return;
    }
    this.#send({ do: "look", texts, threshold: this.#own.threshold, presence: this.#own.presence });
  }

  async #upload(file) {
    if (file.size > this.props.uploadMb * 1e6) {
      this.#note(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, and ${this.props.uploadMb} is the most here; make it smaller.`);
      return;
    }
    this.#uploading = true;
    this.#next();
    const carried = new DataTransfer();
    carried.items.add(file);
    const input = await this.#carrier();
    input.files = carried.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  /** Gradio's own field for files, which may come a moment after this component. */
  async #carrier() {
    for (;;) {
      const input = document.querySelector("#segment-upload input[type=file]");
      if (input) return input;
      await new Promise(requestAnimationFrame);
    }
  }

  #paste(event) {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file && this.checkVisibility()) this.#upload(file);
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
    if (view.queries.length) this.sliders.shown = view;
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
