// What is chosen, shared by all panels and runs: pointers are linked because there is one.

/**
 * @typedef {{photo: number, layer: string, head: number|"mean", at: [number, number]|null, pinned: boolean,
 *   cls: number|null, show: string, stage: number, sigma: number, off: string}} State
 */

/** @type {State} `at`: (y, x) of the pointer, as shares of the photo's sides. */
export const state = {
  photo: 0, layer: "", head: "mean", at: null, pinned: false, cls: null, show: "attention", stage: 0, sigma: 0, off: "",
};

/** @type {((changed: Set<string>) => void)[]} */
const listeners = [];

/** @param {(changed: Set<string>) => void} listener called after each change, with the names of what has changed */
export function listen(listener) {
  listeners.push(listener);
}

/** @param {Partial<State>} changes */
export function set(changes) {
  const changed = new Set(Object.keys(changes).filter((key) => {
    const name = /** @type {keyof State} */ (key);
    return JSON.stringify(state[name]) !== JSON.stringify(changes[name]);
  }));
  Object.assign(state, changes);
  if (changed.size) for (const listener of listeners) listener(changed);
}
