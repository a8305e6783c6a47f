// What the page does by itself: sorting, hiding arms, zooming to the end, copying, and the colours of a dark screen.
// It fetches nothing and makes no HTML out of text. Without it the page shows still pictures and the same tables.
"use strict";
(() => {
  const all = (query, root = document) => Array.from(root.querySelectorAll(query));
  const one = (query) => document.querySelector(query);

  document.documentElement.classList.remove("no-script");

  // --- the table ---
  const compare = (a, b, isText) => (isText ? a.localeCompare(b, "en", { numeric: true }) : Number(a) - Number(b));

  function sortBy(head) {
    const place = Array.from(head.parentNode.children).indexOf(head);
    const isText = !head.classList.contains("number");
    const first = isText ? "ascending" : "descending";
    const other = isText ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const each of head.parentNode.children) each.setAttribute("aria-sort", each === head ? order : "none");
    const body = one("#results tbody");
    const key = (row) => row.children[place].dataset.order;
    const rows = Array.from(body.rows).sort((a, b) => {
      if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
      return compare(key(a), key(b), isText) * (order === "ascending" ? 1 : -1);
    });
    body.append(...rows);
  }

  for (const button of all("#results .sort")) button.addEventListener("click", () => sortBy(button.closest("th")));

  // --- copying ---
  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    const said = button.parentNode.querySelector("[role=status]");
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    let done = false;
    try {
      await navigator.clipboard.writeText(source.textContent);
      done = true;
    } catch {
      done = document.execCommand("copy"); // a page from a file may not be allowed the newer way
    }
    said.textContent = done ? "Copied." : "Selected: copy it with the keyboard.";
  }

  for (const button of all(".copy")) button.addEventListener("click", () => copy(button));

  // --- the figures ---
  const data = one("#figures");
  if (!data) return;
  const { docs, items, late } = JSON.parse(data.textContent);
  const hidden = new Set();
  let page = null;
  let showsRuns = false;

  const models = () => Array.from(page.all_models);
  const armOf = (model) => (model.tags || []).find((tag) => typeof tag === "string" && /^arm\d+$/.test(tag));

  function applyVisibility() {
    for (const model of models()) {
      const arm = armOf(model);
      if (arm) model.visible = !hidden.has(arm) && (showsRuns || !model.tags.includes("runs"));
    }
    const every = one("[data-show-all]");
    if (every) every.hidden = hidden.size === 0;
    for (const button of all("button.arm")) button.setAttribute("aria-pressed", String(!hidden.has(`arm${button.dataset.arm}`)));
  }

  function setRange(id, bounds) {
    const range = page.get_model_by_id(id);
    if (range) range.setv({ start: bounds[0], end: bounds[1] });
  }

  function show(view, whole) {
    for (const [key, [x, y, lateX, lateY]] of Object.entries(late)) {
      setRange(x, view === "late" ? lateX : whole[key][0]);
      setRange(y, view === "late" ? lateY : whole[key][1]);
    }
    for (const button of all("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }

  const boundsOf = (id) => {
    const range = page.get_model_by_id(id);
    return [range.start, range.end];
  };

  function paint(isDark) {
    const [text, soft, line] = isDark ? ["#e4e7ea", "#a3acb5", "#343a40"] : ["#1d2125", "#5b646d", "#dddddd"];
    for (const model of models()) {
      if (model.type.endsWith("Axis")) {
        model.setv({ axis_label_text_color: text, major_label_text_color: soft, axis_line_color: soft, major_tick_line_color: soft });
      } else if (model.type === "Grid" && model.grid_line_color !== null) {
        model.setv({ grid_line_color: line });
      }
    }
    const black = isDark ? "#e4e7ea" : "#000000"; // an arm's own colour, which a dark page would swallow
    for (const button of all('button.arm[data-colour="#000000"]')) {
      button.querySelector("line").setAttribute("stroke", black);
      for (const model of models()) {
        if (armOf(model) !== `arm${button.dataset.arm}` || !model.glyph) continue;
        for (const key of ["line_color", "fill_color"]) if (key in model.glyph) model.glyph[key] = { value: black };
      }
    }
  }

  // A finger that moves over a figure scrolls the page; with a mouse, dragging zooms.
  function leaveTouchAlone(value) {
    if (Array.isArray(value)) value.forEach(leaveTouchAlone);
    else if (value && typeof value === "object") {
      if (value.name === "Toolbar" && value.attributes) value.attributes.active_drag = null;
      Object.values(value).forEach(leaveTouchAlone);
    }
  }

  function listen(whole) {
    for (const button of all("button.arm")) {
      button.addEventListener("click", () => {
        const arm = `arm${button.dataset.arm}`;
        if (!hidden.delete(arm)) hidden.add(arm);
        applyVisibility();
      });
    }
    for (const button of all("[data-view]")) button.addEventListener("click", () => show(button.dataset.view, whole));
    const runs = one("[data-runs]");
    if (runs) {
      runs.addEventListener("click", () => {
        showsRuns = !showsRuns;
        runs.setAttribute("aria-pressed", String(showsRuns));
        applyVisibility();
      });
    }
    const every = one("[data-show-all]");
    if (every) {
      every.addEventListener("click", () => {
        hidden.clear();
        applyVisibility();
      });
    }
  }

  async function start() {
    if (matchMedia("(pointer: coarse)").matches) leaveTouchAlone(docs);
    const before = Bokeh.documents.length;
    await Bokeh.embed.embed_items(docs, items);
    page = Bokeh.documents[before];
    const whole = Object.fromEntries(Object.entries(late).map(([key, [x, y]]) => [key, [boundsOf(x), boundsOf(y)]]));
    listen(whole);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    paint(dark.matches);
    dark.addEventListener("change", () => paint(dark.matches));
    document.documentElement.dataset.ready = "yes";
  }

  start().catch((error) => {
    document.documentElement.classList.add("no-script"); // still pictures in place of empty boxes
    console.error(error);
  });
})();
