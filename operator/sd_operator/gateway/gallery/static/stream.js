// Follows the stream of changes. Every page runs this script. Where the browser has shared workers,
// a worker runs it too, and follows one stream for all pages: over HTTP/1.1 a browser opens only
// six connections to a host.
"use strict";

const SILENCE_MS = 45000; // The server sends something every 15 s.
const RETRY_MS = 5000;

// Pass each message of the stream to `receive`, and also "open" and "lost". Return a function that
// closes the stream.
function follow(receive) {
  let source, timer;
  const open = () => {
    source = new EventSource("/gallery/live");
    source.onopen = () => { receive({ name: "open" }); watch(); };
    source.onmessage = (event) => {
      watch();
      const message = JSON.parse(event.data);
      if (message.name === "ended") close();
      receive(message);
    };
    source.onerror = () => {
      receive({ name: "lost" });
      // The browser connects again by itself, but not after an HTTP error.
      if (source.readyState === EventSource.CLOSED) later(RETRY_MS);
    };
  };
  const later = (pause) => {
    clearTimeout(timer);
    timer = setTimeout(() => { source.close(); open(); }, pause);
  };
  const watch = () => {
    clearTimeout(timer);
    timer = setTimeout(() => { receive({ name: "lost" }); later(0); }, SILENCE_MS);
  };
  const close = () => { clearTimeout(timer); source.close(); };
  open();
  return close;
}

if ("onconnect" in self) {
  const pages = new Set();
  let close = null;
  let state = null;
  const receive = (message) => {
    if (["open", "lost"].includes(message.name)) state = message;
    if (message.name === "ended") close = state = null;
    for (const page of pages) page.postMessage(message);
  };
  self.onconnect = ({ ports: [page] }) => {
    pages.add(page);
    // The only message that a page sends is "leave".
    page.onmessage = () => {
      pages.delete(page);
      if (pages.size || !close) return;
      close();
      close = state = null;
    };
    if (!close) close = follow(receive);
    else if (state) page.postMessage(state);
  };
}
