// The study page: tables that can be sorted, curves, and each number's record.

import { chart } from "./chart.js";
import { fill, h } from "./dom.js";

/** @typedef {{text: string, sort: number|string|null}} Cell */
/** @typedef {{title: string, kind: string, caption: string, columns: {name: string, numeric: boolean}[], rows: {cells: Cell[],
 *   records: number[], model: string|null}[], summary: number, csv: string, file: string}} Table */

/** @param {any} content @param {HTMLElement} root */
export function study(content, root) {
  const dialog = h("dialog", { "aria-label": "Record" });
  document.body.append(dialog);
  /** @param {number[]} indices */
  const open = (indices) => {
    fill(dialog, h("h2", {}, indices.length > 1 ? `${indices.length} records` : "Record"), indices.map((index) => recordOf(content.records[index])),
      h("button", { type: "button", onclick: () => dialog.close() }, "Close"));
    dialog.showModal();
  };
  /** @type {Set<string>} models that are left out */
  const hidden = new Set();
  const models = /** @type {string[]} */ (content.models);
  /** @type {(() => void)[]} */
  const renders = [];
  const filter = h("div", { class: "filter", role: "group", "aria-label": "Models shown" }, models.map((model) => {
    const box = h("input", { type: "checkbox", checked: true, onchange: () => {
      if (box.checked) hidden.delete(model); else hidden.add(model);
      for (const render of renders) render();
    } });
    return h("label", { class: "check" }, box, ` ${model}`);
  }));
  const nav = h("nav", { "aria-label": "Kinds of records" }, content.kinds.map((/** @type {any} */ kind) => h("a", { href: `#${kind.id}` }, kind.title)), h("a", { href: "#records" }, "Records"));
  /** @type {HTMLElement} */ (document.getElementById("nav")).append(nav);
  root.append(h("section", { "aria-labelledby": "study-title" }, h("h2", { id: "study-title" }, "Models"),
    h("p", { class: "note" }, content.words.join(" ")), models.length > 1 ? filter : null));
  for (const kind of content.kinds) {
    const place = h("section", { id: kind.id, "aria-labelledby": `${kind.id}-title` }, h("h2", { id: `${kind.id}-title` }, kind.title));
    for (const note of kind.notes) place.append(h("p", { class: "none" }, note));
    if (kind.curves.length) {
      const charts = h("div", { class: "charts" });
      const render = () => fill(charts, kind.curves.map((/** @type {any} */ given) => chart({ ...given, curves: given.curves.filter((/** @type {any} */ curve) => !hidden.has(curve.name)) })));
      render();
      renders.push(render);
      place.append(charts);
    }
    kind.tables.forEach((/** @type {Table} */ table, /** @type {number} */ number) => {
      const made = tableOf(table, hidden, renders, open);
      place.append(h("details", { open: number === 0 }, h("summary", {}, table.title), made));
    });
    root.append(place);
  }
  const records = h("section", { id: "records", "aria-labelledby": "records-title" }, h("h2", { id: "records-title" }, "Records"));
  records.append(h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, ["Record", "Model", "Data", "n", "Measured"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, content.records.map((/** @type {any} */ record, /** @type {number} */ index) => h("tr", {},
      h("td", { class: "text" }, h("button", { type: "button", class: "record", onclick: () => open([index]) }, record.file)),
      h("td", { class: "text" }, record.model), h("td", { class: "text" }, record.data), h("td", {}, record.n), h("td", {}, record.created)))))));
  root.append(records);
}

/** @param {any} record */
function recordOf(record) {
  return h("div", {}, h("h3", {}, h("a", { href: record.href }, record.file)),
    h("dl", {}, record.facts.map((/** @type {string[]} */ [what, value]) => [h("dt", {}, what), h("dd", {}, value)])),
    h("details", {}, h("summary", {}, "Settings, versions, hardware"), h("pre", { tabindex: "0" }, record.more)));
}

/** @param {Table} table @param {Set<string>} hidden @param {(() => void)[]} renders @param {(indices: number[]) => void} open */
function tableOf(table, hidden, renders, open) {
  let by = -1, down = true;
  const body = h("tbody", {});
  const heads = table.columns.map((column, index) => h("th", { scope: "col", "aria-sort": "none" },
    h("button", { type: "button", onclick: () => { down = by === index ? !down : column.numeric; by = index; render(); } }, column.name)));
  const render = () => {
    const own = table.rows.slice(0, table.rows.length - table.summary), last = table.rows.slice(own.length);
    const rows = by < 0 ? own : [...own].sort((first, second) => compare(first.cells[by].sort, second.cells[by].sort) * (down ? -1 : 1));
    heads.forEach((head, index) => head.setAttribute("aria-sort", index !== by ? "none" : down ? "descending" : "ascending"));
    fill(body, [...rows, ...last].filter((row) => row.model === null || !hidden.has(row.model)).map((row) =>
      h("tr", { class: last.includes(row) ? "summary" : null }, row.cells.map((cell, index) => {
        const numeric = table.columns[index].numeric, linked = numeric && row.records.length > 0 && cell.text;
        return h("td", { class: numeric ? null : "text" }, linked
          ? h("button", { type: "button", class: "value", title: "Its record", onclick: () => open(row.records) }, cell.text) : cell.text);
      }))));
  };
  render();
  renders.push(render);
  const save = h("button", { type: "button", onclick: () => download(table.file, table.csv) }, "Download CSV");
  return h("div", {}, h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": table.title }, h("table", {}, h("thead", {}, h("tr", {}, heads)), body)),
    h("p", { class: "note" }, table.caption), save);
}

/** What has no value comes last or first, numbers before words. @param {number|string|null} first @param {number|string|null} second */
function compare(first, second) {
  if (first === null || second === null) return first === second ? 0 : first === null ? -1 : 1;
  return typeof first === "number" && typeof second === "number" ? first - second : String(first).localeCompare(String(second));
}

/** @param {string} name @param {string} text */
function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
