// The page: reads its data, builds its panels, hears the keyboard.

import { headsOf, mapsOf } from "./attention.js";
import { colours } from "./canvas.js";
import { CausePanel, NoisePanel } from "./changes.js";
import { unpackAll } from "./data.js";
import { fill, h } from "./dom.js";
import { LayersPanel } from "./layers.js";
import { layerOf, middleOf, patchAt, PhotoPanel, shortName, SHOWS } from "./photo.js";
import { listen, set, state } from "./state.js";
import { study } from "./study.js";
import { SubspacesPanel } from "./subspaces.js";

const PANELS = /** @type {const} */ ([
  { id: "photo", title: "Photo", Panel: PhotoPanel },
  { id: "layers", title: "Layers", Panel: LayersPanel },
  { id: "subspaces", title: "Subspaces", Panel: SubspacesPanel },
  { id: "noise", title: "Noise", Panel: NoisePanel },
  { id: "causes", title: "Causes", Panel: CausePanel },
]);

/** @param {string} address @returns {Promise<HTMLImageElement>} */
async function loaded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

/** @param {string} name @param {string} title */
function section(name, title) {
  return h("section", { id: name, "aria-labelledby": `${name}-title` }, h("h2", { id: `${name}-title` }, title));
}

/** @param {any} content */
async function explore(content) {
  const root = /** @type {HTMLElement} */ (document.getElementById("page"));
  const packed = content.runs.map((/** @type {any} */ run) => run.looks);
  const runs = await Promise.all(content.runs.map(async (/** @type {any} */ run) => ({ ...(await unpackAll({ ...run, looks: null })), looks: [] })));
  colours.map = (await unpackAll(content.colours)).data;
  const images = await Promise.all(content.photos.map((/** @type {any} */ photo) => loaded(photo.picture)));
  /** @param {number} photo */
  const open = async (photo) => {
    await Promise.all(runs.map(async (run, index) => { run.looks[photo] ??= await unpackAll(packed[index][photo]); }));
  };
  await open(0);

  const names = [...new Set(runs.flatMap((run) => run.looks[0].attention.map((/** @type {any} */ layer) => layer.name)))];
  state.layer = firstLayer(names, runs);
  const stages = runs[0].looks[0].scatter?.names ?? [];
  state.stage = Math.max(0, stages.length - 1);
  const tools = toolbar(runs, names, content, open);
  const nav = h("nav", { "aria-label": "Panels" }, PANELS.map(({ id, title }) => h("a", { href: `#${id}` }, title)), h("a", { href: "#about" }, "About"));
  const panels = PANELS.flatMap(({ id, title, Panel }) => {
    const made = runs.map((run) => new Panel(run, images, content.photos)), place = section(id, title);
    if (id === "photo") place.append(tools.element);
    place.append(h("div", { class: "runs", "data-count": runs.length }, made.map((panel, index) =>
      h("article", { class: "run", "data-run": index }, runs.length > 1 ? h("h3", {}, runs[index].name) : null, panel.element))));
    root.append(place);
    return made;
  });
  root.append(about(content, runs));
  /** @type {HTMLElement} */ (document.getElementById("nav")).append(nav);
  for (const panel of panels) panel.reset();
  listen((changed) => {
    if (changed.has("layer") && !changed.has("stage")) {
      const at = stages.indexOf(state.layer);
      if (at >= 0) state.stage = at;
      changed.add("stage");
    }
    tools.render();
    if (changed.has("photo")) for (const panel of panels) panel.reset();
    else for (const panel of panels) panel.render(changed);
  });
  tools.render();
  let width = document.documentElement.clientWidth;
  new ResizeObserver(() => {
    if (width === document.documentElement.clientWidth) return;
    width = document.documentElement.clientWidth;
    for (const panel of panels) panel.render(new Set(["resize"]));
  }).observe(root);
  addEventListener("themed", () => { for (const panel of panels) panel.render(new Set(["resize"])); });
  keyboard(runs, names);
  Object.assign(window, { whitebox: { state, set, runs, mapsOf } });
}

/** The last layer of a decoder that the most runs have; without any, the encoder's last. @param {string[]} names @param {any[]} runs */
function firstLayer(names, runs) {
  const own = names.filter((name) => name.startsWith("decoder."));
  const having = (/** @type {string} */ name) => runs.filter((run) => run.looks[0].attention.some((/** @type {any} */ layer) => layer.name === name)).length;
  const most = Math.max(0, ...own.map(having));
  return own.filter((name) => having(name) === most).pop() ?? names[names.length - 1] ?? "";
}

/** @param {any[]} runs @param {string[]} names @param {any} content @param {(photo: number) => Promise<void>} open */
function toolbar(runs, names, content, open) {
  const layer = h("select", { id: "layer", onchange: () => set({ layer: layer.value }) }, names.map((name) => h("option", { value: name }, shortName(name))));
  const step = (/** @type {number} */ by) => h("button", { type: "button", class: "step", "aria-label": by > 0 ? "next layer" : "layer before", onclick: () => stepLayer(names, by) }, by > 0 ? "+" : "−");
  const heads = h("div", { class: "choice", role: "group", "aria-label": "Head" });
  const shows = h("div", { class: "choice", role: "group", "aria-label": "Show" }, SHOWS.map((name) =>
    h("button", { type: "button", "data-show": name, onclick: () => set({ show: name }) }, name)));
  const photos = content.photos.length < 2 ? null : h("div", { class: "photos", role: "group", "aria-label": "Photos" }, content.photos.map((/** @type {any} */ photo, /** @type {number} */ index) =>
    h("button", { type: "button", "data-photo": index, onclick: async () => { await open(index); set({ photo: index }); } }, h("img", { src: photo.picture, alt: "" }), h("span", {}, photo.name))));
  const help = h("p", { class: "help" }, "Point at a patch; click pins it. Arrows move it, digits choose heads (m: their mean), + and − layers, Escape lets go.");
  const layers = names.length ? h("div", { class: "field" }, h("label", { for: "layer" }, "Layer"), step(-1), layer, step(1)) : null;
  const element = h("div", { class: "tools" }, photos, layers, heads, shows, help);
  let made = "";
  const render = () => {
    layer.value = state.layer;
    const count = Math.max(0, ...runs.map((run) => { const found = layerOf(run.looks[state.photo]); return found ? headsOf(found) : 0; }));
    if (made !== String(count)) {
      made = String(count);
      fill(heads, count > 1 ? ["mean", ...Array.from({ length: count }, (_, head) => head)].map((head) =>
        h("button", { type: "button", "data-head": head, onclick: () => set({ head: /** @type {any} */ (head) }) }, head === "mean" ? "mean of heads" : head)) : null);
      heads.hidden = count < 2;
    }
    for (const button of heads.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.head === String(state.head)));
    for (const button of shows.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.show === state.show));
    for (const button of photos?.querySelectorAll("button") ?? []) button.setAttribute("aria-pressed", String(button.dataset.photo === String(state.photo)));
  };
  return { element, render };
}

/** @param {string[]} names @param {number} by */
function stepLayer(names, by) {
  const at = names.indexOf(state.layer) + by;
  if (names[at]) set({ layer: names[at] });
}

/** @param {any[]} runs @param {string[]} names */
function keyboard(runs, names) {
  document.addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches("input, select, textarea")) return;
    const { look } = /** @type {any} */ ({ look: runs[0].looks[state.photo] });
    const moves = /** @type {Record<string, [number, number]>} */ ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] });
    if (moves[event.key] && target.matches("canvas.photo")) {
      const [row, column] = patchAt(look), [down, right] = moves[event.key];
      const next = [Math.min(look.grid[0] - 1, Math.max(0, row + down)), Math.min(look.grid[1] - 1, Math.max(0, column + right))];
      set({ at: middleOf(look, next[0], next[1]), cls: null, pinned: true });
    } else if (/^\d$/.test(event.key)) set({ head: Number(event.key) });
    else if (event.key === "m") set({ head: "mean" });
    else if (event.key === "+" || event.key === "=") stepLayer(names, 1);
    else if (event.key === "-") stepLayer(names, -1);
    else if (event.key === "Escape") set({ pinned: false, cls: null });
    else if (event.key === "Enter" && target.matches("canvas.photo")) set({ pinned: !state.pinned, at: middleOf(look, ...patchAt(look)) });
    else return;
    event.preventDefault();
  });
}

/** What the page is of, and what it leaves out. @param {any} content @param {any[]} runs */
function about(content, runs) {
  const place = section("about", "About this page");
  place.append(
    h("dl", {}, content.made.map((/** @type {string[]} */ [what, value]) => [h("dt", {}, what), h("dd", {}, value)])),
    ...runs.map((run) => h("div", {}, h("h3", {}, run.name), h("p", {}, `${run.decoder} on ${run.encoder}, trained on ${run.dataset}, ${run.classes.length} classes.`),
      h("ul", {}, [...new Set(content.runs.find((/** @type {any} */ each) => each.name === run.name).notes ?? [])].map((note) => h("li", {}, String(note)))))),
    ...content.words.map((/** @type {string} */ words) => h("p", { class: "note" }, words)),
  );
  return place;
}

/** Light, dark, or as the system has it. */
function theme() {
  const button = /** @type {HTMLButtonElement} */ (document.getElementById("theme"));
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    name();
    dispatchEvent(new Event("themed"));
  });
  name();
}

async function main() {
  theme();
  const root = /** @type {HTMLElement} */ (document.getElementById("page"));
  try {
    const content = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("data")).textContent ?? "");
    if (content.kind === "study") study(content, root);
    else await explore(content);
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  } catch (error) {
    root.append(h("p", { class: "none", role: "alert" }, `This page cannot be shown: ${error instanceof Error ? error.message : error}. It needs a browser of 2023 or later.`));
    throw error;
  }
}

main();
