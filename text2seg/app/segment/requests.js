// Requests of the Segment tab to the server, one at a time. Those that are made before the server is connected, or while
// it answers, wait in a queue. Each has a number, its turn, which its answer repeats.
// new text2segRequests({ busy, failed }): `busy({text, canStop})` shows what runs, "" for nothing; `failed(why)` tells that
// a request is lost, and why if that is known.

const PATIENCE = 180_000; // milliseconds without an answer, with time in the queue, before a request counts as lost
const SLOW = ["find", "example", "everything"]; // what can be stopped
const NAMES = { open: "Opening …", resume: "Opening your last image …", find: "Searching …", example: "Searching …",
  pick: "Picking …", box: "Cutting out …", name: "Naming …", everything: "Finding everything …",
  point: "Updating …", take: "Updating …", why: "Explaining …", "why-not": "Explaining …", export: "Exporting …" };

window.text2segRequests = class {
  #server = null; // {send, stop, upload}
  #sent = null; // the request that is being answered
  #waiting = [];
  #turn = 0; // of the last request
  #outdated = 0; // the last turn whose answer is no longer wanted
  #progress = null; // {share, since, first} of the request that is being answered
  #isStopping = false;
  #patience = 0;

  constructor({ busy, failed }) {
    Object.assign(this, { busy, failed });
    document.addEventListener("text2seg-queue", ({ detail: { before } }) => this.#show(before));
  }

  connect(server) {
    this.#server = server;
    this.next();
  }

  /** Send a request; `then` gets its answer if that is no error. Only the last of several searches is sent. A new image
   * drops all requests that wait. */
  send(what, then = null) {
    const isNew = what.do === "open" || what.do === "example";
    this.#waiting = isNew ? [] : this.#waiting.filter((each) => what.do !== "find" || each.what.do !== "find");
    this.#waiting.push({ what, then });
    this.next();
  }

  /** Send the next request if none is being answered. */
  next() {
    if (!this.#sent && this.#server && this.#waiting.length) this.#begin(this.#waiting.shift());
    clearTimeout(this.#patience);
    if (this.#sent) this.#patience = setTimeout(() => this.failed(), PATIENCE);
    this.#show();
  }

  /** Return the request {what, then} that an answer is for, {} if it is for none, null if it is no longer wanted. */
  answered({ turn, progress }) {
    if (progress !== undefined) {
      this.#progressed(turn, progress);
      return null;
    }
    const request = turn && turn === this.#sent?.turn ? this.#sent : {};
    if (turn && !request.what && this.#sent) return null; // from before the connection broke
    if (turn && turn <= this.#outdated) return null;
    if (request.what) this.#sent = this.#progress = null;
    return request;
  }

  /** Stop the request that is being answered, and drop the searches that wait. */
  stop() {
    this.#isStopping = true;
    this.#waiting = this.#waiting.filter(({ what }) => what.do !== "find");
    this.#server.stop(this.#sent?.turn ?? 0);
    this.#show();
  }

  /** Forget all requests; with `isOutdated`, their answers too. */
  drop({ isOutdated = false } = {}) {
    this.#sent = null;
    this.#waiting = [];
    if (isOutdated) this.#outdated = this.#turn;
  }

  /** Whether a request waits, or one of these kinds. */
  waits(...kinds) { return this.#waiting.some(({ what }) => !kinds.length || kinds.includes(what.do)); }

  /** Whether a request of one of these kinds waits or is being answered. */
  has(...kinds) { return this.waits(...kinds) || kinds.includes(this.#sent?.what.do); }

  async #begin(asked) {
    this.#isStopping = false;
    const sent = this.#sent = { ...asked, turn: (this.#turn += 1) };
    let { file, ...what } = sent.what;
    if (file) {
      try {
        what = { ...what, path: (await this.#server.upload(file)).path, name: file.name };
      } catch (error) {
        if (this.#sent === sent) this.failed(`${file.name} could not be uploaded: ${error.message ?? error}`);
      }
    }
    if (this.#sent === sent) this.#server.send({ ...what, turn: sent.turn });
  }

  #progressed(turn, share) {
    if (turn !== this.#sent?.turn) return;
    const { since = performance.now(), first = share } = this.#progress ?? {};
    this.#progress = { share, since, first };
    this.next(); // it is not lost
  }

  /** Show what runs, and how many requests of other visitors come before it. */
  #show(before = 0) {
    const [now] = [this.#sent, ...this.#waiting].filter(Boolean);
    if (this.#isStopping && this.#sent) return this.busy({ text: "Stopping …" });
    const text = now ? (NAMES[now.what.do] ?? "…") + (before ? ` ${before} before you` : "") + this.#left() : "";
    return this.busy({ text, canStop: now === this.#sent && SLOW.includes(now?.what.do) });
  }

  /** How far a slow request is, and how long it will still take. */
  #left() {
    const { share = 0, since, first } = this.#progress ?? {};
    if (!share) return "";
    const seconds = share > first ? (performance.now() - since) / 1000 / (share - first) * (1 - share) : 0;
    return ` ${Math.round(100 * share)} %${seconds ? `, about ${Math.ceil(seconds)} s left` : ""}`;
  }
};
