// Arrays of the page, as analysis/show/explorer.py packs them.

/** @typedef {{t: "f2"|"f4"|"i2"|"u1"|"u2", s: number[], d: string}} Packed */
/** @typedef {Float32Array|Int16Array|Uint8Array|Uint16Array} Numbers */
/** @typedef {{shape: number[], data: Numbers}} Values */

/** @type {Float32Array|undefined} */
let halves;

/** float32 of each pattern of float16. @returns {Float32Array} */
function halfTable() {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
      if (exponent === 0) halves[bits] = sign * fraction * 2 ** -24;
      else if (exponent === 31) halves[bits] = fraction ? NaN : sign * Infinity;
      else halves[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
    }
  }
  return halves;
}

/** @param {string} text @returns {Uint8Array<ArrayBuffer>} */
function fromBase64(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let index = 0; index < raw.length; index++) bytes[index] = raw.charCodeAt(index);
  return bytes;
}

/** @param {Packed} packed @returns {Promise<Values>} */
export async function unpack(packed) {
  const inflated = new Blob([fromBase64(packed.d)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(inflated).arrayBuffer());
  if (packed.t === "u1") return { shape: packed.s, data: bytes };
  if (packed.t === "f4") {
    const count = bytes.length / 4, mixed = new Uint8Array(bytes.length);
    for (let index = 0; index < bytes.length; index++) mixed[4 * (index % count) + Math.floor(index / count)] = bytes[index];
    return { shape: packed.s, data: new Float32Array(mixed.buffer) };
  }
  const count = bytes.length / 2, whole = new Uint16Array(count);
  for (let index = 0; index < count; index++) whole[index] = bytes[index] | (bytes[count + index] << 8);
  if (packed.t === "u2") return { shape: packed.s, data: whole };
  if (packed.t === "i2") return { shape: packed.s, data: Int16Array.from(whole, (value) => (value >> 1) ^ -(value & 1)) };
  const table = halfTable(), data = new Float32Array(count);
  for (let index = 0; index < count; index++) data[index] = table[whole[index]];
  return { shape: packed.s, data };
}

/** All arrays inside it unpacked, in its place. @param {any} value @returns {Promise<any>} */
export async function unpackAll(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpackAll));
  if (value === null || typeof value !== "object") return value;
  if (typeof value.d === "string" && Array.isArray(value.s)) return unpack(value);
  const names = Object.keys(value);
  const parts = await Promise.all(names.map((name) => unpackAll(value[name])));
  return Object.fromEntries(names.map((name, index) => [name, parts[index]]));
}
