// Rows of attention, from queries and keys: softmax(q_m k_c + b_c), as whitebox computes it (analysis/measures/queries.py).

/** @typedef {import("./data.js").Values} Values */
/** @typedef {{name: string, of: string, front?: number, dim?: number, error?: number, keys?: Values,
 *   queries?: Values|null, steps?: Values, bias?: Values, values?: Values, whole?: Float32Array[]}} Layer */
/** @typedef {{patch: number}|{cls: number}} Query */

/** @param {Layer} layer @returns {number} */
export function headsOf(layer) {
  return (layer.keys ?? layer.values)?.shape[0] ?? 0;
}

/**
 * Softmax over all columns of one row of one head.
 * @param {Layer} layer @param {number} head @param {number} row @returns {Float32Array}
 */
function softmaxRow(layer, head, row) {
  const keys = /** @type {Values} */ (layer.keys), queries = layer.queries ?? keys, bias = /** @type {Values} */ (layer.bias);
  const [, rank, columns] = keys.shape, rows = queries.shape[2], step = layer.steps?.data[head] ?? 1;
  const k = keys.data, q = queries.data, out = new Float32Array(columns);
  for (let column = 0; column < columns; column++) out[column] = bias.data[head * columns + column];
  for (let index = 0; index < rank; index++) {
    const share = step * step * q[(head * rank + index) * rows + row], start = (head * rank + index) * columns;
    if (share !== 0) for (let column = 0; column < columns; column++) out[column] += share * k[start + column];
  }
  let top = -Infinity, total = 0;
  for (let column = 0; column < columns; column++) if (out[column] > top) top = out[column];
  for (let column = 0; column < columns; column++) total += out[column] = Math.exp(out[column] - top);
  for (let column = 0; column < columns; column++) out[column] /= total;
  return out;
}

/**
 * All weights A of representatives over tokens, a head each, (R x C) row after row; computed once.
 * @param {Layer} layer @returns {Float32Array[]}
 */
function weights(layer) {
  if (!layer.whole) {
    const { keys } = layer, queries = layer.queries ?? keys;
    if (!keys || !queries) return [];
    const [heads, , rows] = queries.shape, columns = keys.shape[2];
    layer.whole = Array.from({ length: heads }, (_, head) => {
      const all = new Float32Array(rows * columns);
      for (let row = 0; row < rows; row++) all.set(softmaxRow(layer, head, row), row * columns);
      return all;
    });
  }
  return layer.whole;
}

/**
 * The map over patches of each head, for a patch or a class; null: the layer has no such rows.
 * @param {Layer} layer @param {Query} query @param {number} patches @returns {Float32Array[]|null}
 */
export function mapsOf(layer, query, patches) {
  const heads = headsOf(layer), all = Array.from({ length: heads }, (_, head) => head);
  if (layer.values) {
    const { data } = layer.values, wide = layer.values.shape[1];
    return all.map((head) => Float32Array.from(data.subarray(head * wide, head * wide + patches)));
  }
  const { keys } = layer, front = layer.front ?? 0;
  if (!keys) return null;
  let row;
  if ("patch" in query) row = layer.of === "classes" ? -1 : front + query.patch;
  else row = layer.of === "classes" ? query.cls : layer.of === "patches" ? -1 : patches + query.cls;
  if (row < 0) return null;
  if (layer.of === "representatives") {
    const columns = keys.shape[2];
    return weights(layer).map((map) => {
      const out = new Float32Array(patches);
      for (let start = 0; start < map.length; start += columns) {
        const share = map[start + row];
        for (let column = 0; column < patches; column++) out[column] += share * map[start + column];
      }
      return out;
    });
  }
  return all.map((head) => softmaxRow(layer, head, row).subarray(front, front + patches));
}

/** @param {Float32Array[]} maps @returns {Float32Array} */
export function meanOf(maps) {
  const out = new Float32Array(maps[0].length);
  for (const map of maps) for (let index = 0; index < out.length; index++) out[index] += map[index] / maps.length;
  return out;
}

/** @param {ArrayLike<number>} values @returns {number} */
export function largest(values) {
  let top = 0;
  for (let index = 0; index < values.length; index++) if (values[index] > top) top = values[index];
  return top;
}
