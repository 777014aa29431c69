// Copy buttons, and fields that forget what was typed on Escape.

async function copy(button) {
  const text = button.parentElement.querySelector("pre").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers lend the clipboard to safe addresses only: over plain HTTP the text is selected.
    const range = document.createRange();
    range.selectNodeContents(button.parentElement.querySelector("pre"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
}

addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (button) copy(button);
});
addEventListener("keydown", (event) => {
  const field = event.target;
  if (event.key !== "Escape" || field.dataset?.was === undefined) return;
  field.value = field.dataset.was;
  field.blur();
});
