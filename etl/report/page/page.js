"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const HEADER = ["patient_id", "series", "slice", "frame_number", "structure", "decision", "comment"];
  const CHOICES = { a: "accept", e: "exclude", r: "redraw" };
  const PSEUDONYM = "pseudonym:"; // what an exported list has before P001
  const OLD = "#ff40ff"; // of the older file's edges: no structure has it
  const [height, width] = data.size;
  const colours = Object.fromEntries(data.structures.map((one) => [one.code, one.colour]));
  const names = Object.fromEntries(data.structures.map((one) => [one.code, one.name]));
  const byRow = new Map(data.rows.map((row) => [row.row, row]));
  const key = "dicom-etl decisions " + data.dataset_id + (data.pseudonyms ? " pseudonyms" : "");
  const kept = read();
  const decisions = kept.rows; // row → decision, comment, structure
  const strays = kept.strays; // lines about rows that this page does not list
  let shown = data.rows;
  let here = -1; // the place of the current row among those shown
  let other = null; // decisions of another reviewer, by row
  const view = { zoom: 1, level: 0, window: 1 };

  // ------------------------------------------------------------------------------ the document
  // Text goes into the document as text, whatever it holds.
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }
  function draw(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function put(id, ...children) {
    document.getElementById(id).replaceChildren(...children);
  }
  function button(text, act, attributes) {
    const element = make("button", { type: "button", ...attributes }, text);
    element.addEventListener("click", act);
    return element;
  }
  function table(header, rows, name) {
    const head = make("tr", {}, ...header.map((one) => make("th", { scope: "col" }, one)));
    const cell = (one) => (one instanceof Node ? one : String(one));
    const line = (row) =>
      make("tr", {}, ...row.map((one) => (one instanceof HTMLTableCellElement ? one : make("td", {}, cell(one)))));
    const body = make("tbody", {}, ...rows.map(line));
    const parts = [make("thead", {}, head), body];
    if (name) parts.unshift(make("caption", {}, name));
    const label = name || header.join(", ");
    return make(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
      make("table", {}, ...parts),
    );
  }
  function count(n, noun) {
    return `${n} ${noun}${n === 1 ? "" : "s"}`;
  }
  function title(row) {
    const frame = row.frame > 1 ? `, frame ${row.frame}` : "";
    return `${row.patient}, slice ${row.slice}${frame}`;
  }

  // ------------------------------------------------------------------------------ pictures
  // Pictures are made when they come near to what is seen: 5,000 at once would take seconds.
  const waiting = new Map();
  const watcher = new IntersectionObserver(
    (entries) => entries.filter((one) => one.isIntersecting).forEach((one) => fill(one.target)),
    { rootMargin: "800px" },
  );
  function fill(element) {
    const make_it = waiting.get(element);
    watcher.unobserve(element);
    waiting.delete(element);
    if (make_it) element.append(...make_it());
  }
  function later(element, make_it) {
    waiting.set(element, make_it);
    watcher.observe(element);
    return element;
  }
  function layers(row, before) {
    const drawn = data.pictures[row.row];
    const layer = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const edge of drawn.edges) {
      const style = { fill: "none", stroke: colours[edge.code], "stroke-opacity": 0.6, "stroke-width": 1 };
      layer.append(draw("path", { class: "edge", d: edge.d, ...style }));
    }
    for (const contour of drawn.contours) {
      const style = { fill: "none", stroke: colours[contour.code], "stroke-width": 0.5 };
      layer.append(draw("path", { class: "contour", d: contour.d, ...style }));
    }
    for (const edge of before || []) {
      layer.append(draw("path", { class: "before", d: edge.d, fill: "none", stroke: OLD, "stroke-width": 0.8 }));
    }
    return layer;
  }
  function image(row) {
    const drawn = data.pictures[row.row];
    const what = [...new Set([...drawn.edges, ...drawn.contours].map((one) => names[one.code]))].join(", ");
    const alt = `${title(row)}: ${what || "nothing drawn"}${drawn.has_ignored ? ", some pixels not known" : ""}`;
    return make("img", { src: drawn.image, alt, width, height, decoding: "async" });
  }
  // The image with its layers; with a box, the part of it that can be looked at closely.
  function seen(row, box, before) {
    const inner = make("span", { class: "inner" }, image(row), layers(row, before));
    if (box) {
      const [left, top, wide, high] = box;
      inner.style.setProperty("--left", `${(-100 * left) / wide}%`);
      inner.style.setProperty("--top", `${(-100 * top) / high}%`);
      inner.style.setProperty("--size", `${(100 * width) / wide}%`);
    }
    return inner;
  }
  function framed(kind) {
    return make("span", { class: kind, style: `aspect-ratio: ${width} / ${height}` });
  }
  function picture(row, caption, options = {}) {
    const words = button(caption, () => open(row), { class: "link" });
    const drawn = data.pictures[row.row];
    if (!drawn) {
      return make(
        "figure",
        {},
        make("figcaption", {}, words, make("div", { class: "soft" }, "No picture in this page.")),
      );
    }
    const frame = framed(options.isClose ? "picture close" : "picture");
    later(frame, () => [seen(row, options.box || drawn.box, options.before)]);
    frame.addEventListener("click", () => open(row));
    return make("figure", {}, frame, make("figcaption", {}, words));
  }

  // ------------------------------------------------------------------------------ diagnoses
  function diagnosis(one) {
    const box = make("div", { class: "diagnosis" });
    box.append(make("p", {}, make("strong", { class: one.severity }, one.severity), ` ${one.text}`));
    if (one.looks) box.append(make("p", { class: "soft" }, `What it looks like: ${one.looks}.`));
    const pictures = one.pictures.map((row) => picture(byRow.get(row), title(byRow.get(row)), { isClose: true }));
    if (one.good !== null) {
      const good = byRow.get(one.good);
      pictures.push(picture(good, `For comparison, without a finding: ${title(good)}`, { isClose: true }));
    }
    if (pictures.length) box.append(make("div", { class: "pictures" }, ...pictures));
    if (one.remedy) box.append(make("p", {}, make("strong", {}, "What to do: "), one.remedy));
    if (one.rows.length && one.rows.length < data.rows.length) {
      const rows = one.rows.map((row) => byRow.get(row));
      const isOfRows = rows.some((row) => row.findings.some((found) => found.code === one.code));
      const wanted = isOfRows ? { finding: one.code } : { patient: rows[0].patient };
      box.append(
        make(
          "p",
          { class: "acts" },
          button(`Show ${count(rows.length, "row")} in the gallery`, () => choose(wanted)),
          " ",
          button(`Exclude ${count(rows.length, "row")}`, () => {
            rows.forEach((row) => set(row, "exclude", (decisions[row.row] || {}).comment || one.code));
            keep();
          }),
        ),
      );
    }
    return box;
  }

  // ------------------------------------------------------------------------------ gallery
  function verdictOn(row) {
    const one = decisions[row.row];
    if (!one) return "";
    return one.decision + (one.comment ? `: ${one.comment}` : "");
  }
  function tile(row, place) {
    const label = `${title(row)}${row.findings.length ? `, ${count(row.findings.length, "finding")}` : ""}`;
    const box = make("article", {
      class: "tile",
      tabindex: 0,
      "data-place": place,
      "data-row": row.row,
      "aria-label": label,
    });
    const text = make("div", { class: "text" });
    for (const one of row.findings) text.append(make("div", { class: one.severity, title: one.message }, one.code));
    text.append(make("div", { class: "decision" }, verdictOn(row)));
    box.append(picture(row, title(row) + (row.split ? ` (${row.split})` : "")), text);
    box.addEventListener("focusin", () => go(place, false));
    return box;
  }
  function current() {
    return shown[here];
  }
  // The rows that have a tile: those with a picture.
  function pictured() {
    return shown.filter((row) => data.pictures[row.row]);
  }
  function go(place, focus = true) {
    if (place < 0 || place >= shown.length) return;
    here = place;
    document.querySelectorAll(".tile.here").forEach((one) => one.classList.remove("here"));
    const box = document.querySelector(`.tile[data-place="${place}"]`);
    if (box) {
      box.classList.add("here");
      if (focus && !detail.open) box.focus();
    }
    say();
    if (detail.open) show(current());
  }
  function step(by) {
    if (detail.open) go(here + by);
    else {
      const places = pictured().map((row) => shown.indexOf(row));
      const next = by > 0 ? places.find((place) => place > here) : places.findLast((place) => place < here);
      if (next !== undefined) go(next);
    }
  }

  // ------------------------------------------------------------------------------ filters
  const FILTERS = ["patient", "series", "split", "structure", "finding", "review"];
  function select(id, label, values, act, all = "all") {
    const chosen = make("select", { id }, make("option", { value: "" }, all));
    for (const value of values) chosen.append(make("option", { value }, value));
    chosen.addEventListener("change", act);
    return make("label", { for: id }, label, chosen);
  }
  function unique(of) {
    return [...new Set(data.rows.flatMap(of))].filter((value) => value !== "").sort();
  }
  function value(id) {
    return document.getElementById(id).value;
  }
  function differs(row) {
    const [mine, yours] = [decisions[row.row], other && other.get(row.row)];
    return mine && yours && mine.decision !== yours.decision;
  }
  function passes(row, wanted) {
    const code = (data.structures.find((one) => one.name === wanted.structure) || {}).code;
    const decided = decisions[row.row];
    const reviewed = {
      "not yet": !decided,
      "reviewers differ": differs(row),
    };
    return (
      (!wanted.patient || row.patient === wanted.patient) &&
      (!wanted.series || row.series === wanted.series) &&
      (!wanted.split || row.split === wanted.split) &&
      (!wanted.structure || row.areas[code] !== null) &&
      (!wanted.finding ||
        (wanted.finding === "any"
          ? row.findings.length > 0
          : row.findings.some((one) => one.code === wanted.finding))) &&
      (!wanted.review ||
        (wanted.review in reviewed ? reviewed[wanted.review] : decided && decided.decision === wanted.review))
    );
  }
  function filter() {
    const wanted = Object.fromEntries(FILTERS.map((name) => [name, value(`f-${name}`)]));
    const order = value("f-order");
    shown = data.rows.filter((row) => passes(row, wanted));
    const area = (row) => Math.max(0, ...Object.values(row.areas).filter((one) => one !== null));
    if (order === "area") shown.sort((one, two) => area(two) - area(one));
    if (order === "findings") shown.sort((one, two) => two.findings.length - one.findings.length);
    if (order === "patient") shown.sort((one, two) => one.patient.localeCompare(two.patient) || one.row - two.row);
    here = -1;
    const tiles = shown.map((row, place) => [row, place]).filter(([row]) => data.pictures[row.row]);
    put("tiles", ...tiles.map(([row, place]) => tile(row, place)));
    const more =
      data.rows.length < data.n_rows && !data.is_patient
        ? ` The page lists ${data.rows.length} of ${data.n_rows} rows: flagged ones first, and a spread of the others.`
        : "";
    put("count", `${shown.length} of ${count(data.rows.length, "row")}, ${tiles.length} with a picture.${more}`);
    say();
  }
  function choose(wanted) {
    for (const name of FILTERS) document.getElementById(`f-${name}`).value = wanted[name] || "";
    filter();
    document.getElementById("gallery").scrollIntoView();
    step(1);
  }

  // ------------------------------------------------------------------------------ one row
  const detail = document.getElementById("detail");
  function open(row) {
    if (!shown.includes(row)) {
      for (const name of FILTERS) document.getElementById(`f-${name}`).value = "";
      filter();
    }
    if (!detail.open) detail.show(); // not modal: the decisions below stay in reach
    go(shown.indexOf(row), false);
  }
  function slider(name, label, low, high, stepBy) {
    const input = make("input", {
      type: "range",
      id: `v-${name}`,
      min: low,
      max: high,
      step: stepBy,
      value: view[name],
    });
    input.addEventListener("input", () => {
      view[name] = Number(input.value);
      adjust();
    });
    return make("label", { for: `v-${name}` }, label, input);
  }
  function adjust() {
    const frame = detail.querySelector(".view .picture");
    if (!frame) return;
    frame.style.width = `${100 * view.zoom}%`;
    frame.querySelector("img").style.filter = `brightness(${1 + view.level}) contrast(${1 / view.window})`;
    for (const name of Object.keys(view)) document.getElementById(`v-${name}`).value = view[name];
  }
  function nudge(name, by, low, high) {
    view[name] = Math.min(high, Math.max(low, view[name] + by));
    adjust();
  }
  function show(row) {
    const NEAR = {
      below: "the slice below",
      above: "the slice above",
      before: "the phase before",
      after: "the phase after",
    };
    const near = Object.entries(NEAR).flatMap(([name, words]) => {
      const next = byRow.get(row.near[name]);
      return next ? [picture(next, `${words}: slice ${next.slice}`)] : [];
    });
    const large = make("div", { class: "view", tabindex: 0, role: "region", "aria-label": "Picture" });
    if (data.pictures[row.row]) {
      const frame = framed("picture");
      frame.append(seen(row, data.pictures[row.row].box));
      large.append(frame);
    } else large.append(make("p", {}, "This row has no picture in this page; report --gallery takes more."));
    const findings = row.findings.map((one) =>
      make("li", {}, make("span", { class: one.severity }, one.code), one.message ? `: ${one.message}` : ""),
    );
    const areas = data.structures
      .filter((one) => row.areas[one.code] !== null)
      .map((one) => make("li", {}, `${one.name}: ${row.areas[one.code]} square pixels`));
    const controls = make(
      "form",
      { "aria-label": "Zoom, window and level" },
      slider("zoom", "Zoom", 1, 6, 0.5),
      slider("level", "Level", -0.9, 3, 0.1),
      slider("window", "Window", 0.2, 3, 0.1),
    );
    controls.addEventListener("submit", (event) => event.preventDefault());
    const side = make(
      "div",
      { class: "side" },
      controls,
      make("ul", {}, ...areas),
      findings.length ? make("ul", {}, ...findings) : make("p", {}, "No finding."),
    );
    if (near.length) side.append(make("h3", {}, "Neighbours"), make("div", { class: "pictures near" }, ...near));
    put("detail-title", title(row) + (row.split ? ` (${row.split})` : ""));
    const focused = detail.contains(document.activeElement) ? document.activeElement.textContent : null;
    const acts = [button("Previous", () => step(-1)), button("Next", () => step(1)), button("Close", () => shut())];
    put("detail-body", make("p", { class: "buttons" }, ...acts), make("div", { class: "big" }, large, side));
    (acts.find((one) => one.textContent === focused) || acts[1]).focus();
    adjust();
  }
  function shut() {
    const place = here; // closing gives the focus back to the tile from which the first row was opened
    detail.close();
    go(place);
  }

  // ------------------------------------------------------------------------------ plots
  function isSuspicious(row) {
    return row.findings.some((one) => one.severity !== "info");
  }
  function ticks(low, high) {
    const rough = (high - low) / 4 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const by = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const found = [];
    for (let at = Math.ceil(low / by) * by; at <= high + by / 1e6; at += by) found.push(Number(at.toPrecision(6)));
    return found;
  }
  function scatter(name, points, options) {
    const [W, H] = options.wide ? [900, 260] : [420, 320];
    const [left, right, top, bottom] = [58, W - 10, 10, H - 40];
    const range = (axis) => {
      const values = points.map((one) => one[axis]);
      const extra = options.origin ? [0] : [];
      const ends = [...values, ...extra].reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
      if (options.zero && axis === "y") ends[0] = Math.min(0, ends[0]);
      const room = (ends[1] - ends[0]) * 0.04 || Math.abs(ends[0]) * 0.05 || 1;
      return [ends[0] - room, ends[1] + room];
    };
    const [x0, x1] = range("x");
    const [y0, y1] = range("y");
    const px = (x) => left + ((right - left) * (x - x0)) / (x1 - x0);
    const py = (y) => bottom - ((bottom - top) * (y - y0)) / (y1 - y0);
    const chart = draw("svg", {
      viewBox: `0 0 ${W} ${H}`,
      role: "img",
      "aria-label": `${name}: ${options.y} against ${options.x}`,
    });
    for (const y of ticks(y0, y1)) {
      chart.append(draw("line", { x1: left, x2: right, y1: py(y), y2: py(y) }));
      chart.append(draw("text", { x: left - 5, y: py(y) + 4, "text-anchor": "end" }, y));
    }
    for (const x of options.marks ? [] : ticks(x0, x1)) {
      chart.append(draw("line", { x1: px(x), x2: px(x), y1: top, y2: bottom }));
      chart.append(draw("text", { x: px(x), y: bottom + 15, "text-anchor": "middle" }, x));
    }
    let free = -Infinity;
    for (const [x, text] of options.marks || []) {
      chart.append(draw("line", { x1: px(x - 0.5), x2: px(x - 0.5), y1: top, y2: bottom }));
      const short = text.length > 14 ? `${text.slice(0, 13)}…` : text;
      if (px(x) < free) continue; // labels over each other cannot be read
      chart.append(draw("text", { x: px(x - 0.5) + 2, y: bottom + 15 }, short));
      free = px(x) + 7 * short.length + 8;
    }
    chart.append(draw("text", { x: (left + right) / 2, y: H - 6, "text-anchor": "middle" }, options.x));
    for (const line of options.lines || []) {
      chart.append(
        draw("path", { d: "M" + line.map((one) => `${px(one.x).toFixed(1)},${py(one.y).toFixed(1)}`).join("L") }),
      );
    }
    const dots = points.map((one) => {
      const place = { cx: px(one.x).toFixed(1), cy: py(one.y).toFixed(1), r: 3.5, "data-row": one.row.row };
      return draw("circle", isSuspicious(one.row) ? { ...place, class: "flag" } : place);
    });
    chart.append(...dots);
    chart.addEventListener("click", (event) => {
      const row = byRow.get(Number(event.target.dataset.row));
      if (row) open(row);
    });
    // One title at a time: a title in each of thousands of dots would be slow to make.
    chart.addEventListener("mouseover", (event) => {
      const point = points[dots.indexOf(event.target)];
      if (point && !event.target.firstChild) {
        event.target.append(draw("title", {}, `${title(point.row)}: ${Number(point.y.toPrecision(4))} (${options.y})`));
      }
    });
    const box = make("div", options.wide ? { class: "wide" } : {}, make("h3", {}, name));
    box.append(
      make("div", { class: "soft" }, `${options.y}; ${count(points.length, "row")}${options.more || ""}`),
      chart,
    );
    return box;
  }
  function areaPlot(structure, rows, patient) {
    const drawn = rows.filter((row) => row.areas[structure.code] !== null);
    const y = (row) => row.areas[structure.code];
    if (!drawn.length) return [];
    const axis = { y: "square pixels", wide: true, zero: true };
    if (patient && drawn.every((row) => row.place[0] !== null && row.place[1] !== null)) {
      const point = (row) => ({ row, x: row.place[1], y: y(row) });
      const slices = new Map();
      for (const row of drawn) {
        const height = Math.round(row.place[0] * 10); // a tenth of a millimetre
        slices.set(height, [...(slices.get(height) || []), row]);
      }
      const lines = [...slices.values()].map((one) => one.map(point).sort((a, b) => a.x - b.x));
      const options = { ...axis, x: "trigger time, ms, or number; a line is a slice", lines };
      return [scatter(`Area of ${structure.name} in ${patient}`, drawn.map(point), options)];
    }
    const order = [...drawn].sort(
      (a, b) => order_of(a) - order_of(b) || a.place[0] - b.place[0] || a.place[1] - b.place[1],
    );
    const points = order.map((row, x) => ({ row, x, y: y(row) }));
    const marks = points.filter((one, at) => !at || points[at - 1].row.patient !== one.row.patient);
    const x = "patients; in each by slice, then by phase";
    return [
      scatter(`Area of ${structure.name}`, points, { ...axis, x, marks: marks.map((one) => [one.x, one.row.patient]) }),
    ];
  }
  const firstRows = new Map();
  data.rows.forEach((row) => firstRows.has(row.patient) || firstRows.set(row.patient, row.row));
  function order_of(row) {
    return firstRows.get(row.patient);
  }
  function plots() {
    const patient = value("p-patient");
    const rows = patient ? data.rows.filter((row) => row.patient === patient) : data.rows;
    const makers = [];
    const add = (name, points, options) => points.length && makers.push(() => [scatter(name, points, options)]);
    for (const one of data.structures) makers.push(() => areaPlot(one, rows, patient));
    for (const one of data.structures) {
      const known = rows.filter((row) => row.values.inside[one.code] !== undefined && row.values.outside !== null);
      const points = known.map((row) => ({ row, x: row.values.outside, y: row.values.inside[one.code] }));
      add(`Intensity of ${one.name}`, points, { x: "mean value outside of all structures", y: "mean value inside" });
    }
    const off = rows.filter((row) => row.off);
    const more = data.alignment ? `. The build: ${data.alignment}` : "";
    add(
      "Alignment",
      off.map((row) => ({ row, x: row.off[0], y: -row.off[1] })),
      { x: "pixels too far right", y: "pixels too far up", origin: true, more },
    );
    const spaced = rows.filter((row) => row.spacing[0] !== null && row.spacing[1] !== null);
    add(
      "Pixel spacing",
      spaced.map((row) => ({ row, x: row.spacing[1], y: row.spacing[0] })),
      { x: "mm between columns", y: "mm between rows" },
    );
    for (const one of data.structures) {
      const sized = spaced.filter((row) => row.areas[one.code] !== null);
      const size = (row) => row.areas[one.code] * row.spacing[0] * row.spacing[1];
      add(
        `Size of ${one.name}`,
        sized.map((row) => ({ row, x: row.spacing[0], y: size(row) })),
        { x: "mm between rows", y: "square millimetres", zero: true },
      );
    }
    put("plots", ...makers.flatMap((one) => one()));
  }

  // ------------------------------------------------------------------------------ splits
  function splits() {
    const parts = [];
    if (data.splits.length) {
      parts.push(
        table(
          ["part", "patients", "rows"],
          data.splits.map((one) => [one.name, one.patients, one.rows]),
        ),
      );
    } else parts.push(make("p", {}, "The file has no split."));
    if (data.drift && data.drift.parts) parts.push(...drift(data.drift));
    parts.push(make("h3", {}, "Images that show the same"));
    if (data.pairs_unchecked) {
      parts.push(
        make("p", { class: "soft" }, "The build left out some checks, and may not have looked for all of them."),
      );
    } else if (!data.pairs.length) parts.push(make("p", {}, "None was found."));
    for (const pair of data.pairs) {
      const [one, two] = pair.rows.map((row) => byRow.get(row));
      const where = pair.is_across
        ? `across splits: ${one.split || "none"} and ${two.split || "none"}`
        : "on one side of the split";
      parts.push(
        make(
          "div",
          { class: "pair" },
          make(
            "p",
            {},
            make("strong", { class: pair.is_across ? "error" : "warning" }, pair.code),
            ` ${where}. ${pair.message}`,
          ),
          make("div", { class: "pictures" }, picture(one, title(one)), picture(two, title(two))),
        ),
      );
    }
    return parts;
  }
  function drift(found) {
    const [first, ...others] = found.parts;
    const number = (one) => Number(one.toPrecision(3));
    const quartiles = (one) => (one ? `${number(one[1])} (${number(one[0])} to ${number(one[2])})` : "none");
    const distance = (one) =>
      make("td", one && one.is_far ? { class: "far" } : {}, one ? `${one.ks}${one.is_far ? " !" : ""}` : "");
    const header = ["property", ...found.parts, ...others.map((name) => `${first} and ${name}`)];
    const rows = found.properties.map((one) => [
      one.name,
      ...one.quartiles.map(quartiles),
      ...one.distances.map(distance),
    ]);
    const maps = found.maps.map((map) =>
      make(
        "div",
        {},
        make("h3", {}, `Where ${map.structure} is, on average`),
        make(
          "div",
          { class: "pictures heat" },
          ...map.images.map((one, at) => heat(found.parts[at], one, map.structure)),
        ),
      ),
    );
    const words =
      "Median and quartiles over patients. The distance is that of Kolmogorov and Smirnov: 0 alike, 1 apart; " +
      "with ! it is larger than chance makes it in 19 of 20 splits.";
    return [table(header, rows, "Do the parts look alike?"), make("p", { class: "soft" }, words), ...maps];
  }
  function heat(part, one, structure) {
    const alt = `${structure}, mean of ${count(one.rows, "mask")} of ${part}`;
    return make(
      "figure",
      {},
      make("img", { src: one.image, alt }),
      make("figcaption", {}, `${part}, ${count(one.rows, "row")}`),
    );
  }

  // ------------------------------------------------------------------------------ changes
  function changes(found) {
    if (found.is_equal) return [make("p", {}, `Nothing differs from ${found.old}.`)];
    const parts = [
      make(
        "p",
        {},
        `Compared with ${found.old}: ${count(found.n_added, "row")} added, ${found.n_gone} gone, ${found.n_changed} changed, ${found.n_equal} equal.`,
      ),
    ];
    if (found.changed.length) {
      const hint = make(
        "p",
        { class: "soft" },
        "Masks as they are now, and, in magenta, the edges that they had. The worst come first.",
      );
      const pictures = found.changed.map((one) => {
        const row = byRow.get(one.row);
        const dice = Object.entries(one.dice).map(([name, value]) => `${name}: Dice ${value.toFixed(3)}`);
        if (one.ignored_changed) dice.push("ignored pixels differ");
        const words = [title(row), ...(one.image_changed ? ["image differs"] : []), ...dice].join("; ");
        return picture(row, words, { isClose: true, before: one.before, box: one.box });
      });
      parts.push(make("h3", {}, `${count(found.changed.length, "changed row")} of ${found.n_changed}`), hint);
      parts.push(make("div", { class: "pictures" }, ...pictures));
    }
    const line = (one) => [one.patient, one.series, one.slice, one.frame];
    const header = ["patient", "series", "slice", "frame"];
    for (const [name, rows, n] of [
      ["Rows added", found.added, found.n_added],
      ["Rows gone", found.gone, found.n_gone],
    ]) {
      if (rows.length)
        parts.push(table(header, rows.map(line), rows.length < n ? `${name}: ${rows.length} of ${n}` : name));
    }
    for (const [name, codes] of [
      ["Findings that are new", found.findings_new],
      ["Findings that are solved", found.findings_solved],
    ]) {
      if (Object.keys(codes).length) parts.push(table(["code", "number"], Object.entries(codes), name));
    }
    if (found.attributes.length) parts.push(table(["what", "before", "now"], found.attributes, "Options and versions"));
    if (found.moves.length) {
      const name = `Patients on another side: ${found.n_moves}`;
      parts.push(table(["patient", "what", "before", "now"], found.moves, name));
    }
    return parts;
  }

  // ------------------------------------------------------------------------------ decisions
  function read() {
    try {
      const found = JSON.parse(localStorage.getItem(key)) || {};
      return found.rows ? found : { rows: found, strays: [] };
    } catch {
      return { rows: {}, strays: [] };
    }
  }
  function keep() {
    try {
      localStorage.setItem(key, JSON.stringify({ rows: decisions, strays }));
    } catch {
      /* a private window: the decisions last as long as the page */
    }
    document.querySelectorAll(".tile").forEach((box) => {
      box.querySelector(".decision").textContent = verdictOn(byRow.get(Number(box.dataset.row)));
    });
    say();
  }
  function say() {
    const n = Object.keys(decisions).length;
    put("decided", n ? `${count(n, "row")} decided.` : "No row is decided yet.");
    const row = current();
    put("current", row ? `${title(row)}: ${verdictOn(row) || "undecided"}` : "No row is chosen.");
    document.getElementById("comment").value = (row && (decisions[row.row] || {}).comment) || "";
    document.querySelectorAll("#choices button").forEach((one) => {
      const isIt = row && (decisions[row.row] || {}).decision === one.dataset.choice;
      one.setAttribute("aria-pressed", isIt ? "true" : "false");
      one.disabled = !row;
    });
    document.getElementById("comment").disabled = !row;
  }
  function set(row, decision, comment) {
    decisions[row.row] = { ...(decisions[row.row] || { structure: "" }), decision, comment };
  }
  function decide(row, decision) {
    const before = decisions[row.row] || { comment: "" };
    if (before.decision === decision && !before.comment) delete decisions[row.row];
    else set(row, decision, before.comment || "");
    keep();
  }
  function comment(row, text) {
    set(row, (decisions[row.row] || {}).decision || "redraw", text);
    keep();
  }
  function quoted(text) {
    const plain = typeof text === "string" && /^[=+\-@]/.test(text) ? `'${text}` : String(text);
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  }
  function rowList() {
    const lines = [HEADER];
    for (const [number, one] of Object.entries(decisions)) {
      const row = byRow.get(Number(number));
      if (!row) continue;
      const who = data.pseudonyms ? PSEUDONYM + row.alias : row.patient;
      lines.push([who, row.series, row.slice, row.frame, one.structure || "", one.decision, one.comment]);
    }
    return [...lines, ...strays].map((line) => line.map(quoted).join(",") + "\n").join("");
  }
  function cells(text) {
    const rows = [[""]];
    let inside = false;
    for (let i = 0; i < text.length; i += 1) {
      const line = rows[rows.length - 1];
      const letter = text[i];
      if (inside) {
        if (letter === '"' && text[i + 1] === '"') {
          line[line.length - 1] += '"';
          i += 1;
        } else if (letter === '"') inside = false;
        else line[line.length - 1] += letter;
      } else if (letter === '"') inside = true;
      else if (letter === ",") line.push("");
      else if (letter === "\n") rows.push([""]);
      else if (letter !== "\r") line[line.length - 1] += letter;
    }
    return rows.filter((row) => row.length > 1);
  }
  const byName = new Map();
  for (const row of data.rows) {
    for (const who of [row.patient, PSEUDONYM + row.alias]) {
      const name = JSON.stringify([who, row.slice]);
      byName.set(name, [...(byName.get(name) || []), row]);
    }
  }
  // Return what a row list decides: [row, decision], and the lines about rows that are not here.
  function parsed(text) {
    const [header = [], ...lines] = cells(text.replace(/^\ufeff/, ""));
    const found = { decided: [], strays: [], n: 0 };
    for (const line of lines) {
      const [who, series, slice, frame, structure, decision, said] = HEADER.map((name) => {
        const cell = line[header.indexOf(name)] || "";
        return /^'[=+\-@]/.test(cell) ? cell.slice(1) : cell;
      });
      if (!decision) continue;
      found.n += 1;
      const near = byName.get(JSON.stringify([who, Number(slice)])) || [];
      const rows = near.filter((row) => (!series || row.series === series) && (!frame || Number(frame) === row.frame));
      if (!rows.length) found.strays.push([who, series, slice, frame, structure, decision, said]);
      for (const row of rows) found.decided.push([row, { decision: decision.toLowerCase(), comment: said, structure }]);
    }
    return found;
  }
  function take(text) {
    const found = parsed(text);
    for (const [row, one] of found.decided) decisions[row.row] = one;
    const known = new Set(strays.map(String));
    strays.push(...found.strays.filter((line) => !known.has(String(line))));
    filter();
    keep();
    const missing = found.strays.length
      ? ` ${count(found.strays.length, "line")} about rows that this page does not list will be exported again.`
      : "";
    put("count", `${found.decided.length} decisions of ${count(found.n, "line")} were taken.${missing}`);
  }

  // ------------------------------------------------------------------------------ two reviewers
  function agreement(mine, yours) {
    const kinds = Object.values(CHOICES);
    const both = [...mine.keys()].filter((row) => yours.has(row));
    const counts = kinds.map((one) =>
      kinds.map(
        (two) => both.filter((row) => mine.get(row).decision === one && yours.get(row).decision === two).length,
      ),
    );
    const n = both.length;
    const agreed = kinds.reduce((sum, _, at) => sum + counts[at][at], 0);
    const chance = kinds.reduce((sum, _, at) => {
      const [rows, columns] = [counts[at], counts.map((line) => line[at])].map((line) =>
        line.reduce((a, b) => a + b, 0),
      );
      return sum + (rows * columns) / (n * n);
    }, 0);
    const share = agreed / n;
    // Cohen (1960): how much better than two people who decide by chance, each as often as they do.
    const kappa = chance < 1 ? (share - chance) / (1 - chance) : null;
    return { kinds, counts, n, agreed, share, kappa, both };
  }
  function reviewers(texts) {
    const lists = texts.map((text) => new Map(parsed(text).decided.map(([row, one]) => [row.row, one])));
    const own = new Map(Object.entries(decisions).map(([row, one]) => [Number(row), one]));
    const [mine, yours] = lists.length > 1 ? lists : [own, lists[0]];
    other = yours;
    const found = agreement(mine, yours);
    if (!found.n) return [make("p", {}, "No row is decided by both.")];
    const kappa = found.kappa === null ? "not defined: both always decide the same" : found.kappa.toFixed(2);
    const names_of = lists.length > 1 ? ["first file", "second file"] : ["this page", "the file"];
    const parts = [
      make(
        "p",
        {},
        `Both decided ${count(found.n, "row")} and agree on ${found.agreed}, ${(100 * found.share).toFixed(0)} %. Cohen's kappa: ${kappa}.`,
      ),
      table(
        [`${names_of[0]} \\ ${names_of[1]}`, ...found.kinds],
        found.kinds.map((kind, at) => [kind, ...found.counts[at]]),
        "Rows by both decisions",
      ),
    ];
    const apart = found.both.filter((row) => mine.get(row).decision !== yours.get(row).decision);
    const word = (one) => one.decision + (one.comment ? `: ${one.comment}` : "");
    if (apart.length) {
      const lines = apart.map((row) => [
        picture(byRow.get(row), title(byRow.get(row))),
        word(mine.get(row)),
        word(yours.get(row)),
      ]);
      parts.push(table(["row", ...names_of], lines, "Rows on which they differ"));
    }
    return parts;
  }

  // ------------------------------------------------------------------------------ the page
  const name = data.is_patient ? data.title : data.file;
  document.title = `dicom-etl report: ${name}`;
  put("title", data.is_patient ? `Patient ${name}` : `Report on ${name || "a file"}`);
  put(
    "facts",
    data.is_patient
      ? make("a", { href: data.index }, "All patients")
      : `${count(data.n_rows, "row")} of ${count(data.n_patients, "patient")}, ${height} x ${width}. Written by ${data.generator}.`,
  );
  put(
    "choices",
    ...Object.entries(CHOICES).map(([letter, one]) =>
      button(`${one} (${letter})`, () => current() && decide(current(), one), { "data-choice": one }),
    ),
  );
  put(
    "filters",
    select(
      "f-patient",
      "Patient",
      unique((row) => row.patient),
      filter,
    ),
    select(
      "f-series",
      "Series",
      unique((row) => row.series),
      filter,
    ),
    select(
      "f-split",
      "Split",
      unique((row) => row.split),
      filter,
    ),
    select(
      "f-structure",
      "Structure",
      data.structures.map((one) => one.name),
      filter,
    ),
    select("f-finding", "Finding", ["any", ...unique((row) => row.findings.map((one) => one.code))], filter),
    select("f-review", "Decision", ["not yet", ...Object.values(CHOICES), "reviewers differ"], filter),
    select("f-order", "Order", ["patient", "area", "findings"], filter, "file"),
  );
  put(
    "plot-filters",
    select(
      "p-patient",
      "Patient",
      unique((row) => row.patient),
      plots,
    ),
  );
  filter();
  later(document.getElementById("plots"), () => {
    plots();
    return [];
  });
  if (data.is_patient) document.querySelectorAll("[data-whole]").forEach((one) => one.remove());
  else {
    put("verdict", data.verdict);
    put("diagnoses", ...(data.diagnoses.length ? data.diagnoses.map(diagnosis) : [make("p", {}, "Nothing.")]));
    put("splits", ...splits());
    put(
      "findings",
      data.groups.length
        ? table(
            ["severity", "code", "number", "what to do", "examples"],
            data.groups.map((one) => [
              make("span", { class: one.severity }, one.severity),
              one.code,
              one.n,
              one.advice,
              make("div", {}, ...one.examples.map((text) => make("div", {}, text))),
            ]),
          )
        : make("p", {}, "None."),
    );
    put(
      "sources",
      make("p", {}, data.sources.join(", ")),
      ...data.tags.map((one) => make("p", {}, one)),
      make("pre", {}, JSON.stringify(data.options, null, 1)),
    );
  }
  if (data.changes) {
    document.getElementById("changed").hidden = false;
    put("changes", ...changes(data.changes));
  }
  if (data.patients) {
    const lines = data.patients.map(([who, file, n, flagged]) => [make("a", { href: file }, who), n, flagged]);
    document
      .getElementById("count")
      .before(table(["patient", "rows", "with a finding"], lines, "A page for each patient"));
  }
  put(
    "privacy",
    make(
      "p",
      {},
      data.pseudonyms
        ? "This page holds pixels of the rows that it shows, their slice numbers, pixel spacings, areas, values and counts. " +
            "It holds no id, path, UID or message: patients are numbered in the order of the file. " +
            "The person who has the file can tell who P001 is."
        : "This page holds pixels of the rows that it shows, the ids of patients, paths of sources, series UIDs where the file has them, " +
            "the messages of findings, and the values of attributes that the build was told to keep. " +
            "report --pseudonyms leaves out all but pixels and numbers.",
    ),
    make(
      "p",
      {},
      "Exported decisions hold " +
        (data.pseudonyms ? "pseudonyms" : "ids") +
        " and your comments. The HDF5 file itself and the pictures of " +
        "report --overlays hold more: ids, UIDs, paths and all pixels. A face can be recognised in images of a head. " +
        "The page asks nothing of a network; decisions stay in this browser until you export them.",
    ),
  );
  keep();

  // ------------------------------------------------------------------------------ keys and buttons
  const KEYS = {
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    o: () => document.body.classList.toggle("bare"),
    k: () => document.body.classList.toggle("no-contours"),
    m: () => document.body.classList.toggle("no-edges"),
    z: () => document.body.classList.toggle("closer"),
    c: () => current() && document.getElementById("comment").focus(),
    Enter: () => current() && !detail.open && open(current()),
    Escape: () => detail.open && shut(),
    "+": () => nudge("zoom", 0.5, 1, 6),
    "-": () => nudge("zoom", -0.5, 1, 6),
    "[": () => nudge("level", -0.1, -0.9, 3),
    "]": () => nudge("level", 0.1, -0.9, 3),
    ",": () => nudge("window", -0.1, 0.2, 3),
    ".": () => nudge("window", 0.1, 0.2, 3),
  };
  for (const [letter, one] of Object.entries(CHOICES)) KEYS[letter] = () => current() && decide(current(), one);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    if (event.key !== "Escape" && /^(INPUT|SELECT|TEXTAREA|SUMMARY)$/.test(event.target.tagName)) return;
    if (event.key === "Enter" && !event.target.classList.contains("tile")) return; // a button's own
    KEYS[event.key]();
    event.preventDefault();
  });
  const said = document.getElementById("comment");
  said.addEventListener("change", () => current() && comment(current(), said.value));
  said.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    said.blur();
    go(here);
  });
  document.getElementById("export").addEventListener("click", () => {
    const href = URL.createObjectURL(new Blob([rowList()], { type: "text/csv" }));
    make("a", { download: "decisions.csv", href }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  });
  function reads(id, act) {
    document.getElementById(id).addEventListener("change", async (event) => {
      const texts = await Promise.all([...event.target.files].map((file) => file.text()));
      if (texts.length) act(texts);
      event.target.value = "";
    });
  }
  reads("import", ([text]) => take(text));
  reads("compare", (texts) => put("reviewers", ...reviewers(texts)));
  // Paper shows all: what was not near to what is seen is made now.
  window.addEventListener("beforeprint", () => [...waiting.keys()].forEach(fill));
  const bar = document.getElementById("review");
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`)).observe(bar);
  window.dicomEtl = { rowList, take, reviewers, agreement };
})();
