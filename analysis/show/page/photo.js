// The photo panel: attention of a patch or a class, heads and layers side by side, prediction, label, difference.

import { headsOf, largest, mapsOf, meanOf } from "./attention.js";
import { differencePicture, fit, grey, labelPicture, mapPicture, paint } from "./canvas.js";
import { fill, fresh, h, shown } from "./dom.js";
import { set, state } from "./state.js";

/** @typedef {import("./attention.js").Layer} Layer */
/** @typedef {import("./attention.js").Query} Query */

export const SHOWS = ["attention", "prediction", "label", "difference", "photo"];
const LAYERS_LATER = 60; // ms after the last move: the maps of other layers

/** Where the pointer is on a run's grid. @param {any} look @returns {[number, number]} */
export function patchAt(look) {
  return patchUnder(look, ...(state.at ?? /** @type {[number, number]} */ ([0.5, 0.5])));
}

/** @param {any} look @param {number} y @param {number} x shares of the photo's sides @returns {[number, number]} */
function patchUnder(look, y, x) {
  const [rows, columns] = look.grid;
  return [Math.min(rows - 1, Math.max(0, Math.floor((y / look.cover[0]) * rows))),
    Math.min(columns - 1, Math.max(0, Math.floor((x / look.cover[1]) * columns)))];
}

/** The middle of a patch as shares of the photo's sides. @param {any} look @param {number} row @param {number} column @returns {[number, number]} */
export function middleOf(look, row, column) {
  return [((row + 0.5) / look.grid[0]) * look.cover[0], ((column + 0.5) / look.grid[1]) * look.cover[1]];
}

/** The run's layer that is chosen, or the nearest it has. @param {any} look @returns {Layer|null} */
export function layerOf(look) {
  return look.attention.find((/** @type {Layer} */ layer) => layer.name === state.layer) ?? null;
}

/** Whom the map is of. @param {any} look @returns {Query} */
export function queryOf(look) {
  if (state.cls !== null) return { cls: state.cls };
  const [row, column] = patchAt(look);
  return { patch: row * look.grid[1] + column };
}

/**
 * The maps of a layer for what is chosen, and whom they are of; where a layer has rows of class embeddings alone, those
 * of the class predicted at the patch.
 * @param {any} look @param {Layer} layer @returns {{maps: Float32Array[]|null, query: Query, instead: boolean}}
 */
export function mapsFor(look, layer) {
  const patches = look.grid[0] * look.grid[1], query = queryOf(look);
  const maps = mapsOf(layer, query, patches);
  if (maps || !("patch" in query) || layer.of !== "classes") return { maps, query, instead: false };
  const other = { cls: look.patches.data[query.patch] };
  return { maps: mapsOf(layer, other, patches), query: other, instead: true };
}

/** @param {string} name */
export function shortName(name) {
  return name.replace(/^decoder\./, "").replace("cross_layers", "cross").replace(/^encoder\.layers/, "encoder");
}

/** A canvas with words below it, that can be pressed. @param {string} words @param {() => void} press */
function small(words, press) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const caption = h("span", {}, words), number = h("span", { class: "number" });
  const button = h("button", { type: "button", class: "small", onclick: press }, canvas, caption, number);
  return { button, canvas, caption, number };
}

export class PhotoPanel {
  /** @param {any} run @param {HTMLImageElement[]} images @param {{name: string, size: number[]}[]} photos */
  constructor(run, images, photos) {
    this.run = run;
    this.images = images;
    this.photos = photos;
    this.later = 0;
    this.madeOf = "";
    /** @type {ReturnType<typeof small>[]} */
    this.smalls = [];
    const said = fresh("said"), how = fresh("how");
    this.canvas = h("canvas", {
      class: "photo", tabindex: "0", role: "application", "aria-roledescription": "photo of patches",
      "aria-describedby": `${said} ${how}`,
      onpointermove: (/** @type {PointerEvent} */ event) => this.point(event),
      onpointerdown: (/** @type {PointerEvent} */ event) => this.pin(event),
    });
    this.how = h("p", { id: how, class: "unseen" }, "Arrows move the patch, Enter pins it, digits choose a head, plus and minus a layer.");
    this.said = h("p", { class: "said", id: said, "aria-live": "polite" });
    this.heads = h("div", { class: "smalls", role: "group", "aria-label": "Heads of this layer" });
    this.layers = h("div", { class: "smalls", role: "group", "aria-label": "Layers of the decoder" });
    this.inside = h("div", { class: "smalls", role: "group", "aria-label": "Layers of the encoder" });
    this.encoder = h("details", { ontoggle: () => this.paintLayers() }, h("summary", {}, "Encoder, mean of heads"), this.inside);
    this.depths = h("div", { class: "smalls", role: "group", "aria-label": "The class at each depth" });
    this.headsTitle = h("h4", {});
    this.layersTitle = h("h4", {});
    this.depthsTitle = h("h4", {});
    this.legend = h("div", { class: "legend", role: "group", "aria-label": "Classes" });
    this.element = h("div", { class: "view" }, h("div", { class: "large" }, this.canvas, this.how, this.said, this.legend),
      h("div", {}, this.headsTitle, this.heads, this.layersTitle, this.layers, this.depthsTitle, this.depths, this.encoder));
  }

  get look() {
    return this.run.looks[state.photo];
  }

  get image() {
    return this.images[state.photo];
  }

  /** @param {PointerEvent} event @returns {[number, number]} */
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return middleOf(this.look, ...patchUnder(this.look, (event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width));
  }

  /** @param {PointerEvent} event */
  point(event) {
    if (state.pinned) return;
    set({ at: this.place(event) });
  }

  /** @param {PointerEvent} event */
  pin(event) {
    const at = this.place(event);
    const same = state.pinned && state.at !== null && state.at[0] === at[0] && state.at[1] === at[1];
    set({ at, pinned: !same, cls: null });
  }

  /** Made anew for a photo. */
  reset() {
    const { look, run } = this;
    this.canvas.setAttribute("aria-label", `${run.name}: ${this.photos[state.photo].name}`);
    fill(this.legend, look.chosen.map((/** @type {number} */ index) =>
      h("button", {
        type: "button", class: "class", "data-class": index, "aria-pressed": "false",
        onclick: () => set({ cls: state.cls === index ? null : index }),
      }, h("span", { class: "swatch", style: { background: `rgb(${run.palette[index].join()})` } }), run.classes[index])));
    this.madeOf = "";
    this.render(new Set(["photo"]));
  }

  /** @param {Set<string>} changed */
  render(changed) {
    const { look } = this, layer = layerOf(look);
    for (const button of this.legend.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.class) === state.cls));
    const found = layer && mapsFor(look, layer);
    this.paintMain(layer, found);
    this.paintHeads(layer, found);
    clearTimeout(this.later);
    if (changed.has("photo") || changed.has("resize")) this.paintLayers();
    else this.later = window.setTimeout(() => this.paintLayers(), LAYERS_LATER);
  }

  ratio() {
    const [height, width] = this.photos[state.photo].size;
    return height / width;
  }

  /** @param {Layer|null} layer @param {{maps: Float32Array[]|null, query: Query, instead: boolean}|null} found */
  paintMain(layer, found) {
    const { look, run, image, canvas } = this, columns = look.grid[1];
    fit(canvas, this.ratio());
    const [row, column] = patchAt(look), patch = row * columns + column;
    const mark = { mark: /** @type {[number, number]} */ ([row, column]), grid: look.grid, pinned: state.pinned, cover: look.cover };
    /** @type {string[]} */
    const words = [];
    const name = (/** @type {number} */ label) => run.classes[label] ?? "no class";
    if (state.cls === null) {
      const share = Math.round((100 * look.probability.data[patch]) / 255);
      const label = look.labels ? `, labelled ${name(look.labels.data[patch])}` : "";
      words.push(`Patch ${row}, ${column}: predicted ${name(look.patches.data[patch])} (${share} %)${label}.`);
    } else words.push(`Class ${name(state.cls)}.`);
    if (state.show === "photo") paint(canvas, image, { ...mark });
    else if (state.show === "prediction" || (state.show !== "attention" && !look.label)) {
      const wide = look.prediction.shape[1];
      paint(canvas, image, { ...mark, over: null });
      paint(canvas, image, { over: labelPicture(look.prediction.data, wide, run.palette) });
      if (state.show !== "prediction") words.push("There is no label of this photo: the prediction is shown.");
    } else if (state.show === "label")
      paint(canvas, image, { over: labelPicture(look.label.data, look.label.shape[1], run.palette) });
    else if (state.show === "difference") {
      const none = look.label.data instanceof Uint16Array ? 65535 : 255;
      paint(canvas, grey(image), { over: differencePicture(look.prediction.data, look.label.data, look.label.shape[1], none), alpha: 0.75 });
      words.push("Orange: prediction and label differ; dark: not labelled.");
    } else if (!layer || !found || !found.maps) {
      paint(canvas, grey(image), { ...mark, mark: state.cls === null ? mark.mark : null });
      words.push(this.missing(layer));
    } else {
      const one = state.head === "mean" || state.head >= found.maps.length ? meanOf(found.maps) : found.maps[state.head];
      const top = largest(one);
      const showMark = "patch" in found.query && layer.of !== "class token" && state.cls === null;
      paint(canvas, grey(image), { ...mark, mark: showMark || found.instead || layer.of === "membership" ? mark.mark : null, over: mapPicture(one, columns) });
      const head = state.head === "mean" || state.head >= found.maps.length ? `mean of ${found.maps.length} heads` : `head ${state.head}`;
      const what = layer.of === "membership" ? "memberships" : layer.of === "class token" ? "attention of the encoder's class token"
        : found.instead && "cls" in found.query ? `attention of the class embedding ${name(found.query.cls)}, predicted here` : "attention";
      let sum = 0;
      for (const value of one) sum += value;
      words.push(`${shortName(layer.name)}, ${head}: ${what}, largest ${shown(100 * top)} %` +
        (layer.of === "membership" || layer.of === "representatives" ? "." : `, ${shown(100 * sum)} % of it on patches.`));
    }
    this.said.textContent = words.join(" ");
  }

  /** @param {Layer|null} layer */
  missing(layer) {
    if (!this.look.attention.length) return "Neither decoder nor encoder has attention to patches.";
    if (!layer) return `${this.run.name} has no attention in ${shortName(state.layer)}.`;
    if (state.cls !== null) return `Rows of ${shortName(layer.name)} belong to patches, none to class embeddings.`;
    return `${shortName(layer.name)} has no such rows.`;
  }

  /** @param {Layer|null} layer @param {{maps: Float32Array[]|null}|null} found */
  paintHeads(layer, found) {
    const { look, image } = this, maps = found?.maps ?? [];
    this.headsTitle.hidden = this.heads.hidden = !maps.length;
    if (!layer || !maps.length) return;
    const key = `${state.photo} ${layer.name} ${maps.length}`;
    if (this.madeOf !== key) {
      this.madeOf = key;
      this.smalls = maps.map((_, head) => small(`head ${head}`, () => set({ head: state.head === head ? "mean" : head, show: "attention" })));
      fill(this.heads, this.smalls.map(({ button }) => button));
      this.headsTitle.textContent = `Heads of ${shortName(layer.name)}`;
    }
    this.smalls.forEach(({ button, canvas, number }, head) => {
      fit(canvas, this.ratio());
      paint(canvas, grey(image), { over: mapPicture(maps[head], look.grid[1]), cover: look.cover });
      button.setAttribute("aria-pressed", String(state.head === head));
      number.textContent = `max ${shown(100 * largest(maps[head]), 2)} %`;
    });
  }

  /** The same patch or class in every layer, and the class at each depth. */
  paintLayers() {
    const { look, image } = this, cover = look.cover, columns = look.grid[1];
    const having = look.attention.map((/** @type {Layer} */ layer) => ({ layer, inside: layer.name.startsWith("encoder.") }));
    const own = having.filter((/** @type {any} */ each) => !each.inside), inside = having.filter((/** @type {any} */ each) => each.inside);
    this.encoder.hidden = !inside.length;
    const made = [...this.group(this.layers, own), ...(this.encoder.open ? this.group(this.inside, inside) : [])];
    this.layersTitle.hidden = this.layers.hidden = this.layers.children.length < 2;
    this.layersTitle.textContent = "Layers, mean of heads";
    const [row, column] = patchAt(look);
    const cls = state.cls ?? look.patches.data[row * columns + column], index = look.chosen.indexOf(cls);
    const deep = index < 0 ? [] : [
      ...look.depths.map((/** @type {any} */ depth) => ({ words: depth.layers ? `after ${depth.layers} of ${look.depths.length - 1} layers` : "before all layers", classes: depth.classes })),
      ...look.stages.map((/** @type {any} */ stage) => ({ words: shortName(stage.name), classes: stage.classes })),
    ];
    this.depthsTitle.hidden = this.depths.hidden = !deep.length;
    this.depthsTitle.textContent = `Where ${this.run.classes[cls] ?? ""} is predicted with the layers so far alone`;
    const more = deep.map(({ words, classes }) => {
      const size = classes.shape[1], values = classes.data.subarray(index * size, (index + 1) * size);
      const part = small(words, () => set({ cls: state.cls === cls ? null : cls }));
      part.number.textContent = `max ${Math.round((100 * largest(values)) / 255)} %`;
      return { ...part, over: mapPicture(values, columns, 255) };
    });
    fill(this.depths, more.map(({ button }) => button));
    for (const { canvas, over } of [...made, ...more]) {
      fit(canvas, this.ratio());
      paint(canvas, grey(image), { over, cover });
    }
  }

  /** Maps of some layers, side by side. @param {HTMLElement} place @param {{layer: Layer}[]} layers */
  group(place, layers) {
    const columns = this.look.grid[1], focused = [...place.children].indexOf(/** @type {Element} */ (document.activeElement));
    const parts = layers.flatMap(({ layer }) => {
      const { maps } = mapsFor(this.look, layer);
      if (!maps) return [];
      const one = meanOf(maps), part = small(shortName(layer.name), () => set({ layer: layer.name, show: "attention" }));
      part.number.textContent = `max ${shown(100 * largest(one), 2)} %`;
      part.button.setAttribute("aria-pressed", String(layer.name === state.layer));
      return [{ ...part, over: mapPicture(one, columns) }];
    });
    fill(place, parts.map(({ button }) => button));
    if (focused >= 0) /** @type {HTMLElement|undefined} */ (place.children[focused])?.focus();
    return parts;
  }
}
