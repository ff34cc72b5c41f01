// Copy buttons. The style sheet shows them only if this script runs.
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

function announce(button, text) {
  button.textContent = text;
  document.getElementById("announcement").textContent = text;
  setTimeout(() => { button.textContent = "Copy"; }, 3000);
}
