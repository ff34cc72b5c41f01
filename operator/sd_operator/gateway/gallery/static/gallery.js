// Copy buttons, the shortcut for the search, and in the load form the proposed name and the errors
// of the fields. The style sheet shows the copy buttons only if this script runs.
"use strict";

document.documentElement.classList.add("scripted");

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(text.textContent);
    announce(button, "Copied");
  } catch {
    // There is no permission, or no clipboard over plain http: select the text for the user.
    getSelection().selectAllChildren(text);
    text.focus();
    announce(button, "Selected: press Ctrl+C");
  }
});

// The key / goes to the search, as on many sites.
document.addEventListener("keydown", (event) => {
  const search = document.getElementById("q");
  if (event.key !== "/" || !search || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox])")) return;
  event.preventDefault();
  search.focus();
});

// A look-up proposes a name, unless the visitor has typed one, and opens the group that a gated model needs.
document.addEventListener("htmx:afterSettle", ({ target }) => {
  if (target.id !== "facts") return;
  const { name: proposed, opens } = document.getElementById("source-facts").dataset;
  const name = document.getElementById("metadata-name");
  if (opens) document.getElementById(opens).open = true;
  if (!proposed || (name.value && name.value !== name.dataset.proposed)) return;
  name.value = name.dataset.proposed = proposed;
  name.dispatchEvent(new Event("input", { bubbles: true }));
});

// A response to the form replaces only the errors, so that the fields keep their text. Mark the
// fields that have an error.
document.addEventListener("htmx:afterSettle", () => {
  for (const error of document.querySelectorAll("#load .complaint")) {
    const field = document.getElementById(error.id.replace(/-error$/, ""));
    field.setAttribute("aria-invalid", error.textContent !== "");
  }
});

function announce(button, text) {
  button.textContent = text;
  document.getElementById("announcement").textContent = text;
  setTimeout(() => { button.textContent = "Copy"; }, 3000);
}
