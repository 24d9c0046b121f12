/** Which versions of models answer, and what they are called by here. */

/** @typedef {import("./api.js").Model} Model */

/**
 * Of models, in their order, those that answer for their name: the newest version that is ready.
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
