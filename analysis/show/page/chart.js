// Curves with bands, drawn as SVG, that show their numbers.

import { h, interval, shown, svg } from "./dom.js";

/** @typedef {{value: number|null, low?: number|null, high?: number|null}} Estimate */
/** @typedef {{name: string, x: number[], y: (Estimate|null)[], colour?: number, dashed?: boolean, link?: number}} Curve */

export const COLOURS = 6; // of curves, by CSS: --c0 to --c5

/** Round steps over a range. @param {number} low @param {number} high @param {number} most */
function ticks(low, high, most) {
  const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 5, 10].find((each) => each * power >= raw) ?? 10) * power;
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) found.push(tick);
  return found;
}

/**
 * @param {{title: string, x: string, y: string, curves: Curve[], names?: string[], log?: boolean, factor?: number,
 *   height?: number, mark?: number|null}} given
 *   `names`: of the places along x, which are then 0, 1, ...; `mark`: a place to be marked
 * @returns {HTMLElement}
 */
export function chart(given) {
  const width = 320, height = given.height ?? 190, left = 46, right = 10, top = 8, bottom = 34, factor = given.factor ?? 1;
  const curves = given.curves.filter((curve) => curve.y.some((each) => each && each.value !== null));
  const figure = h("figure", { class: "chart" }, h("figcaption", {}, given.title));
  if (!curves.length) {
    figure.append(h("p", { class: "none" }, "Nothing measured."));
    return figure;
  }
  const xs = curves.flatMap((curve) => curve.x), logs = given.log ? xs.filter((x) => x > 0) : xs;
  const ys = curves.flatMap((curve) => curve.y.flatMap((each) =>
    each ? [each.value, each.low, each.high].filter((value) => value !== null && value !== undefined) : []))
    .map((value) => factor * /** @type {number} */ (value));
  let low = Math.min(...ys), high = Math.max(...ys);
  const room = Math.max((high - low) * 0.08, 0.02 * Math.max(Math.abs(low), Math.abs(high)), 1e-9);
  [low, high] = low === 0 && high === 0 ? [0, 1] : [low >= 0 && low < 2 * room ? 0 : low - room, high + room];
  const first = Math.min(...logs), last = Math.max(...logs);
  const place = (/** @type {number} */ x) => {
    const share = given.log ? Math.log(Math.max(x, first / 2) / (first / 2)) / Math.log(last / (first / 2))
      : last > first ? (x - first) / (last - first) : 0.5;
    return left + 8 + share * (width - left - right - 16);
  };
  const level = (/** @type {number} */ y) => top + (1 - (factor * y - low) / (high - low)) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${given.title}: ${summary(given, curves)}` });
  const levels = ticks(low, high, 4), decimals = levels.length > 1 ? Math.max(0, Math.ceil(-Math.log10(levels[1] - levels[0]) - 1e-9)) : 0;
  for (const tick of levels) {
    const y = level(tick / factor);
    drawing.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y }),
      svg("text", { class: "tick", x: left - 4, y: y + 3, "text-anchor": "end" }, decimals > 5 ? shown(tick, 2) : (Math.abs(tick) < 1e-12 ? 0 : tick).toFixed(decimals)));
  }
  const places = given.names ? given.names.map((_, index) => index)
    : given.log ? [...new Set(logs)].filter((_, index, all) => index % Math.ceil(all.length / 6) === 0) : ticks(first, last, 5);
  const step = given.names ? Math.ceil(given.names.length / 5) : 1;
  places.forEach((x, index) => {
    if (x < first || x > last || index % step) return;
    const text = given.names ? given.names[x] : String(Number(x.toPrecision(3)));
    drawing.append(svg("text", { class: "tick", x: place(x), y: height - bottom + 13, "text-anchor": "middle" }, text));
  });
  drawing.append(svg("text", { class: "axis", x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, given.x),
    svg("text", { class: "axis", x: 0, y: 0, "text-anchor": "middle", transform: `translate(10 ${(top + height - bottom) / 2}) rotate(-90)` }, given.y));
  curves.forEach((curve, number) => {
    const look = `c${(curve.colour ?? number) % COLOURS}`;
    const points = curve.x.map((x, index) => ({ x, y: curve.y[index] })).filter((point) => point.y && point.y.value !== null);
    const whole = points.filter(({ y }) => y && y.low !== null && y.low !== undefined && y.high !== null && y.high !== undefined);
    if (whole.length > 1) {
      const upper = whole.map(({ x, y }) => `${place(x)},${level(/** @type {any} */ (y).high)}`);
      const lower = whole.map(({ x, y }) => `${place(x)},${level(/** @type {any} */ (y).low)}`).reverse();
      drawing.append(svg("polygon", { class: `band ${look}`, points: [...upper, ...lower].join(" ") }));
    }
    const line = points.map(({ x, y }) => `${place(x)},${level(/** @type {any} */ (y).value)}`).join(" ");
    drawing.append(svg("polyline", { class: `line ${look}${curve.dashed ? " dashed" : ""}`, points: line }));
    for (const { x, y } of points) {
      const at = given.names ? given.names[x] : shown(x);
      const dot = svg("circle", { class: `dot ${look}`, cx: place(x), cy: level(/** @type {any} */ (y).value), r: 3 });
      dot.append(svg("title", {}, `${curve.name}, ${given.x} ${at}: ${interval(y, factor)}`));
      dot.addEventListener("pointerenter", () => { said.textContent = `${curve.name}, ${at}: ${interval(y, factor)}`; });
      drawing.append(dot);
    }
  });
  if (given.mark !== undefined && given.mark !== null)
    drawing.append(svg("line", { class: "mark", x1: place(given.mark), x2: place(given.mark), y1: top, y2: height - bottom }));
  const said = h("p", { class: "said" });
  const legend = curves.length > 1 || curves[0].name !== given.title ? h("ul", { class: "keys" }, curves.map((curve, number) =>
    h("li", { class: `c${(curve.colour ?? number) % COLOURS}${curve.dashed ? " dashed" : ""}` }, curve.name))) : null;
  figure.append(drawing);
  if (legend) figure.append(legend);
  figure.append(said);
  return figure;
}

/** In words, for those who do not see it. @param {{names?: string[], factor?: number}} given @param {Curve[]} curves */
function summary(given, curves) {
  return curves.map((curve) => `${curve.name}: ${curve.x.map((x, index) => {
    const at = given.names ? given.names[x] : shown(x);
    return curve.y[index] ? `${at} ${interval(curve.y[index], given.factor ?? 1)}` : "";
  }).filter(Boolean).slice(0, 24).join("; ")}`).join(". ");
}
