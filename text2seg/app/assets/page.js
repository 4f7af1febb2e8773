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
  if (name === "queue/join") return sent(what, how);
  if (name === "queue/data") return streamed(new Request(what, how));
  if (name === "upload") return uploaded(what, how);
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
  } catch (error) {
    waiting.clear();
    sink?.error(error); // Gradio shows it, and reloads the page when the server is back
    sink = null;
  } finally {
    isOpen = false;
  }
  read();
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

// A restarted server does not know this page, so the page is reloaded.

const EVERY = 3000; // milliseconds between two checks

setInterval(async () => {
  const { app_id: before } = window.gradio_config;
  const now = await ask("gradio_api/app_id").then((answer) => answer.json()).catch(() => null);
  if (now && String(now.app_id) !== String(before)) location.reload();
}, EVERY);

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
    const element = document.querySelector(selector);
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

// A page that is loaded again shows the tab that it showed before. This window alone remembers it.
const TAB = "text2seg-tab";

addEventListener("pagehide", () => {
  const tab = document.querySelector('[role="tab"][aria-selected="true"]');
  try {
    if (tab) sessionStorage.setItem(TAB, tab.textContent.trim());
  } catch (error) {
    console.warn("text2seg cannot keep your tab over a reload", error); // storage is off
  }
});

function showTab() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  if (!tabs.length) { requestAnimationFrame(showTab); return; } // Gradio has not drawn the page yet
  const last = sessionStorage.getItem(TAB);
  tabs.find((tab) => tab.textContent.trim() === last && tab.ariaSelected !== "true")?.click();
}
try {
  if (sessionStorage.getItem(TAB)) showTab();
} catch (error) {
  console.warn("text2seg cannot find your last tab", error);
}

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
