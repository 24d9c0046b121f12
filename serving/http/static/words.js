/** Numbers as people read them. */

/**
 * A share from 0 to 1 in percent: 97.3%, and 100% of nothing but all.
 *
 * @param {number} share
 * @returns {string}
 */
export function percent(share) {
  if (share === 0 || share === 1) return `${100 * share}%`;
  if (share > 0.999) return ">99.9%";
  return share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(1)}%`;
}

/**
 * Bounds of a share in whole percent, for where there is little room: 34–100%.
 *
 * @param {number} low
 * @param {number} high
 * @returns {string}
 */
export function range(low, high) {
  return `${Math.floor(100 * low)}–${Math.ceil(100 * high)}%`;
}

/**
 * Seconds as 340 µs, 3.2 ms, 45 ms or 1.3 s.
 *
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.01) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  return `${seconds.toFixed(1)} s`;
}

/**
 * A rate or a mean: 0, 0.4, 7.5, 120.
 *
 * @param {number} value
 * @returns {string}
 */
export function amount(value) {
  return value === 0 || value >= 10 ? Math.round(value).toString() : value.toFixed(1);
}

/**
 * Names in a sentence: 3; 3 and 7; 1, 2 and 3.
 *
 * @param {string[]} names
 * @param {string} last the word before the last one
 * @returns {string}
 */
export function list(names, last) {
  if (names.length < 2) return names.join("");
  return `${names.slice(0, -1).join(", ")} ${last} ${names[names.length - 1]}`;
}
