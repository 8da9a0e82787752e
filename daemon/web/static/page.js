// A dropped file becomes the chosen one; what was chosen gives the batch its name.
document.addEventListener("dragover", (event) => {
  const zone = event.target.closest("[data-dropzone]");
  if (zone) {
    event.preventDefault();
    zone.classList.add("over");
  }
});
document.addEventListener("dragleave", (event) => {
  const zone = event.target.closest("[data-dropzone]");
  if (zone) zone.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  const zone = event.target.closest("[data-dropzone]");
  if (!zone) return;
  event.preventDefault();
  zone.classList.remove("over");
  zone.querySelector("input[type=file]").files = event.dataTransfer.files;
});
// Submitting loads the page that follows; only checking swaps a part of this one.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-native]");
  if (!button) return;
  event.preventDefault();
  event.stopPropagation();
  const form = button.form;
  const what = document.createElement("input");
  what.type = "hidden";
  what.name = button.name;
  what.value = button.value;
  form.append(what);
  HTMLFormElement.prototype.submit.call(form);
}, true);
// A refusal is shown where its answer would have been.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status >= 400 && event.detail.target.getAttribute("aria-live")) {
    const page = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
    const line = page.querySelector("[role=alert]");
    event.detail.shouldSwap = true;
    event.detail.isError = false;
    event.detail.serverResponse = line ? line.outerHTML : "";
  }
});
const last = new Map();
// What is polled is not swapped while somebody is in it with the keyboard, or where nothing changed.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { target, xhr, requestConfig } = event.detail;
  if (requestConfig.verb !== "get" || requestConfig.elt.tagName === "INPUT") return;
  const inside = document.activeElement;
  const chosen = !document.getSelection().isCollapsed;
  const same = last.get(target.id) === xhr.responseText;
  last.set(target.id, xhr.responseText);
  if (same || chosen || (target !== inside && target.contains(inside))) event.detail.shouldSwap = false;
});
// On a phone the views scroll sideways: the present one is in sight.
document.querySelector("nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
