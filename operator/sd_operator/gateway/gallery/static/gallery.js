// What htmx does not do: copy buttons, which are shown only where this runs.
"use strict";

document.documentElement.classList.add("scripted");

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(text.textContent);
    say(button, "Copied");
  } catch {
    // No permission, or no clipboard over plain http: it is selected, to be copied by hand.
    getSelection().selectAllChildren(text);
    text.focus();
    say(button, "Selected: press Ctrl+C");
  }
});

function say(button, text) {
  button.textContent = text;
  document.getElementById("said").textContent = text;
  setTimeout(() => { button.textContent = "Copy"; }, 3000);
}
