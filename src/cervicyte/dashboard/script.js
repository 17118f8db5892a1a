// Gradio ends the stream of a page's answers as soon as none is outstanding. What is asked in that very moment is
// answered into no stream, and the page would wait for ever (Gradio 6.31, `queue/join` and `queue/data`). So the
// end is held back while an answer is outstanding, and the next stream is read into the same one.
(() => {
  if (window.cervicyte) return;
  const plain = window.fetch;
  let asking = 0; // questions on their way, whose answers have no name yet
  const outstanding = new Set();
  const early = new Set(); // answered before we knew that they were asked
  const encoder = new TextEncoder();
  window.fetch = async (input, init) => {
    const path = new URL(input?.url ?? input, location.href).pathname;
    if (path.endsWith("/queue/join")) return ask(input, init);
    if (path.endsWith("/upload")) return send(input, init);
    const response = await plain(input, init);
    return response.ok && path.endsWith("/queue/data") ? throughout(response, () => plain(input, init)) : response;
  };
  // Of files that are refused Gradio shows no more than "Error".
  async function send(input, init) {
    let why = "The files could not be sent; try again.";
    try {
      const response = await plain(input, init);
      if (response.ok) return response;
      const said = await response.clone().text();
      try { why = JSON.parse(said).detail || why; } catch { why = said || why; }
      alert(why);
      return response;
    } catch (error) {
      alert(why);
      throw error;
    }
  }
  async function ask(input, init) {
    asking += 1;
    try {
      const response = await plain(input, init);
      const name = response.ok && (await response.clone().json()).event_id;
      if (name && !early.delete(name)) outstanding.add(name);
      return response;
    } finally {
      asking -= 1;
    }
  }
  function throughout(first, again) {
    const body = new ReadableStream({
      async start(to) {
        try {
          for (let response = first; response; ) {
            let ended = false, rest = "";
            const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
            for (let part = await reader.read(); !part.done; part = await reader.read()) {
              const blocks = (rest + part.value).split("\n\n");
              rest = blocks.pop();
              for (const block of blocks) {
                const said = block.startsWith("data:") ? JSON.parse(block.slice(5)) : {};
                if (said.msg === "process_completed" && !outstanding.delete(said.event_id)) early.add(said.event_id);
                ended = said.msg === "close_stream" && (asking > 0 || outstanding.size > 0);
                if (!ended) to.enqueue(encoder.encode(block + "\n\n"));
              }
            }
            response = ended ? await again() : null;
          }
          to.close();
        } catch (error) {
          outstanding.clear(); // it was broken off: the page says so, or asks anew
          try { to.error(error); } catch { /* nobody listens */ }
        }
      },
    });
    return new Response(body, { status: first.status, headers: first.headers });
  }
})();

// What the dashboard does in the browser: the list's filter and keys, the picture's zoom and sliders, pasting
// and saving. It asks the server only through `send`, which the page's bridge fills in, see page.py.
(() => {
  if (window.cervicyte) return;
  const page = (window.cervicyte = { send: () => {}, save, current: null });
  const view = { opacity: 100, split: 0, outlined: false, zoom: 1, x: 0, y: 0, mapless: null };
  const opened = new Set(); // what stays open from cell to cell
  let focused = null;

  // --- the tab's key ------------------------------------------------------------------------------
  // The server finds a tab's cells by it when the page is loaded again; nobody else knows it.
  const kept = (name, value) => {
    try {
      if (value === undefined) return sessionStorage.getItem(name);
      sessionStorage.setItem(name, value);
    } catch { /* a browser that keeps nothing: the page begins anew each time */ }
    return null;
  };
  const words = crypto.getRandomValues(new Uint32Array(8));
  const key = kept("cervicyte-key") || [...words].map((word) => word.toString(16).padStart(8, "0")).join("");
  kept("cervicyte-key", key);
  page.key = () => key;
  const had = kept("cervicyte-cells") === "yes"; // now: the page is empty at first, which is kept, too
  page.hadCells = () => had;

  // One question at a time: of those asked meanwhile only the last is wanted, and every answer has a new stamp.
  const LONGEST = 20000; // milliseconds, after which an answer is not waited for
  let asked = 0, next = null, stamp = null;
  function ask(name, data) {
    if (Date.now() - asked < LONGEST) { next = [name, data]; return; }
    asked = Date.now();
    page.send(name, data);
  }
  function answered() {
    const found = one("#viewer [data-stamp]")?.dataset;
    if (!found || found.stamp === stamp) return;
    stamp = found.stamp;
    asked = 0;
    // The cell that was asked for is not here: the list marks the one that is.
    if ("refused" in found && !next) page.current = one("#viewer [data-key]")?.dataset.key ?? null;
    if (next) { const [name, data] = next; next = null; ask(name, data); }
  }

  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const isField = (element) => element?.matches?.("input:not([type=range]):not([type=checkbox]), textarea, select");

  // --- the list ----------------------------------------------------------------------------------
  const rows = () => all("#worklist li");
  const shown = () => all("#worklist li:not([hidden]) button[data-open]");

  function filter() {
    const [by, wanted] = (one("#filter-kind")?.value || "kind:").split(/:(.*)/);
    const text = (one("#filter-text")?.value || "").toLowerCase();
    for (const row of rows()) {
      const kinds = row.dataset.kind.split(" ");
      const fits = !wanted || (by === "kind" ? kinds.includes(wanted) : row.dataset.class === wanted);
      row.hidden = !(fits && row.dataset.text.toLowerCase().includes(text));
    }
    const count = rows().filter((row) => !row.hidden).length;
    const label = one("#filter-count");
    const said = rows().length ? `${count} of ${rows().length} shown` : "";
    if (label && label.textContent !== said) label.textContent = said;
  }

  function mark() {
    const buttons = shown();
    for (const button of all("#worklist button[data-open]")) {
      const current = button.dataset.open === page.current;
      if (current !== (button.getAttribute("aria-current") === "true")) {
        if (current) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      }
    }
    const place = buttons.findIndex((button) => button.dataset.open === page.current);
    const said = place < 0 ? `${buttons.length} ${buttons.length === 1 ? "cell" : "cells"}` : `${place + 1} of ${buttons.length}`;
    for (const label of all("[data-place]")) if (label.textContent !== said) label.textContent = said;
    for (const button of all("[data-step]")) {
      const to = place + Number(button.dataset.step);
      button.disabled = to < 0 || to >= buttons.length;
    }
    const has = { cell: one("#viewer [data-key]"), list: rows().length, reading: true };
    for (const button of all("[data-of]")) button.disabled = !has[button.dataset.of];
  }

  function open(button, focus) {
    if (!button) return;
    page.current = button.dataset.open;
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    mark();
    button.scrollIntoView({ block: "nearest" });
    if (focus) button.focus({ preventScroll: true });
    ask("open", { cell: Number(page.current) });
  }

  function step(by, focus) {
    const buttons = shown();
    const place = buttons.findIndex((button) => button.dataset.open === page.current);
    open(buttons[place < 0 ? 0 : place + by], focus);
  }

  // --- the picture -------------------------------------------------------------------------------
  const stageOf = (element) => element?.closest?.(".stage");

  function paint() {
    for (const stage of all(".stage")) {
      const set = (name, value) => stage.style.setProperty(name, value);
      set("--opacity", view.opacity / 100);
      set("--split", `${view.split}%`);
      set("--zoom", view.zoom);
      set("--x", `${view.x}px`);
      set("--y", `${view.y}px`);
      stage.classList.toggle("outlined", view.outlined);
      stage.classList.toggle("halved", view.split > 0 && view.split < 100);
      stage.classList.toggle("zoomed", view.zoom > 1);
    }
    for (const name of ["opacity", "split"]) {
      const field = one(`#${name}`);
      if (field && field.value !== String(view[name])) field.value = view[name];
    }
    const box = one("#outlined");
    if (box) box.checked = view.outlined;
  }

  function zoom(how) {
    if (how === "fit") Object.assign(view, { zoom: 1, x: 0, y: 0 });
    else {
      const before = view.zoom;
      view.zoom = Math.min(12, Math.max(1, view.zoom * (how === "in" ? 1.5 : 1 / 1.5)));
      view.x *= view.zoom / before;
      view.y *= view.zoom / before;
      if (view.zoom === 1) view.x = view.y = 0;
    }
    paint();
  }

  // Dragging moves a picture that is zoomed, and else the line between before and after.
  let drag = null;
  function splitAt(stage, event) {
    const { left, width } = stage.querySelector(".pane").getBoundingClientRect();
    view.split = Math.round(Math.min(99, Math.max(1, (100 * (event.clientX - left)) / width)));
  }
  document.addEventListener("pointerdown", (event) => {
    const stage = stageOf(event.target);
    if (!stage || (view.zoom === 1 && !stage.classList.contains("halved"))) return;
    event.preventDefault();
    stage.focus();
    drag = view.zoom > 1 ? { x: event.clientX - view.x, y: event.clientY - view.y } : { stage };
    if (drag.stage) splitAt(stage, event);
    paint();
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    if (drag.stage) splitAt(drag.stage, event);
    else {
      view.x = event.clientX - drag.x;
      view.y = event.clientY - drag.y;
    }
    paint();
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => (drag = null));
  document.addEventListener("dblclick", (event) => stageOf(event.target) && zoom(view.zoom > 1 ? "fit" : "in"));
  document.addEventListener("wheel", (event) => {
    if (!stageOf(event.target) || !event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? "in" : "out");
  }, { passive: false });

  // --- clicks, fields and keys -------------------------------------------------------------------
  const chosen = () => ({
    cell: Number(one("#viewer [data-key]")?.dataset.key),
    class_name: one(".strip [aria-pressed=true]")?.dataset.class,
    method: one("#method")?.value,
    layer: one("#layer")?.value,
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const data = button.dataset;
    if (data.open) open(button);
    else if (data.step) step(Number(data.step));
    else if (data.zoom) zoom(data.zoom);
    else if (data.class) ask("explain", { ...chosen(), class_name: data.class });
    else if (data.save) page.send("save", { what: data.save, of: data.of });
    else if (data.fetch) saveFile(button);
    else if (data.send === "use") {
      button.disabled = true;
      ask("use", { adapted: data.value === "adapted" });
    } else if (data.send === "clear") {
      const count = rows().length;
      if (!count || !confirm(`Remove all ${count} from the list?`)) return;
      page.current = null;
      page.send("clear", {});
    } else if (data.send) page.send(data.send, {});
  });
  document.addEventListener("input", (event) => {
    const field = event.target;
    if (field.id === "opacity" || field.id === "split") {
      view[field.id] = Number(field.value);
      paint();
    } else if (field.id === "outlined") {
      view.outlined = field.checked;
      paint();
    } else if (field.id === "filter-kind" || field.id === "filter-text") {
      filter();
      mark();
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.id === "method" || event.target.id === "layer") ask("explain", chosen());
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-send]");
    if (!form) return;
    event.preventDefault();
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    page.send(form.dataset.send, Object.fromEntries(new FormData(form)));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isField(event.target)) return;
    const key = event.key;
    if (event.target.closest?.("#worklist") && (key === "ArrowDown" || key === "ArrowUp")) {
      event.preventDefault();
      step(key === "ArrowDown" ? 1 : -1, true);
      return;
    }
    if (stageOf(event.target) && view.zoom > 1 && key.startsWith("Arrow")) {
      event.preventDefault();
      view.x += { ArrowLeft: 40, ArrowRight: -40 }[key] || 0;
      view.y += { ArrowUp: 40, ArrowDown: -40 }[key] || 0;
      paint();
      return;
    }
    const inList = Boolean(one("#viewer")?.offsetParent);
    if (!inList && /^[1-9]$/.test(key)) {
      const choice = all("#reading input[type=radio]")[Number(key) - 1];
      if (choice) { choice.checked = true; choice.focus(); }
      return;
    }
    if (inList && (key === "j" || key === "n")) step(1);
    else if (inList && (key === "k" || key === "p")) step(-1);
    else if (key === "+" || key === "=") zoom("in");
    else if (key === "-") zoom("out");
    else if (key === "0") zoom("fit");
    else if (inList && key === "o") { view.outlined = !view.outlined; paint(); }
    else if (inList && key === "m") {
      [view.opacity, view.mapless] = view.opacity ? [0, view.opacity] : [view.mapless || 100, null];
      paint();
    }
  });

  // --- pasting and saving ------------------------------------------------------------------------
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    const field = all("input[type=file]").find((one) => one.closest("[id^=upload]")?.offsetParent);
    if (!files.length || !field) return;
    event.preventDefault();
    const held = new DataTransfer();
    for (const file of files) held.items.add(file);
    field.files = held.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });

  function save(text) {
    if (!text) return;
    const { name, type, data } = JSON.parse(text);
    const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
    saveAs(new Blob([bytes], { type }), name);
  }

  function saveAs(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async function saveFile(button) {
    button.disabled = true;
    const root = window.gradio_config?.root || location.origin;
    let said = "The server does not answer; try again.";
    try {
      const answer = await fetch(`${root}/${button.dataset.fetch}`, { method: "POST", body: new URLSearchParams({ key }) });
      if (answer.ok) {
        saveAs(await answer.blob(), button.dataset.name);
        said = "";
      } else said = (await answer.json()).detail;
    } catch { /* said below */ }
    button.disabled = false;
    if (said) alert(said);
  }

  // --- after the server has changed something ----------------------------------------------------
  document.addEventListener("focusin", (event) => (focused = event.target.dataset?.focus || null));
  document.addEventListener("click", (event) => { // not "toggle", which a change of the page sends, too
    const part = event.target.closest("summary")?.parentElement;
    if (part?.dataset.keep) part.open ? opened.delete(part.dataset.keep) : opened.add(part.dataset.keep);
  });

  function refresh() {
    answered();
    const entered = one("#viewer [data-key]")?.dataset.key;
    if (entered !== undefined && page.current === null) page.current = entered;
    for (const part of all("details[data-keep]")) {
      if (opened.has(part.dataset.keep)) part.open = true;
    }
    filter();
    mark();
    paint();
    kept("cervicyte-cells", rows().length || one("#reading .read-one, #summary [data-save]") ? "yes" : "no");
    if (document.activeElement === document.body) one("[data-autofocus]")?.focus({ preventScroll: true });
    if (focused && document.activeElement === document.body) {
      all("[data-focus]").find((element) => element.dataset.focus === focused)?.focus({ preventScroll: true });
    }
  }
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; refresh(); });
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
