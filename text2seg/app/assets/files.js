// A place to drop images, as in the Segment tab; also for several files. A file is uploaded when it is chosen.
// Properties: `label`, `hint`, `several`, `accept`, `invitation`, `kinds` (the line below it), `uploadMb`, `suffixes` of the
// images that are taken from a folder (without it, no folder can be chosen), `examples` [{title, thumbnail}], of which
// several files take all at once, `offer` {name, thumbnail} of the image that is open in the Segment tab, or null; `keeps`:
// the name under which a reload keeps what is chosen; without it, nothing is kept.
// Value: null, {example: number}, {segment: true} or {path, name}; of several files a list of {path, name} or of
// {example, name}.

const AT_ONCE = 3; // uploads
const LISTED = 6; // names that are shown of several files
const SHOWN = /\.(avif|bmp|gif|jpe?g|png|svg|webp)$/i; // what browsers can draw

/** The files that were dropped, also those in folders, each with its place in them as `place`. */
async function dropped(transfer) {
  const found = [];
  const list = (folder) => new Promise((resolve, reject) => { folder.readEntries(resolve, reject); });
  const visit = async (entry) => {
    const file = entry.isFile && await new Promise((resolve, reject) => { entry.file(resolve, reject); });
    if (file) return found.push(Object.assign(file, { place: entry.fullPath.replace(/^\//, "") }));
    const reader = entry.createReader();
    for (let some = await list(reader); some.length; some = await list(reader)) for (const each of some) await visit(each);
    return found.length;
  };
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()); // before the event is over
  if (!entries.some((each) => each?.isDirectory)) return [...transfer.files];
  for (const entry of entries) if (entry) await visit(entry);
  return found;
}

/** The place that takes a pasted image: the one with the focus or under the pointer, else the first. */
function pasteTarget() {
  const all = [...document.querySelectorAll("t2s-files")].filter((each) => each.checkVisibility());
  return all.find((each) => each.matches(":focus-within")) ?? all.find((each) => each.matches(":hover")) ?? all[0];
}

// Addresses of chosen files by their paths on the server, for all places: Gradio mounts a place again when it is shown again.
const urls = new Map();
const offered = new Map(); // what was offered last, by the names of the places
const present = new Set(); // paths of files that are on the server

const addressOf = (path) => urls.get(path) ?? `gradio_api/file=${encodeURIComponent(path)}`;

/** The first file of a value that is no longer on the server, as after a restart of the app. */
async function goneOf(value) {
  for (const file of [value].flat()) {
    if (!file?.path || present.has(file.path)) continue;
    const answer = await fetch(addressOf(file.path));
    await answer.body?.cancel();
    if (!answer.ok) return file;
    present.add(file.path);
  }
  return null;
}

const KEPT = "text2seg-files"; // values of the places that keep them, by their names

/** The value of a place that keeps it: what was chosen last, also before a reload, whatever Gradio still holds. */
window.text2segFiles = (name, value) => {
  const kept = text2segKept(KEPT, {});
  return name in kept ? kept[name] : value;
};

const isSame = (one, other) => JSON.stringify(one || null) === JSON.stringify(other || null); // Gradio has "" for null

customElements.define("t2s-files", class extends HTMLElement {
  #choice = 0; // number of the last choice; an upload for an earlier one is dropped when it ends

  connect({ props, trigger, watch, upload }) {
    Object.assign(this, { props, trigger, upload });
    const what = props.invitation ?? "Drop an image here, paste one, or choose a file";
    this.innerHTML = `
      <span class="t2s-label" id="${this.#id}-label"></span><p class="t2s-hint" data-part="hint"></p>
      <button type="button" class="t2s-drop t2s-small" data-do="choose" aria-describedby="${this.#id}-label">
        <svg viewBox="0 0 48 48" aria-hidden="true"><rect x="5" y="9" width="38" height="30" rx="4"/>
          <circle cx="16" cy="19" r="3.5"/><path d="M6 35l12-11 8 7 7-6 9 8"/></svg>
        <strong>${what}</strong><span data-part="kinds"></span></button>
      <div class="t2s-taken" hidden><img alt="" hidden><div data-part="names"></div>
        <div class="t2s-row"><button type="button" data-do="choose">${props.several ? "Add files" : "Replace"}</button>
          ${props.suffixes ? '<button type="button" data-do="folder">Add a folder</button>' : ""}
          <button type="button" data-do="remove">${props.several ? "Remove all" : "Remove image"}</button></div></div>
      ${props.suffixes ? '<button type="button" class="t2s-link" data-do="folder" data-part="folder">Choose a folder</button>' : ""}
      <p class="t2s-hint" data-part="state" role="status"></p>
      <div class="t2s-offers" data-part="offers"></div>
      <input type="file" tabindex="-1" accept="${props.accept ?? "image/*"}" aria-labelledby="${this.#id}-label" hidden
        ${props.several ? "multiple" : ""}>`;
    this.#part("kinds").textContent = props.kinds ?? "JPEG, PNG, WebP, TIFF …";
    this.querySelector(".t2s-label").textContent = props.label;
    this.#part("hint").textContent = props.hint ?? "";
    const input = this.querySelector("input");
    input.addEventListener("change", () => { this.#take([...input.files]); input.value = ""; });
    this.addEventListener("click", (event) => this.#click(event));
    for (const kind of ["dragenter", "dragover"]) {
      this.addEventListener(kind, (event) => { event.preventDefault(); this.classList.add("t2s-over"); });
    }
    for (const kind of ["dragleave", "drop"]) this.addEventListener(kind, () => this.classList.remove("t2s-over"));
    this.addEventListener("drop", (event) => {
      event.preventDefault();
      const files = this.props.suffixes ? dropped(event.dataTransfer) : Promise.resolve([...event.dataTransfer.files]);
      files.then((found) => this.#take(found), () => this.#state("What was dropped cannot be read. Choose the files instead.", true));
    });
    document.addEventListener("paste", (event) => this.#paste(event));
    watch("value", () => {
      if (!isSame(props.value, this.#kept())) props.value = this.#kept(); // Gradio has put the first one in place again
      this.#show();
    });
    watch("offer", () => {
      this.#show();
      const before = offered.get(props.keeps);
      offered.set(props.keeps, props.offer);
      if (before && props.value?.segment && !isSame(before, props.offer)) this.trigger("input"); // it is another image now
    });
    this.#show();
    this.#restore(this.#kept());
  }

  /** The value that counts. */
  #kept() { return this.props.keeps ? text2segFiles(this.props.keeps, this.props.value) : this.props.value; }

  /** Show what was chosen before a reload, if the server still has it. */
  async #restore(value) {
    const choice = this.#choice, gone = this.props.several && !this.props.keeps ? null : await goneOf(value);
    if (choice !== this.#choice) return; // something else was chosen meanwhile
    if (gone) {
      this.#set(this.props.several ? [] : null);
      this.#state(`${gone.name} is no longer on the server. Choose it again.`, true);
    } else if (!isSame(value, this.props.value)) {
      this.props.value = value;
      this.#show();
      this.trigger("input");
    }
  }

  get #id() { return this.closest("[id]")?.id ?? "files"; }

  #part(name) { return this.querySelector(`[data-part=${name}]`); }

  #click(event) {
    const { do: action, example, segment } = event.target.closest("button")?.dataset ?? {};
    if (action === "remove" || example || segment) this.#choice += 1;
    if (action === "choose" || action === "folder") {
      const input = this.querySelector("input");
      input.webkitdirectory = action === "folder";
      input.click();
    } else if (action === "remove") this.#set(this.props.several ? [] : null, { focus: true });
    else if (example && this.props.several) this.#set(this.#examples());
    else if (example) this.#set({ example: Number(example) });
    else if (segment) this.#set({ segment: true });
  }

  #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])].filter((each) => each.type.startsWith("image/"));
    if (files.length && this === pasteTarget()) this.#take(this.props.several ? files : files.slice(0, 1));
  }

  async #take(chosen) {
    const { uploadMb, several, suffixes = [] } = this.props;
    const placeOf = (file) => file.place || file.webkitRelativePath || file.name;
    const isImage = (file) => suffixes.includes(/\.[^.]*$/.exec(file.name)?.[0].toLowerCase());
    const isHidden = (file) => placeOf(file).split("/").some((part) => part.startsWith("."));
    const isZip = (file) => placeOf(file) === file.name && /\.zip$/i.test(file.name);
    const files = suffixes.length ? chosen.filter((file) => (isImage(file) && !isHidden(file)) || isZip(file)) : chosen;
    if (chosen.length && !files.length) return this.#state("There is no image and no zip file among these.", true);
    const large = uploadMb && files.find((file) => file.size > uploadMb * 1e6);
    if (large) return this.#state(`${large.name} has ${(large.size / 1e6).toFixed(1)} MB; the limit is ${uploadMb} MB. Make it smaller.`, true);
    const waiting = several ? [...files.entries()] : [[0, files[0]]], total = files.length, taken = [];
    if (!total) return this.#state("");
    if (!several) this.#choice += 1; // several files are added to those before
    const choice = this.#choice;
    let done = 0;
    const next = async () => {
      for (let each = waiting.shift(); each; each = waiting.shift()) {
        const [at, file] = each;
        this.#state(several && total > 1 ? `Uploading: ${done} of ${total} files` : `Uploading ${file.name}`);
        const { path } = await this.upload(file);
        if (choice !== this.#choice) return;
        done += 1;
        taken[at] = { path, name: placeOf(file) };
        present.add(path);
        if (SHOWN.test(file.name) && !several) urls.set(path, URL.createObjectURL(file));
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, next));
    } catch (error) {
      if (choice !== this.#choice) return;
      return this.#state(`The upload failed: ${error.message ?? error}. Please try again.`, true);
    }
    if (choice !== this.#choice) return;
    const before = several ? (this.props.value ?? []).filter((each) => each.path) : []; // files replace the examples
    this.#set(several ? [...before, ...taken] : taken[0]);
    const others = chosen.length - files.length;
    return this.#state(others ? `${others} ${others === 1 ? "file that is no image was" : "files that are no images were"} left out.` : "");
  }

  #set(value, { focus = false } = {}) {
    if (this.props.keeps) text2segKeep(KEPT, { ...text2segKept(KEPT, {}), [this.props.keeps]: value });
    this.props.value = value; // after that, because Gradio tells a new value at once
    this.#state("");
    this.#show();
    if (focus) this.querySelector(".t2s-drop").focus();
    this.trigger("input");
  }

  #state(text, isWrong = false) {
    const state = this.#part("state");
    state.textContent = text;
    state.classList.toggle("t2s-alert", isWrong);
  }

  #show() {
    const { value, several, examples = [], offer } = this.props;
    const taken = several ? value?.length : value;
    const drop = this.querySelector(".t2s-drop"), isLost = drop === document.activeElement && Boolean(taken);
    drop.hidden = Boolean(taken);
    if (this.#part("folder")) this.#part("folder").hidden = Boolean(taken);
    this.querySelector(".t2s-taken").hidden = !taken;
    if (isLost) this.querySelector(".t2s-taken button").focus();
    const [name, url] = this.#shown(value);
    const image = this.querySelector("img");
    image.hidden = !url;
    if (url) Object.assign(image, { src: url, alt: name });
    else image.removeAttribute("src");
    const names = several && taken ? value.slice(0, LISTED).map((each) => each.name) : [name];
    const more = several && taken > LISTED ? [`and ${taken - LISTED} more`] : [];
    this.#part("names").replaceChildren(...[...names, ...more].map((text) =>
      Object.assign(document.createElement("p"), { textContent: text })));
    const focused = this.#part("offers").contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
    this.#part("offers").replaceChildren(...(offer ? [this.#offer("segment", 1, offer, `${offer.name}, from Segment`)] : []),
      ...(several ? this.#offerAll(examples) : examples.map((each, at) => this.#offer("example", at, each, each.title))));
    for (const button of this.#part("offers").children) {
      const { example, segment } = button.dataset;
      const isExample = several ? value?.some((each) => each.example !== undefined) : value?.example === Number(example);
      button.setAttribute("aria-pressed", String(Boolean(segment ? value?.segment : isExample)));
    }
    if (focused) {
      const [key, number] = Object.entries(focused)[0];
      this.querySelector(`[data-${key}="${number}"]`)?.focus({ preventScroll: true });
    }
  }

  /** All examples as the value of several files. */
  #examples() { return this.props.examples.map(({ title: name }, example) => ({ example, name })); }

  /** One button that takes all examples. */
  #offerAll(examples) {
    if (!examples.length) return [];
    const button = this.#offer("example", 0, examples[0], `${examples.length} examples`);
    button.prepend(...examples.slice(1).map(({ thumbnail }) => Object.assign(new Image(), { src: thumbnail, alt: "" })));
    return [button];
  }

  /** Name and address of the chosen image. */
  #shown(value) {
    const { several, examples = [], offer } = this.props;
    if (several || !value) return ["", ""];
    if (value.segment) return [offer?.name ?? "the image from Segment", offer?.thumbnail];
    if (value.example !== undefined) return [examples[value.example].title, examples[value.example].thumbnail];
    return [value.name, SHOWN.test(value.name) ? addressOf(value.path) : ""];
  }

  #offer(key, number, { thumbnail }, title) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "t2s-offer", title });
    button.dataset[key] = number;
    button.append(Object.assign(new Image(), { src: thumbnail, alt: "" }),
      Object.assign(document.createElement("span"), { textContent: title }));
    return button;
  }
});
