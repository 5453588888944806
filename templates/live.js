// Keeps an open page true: asks for the same page again and changes what differs, so that scroll, focus, open details
// and selections stay. Logs are followed by their cursor. Without this script every page is whole, only still.
"use strict";

(() => {
  const PAGE_EVERY = 1500;
  const LOG_EVERY = 1000;
  const PATIENCE = 10000;
  const MOST_LINES = 5000;

  const main = document.querySelector("main[data-live]");
  const state = document.querySelector("[data-live-state]");

  function tellState(alive) {
    if (!state) return;
    state.hidden = false;
    state.classList.toggle("lost", !alive);
    const word = alive ? "Live" : "Reconnecting";
    if (state.textContent !== word) state.textContent = word;
  }

  async function get(url, accept) {
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), PATIENCE);
    try {
      return await fetch(url, { headers: { Accept: accept }, signal: stop.signal, credentials: "same-origin" });
    } finally {
      clearTimeout(timer);
    }
  }

  // Makes `here` like `there` with as few changes as possible. Elements with the same id are the same element.
  function morph(here, there) {
    if (here.isEqualNode(there) || here.hasAttribute("data-log")) return;
    for (const { name } of [...here.attributes]) {
      if (!there.hasAttribute(name) && !(name === "open" && here.localName === "details")) here.removeAttribute(name);
    }
    for (const { name, value } of [...there.attributes]) {
      if (here.getAttribute(name) !== value) here.setAttribute(name, value);
    }
    const byId = new Map();
    for (const child of here.children) if (child.id) byId.set(child.id, child);
    let at = here.firstChild;
    for (const wanted of [...there.childNodes]) {
      const known = wanted.nodeType === Node.ELEMENT_NODE && wanted.id ? byId.get(wanted.id) : null;
      if (known) {
        if (known === at) at = at.nextSibling;
        else here.insertBefore(known, at);
        morph(known, wanted);
        continue;
      }
      const alike = at && at.nodeType === wanted.nodeType && at.nodeName === wanted.nodeName && !(at.id && at.id !== wanted.id);
      if (!alike) {
        here.insertBefore(document.importNode(wanted, true), at);
        continue;
      }
      const next = at.nextSibling;
      if (at.nodeType === Node.ELEMENT_NODE) {
        if (at.id === wanted.id) morph(at, wanted);
        else at.replaceWith(document.importNode(wanted, true));
      } else if (at.nodeValue !== wanted.nodeValue) {
        at.nodeValue = wanted.nodeValue;
      }
      at = next;
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  function busy() {
    // Somebody is about to confirm something, or marks text: leave the page alone.
    if (document.querySelector("details.confirm[open]")) return true;
    const selection = document.getSelection();
    return Boolean(selection && !selection.isCollapsed && main.contains(selection.anchorNode));
  }

  async function refresh() {
    if (document.hidden || busy()) return;
    const answer = await get(location.href, "text/html");
    if (answer.status !== 200 && answer.status !== 404) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (!fresh || busy()) return;
    if (answer.status === 404) {
      main.replaceChildren(...[...fresh.childNodes].map((node) => document.importNode(node, true)));
      return;
    }
    morph(main, fresh);
    const [navigation, freshNavigation] = [document.querySelector(".top nav"), page.querySelector(".top nav")];
    if (navigation && freshNavigation) morph(navigation, freshNavigation);
  }

  async function every(milliseconds, work) {
    let wait = milliseconds;
    for (;;) {
      try {
        const again = await work();
        if (again === false) return;
        wait = milliseconds;
        tellState(true);
      } catch {
        wait = Math.min(wait * 2, 15000);
        tellState(false);
      }
      await new Promise((resume) => setTimeout(resume, wait));
    }
  }

  // A line that begins a phase opens a fold; what follows goes into it.
  function addLine(lines, line) {
    if (line.heading) {
      const phase = document.createElement("details");
      phase.className = "phase";
      phase.open = lines.dataset.folded === undefined;
      const summary = document.createElement("summary");
      summary.append(...[...lineElement(line).children].filter((part) => part.className !== "from"));
      phase.append(summary);
      lines.append(phase);
      return;
    }
    const last = lines.lastElementChild;
    (last && last.localName === "details" ? last : lines).append(lineElement(line));
  }

  function lineElement(line) {
    const element = document.createElement("div");
    element.className = "line " + line.stream;
    const part = (name, text) => {
      const span = document.createElement("span");
      span.className = name;
      span.textContent = text;
      element.append(span);
      return span;
    };
    part("at", line.at.slice(11, 19));
    part("from", line.process);
    const said = part("said", "");
    for (const { class: styles, text } of line.spans) {
      if (!styles) {
        said.append(text);
        continue;
      }
      const span = document.createElement("span");
      span.className = styles;
      span.textContent = text;
      said.append(span);
    }
    return element;
  }

  function follow(log) {
    const lines = log.querySelector("[data-log-lines]");
    const told = log.querySelector("[data-log-state]");
    const pause = log.querySelector("[data-log-pause]");
    const wrap = log.querySelector("[data-log-wrap]");
    let next = log.dataset.next;
    let paused = false;
    log.querySelector("[data-log-buttons]").hidden = false;
    const fold = log.querySelector("[data-log-fold]");
    fold.addEventListener("click", () => {
      const folded = lines.toggleAttribute("data-folded");
      fold.setAttribute("aria-pressed", String(folded));
      for (const phase of lines.querySelectorAll("details.phase")) phase.open = !folded;
    });
    wrap.addEventListener("click", () => {
      wrap.setAttribute("aria-pressed", String(lines.classList.toggle("wrapped")));
    });
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      told.textContent = paused ? "Paused" : "Following";
    });
    if (window.matchMedia("(max-width: 44rem)").matches) wrap.click();
    lines.scrollTop = lines.scrollHeight;
    if ("ended" in log.dataset) {
      pause.hidden = true;
      return;
    }
    told.textContent = "Following";

    every(LOG_EVERY, async () => {
      if (paused || document.hidden) return true;
      const query = new URLSearchParams({ after: next, lines: "1000", form: "spans" });
      const answer = await get(log.dataset.log + "?" + query, "application/json");
      if (answer.status === 404) {
        told.textContent = "Gone";
        return false;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      const page = await answer.json();
      next = page.next;
      const atEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
      if (page.lines.length) {
        log.querySelector("[data-log-empty]")?.remove();
        for (const line of page.lines) addLine(lines, line);
        const all = lines.getElementsByClassName("line");
        while (all.length > MOST_LINES) {
          const phase = all[0].parentElement;
          all[0].remove();
          if (phase !== lines && !phase.querySelector(".line")) phase.remove();
        }
        if (atEnd) lines.scrollTop = lines.scrollHeight;
      }
      if (page.ended) {
        told.textContent = "Complete";
        pause.hidden = true;
        const empty = log.querySelector("[data-log-empty]");
        if (empty) empty.textContent = "It printed nothing.";
        return false;
      }
      return true;
    });
  }

  for (const log of document.querySelectorAll("[data-log]")) follow(log);
  if (main) every(PAGE_EVERY, refresh);
  // The pop-up of one order closes when another one is opened or Escape is pressed.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of document.querySelectorAll("details.confirm[open]")) {
      open.open = false;
      open.querySelector("summary").focus();
    }
  });
})();
