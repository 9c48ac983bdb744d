// Elements. Text becomes text, never HTML: names of classes and files are anybody's.

/** @typedef {string|number|Node|null|undefined|false} Leaf */
/** @typedef {Leaf|Leaf[]|Leaf[][]|Leaf[][][]} Child */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag @param {Record<string, any>} [attributes] @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, String(each));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  fill(element, ...children);
  return element;
}

/** @param {Element} element @param {...Child} children */
export function fill(element, ...children) {
  element.replaceChildren(
    ...(/** @type {Leaf[]} */ (children.flat(3))).filter((child) => child !== null && child !== undefined && child !== false)
      .map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))),
  );
}

/**
 * @param {string} tag @param {Record<string, any>} attributes @param {...(Node|string)} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** A number as a reader wants it. @param {number|null|undefined} value @param {number} [digits] @returns {string} */
export function shown(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(Math.max(0, digits - 1));
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size || 1)));
  return value.toFixed(Math.min(6, decimals));
}

/** @param {{value: number|null, low?: number|null, high?: number|null}|null|undefined} stored @param {number} [factor] @param {number} [decimals] */
export function interval(stored, factor = 1, decimals) {
  if (!stored || stored.value === null) return "–";
  const of = (/** @type {number} */ value) => (decimals === undefined ? shown(factor * value, 3) : (factor * value).toFixed(decimals));
  if (stored.low === null || stored.low === undefined || stored.high === null || stored.high === undefined)
    return of(stored.value);
  return `${of(stored.value)} [${of(stored.low)}, ${of(stored.high)}]`;
}

let count = 0;
/** A new id. @param {string} word */
export function fresh(word) {
  return `${word}-${++count}`;
}
