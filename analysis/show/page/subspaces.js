// The subspaces panel: which head codes which patch; P P^T and Q^T Q, whose cells point at heads and classes.

import { largest } from "./attention.js";
import { fit, grey, heatPicture, mapPicture, paint } from "./canvas.js";
import { fill, h, shown } from "./dom.js";
import { shortName } from "./photo.js";
import { set, state } from "./state.js";

/** @param {string} label @param {(row: number, column: number) => void} point @param {(row: number, column: number) => void} press @param {() => number} side */
function heat(label, point, press, side) {
  let at = [0, 0];
  const canvas = h("canvas", { class: "heat", role: "application", "aria-roledescription": "heat map", tabindex: "0", "aria-label": label });
  const cell = (/** @type {PointerEvent} */ event) => {
    const box = canvas.getBoundingClientRect(), count = side();
    return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((share) => Math.min(count - 1, Math.max(0, Math.floor(share * count))));
  };
  canvas.addEventListener("pointermove", (event) => { at = cell(event); point(at[0], at[1]); });
  canvas.addEventListener("pointerdown", (event) => { at = cell(event); press(at[0], at[1]); });
  canvas.addEventListener("keydown", (event) => {
    const step = /** @type {Record<string, number[]>} */ ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] })[event.key];
    if (event.key === "Enter") press(at[0], at[1]);
    else if (step) {
      at = at.map((place, axis) => Math.min(side() - 1, Math.max(0, place + step[axis])));
      point(at[0], at[1]);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return canvas;
}

export class SubspacesPanel {
  /** @param {any} run @param {HTMLImageElement[]} images @param {{name: string, size: number[]}[]} photos */
  constructor(run, images, photos) {
    this.run = run;
    this.images = images;
    this.photos = photos;
    this.energies = h("div", { class: "smalls" });
    this.energiesTitle = h("h4", {});
    this.basesSaid = h("p", { class: "said", "aria-live": "polite" });
    this.bases = heat(`${run.name}: products of the directions of all heads, P P transposed`, (row, column) => this.sayBases(row, column),
      (row) => this.space && set({ head: Math.floor(row / this.space.cells) }), () => (this.space ? this.space.heads * this.space.cells : 1));
    this.basesTitle = h("h4", {});
    this.classesSaid = h("p", { class: "said", "aria-live": "polite" });
    this.classes = heat(`${run.name}: cosines of class embeddings, Q transposed Q`, (row, column) => this.sayClasses(row, column),
      (row) => set({ cls: row }), () => run.classes.length);
    this.after = h("input", { type: "checkbox", onchange: () => this.render(new Set(["photo"])) });
    this.afterLabel = h("label", { class: "check" }, this.after, " after the decoder, on this photo");
    this.basesFigure = h("figure", {}, this.basesTitle, this.bases, this.basesSaid);
    this.classesFigure = h("figure", {}, h("h4", {}, "Class embeddings, cosines"), this.classes, this.classesSaid, this.afterLabel);
    this.none = h("p", { class: "none" });
    this.element = h("div", { class: "view" }, this.energiesTitle, this.energies, h("div", { class: "pair" }, this.basesFigure, this.classesFigure), this.none);
  }

  get look() {
    return this.run.looks[state.photo];
  }

  /** Of the layer that is chosen, else of the first. */
  get space() {
    return this.run.subspaces.find((/** @type {any} */ each) => each.name === state.layer) ?? this.run.subspaces[0];
  }

  get cosines() {
    return this.after.checked ? this.look.cosines : this.run.cosines;
  }

  reset() {
    this.render(new Set(["photo"]));
  }

  /** @param {Set<string>} changed */
  render(changed) {
    if (!["photo", "layer", "head", "cls", "resize"].some((name) => changed.has(name))) return;
    const { look, run, space } = this, energy = look.energies.find((/** @type {any} */ each) => space && each.name === space.name);
    this.energiesTitle.hidden = this.energies.hidden = !energy;
    if (energy) {
      const [heads, patches] = energy.shares.shape, top = largest(energy.shares.data);
      this.energiesTitle.textContent = `Which head codes which patch: share of the energy in ${shortName(energy.name)}`;
      const [height, width] = this.photos[state.photo].size;
      const parts = Array.from({ length: heads }, (_, head) => {
        const values = energy.shares.data.subarray(head * patches, (head + 1) * patches), canvas = h("canvas", { "aria-hidden": "true" });
        const mean = values.reduce((/** @type {number} */ sum, /** @type {number} */ value) => sum + value, 0) / patches / 255;
        const button = h("button", { type: "button", class: "small", "aria-pressed": String(state.head === head), onclick: () => set({ head: state.head === head ? "mean" : head }) },
          canvas, h("span", {}, `head ${head}`), h("span", { class: "number" }, `mean ${shown(100 * mean, 2)} %`));
        return { button, canvas, values };
      });
      const focused = [...this.energies.children].indexOf(/** @type {Element} */ (document.activeElement));
      fill(this.energies, parts.map(({ button }) => button));
      if (focused >= 0) /** @type {HTMLElement|undefined} */ (this.energies.children[focused])?.focus();
      for (const { canvas, values } of parts) {
        fit(canvas, height / width);
        paint(canvas, grey(this.images[state.photo]), { over: mapPicture(values, look.grid[1], top), cover: look.cover });
      }
    }
    this.basesFigure.hidden = !space;
    if (space) {
      const count = space.heads * space.cells;
      this.basesTitle.textContent = `${shortName(space.name)}: |P Pᵀ|, ${space.heads} heads of ${space.dim}`;
      fit(this.bases, 1);
      paint(this.bases, null, { over: heatPicture(space.pooled.data, count, 255) });
      this.lines(space.heads);
      if (!this.basesSaid.textContent) this.sayBases(0, 0);
    }
    this.afterLabel.hidden = !(look.cosines && run.cosines);
    if (!run.cosines && look.cosines) this.after.checked = true;
    const cosines = this.cosines;
    this.classesFigure.hidden = !cosines;
    if (cosines) {
      fit(this.classes, 1);
      paint(this.classes, null, { over: heatPicture(cosines.data, cosines.shape[1], 1) });
      if (state.cls !== null) this.row(state.cls, cosines.shape[0]);
      if (!this.classesSaid.textContent || changed.has("photo")) this.sayClasses(state.cls ?? 0, state.cls ?? 0);
    }
    this.none.textContent = space || cosines ? "" : "This decoder has neither subspaces nor class embeddings.";
  }

  /** Between heads. @param {number} heads */
  lines(heads) {
    const context = this.bases.getContext("2d");
    if (!context) return;
    const { width, height } = this.bases;
    context.strokeStyle = "rgba(255, 255, 255, 0.55)";
    context.lineWidth = Math.max(1, width / 400);
    for (let head = 1; head < heads; head++) {
      context.beginPath();
      context.moveTo((head * width) / heads, 0);
      context.lineTo((head * width) / heads, height);
      context.moveTo(0, (head * height) / heads);
      context.lineTo(width, (head * height) / heads);
      context.stroke();
    }
    if (state.head !== "mean" && state.head < heads) {
      context.strokeStyle = "#fff";
      context.lineWidth = Math.max(2, width / 160);
      context.strokeRect((state.head * width) / heads + 1, (state.head * height) / heads + 1, width / heads - 2, height / heads - 2);
    }
  }

  /** @param {number} cls @param {number} count */
  row(cls, count) {
    const context = this.classes.getContext("2d");
    if (!context) return;
    const { width, height } = this.classes;
    context.strokeStyle = "#fff";
    context.lineWidth = Math.max(2, width / 200);
    context.strokeRect(1, (cls * height) / count, width - 2, height / count);
  }

  /** @param {number} row @param {number} column */
  sayBases(row, column) {
    const { space } = this;
    if (!space) return;
    const first = Math.floor(row / space.cells), second = Math.floor(column / space.cells), count = space.heads * space.cells;
    const value = (space.peak * space.pooled.data[row * count + column]) / 255;
    const [low, high] = [Math.min(first, second), Math.max(first, second)];
    const pair = (low * (2 * space.heads - low - 1)) / 2 + high - low - 1;
    const overlap = first === second ? "" : ` Overlap of the two heads: ${shown(space.overlaps[pair])} (0 orthogonal, 1 the same).`;
    this.basesSaid.textContent = `Head ${first} × head ${second}: ${shown(value)} of the mean squared length.${overlap}`;
  }

  /** @param {number} row @param {number} column */
  sayClasses(row, column) {
    const { cosines, run } = this;
    if (!cosines) return;
    const value = cosines.data[row * cosines.shape[1] + column];
    this.classesSaid.textContent = `${run.classes[row]} × ${run.classes[column]}: ${shown(value)}`;
  }
}
