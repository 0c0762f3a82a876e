"use strict";
document.documentElement.classList.add("js");

function each(selector, action) {
  document.querySelectorAll(selector).forEach(action);
}

function reveal() {
  let found = null;
  try {
    found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  } catch (error) {
    return;
  }
  for (let node = found; node; node = node.parentElement) {
    if (node.tagName === "DETAILS") node.open = true;
  }
  if (found) found.scrollIntoView();
}

const actions = {
  "open-failing": () => each("details[data-bad]", (node) => { node.open = true; }),
  "close-all": () => each("main details", (node) => { node.open = false; }),
  "copy": (button) => {
    const text = document.getElementById("as-text");
    const range = document.createRange();
    range.selectNodeContents(text);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    const told = (word) => { button.textContent = word; };
    if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(() => told("Copied"), () => told("Selected: press Ctrl+C"));
    else told("Selected: press Ctrl+C");
  },
};

each("button[data-action]", (button) => button.addEventListener("click", () => actions[button.dataset.action](button)));
addEventListener("hashchange", reveal);
if (location.hash) reveal();

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details[data-bad]:not([open])")];
  opened.forEach((node) => { node.open = true; });
});
addEventListener("afterprint", () => opened.forEach((node) => { node.open = false; }));
