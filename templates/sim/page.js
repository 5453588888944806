// Follows what happens: asks for this page each second and swaps <main> when it changed. What a person has opened,
// selected or is about to press stays; what a person types stands outside of <main> and is never touched.
"use strict";
let tag = null;
let asking = false;
async function follow() {
  const main = document.querySelector("main");
  const selection = document.getSelection();
  const busy = document.hidden || asking ||
    (selection && !selection.isCollapsed && main.contains(selection.anchorNode));
  if (busy) return;
  asking = true;
  try {
    const headers = { Accept: "text/html" };
    if (tag) headers["If-None-Match"] = tag;
    const answer = await fetch(location.pathname + location.search, { headers, cache: "no-store" });
    if (answer.status === 200) {
      tag = answer.headers.get("ETag");
      const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      if (next && next.innerHTML !== main.dataset.seen) {
        const seen = next.innerHTML;
        const name = (box) => box.closest("[id]")?.id + "/" + box.querySelector("summary")?.textContent;
        const open = new Map([...main.querySelectorAll("details")].map((box) => [name(box), box.open]));
        if (main.dataset.seen !== undefined || seen !== main.innerHTML) main.replaceChildren(...next.childNodes);
        main.dataset.seen = seen;
        for (const box of main.querySelectorAll("details")) if (open.has(name(box))) box.open = open.get(name(box));
      }
    }
  } catch {
    // The stand-in may be starting again: the next second asks again.
  } finally {
    asking = false;
  }
}
setInterval(follow, 1000);
