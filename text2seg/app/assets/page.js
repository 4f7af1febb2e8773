// What the page does itself, on every tab: it keeps what goes to the server and comes back, keeps a press that comes
// too early, and moves between tabs by keys.

// --- Requests. Gradio asks with `fetch`; it is wrapped here, before it asks for the first time. ---

// Answers to events come as a stream. The server closes the stream once nothing is left to answer, and an event that is
// sent in that moment would wait for an answer that nobody reads. So Gradio is given one stream that never closes; what
// the server sends goes into it, and the server's stream is opened again whenever an event is unanswered.

const { fetch: ask } = window;
const PLACE = "/gradio_api/";
const waiting = new Set(); // events without an answer, by their ids
const answered = new Set(); // events whose answer came before their id
const lines = new TextEncoder();
let uploads = 0;
let sink = null; // what Gradio reads from
let request = null; // how it asked for it
let isOpen = false;

window.fetch = (what, how) => {
  const url = new URL(what.url ?? what, location.href);
  const name = url.origin === location.origin ? url.pathname.split(PLACE)[1] ?? "" : "";
  if (name === "queue/join") return sent(what, how);
  if (name === "queue/data") return streamed(new Request(what, how));
  if (name === "upload") return uploaded(what, how);
  return ask(what, how);
};

async function sent(what, how) {
  const answer = await ask(what, how);
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

/** Read from the server as long as an event is unanswered. */
async function read() {
  if (isOpen || !sink || !waiting.size) return;
  isOpen = true;
  try {
    const answer = await ask(request.clone());
    if (!answer.ok) throw new Error(`the answers cannot be read (${answer.status})`);
    let rest = "";
    let isClosed = false;
    for (const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      const messages = (rest + value).split("\n\n");
      rest = messages.pop();
      for (const message of messages) {
        const { msg, event_id: id } = JSON.parse(message.replace(/^data: /, ""));
        if (msg === "process_completed" && !waiting.delete(id)) answered.add(id);
        if (msg === "close_stream") isClosed = true;
        else sink?.enqueue(lines.encode(`${message}\n\n`));
      }
    }
    if (!isClosed && waiting.size) throw new Error("the server hung up");
  } catch (error) {
    waiting.clear();
    sink?.error(error); // Gradio says so, and loads the page again when the server is back
    sink = null;
  } finally {
    isOpen = false;
  }
  read();
}

async function uploaded(what, how) {
  uploads += 1;
  const ended = () => setTimeout(() => { uploads -= 1; }); // when whoever asked has put the file where it belongs
  try {
    const answer = await ask(what, how);
    for (const read of ["json", "text"]) answer[read] = () => Response.prototype[read].call(answer).finally(ended);
    return answer;
  } catch (error) {
    ended();
    throw error;
  }
}

// A server that was started anew knows nothing of what is on the page, which is then loaded again.

const EVERY = 3000; // milliseconds between two looks

setInterval(async () => {
  const { app_id: before } = window.gradio_config;
  const now = await ask("gradio_api/app_id").then((answer) => answer.json()).catch(() => null);
  if (now && String(now.app_id) !== String(before)) location.reload();
}, EVERY);

// --- Presses. ---

// Some buttons need more than themselves: files that are still on their way, or what the server has not answered yet.
// Such a button only notes the press. What does the work is a second button, hidden, which is there when all else is; it
// is pressed as soon as it can be.

const BUSY = { __type__: "update", interactive: false };
const LOOK = 50; // milliseconds between two looks for a second button
const pressed = new Set();

/** Press a second button, by its selector, when it is there and no file is on its way. Returns what Gradio has to do with
 * the first button: no second press until the server has answered. */
window.text2segPress = (selector) => {
  const look = () => {
    const button = uploads ? null : document.querySelector(selector);
    if (!button) return setTimeout(look, LOOK);
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

// Arrow keys go from tab to tab, as screen readers promise.
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
