// The layers panel: numbers of this photo's tokens along the layers, and where the tokens go.

import { fit, grey, paint, picture } from "./canvas.js";
import { chart } from "./chart.js";
import { fill, fresh, h, shown } from "./dom.js";
import { patchAt, shortName } from "./photo.js";
import { set, state } from "./state.js";

const QUANTITIES = [
  { key: "rate", name: "Coding rate R(Z)", unit: "nats", factor: 1 },
  { key: "reduction", name: "Rate reduction", unit: "nats", factor: 1 },
  { key: "effective_rank", name: "Effective rank", unit: "dimensions", factor: 1 },
  { key: "zeros", name: "Zeros", unit: "%", factor: 100 },
];

/** @typedef {{name: string, position: number, cosine?: Record<string, number>} & Record<string, any>} Row */

export class LayersPanel {
  /** @param {any} run @param {HTMLImageElement[]} images @param {{name: string, size: number[]}[]} photos */
  constructor(run, images, photos) {
    this.run = run;
    this.images = images;
    this.photos = photos;
    this.turn = [0.5, -0.35];
    this.charts = h("div", { class: "charts" });
    const id = fresh("stage");
    this.slider = h("input", { type: "range", id, min: 0, max: 1, step: 0.02, oninput: () => set({ stage: Number(this.slider.value) }) });
    this.name = h("output", { for: id });
    this.scatter = h("canvas", { class: "scatter", role: "img", tabindex: "0",
      onpointerdown: (/** @type {PointerEvent} */ event) => { this.from = [event.clientX, event.clientY]; this.scatter.setPointerCapture(event.pointerId); },
      onpointermove: (/** @type {PointerEvent} */ event) => this.drag(event),
      onpointerup: () => { this.from = undefined; },
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.key(event) });
    this.colours = h("canvas", { class: "rgb", role: "img" });
    this.space = h("div", { class: "pair" },
      h("figure", {}, this.scatter, h("figcaption", {}, "Patch tokens in the first three principal components of all stages together, coloured by class. Drag or use arrows to turn.")),
      h("figure", {}, this.colours, h("figcaption", {}, "The same three as red, green and blue, each from its 1st to its 99th percentile over all stages.")));
    this.sliding = h("div", { class: "sliding" }, h("label", { for: id }, "Layer"), this.slider, this.name);
    this.none = h("p", { class: "none" });
    this.element = h("div", { class: "view" }, this.charts, this.sliding, this.space, this.none);
  }

  get look() {
    return this.run.looks[state.photo];
  }

  reset() {
    const { look, run } = this, rows = /** @type {Row[]} */ (look.layers), together = run.together ?? { layers: [], untrained: [] };
    /** @param {string} title @param {string} unit @param {number} factor @param {(row: Row) => any} value */
    const drawn = (title, unit, factor, value) => {
      const having = rows.filter((row) => value(row) !== undefined && value(row) !== null), places = having.map((_, index) => index);
      const of = (/** @type {Row[]} */ others) => having.map((row) => {
        const other = others.find((each) => each.name === row.name), found = other && value(other);
        return found === undefined || found === null ? null : typeof found === "number" ? { value: found } : found;
      });
      return chart({
        title, x: "layer", y: unit, factor, names: having.map((row) => shortName(row.name).replace("layers.", "")), curves: [
          { name: "this photo", x: places, y: of(rows), colour: 0 },
          { name: "mean of the data set", x: places, y: of(together.layers), colour: 1 },
          { name: "untrained, this photo", x: places, y: of(look.untrained), colour: 2, dashed: true },
          { name: "untrained, data set", x: places, y: of(together.untrained), colour: 3, dashed: true },
        ],
      });
    };
    const known = QUANTITIES.filter(({ key }) => rows.some((row) => Number.isFinite(row[key])));
    const objectives = [...new Set(rows.flatMap((row) => Object.keys(row.cosine ?? {})))];
    fill(this.charts, [
      ...known.map(({ key, name, unit, factor }) => drawn(name, unit, factor, (row) => row[key])),
      ...objectives.map((objective) => drawn(`Update beside gradient, ${objective}`, "cosine", 1, (row) => row.cosine?.[objective])),
      this.table(rows, known, objectives),
    ]);
    const told = together.words ? h("p", { class: "note" }, together.words) : h("p", { class: "note" },
      "No rank-analysis or alignment of this run was measured: run them, and the mean of the data set stands beside.");
    this.charts.append(told);
    const found = look.scatter;
    this.sliding.hidden = this.space.hidden = !found;
    this.none.textContent = found || rows.length ? "" : "This decoder has no tokens along its layers: nothing to show here.";
    if (found) {
      this.slider.max = String(Math.max(found.names.length - 1, 0));
      this.slider.disabled = found.names.length < 2;
      this.limits = limits(found.scores);
    }
    this.render(new Set(["photo"]));
  }

  /** @param {Row[]} rows @param {typeof QUANTITIES} known @param {string[]} objectives */
  table(rows, known, objectives) {
    if (!rows.length) return null;
    const head = ["layer", ...known.map(({ name, unit }) => `${name} (${unit})`), ...objectives.map((each) => `cosine, ${each}`)];
    return h("details", {}, h("summary", {}, "Numbers of this photo"), h("div", { class: "wide" }, h("table", {},
      h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, shortName(row.name)),
        known.map(({ key, factor }) => h("td", {}, shown(factor * row[key]))),
        objectives.map((each) => h("td", {}, shown(row.cosine?.[each])))))))));
  }

  /** @param {PointerEvent} event */
  drag(event) {
    if (!this.from) return;
    this.turn[0] += (event.clientX - this.from[0]) / 150;
    this.turn[1] += (event.clientY - this.from[1]) / 150;
    this.from = [event.clientX, event.clientY];
    this.render(new Set(["stage"]));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const turns = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] });
    const turn = turns[event.key];
    if (!turn) return;
    event.preventDefault();
    event.stopPropagation();
    this.turn = [this.turn[0] + turn[0], this.turn[1] + turn[1]];
    this.render(new Set(["stage"]));
  }

  /** @param {Set<string>} changed */
  render(changed) {
    if (!["stage", "photo", "resize", "cls", "at"].some((name) => changed.has(name))) return;
    const { look } = this, found = look.scatter;
    if (!found) return;
    const last = found.names.length - 1, stage = Math.min(state.stage, last), below = Math.floor(stage), part = stage - below;
    this.slider.value = String(stage);
    const nearest = Math.round(stage);
    this.name.textContent = `${shortName(found.names[nearest])}, ${shown(100 * found.shares[nearest], 3)} % of its variance`;
    const [, patches] = found.scores.shape, data = found.scores.data, next = Math.min(below + 1, last);
    const points = new Float32Array(patches * 3);
    for (let index = 0; index < points.length; index++)
      points[index] = (1 - part) * data[below * patches * 3 + index] + part * data[next * patches * 3 + index];
    this.drawScatter(points);
    if (changed.has("at") && changed.size === 1) return;
    const [low, high] = /** @type {number[][]} */ (this.limits);
    const rgb = picture(look.grid[1], look.grid[0], (index, put) => {
      const [red, green, blue] = [0, 1, 2].map((axis) => 255 * Math.min(1, Math.max(0, (points[3 * index + axis] - low[axis]) / (high[axis] - low[axis] || 1))));
      put(red, green, blue);
    });
    const [height, width] = this.photos[state.photo].size;
    fit(this.colours, height / width);
    paint(this.colours, grey(this.images[state.photo]), { over: rgb, cover: look.cover, alpha: 0.85 });
    this.colours.setAttribute("aria-label", `Principal components over the photo, ${this.name.textContent}`);
  }

  /** @param {Float32Array} points */
  drawScatter(points) {
    const { look, run, scatter } = this;
    fit(scatter, 0.75);
    const context = scatter.getContext("2d");
    if (!context) return;
    const { width, height } = scatter, [yaw, pitch] = this.turn;
    const [low, high] = /** @type {number[][]} */ (this.limits), reach = Math.max(...low.map(Math.abs), ...high.map(Math.abs)) || 1;
    const scale = (0.36 * Math.min(width, height)) / reach;
    context.clearRect(0, 0, width, height);
    const flat = (/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ z) => {
      const a = x * Math.cos(yaw) + z * Math.sin(yaw), b = z * Math.cos(yaw) - x * Math.sin(yaw);
      return [width / 2 + scale * a, height / 2 - scale * (y * Math.cos(pitch) - b * Math.sin(pitch)), b * Math.cos(pitch) + y * Math.sin(pitch)];
    };
    const ink = getComputedStyle(scatter).color;
    context.strokeStyle = context.fillStyle = ink;
    context.font = `${Math.round(width / 34)}px system-ui, sans-serif`;
    context.lineWidth = Math.max(1, width / 500);
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]].forEach(([x, y, z], axis) => {
      const [u, v] = flat(x * reach, y * reach, z * reach), [s, t] = flat(-x * reach, -y * reach, -z * reach);
      context.globalAlpha = 0.25;
      context.beginPath();
      context.moveTo(s, t);
      context.lineTo(u, v);
      context.stroke();
      context.globalAlpha = 0.8;
      context.fillText(`PC ${axis + 1}`, u + 3, v - 3);
    });
    const labels = look.patches.data, order = Array.from({ length: labels.length }, (_, index) => {
      const [u, v, depth] = flat(points[3 * index], points[3 * index + 1], points[3 * index + 2]);
      return { index, u, v, depth };
    }).sort((first, second) => first.depth - second.depth);
    const size = Math.max(1.5, width / 170);
    for (const { index, u, v } of order) {
      const colour = run.palette[labels[index]] ?? [128, 128, 128];
      context.globalAlpha = state.cls === null || state.cls === labels[index] ? 0.85 : 0.08;
      context.fillStyle = `rgb(${colour.join()})`;
      context.beginPath();
      context.arc(u, v, size, 0, 7);
      context.fill();
    }
    const [row, column] = patchAt(look), own = order.find(({ index }) => index === row * look.grid[1] + column);
    if (own && state.cls === null) {
      context.globalAlpha = 1;
      context.strokeStyle = ink;
      context.lineWidth = Math.max(2, width / 250);
      context.beginPath();
      context.arc(own.u, own.v, 2.2 * size, 0, 7);
      context.stroke();
    }
    context.globalAlpha = 1;
    scatter.setAttribute("aria-label", `Scatter of ${labels.length} patch tokens in three principal components, ${this.name.textContent}`);
  }
}

/** The 1st and 99th percentile of each component over all stages. @param {{shape: number[], data: any}} scores @returns {number[][]} */
function limits(scores) {
  const ends = [0, 1, 2].map((axis) => {
    const values = Float32Array.from({ length: scores.data.length / 3 }, (_, index) => scores.data[3 * index + axis]).sort();
    return [values[Math.floor(0.01 * (values.length - 1))], values[Math.ceil(0.99 * (values.length - 1))]];
  });
  return [ends.map(([low]) => low), ends.map(([, high]) => high)];
}
