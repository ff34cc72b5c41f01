// Applies the stream of changes to a page while it is visible.
"use strict";
(() => {
  const LOST_AFTER_MS = 5000; // A short interruption is not worth a notice.
  const page = document.querySelector("[data-worker]");
  if (!page) return;
  let leave = null;
  let timer;

  const notice = (text) => { document.getElementById("stream-notice").textContent = text; };
  const refresh = (selector) => {
    for (const element of document.querySelectorAll(selector)) htmx.trigger(element, "refresh");
  };
  const lost = () => {
    timer ??= setTimeout(() => {
      notice("The server does not respond. This page may be out of date; it tries again.");
    }, LOST_AFTER_MS);
  };
  const found = () => { clearTimeout(timer); timer = undefined; notice(""); };

  function receive({ name, html }) {
    if (name === "lost") return lost();
    found();
    // Changes may have been missed before the stream opened. An unchanged page gets a 204.
    if (name === "open") return refresh("[data-refresh]");
    if (name === "ended") return notice("You are logged out. Reload the page to log in again.");
    const escaped = CSS.escape(name);
    if (html === undefined) return refresh(`[data-refresh="${escaped}"]`);
    for (const part of document.querySelectorAll(`[data-part~="${escaped}"]`)) part.innerHTML = html;
  }

  function join() {
    if (leave || document.hidden) return;
    if (!window.SharedWorker) { leave = follow(receive); return; }
    // The worker's name is the namespace, so pages of two namespaces never share a worker.
    const worker = new SharedWorker(page.dataset.worker, page.dataset.namespace);
    worker.port.onmessage = ({ data }) => receive(data);
    worker.onerror = () => { leave = follow(receive); };
    leave = () => { worker.port.postMessage("leave"); worker.port.close(); };
  }
  function part() {
    leave?.();
    leave = null;
    clearTimeout(timer);
    timer = undefined;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? part() : join()));
  addEventListener("pagehide", part);
  addEventListener("pageshow", join);

  const failure = (text) => { document.getElementById("request-notice").textContent = text; };
  const failed = ({ detail: { elt, xhr } }) => {
    if (elt.id === "filter") {
      failure("The search failed, and the list below is of an earlier search. Try again.");
    } else if (elt.dataset.refresh === undefined) {
      failure("The server did not answer this request. Try again.");
    } else if (xhr.status === 404) {
      location.reload(); // The model of this page is gone.
    } else lost();
  };
  for (const kind of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
    document.addEventListener(kind, failed);
  }
  document.addEventListener("htmx:afterOnLoad", ({ detail: { elt } }) => {
    if (elt.dataset.refresh === undefined) failure("");
  });
})();
