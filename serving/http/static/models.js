/** Which models come first, and which of their versions answer. */

/** @typedef {import("./api.js").Model} Model */

/**
 * Ten digits before two, then the more accurate, then by name; of one name the newest first.
 *
 * @param {Model[]} models
 * @returns {Model[]}
 */
export function inOrder(models) {
  return [...models].sort(
    (a, b) =>
      Number(b.takes_digits) - Number(a.takes_digits) ||
      b.classes.length - a.classes.length ||
      (b.accuracy ?? 0) - (a.accuracy ?? 0) ||
      a.name.localeCompare(b.name) ||
      Number(b.version) - Number(a.version),
  );
}

/**
 * Of models in that order, those that answer for their name: the newest version that is ready.
 *
 * @param {Model[]} models
 * @returns {Model[]}
 */
export function answering(models) {
  const ready = models.filter((each) => each.takes_digits && each.state === "READY");
  const newest = new Map();
  for (const each of ready) {
    if (!(Number(newest.get(each.name)?.version) > Number(each.version))) newest.set(each.name, each);
  }
  return ready.filter((each) => newest.get(each.name) === each);
}

/**
 * One text for a model's version, as a key.
 *
 * @param {string} model
 * @param {string} version
 * @returns {string}
 */
export function keyOf(model, version) {
  return `${model} ${version}`;
}
