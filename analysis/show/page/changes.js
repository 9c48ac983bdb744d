// The noise panel and the cause panel: what the prediction becomes, and what was measured of it on the data set.

import { fit, labelPicture, paint } from "./canvas.js";
import { chart } from "./chart.js";
import { fill, fresh, h, interval, shown } from "./dom.js";
import { shortName } from "./photo.js";
import { set, state } from "./state.js";

/** Share of patches that differ, in percent. @param {ArrayLike<number>} labels @param {ArrayLike<number>} others */
function apart(labels, others) {
  let count = 0;
  for (let index = 0; index < labels.length; index++) if (labels[index] !== others[index]) count++;
  return (100 * count) / labels.length;
}

export class NoisePanel {
  /** @param {any} run @param {HTMLImageElement[]} images @param {{name: string, size: number[]}[]} photos */
  constructor(run, images, photos) {
    this.run = run;
    this.images = images;
    this.photos = photos;
    const id = fresh("sigma");
    this.slider = h("input", { type: "range", id, min: 0, step: 1, oninput: () => this.slide() });
    this.name = h("output", { for: id });
    this.canvas = h("canvas", { class: "photo", role: "img" });
    this.said = h("p", { class: "said", "aria-live": "polite" });
    this.curve = h("div", { class: "charts" });
    this.sliding = h("div", { class: "sliding" }, h("label", { for: id }, "Noise σ"), this.slider, this.name);
    this.pair = h("div", { class: "pair" }, h("figure", {}, this.canvas, this.said), this.curve);
    this.none = h("p", { class: "none" });
    this.element = h("div", { class: "view" }, this.sliding, this.pair, this.none);
  }

  get look() {
    return this.run.looks[state.photo];
  }

  get sigmas() {
    return [0, ...(this.look.noise?.sigmas ?? [])];
  }

  slide() {
    set({ sigma: this.sigmas[Number(this.slider.value)] });
  }

  reset() {
    const { noise } = this.look;
    this.sliding.hidden = this.pair.hidden = !noise && !this.run.noise;
    this.sliding.hidden = !noise;
    this.none.textContent = noise || this.run.noise ? "" : "This decoder has no parameters that noise can be added to.";
    this.slider.max = String(this.sigmas.length - 1);
    this.render(new Set(["photo"]));
  }

  /** @param {Set<string>} changed */
  render(changed) {
    if (!["photo", "sigma", "resize"].some((name) => changed.has(name))) return;
    const { look, run } = this, { noise } = look;
    let index = 0;
    if (noise) {
      this.sigmas.forEach((sigma, place) => { if (Math.abs(sigma - state.sigma) < Math.abs(this.sigmas[index] - state.sigma)) index = place; });
      const sigma = this.sigmas[index], size = look.grid[0] * look.grid[1];
      const [rows, columns] = noise.labels.shape.slice(1), count = rows * columns;
      const labels = index ? noise.labels.data.subarray((index - 1) * count, index * count) : look.patches.data;
      this.slider.value = String(index);
      const unit = noise.relative ? " of each tensor's rms" : "";
      this.name.textContent = `${shown(sigma, 2)}${unit}`;
      const [height, width] = this.photos[state.photo].size;
      fit(this.canvas, height / width);
      paint(this.canvas, this.images[state.photo], { over: labelPicture(labels, columns, run.palette), cover: look.cover });
      this.canvas.setAttribute("aria-label", `Prediction under noise ${shown(sigma, 2)}`);
      const point = run.noise?.curve.find((/** @type {any} */ each) => Math.abs(each.sigma - sigma) < 1e-9 + 1e-6 * sigma);
      const measured = point ? ` mIoU on ${run.noise.data}: ${interval(point.miou, 100, 1)} %.` : "";
      this.said.textContent = `σ = ${shown(sigma, 2)}${unit}, one draw: ${count === size ? shown(apart(labels, look.patches.data), 3) : "–"} % of patches change.${measured}`;
    }
    if (run.noise) {
      const curve = run.noise.curve;
      fill(this.curve, chart({
        title: `mIoU under noise on ${run.noise.target}, ${run.noise.data}`, x: `σ${run.noise.relative ? ", of each tensor's rms" : ""}`, y: "mIoU (%)", factor: 100, log: true, mark: noise ? this.sigmas[index] : null,
        curves: [{ name: run.name, x: curve.map((/** @type {any} */ each) => each.sigma), y: curve.map((/** @type {any} */ each) => each.miou), colour: 0 }],
      }), h("p", { class: "note" }, run.noise.words));
    } else fill(this.curve, h("p", { class: "note" }, "No noise curve of this run was measured: whitebox robustness RUN --noise 0.1:2:log8 --relative gives one. Levels here are the usual ones."));
  }
}

export class CausePanel {
  /** @param {any} run @param {HTMLImageElement[]} images @param {{name: string, size: number[]}[]} photos */
  constructor(run, images, photos) {
    this.run = run;
    this.images = images;
    this.photos = photos;
    this.canvas = h("canvas", { class: "photo", role: "img" });
    this.said = h("p", { class: "said", "aria-live": "polite" });
    this.table = h("div", { class: "wide" });
    this.pair = h("div", { class: "pair" }, h("figure", {}, this.canvas, this.said), this.table);
    this.none = h("p", { class: "none" });
    this.element = h("div", { class: "view" }, this.pair, this.none);
  }

  get look() {
    return this.run.looks[state.photo];
  }

  /** @param {string} layer @param {number|null} head */
  static key(layer, head) {
    return `${layer} ${head === null ? "" : head}`;
  }

  /** @param {string} layer @param {number|null} head the measured change */
  measured(layer, head) {
    return this.run.causes?.variants.find((/** @type {any} */ each) => each.layer === layer && each.head === head)?.miou;
  }

  reset() {
    const { look } = this, layers = [...new Set(look.cases.map((/** @type {any} */ each) => each.layer))];
    this.pair.hidden = !layers.length;
    this.none.textContent = layers.length ? "" : "This decoder has no layer whose change of the tokens can be taken away.";
    if (layers.length) {
      const heads = Math.max(-1, ...look.cases.map((/** @type {any} */ each) => each.head ?? -1)) + 1;
      const columns = [null, ...Array.from({ length: heads }, (_, head) => head)];
      fill(this.table, h("table", { class: "switches" },
        h("caption", {}, this.run.causes ? `Change of mIoU in points, [95 % interval], on ${this.run.causes.data}.` : "Patches that change on this photo. Run whitebox ablate, and changes of mIoU stand here."),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "off"), columns.map((head) => h("th", { scope: "col" }, head === null ? "whole layer" : `head ${head}`)))),
        h("tbody", {}, layers.map((layer) => h("tr", {}, h("th", { scope: "row" }, shortName(String(layer))), columns.map((head) => h("td", {}, this.button(String(layer), head))))))));
      if (this.run.causes) this.table.append(h("p", { class: "note" }, this.run.causes.words));
    }
    this.render(new Set(["photo"]));
  }

  /** @param {string} layer @param {number|null} head */
  button(layer, head) {
    const { look } = this, found = look.cases.find((/** @type {any} */ each) => each.layer === layer && each.head === head);
    if (!found) return null;
    const key = CausePanel.key(layer, head), measured = this.measured(layer, head);
    const words = measured ? interval(measured, 100, 1) : `${shown(apart(found.labels.data, look.patches.data), 2)} %`;
    const [value, ...about] = words.split(/ (?=\[)/); // its interval below it, so that heads side by side have room
    return h("button", { type: "button", class: "switch", "data-key": key, "aria-pressed": "false", onclick: () => set({ off: state.off === key ? "" : key }) },
      h("span", { class: "unseen" }, `${shortName(layer)} ${head === null ? "" : `head ${head} `}off: `), value, about.map((each) => [" ", h("small", {}, each)]));
  }

  /** @param {Set<string>} changed */
  render(changed) {
    if (!["photo", "off", "resize"].some((name) => changed.has(name))) return;
    const { look, run } = this;
    if (!look.cases.length) return;
    const found = look.cases.find((/** @type {any} */ each) => CausePanel.key(each.layer, each.head) === state.off);
    for (const button of this.table.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.key === state.off));
    const labels = found ? found.labels : look.patches, [height, width] = this.photos[state.photo].size;
    fit(this.canvas, height / width);
    paint(this.canvas, this.images[state.photo], { over: labelPicture(labels.data, labels.shape[1], run.palette), cover: look.cover });
    const what = found ? `${shortName(found.layer)}${found.head === null ? "" : `, head ${found.head}`} off` : "as trained";
    this.canvas.setAttribute("aria-label", `Prediction ${what}`);
    const measured = found && this.measured(found.layer, found.head);
    this.said.textContent = found
      ? `${what}: ${shown(apart(labels.data, look.patches.data), 3)} % of patches change.${measured ? ` mIoU: ${interval(measured, 100, 1)} points.` : ""}`
      : "The prediction as trained. Press a cell to switch that layer or head off.";
  }
}
