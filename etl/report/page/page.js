"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const HEADER = ["patient_id", "series", "slice", "frame_number", "structure", "decision", "comment"];
  const CHOICES = { a: "accept", e: "exclude", r: "redraw" };
  const colours = Object.fromEntries(data.structures.map((one) => [one.code, one.colour]));
  const names = Object.fromEntries(data.structures.map((one) => [one.code, one.name]));
  const byRow = new Map(data.rows.map((row) => [row.row, row]));
  const key = "dicom-etl decisions " + data.dataset_id;
  let decisions = read();
  let shown = data.rows;
  let here = -1;

  // Text goes into the document as text, whatever it holds.
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    for (const child of children) element.append(child);
    return element;
  }
  function draw(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }
  function put(id, ...children) { document.getElementById(id).replaceChildren(...children); }
  function read() {
    try { return JSON.parse(localStorage.getItem(key)) || {}; } catch (error) { return {}; }
  }
  function keep() {
    try { localStorage.setItem(key, JSON.stringify(decisions)); } catch (error) { /* a private window */ }
    const n = Object.keys(decisions).length;
    put("decided", n ? `${n} ${n === 1 ? "row is" : "rows are"} decided.` : "No row is decided yet.");
  }
  function title(row) {
    const frame = row.frame > 1 ? `, frame ${row.frame}` : "";
    return `${row.patient}, slice ${row.slice}${frame}`;
  }

  function picture(row, caption) {
    const drawn = data.pictures[row.row];
    if (!drawn) return make("figure", {}, make("figcaption", {}, caption));
    const [height, width] = data.size;
    const layer = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const edge of drawn.edges) {
      layer.append(draw("path", { d: edge.d, fill: "none", stroke: colours[edge.code], "stroke-opacity": 0.55, "stroke-width": 1 }));
    }
    for (const contour of drawn.contours) {
      layer.append(draw("path", { d: contour.d, fill: "none", stroke: colours[contour.code], "stroke-width": 0.5 }));
    }
    const what = [...new Set([...drawn.edges, ...drawn.contours].map((one) => names[one.code]))].join(", ");
    const image = make("img", { src: drawn.image, alt: `${title(row)}: ${what || "nothing drawn"}`, width, height, loading: "lazy", decoding: "async" });
    return make("figure", {}, make("span", { class: "picture" }, image, layer), make("figcaption", {}, caption));
  }

  function diagnosis(one) {
    const box = make("div", { class: "diagnosis" });
    box.append(make("p", {}, make("strong", { class: one.severity }, one.severity), ` ${one.text}`));
    if (one.looks) box.append(make("p", { class: "soft" }, `What it looks like: ${one.looks}.`));
    const pictures = one.rows.map((row) => picture(byRow.get(row), title(byRow.get(row))));
    if (one.good !== null) pictures.push(picture(byRow.get(one.good), `For comparison, without a finding: ${title(byRow.get(one.good))}`));
    if (pictures.length) box.append(make("div", { class: "pictures" }, ...pictures));
    if (one.remedy) box.append(make("p", {}, make("strong", {}, "What to do: "), one.remedy));
    return box;
  }

  function tile(row, place) {
    const box = make("div", { class: "tile", tabindex: 0, "data-place": place, "data-row": row.row });
    const text = make("div", { class: "text" });
    for (const one of row.findings) text.append(make("div", { class: one.severity, title: one.message }, one.code));
    const decided = decisions[row.row];
    text.append(make("div", { class: "decision" }, decided ? decided.decision + (decided.comment ? `: ${decided.comment}` : "") : ""));
    box.append(picture(row, title(row) + (row.split ? ` (${row.split})` : "")), text);
    box.addEventListener("focus", () => { here = place; mark(); });
    return box;
  }
  function mark() {
    document.querySelectorAll(".tile.here").forEach((one) => one.classList.remove("here"));
    const box = document.querySelector(`.tile[data-place="${here}"]`);
    if (box) box.classList.add("here");
  }
  function go(place) {
    const box = document.querySelector(`.tile[data-place="${place}"]`);
    if (box) box.focus();
  }

  function select(id, label, values) {
    const chosen = make("select", { id }, make("option", { value: "" }, "all"));
    for (const value of values) chosen.append(make("option", { value }, value));
    chosen.addEventListener("change", filter);
    return make("label", { for: id }, label, chosen);
  }
  function unique(of) { return [...new Set(data.rows.flatMap(of))].filter((value) => value !== "").sort(); }
  function value(id) { return document.getElementById(id).value; }
  function filter() {
    const [patient, series, split, structure, finding, order] = ["patient", "series", "split", "structure", "finding", "order"].map((id) => value(`f-${id}`));
    const code = (data.structures.find((one) => one.name === structure) || {}).code;
    shown = data.rows.filter((row) =>
      (!patient || row.patient === patient) && (!series || row.series === series) && (!split || row.split === split) &&
      (!structure || row.areas[code] !== null) &&
      (!finding || (finding === "any" ? row.findings.length : row.findings.some((one) => one.code === finding))));
    const area = (row) => Math.max(0, ...Object.values(row.areas).filter((one) => one !== null));
    if (order === "area") shown = [...shown].sort((one, other) => area(other) - area(one));
    if (order === "findings") shown = [...shown].sort((one, other) => other.findings.length - one.findings.length);
    const pictured = shown.filter((row) => data.pictures[row.row]);
    put("tiles", ...pictured.map(tile));
    const more = data.n_shown < data.n_rows ? ` The page lists ${data.n_shown} of ${data.n_rows} rows: flagged ones and a spread of the others.` : "";
    put("count", `${shown.length} of ${data.rows.length} rows, ${pictured.length} with a picture.${more}`);
  }

  function plot(structure) {
    const points = data.rows.filter((row) => row.areas[structure.code] !== null);
    if (!points.length) return "";
    const patients = [...new Set(points.map((row) => row.patient))];
    const top = Math.max(...points.map((row) => row.areas[structure.code])) || 1;
    const chart = draw("svg", { viewBox: "0 0 800 200", role: "img", "aria-label": `Areas of ${structure.name}, patient by patient` });
    points.forEach((row, place) => {
      const x = 45 + (750 * (place + 0.5)) / points.length;
      const y = 180 - (165 * row.areas[structure.code]) / top;
      const dot = draw("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 3, fill: row.findings.length ? "#d32f2f" : patients.indexOf(row.patient) % 2 ? "#5c8ab8" : "#3b6ea5" });
      const name = draw("title", {});
      name.textContent = `${title(row)}: ${row.areas[structure.code]} square pixels`;
      dot.append(name);
      dot.addEventListener("click", () => open(row));
      chart.append(dot);
    });
    for (const [y, text] of [[15, top.toFixed(0)], [180, "0"]]) {
      const label = draw("text", { x: 40, y: y + 4, "text-anchor": "end" });
      label.textContent = text;
      chart.append(label);
    }
    return make("div", {}, make("h3", {}, `${structure.name}: square pixels, rows by patient; red: with a finding`), chart);
  }
  function open(row) {
    document.querySelectorAll("#filters select").forEach((one) => { one.value = ""; });
    filter();
    const box = document.querySelector(`.tile[data-row="${row.row}"]`);
    if (box) { box.scrollIntoView({ block: "center" }); box.focus(); }
  }

  function table(header, rows) {
    const head = make("tr", {}, ...header.map((one) => make("th", { scope: "col" }, one)));
    const body = rows.map((row) => make("tr", {}, ...row.map((one) => make("td", {}, one instanceof Node ? one : String(one)))));
    return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  function decide(row, decision) {
    const before = decisions[row.row] || { comment: "" };
    if (decision === null) {
      const comment = window.prompt(`Comment on ${title(row)}`, before.comment || "");
      if (comment === null) return;
      decisions[row.row] = { decision: before.decision || "redraw", comment };
    } else if (before.decision === decision && !before.comment) {
      delete decisions[row.row];
    } else {
      decisions[row.row] = { decision, comment: before.comment || "" };
    }
    keep();
    const old = document.querySelector(`.tile[data-row="${row.row}"]`);
    if (old) { const fresh = tile(row, Number(old.dataset.place)); old.replaceWith(fresh); fresh.focus(); }
  }
  function quoted(text) {
    const plain = String(text);
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  }
  function rowList() {
    const lines = [HEADER.join(",")];
    for (const [number, one] of Object.entries(decisions)) {
      const row = byRow.get(Number(number));
      if (row) lines.push([row.patient, row.series, row.slice, row.frame, "", one.decision, one.comment].map(quoted).join(","));
    }
    return lines.join("\n") + "\n";
  }
  function cells(text) {
    const rows = [[""]];
    let inside = false;
    for (let i = 0; i < text.length; i += 1) {
      const line = rows[rows.length - 1];
      const letter = text[i];
      if (inside) {
        if (letter === '"' && text[i + 1] === '"') { line[line.length - 1] += '"'; i += 1; }
        else if (letter === '"') inside = false;
        else line[line.length - 1] += letter;
      } else if (letter === '"') inside = true;
      else if (letter === ",") line.push("");
      else if (letter === "\n") rows.push([""]);
      else if (letter !== "\r") line[line.length - 1] += letter;
    }
    return rows.filter((row) => row.length > 1);
  }
  function take(text) {
    const [header, ...lines] = cells(text.replace(/^\ufeff/, ""));
    const of = (line, name) => line[header.indexOf(name)] || "";
    let n = 0;
    for (const line of lines) {
      const row = data.rows.find((one) => one.patient === of(line, "patient_id") && String(one.slice) === of(line, "slice") &&
        (one.series === of(line, "series")) && String(one.frame) === (of(line, "frame_number") || "1"));
      if (row && of(line, "decision")) { decisions[row.row] = { decision: of(line, "decision"), comment: of(line, "comment") }; n += 1; }
    }
    keep();
    filter();
    put("count", `${n} decisions of ${lines.length} lines were taken.`);
  }

  document.title = `dicom-etl report: ${data.file}`;
  put("title", `Report on ${data.file || "a file"}`);
  put("facts", `${data.n_rows} rows of ${data.n_patients} patients, ${data.size[0]} x ${data.size[1]}. Written by ${data.generator}.`);
  put("verdict", data.verdict);
  put("diagnoses", ...(data.diagnoses.length ? data.diagnoses.map(diagnosis) : [make("p", {}, "Nothing.")]));
  put("filters",
    select("f-patient", "Patient", unique((row) => row.patient)), select("f-series", "Series", unique((row) => row.series)),
    select("f-split", "Split", unique((row) => row.split)), select("f-structure", "Structure", data.structures.map((one) => one.name)),
    select("f-finding", "Finding", ["any", ...unique((row) => row.findings.map((one) => one.code))]),
    select("f-order", "Order", ["area", "findings"]));
  document.querySelector("#f-order option").textContent = "file";
  filter();
  put("plots", ...data.structures.map(plot));
  put("findings", data.groups.length ? table(["severity", "code", "number", "what to do", "examples"], data.groups.map((one) => [
    make("span", { class: one.severity }, one.severity), one.code, one.n, one.advice, make("div", {}, ...one.examples.map((text) => make("div", {}, text)))])) : make("p", {}, "None."));
  put("splits", data.splits.length ? table(["part", "patients", "rows"], data.splits.map((one) => [one.name, one.patients, one.rows])) : make("p", {}, "The file has no split."));
  put("sources", make("p", {}, data.sources.join(", ")), ...data.tags.map((one) => make("p", {}, one)), make("pre", {}, JSON.stringify(data.options, null, 1)));
  put("privacy", data.pseudonyms
    ? "Pixels of the rows shown, slice numbers, areas and counts. Ids, paths, UIDs and messages are left out: patients are numbered in their order."
    : "Pixels of the rows shown, the ids of patients, paths, series UIDs where the file has them, and the messages of findings. report --pseudonyms leaves out all but the pixels and numbers.");
  keep();

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "ArrowRight") go(here + 1);
    else if (event.key === "ArrowLeft") go(here - 1);
    else if (event.key === "o") document.body.classList.toggle("bare");
    else {
      const box = document.querySelector(`.tile[data-place="${here}"]`);
      if (!box || !(event.key in CHOICES || event.key === "c")) return;
      decide(byRow.get(Number(box.dataset.row)), CHOICES[event.key] || null);
    }
    event.preventDefault();
  });
  document.getElementById("export").addEventListener("click", () => {
    const link = make("a", { download: "decisions.csv", href: URL.createObjectURL(new Blob([rowList()], { type: "text/csv" })) });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  document.getElementById("import").addEventListener("change", async (event) => {
    if (event.target.files.length) take(await event.target.files[0].text());
    event.target.value = "";
  });
  window.dicomEtl = { rowList, take };
})();
