// Pictures: photos, classes and maps over them, heat maps.

import { largest } from "./attention.js";

export const OPACITY = 0.6; // of classes over their photo
export const FAINT = 0.35, FULL = 0.9; // of a map over its photo, where it is 0 and where it is largest

/** Colours of maps, 256 x RGB; `main` sets them. @type {{map: Uint8Array}} */
export const colours = { map: new Uint8Array(768) };

/** @typedef {HTMLCanvasElement|HTMLImageElement} Drawable */

/**
 * @param {number} width @param {number} height
 * @param {(index: number, put: (red: number, green: number, blue: number, alpha?: number) => void) => void} each
 * @returns {HTMLCanvasElement}
 */
export function picture(width, height, each) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  if (!context) return canvas;
  const image = context.createImageData(width, height), pixels = image.data;
  for (let index = 0; index < width * height; index++)
    each(index, (red, green, blue, alpha = 255) => {
      pixels[4 * index] = red;
      pixels[4 * index + 1] = green;
      pixels[4 * index + 2] = blue;
      pixels[4 * index + 3] = alpha;
    });
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A map in colours, 0 to `top`. @param {ArrayLike<number>} values @param {number} width @param {number} [top] */
export function mapPicture(values, width, top = largest(values)) {
  const table = colours.map, scale = top > 0 ? 255 / top : 0;
  return picture(width, values.length / width, (index, put) => {
    const level = Math.max(0, Math.min(255, Math.round(values[index] * scale))), place = 3 * level;
    put(table[place], table[place + 1], table[place + 2], Math.round(255 * FAINT + (FULL - FAINT) * level));
  });
}

/** A matrix in colours, 0 to `top`, nothing below it. @param {ArrayLike<number>} values @param {number} width @param {number} top */
export function heatPicture(values, width, top) {
  const table = colours.map;
  return picture(width, values.length / width, (index, put) => {
    const place = 3 * Math.min(255, Math.round((255 * Math.abs(values[index])) / top));
    put(table[place], table[place + 1], table[place + 2]);
  });
}

/** Classes in their colours; without one: nothing. @param {ArrayLike<number>} labels @param {number} width @param {number[][]} palette */
export function labelPicture(labels, width, palette) {
  return picture(width, labels.length / width, (index, put) => {
    const colour = palette[labels[index]];
    if (colour) put(colour[0], colour[1], colour[2], 255 * OPACITY);
    else put(0, 0, 0, 0);
  });
}

/** Where two labellings differ. @param {ArrayLike<number>} labels @param {ArrayLike<number>} truth @param {number} width @param {number} none */
export function differencePicture(labels, truth, width, none) {
  return picture(width, labels.length / width, (index, put) => {
    if (truth[index] === none) put(0, 0, 0, 150);
    else if (labels[index] !== truth[index]) put(213, 94, 0);
    else put(255, 255, 255, 60);
  });
}

/** @type {WeakMap<HTMLImageElement, HTMLCanvasElement>} */
const greys = new WeakMap();

/** The photo without colour. @param {HTMLImageElement} photo @returns {HTMLCanvasElement} */
export function grey(photo) {
  let canvas = greys.get(photo);
  if (!canvas) {
    canvas = document.createElement("canvas");
    canvas.width = photo.naturalWidth;
    canvas.height = photo.naturalHeight;
    const context = canvas.getContext("2d");
    if (context) {
      context.drawImage(photo, 0, 0);
      const image = context.getImageData(0, 0, canvas.width, canvas.height), pixels = image.data;
      for (let place = 0; place < pixels.length; place += 4) {
        const value = 0.299 * pixels[place] + 0.587 * pixels[place + 1] + 0.114 * pixels[place + 2];
        pixels[place] = pixels[place + 1] = pixels[place + 2] = value;
      }
      context.putImageData(image, 0, 0);
    }
    greys.set(photo, canvas);
  }
  return canvas;
}

/** As many pixels as the screen shows. @param {HTMLCanvasElement} canvas @param {number} ratio height over width */
export function fit(canvas, ratio) {
  const width = Math.max(1, Math.round(Math.min(canvas.clientWidth || 320, 1200) * Math.min(devicePixelRatio || 1, 2)));
  const height = Math.max(1, Math.round(width * ratio));
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
}

/**
 * A photo with something over it.
 * @param {HTMLCanvasElement} canvas @param {Drawable|null} below
 * @param {{over?: HTMLCanvasElement|null, alpha?: number, cover?: number[], mark?: [number, number]|null, grid?: number[],
 *   pinned?: boolean, smooth?: boolean}} [how]
 *   `cover`: how much larger than the photo what lies over it is (patches reach into the padding), (y, x)
 */
export function paint(canvas, below, how = {}) {
  const context = canvas.getContext("2d");
  if (!context) return;
  const { width, height } = canvas, [tall, wide] = how.cover ?? [1, 1];
  context.globalAlpha = 1;
  context.clearRect(0, 0, width, height);
  context.imageSmoothingEnabled = true;
  if (below) context.drawImage(below, 0, 0, width, height);
  if (how.over) {
    context.globalAlpha = how.alpha ?? 1;
    context.imageSmoothingEnabled = how.smooth ?? false;
    context.drawImage(how.over, 0, 0, width * wide, height * tall);
    context.globalAlpha = 1;
  }
  if (how.mark && how.grid) {
    const [rows, columns] = how.grid, x = (width * wide) / columns, y = (height * tall) / rows;
    const line = Math.max(1.5, width / 320);
    for (const [colour, thick] of /** @type {[string, number][]} */ ([["#000", 2.4 * line], ["#fff", line]])) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.setLineDash(how.pinned ? [] : [3 * line, 2 * line]);
      context.strokeRect(how.mark[1] * x, how.mark[0] * y, x, y);
    }
    context.setLineDash([]);
  }
}
