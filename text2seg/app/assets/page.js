// For all tabs: requests to the server, early presses of buttons, and arrow keys between tabs.

// --- Requests. Gradio uses `fetch`, which is wrapped here before its first request. ---

// Answers to events come as a stream. The server closes the stream after the last answer; nobody would read the answer to
// an event sent at that moment. So Gradio gets one stream that never closes. It receives what the server sends, and the
// server's stream is opened again while an event is unanswered.

const { fetch: ask } = window;
const PLACE = "/gradio_api/";
const waiting = new Set(); // events without an answer, by their ids
const answered = new Set(); // events whose answer came before their id
const lines = new TextEncoder();
let uploads = 0;
let sink = null; // what Gradio reads from
let request = null; // its request for the stream
let isOpen = false;
let before = Promise.resolve(); // the event sent last

window.fetch = (what, how) => {
  const url = new URL(what.url ?? what, location.href);
  const name = url.origin === location.origin ? url.pathname.split(PLACE)[1] ?? "" : "";
  if (name === "queue/join" || name === "run/predict") present(how.body);
  if (name === "queue/join") return sent(what, how);
  if (name === "queue/data") return streamed(new Request(what, how));
  if (name === "upload") return uploaded(what, how);
  if (name.startsWith("heartbeat/")) { // a stream for as long as the page is open; `present` takes its place
    return Promise.resolve(new Response(new ReadableStream(), { headers: { "content-type": "text/event-stream" } }));
  }
  return ask(what, how);
};

/** Send an event after all earlier ones have arrived, because requests that are sent at once arrive in any order. */
async function sent(what, how) {
  const arrival = before.then(() => ask(what, how));
  before = arrival.catch(() => null);
  const answer = await arrival;
  const { event_id: id } = answer.ok ? await answer.clone().json() : {};
  if (id && !answered.delete(id)) waiting.add(id);
  read();
  return answer;
}

function streamed(asked) {
  request = asked;
  asked.signal.addEventListener("abort", () => { sink = null; });
  const body = new ReadableStream({ start: (controller) => { sink = controller; }, cancel: () => { sink = null; } });
  read();
  return Promise.resolve(new Response(body, { headers: { "content-type": "text/event-stream" } }));
}

/** Read from the server while an event is unanswered. */
async function read() {
  if (isOpen || !sink || !waiting.size) return;
  isOpen = true;
  try {
    await withConnection(listen);
  } catch (error) {
    waiting.clear();
    sink?.error(error); // Gradio shows it, and reloads the page when the server is back
    sink = null;
  } finally {
    isOpen = false;
  }
  read();
}

async function listen() {
  const answer = await ask(request.clone());
  if (!answer.ok) throw new Error(`the server refused to answer (${answer.status})`);
  let rest = "";
  let isClosed = false;
  for (const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    for (const message of messages) {
      const { msg, event_id: id, rank } = JSON.parse(message.replace(/^data: /, ""));
      if (msg === "process_completed" && !waiting.delete(id)) answered.add(id);
      if (msg === "estimation" || msg === "process_starts") {
        document.dispatchEvent(new CustomEvent("text2seg-queue", { detail: { before: rank ?? 0 } }));
      }
      if (msg === "close_stream") isClosed = true;
      else sink?.enqueue(lines.encode(`${message}\n\n`));
    }
  }
  if (!isClosed && waiting.size) throw new Error("the server closed the connection");
}

async function uploaded(what, how) {
  uploads += 1;
  const ended = () => setTimeout(() => { uploads -= 1; }); // after the caller has stored the file
  try {
    const answer = await ask(what, how);
    for (const read of ["json", "text"]) answer[read] = () => Response.prototype[read].call(answer).finally(ended);
    return answer;
  } catch (error) {
    ended();
    throw error;
  }
}

// --- Connections. A browser has six to a host, for all its windows. ---

const STREAMS = 4; // of all windows; the other connections are for short requests
const SOON = 2000; // milliseconds before a notice says what the page waits for
const EVERY = 3000; // milliseconds between two checks of the server
const PATIENCE = 10000; // milliseconds without an answer before a notice says so
const PRESENT = 15000; // milliseconds between two words to the server that this page is open
const WINDOWS = "Waiting for other windows of this app, which use the connections of this browser. "
  + "This page goes on when one of them is done.";
const SILENT = "The app does not answer. Leave this page open: it goes on when the app answers again. "
  + "An app that was started anew no longer has the image in “Segment”. "
  + "If the app is open in many windows of this browser, close some; they share six connections.";
const notices = new Map(); // texts by their cause
let notice = null; // the element that shows the last one

/** Show a text for a cause above everything else, or hide it if it is "". */
function notify(cause, text) {
  if ((notices.get(cause) ?? "") === text) return;
  if (text) notices.set(cause, text);
  else notices.delete(cause);
  notice ??= Object.assign(document.createElement("div"), { className: "t2s-alert t2s-notice", popover: "manual" });
  notice.setAttribute("role", "status");
  document.querySelector(".gradio-container")?.append(notice);
  if (notices.size) notice.showPopover();
  else notice.hidePopover();
  notice.textContent = [...notices.values()].at(-1) ?? "";
}

/** Do work that holds a connection once fewer than STREAMS windows do. Browsers have locks on HTTPS and localhost. */
async function withConnection(work) {
  if (!navigator.locks) return work();
  const late = setTimeout(() => notify("windows", WINDOWS), SOON);
  const others = new AbortController();
  let result = null;
  const begin = () => { // with the first lock that is free
    if (result) return null;
    clearTimeout(late);
    notify("windows", "");
    result = work();
    others.abort();
    return result;
  };
  const names = Array.from({ length: STREAMS }, (_, number) => `text2seg-stream-${number}`);
  await Promise.allSettled(names.map((name) => navigator.locks.request(name, { signal: others.signal }, begin)));
  return result;
}

let session = ""; // Gradio's name of this page

/** Tell the server from time to time that the page of this event is open, without a connection that stays. */
function present(event) {
  if (session) return;
  session = JSON.parse(event).session_hash;
  const tell = (method) => ask(`gradio_api/heartbeat/${session}`, { method, keepalive: true }).catch(() => null); // see `check`
  const here = () => tell("POST");
  here();
  setInterval(here, PRESENT);
  addEventListener("pagehide", () => tell("DELETE"));
  addEventListener("pageshow", (event) => { if (event.persisted) here(); });
}

// A restarted server does not know this page, so the page is reloaded.

let heard = performance.now(); // when the server answered last

async function check() {
  const answer = ask("gradio_api/app_id", { signal: AbortSignal.timeout(PATIENCE) });
  const now = await answer.then((got) => got.json()).catch(() => null);
  if (now && String(now.app_id) !== String(window.gradio_config.app_id)) location.reload();
  if (now) heard = performance.now();
  notify("silent", performance.now() - heard > PATIENCE ? SILENT : "");
  setTimeout(check, EVERY);
}
setTimeout(check, EVERY);

// --- Presses. ---

// Some buttons need uploads or answers that may still be on their way. Such a button only records the press. A second,
// hidden button does the work; it is pressed as soon as it exists and all uploads are done.

const BUSY = { __type__: "update", interactive: false };
const RETRY = 50; // milliseconds between two checks for the second button
const pressed = new Set();

/** Press the second button, given by a selector, as soon as it exists and no upload is running. Returns an update that
 * disables the first button until the server answers. */
window.text2segPress = (selector) => {
  const look = () => {
    const button = uploads ? null : document.querySelector(selector);
    if (!button) return setTimeout(look, RETRY);
    pressed.delete(selector);
    return button.click();
  };
  if (!pressed.has(selector)) {
    pressed.add(selector);
    look();
  }
  return BUSY;
};

// --- Keys. ---

/** Focus an element, given by a selector, if the focus was lost: a focused button that is disabled or hidden loses it. */
window.text2segFocus = (selector) => {
  const look = () => {
    const { activeElement: focused } = document;
    if (focused && focused !== document.body && !focused.disabled && focused.checkVisibility()) return;
    const found = [...document.querySelectorAll(selector)];
    const element = found.find((each) => each.checkVisibility()) ?? found[0];
    if (!element) return;
    if (element.tabIndex < 0) element.tabIndex = -1;
    element.focus({ preventScroll: true });
  };
  setTimeout(look, 100); // once Gradio has changed the page
};

// The way to real weights, from every warning: opens the panel of the models.
document.addEventListener("click", (event) => {
  if (!event.target.closest?.("[data-do=models]")) return;
  const chip = document.querySelector("#models > button");
  if (!document.querySelector("#models-table")?.checkVisibility()) chip.click();
  chip.scrollIntoView({ block: "nearest" });
  chip.focus({ preventScroll: true });
});

// Escape closes the panel of the models, as it closes everything that opens over the page.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !event.target.closest?.("#models")) return;
  if (!document.querySelector("#models-table")?.checkVisibility()) return;
  const chip = document.querySelector("#models > button");
  chip.click();
  chip.focus({ preventScroll: true });
});

// Screen readers hear whether a part that unfolds is open. Gradio gives its button a class only.
new MutationObserver(() => {
  for (const button of document.querySelectorAll("button.label-wrap")) {
    const isOpen = String(button.classList.contains("open"));
    if (button.ariaExpanded !== isOpen) button.ariaExpanded = isOpen;
  }
}).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });

// A page that is loaded again shows the tab that it showed before. This window alone remembers it.
const TAB = "text2seg-tab";

addEventListener("pagehide", () => {
  const tab = document.querySelector('[role="tab"][aria-selected="true"]');
  if (tab) text2segKeep(TAB, tab.textContent.trim());
});

function showTab() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  if (!tabs.length) { requestAnimationFrame(showTab); return; } // Gradio has not drawn the page yet
  const last = text2segKept(TAB);
  tabs.find((tab) => tab.textContent.trim() === last && tab.ariaSelected !== "true")?.click();
}
if (text2segKept(TAB)) showTab();

// Arrow keys move between tabs, as screen readers announce.
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const tab = step && event.target.closest('[role="tablist"] [role="tab"]');
  if (!tab) return;
  const all = [...tab.closest('[role="tablist"]').querySelectorAll('[role="tab"]')];
  const next = all[(all.indexOf(tab) + step + all.length) % all.length];
  next.click();
  next.focus();
  event.preventDefault();
});
