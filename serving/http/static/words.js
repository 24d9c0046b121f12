/** Numbers as people read them. */

/**
 * A share from 0 to 1 in percent: 97.3%, and never 100% of what is not all.
 *
 * @param {number} share
 * @returns {string}
 */
export function percent(share) {
  if (share === 0 || share === 1) return `${100 * share}%`;
  const shown = Math.min(99.9, Math.max(0.1, 100 * share));
  return `${shown.toFixed(1)}%`;
}

/**
 * The same in whole percent, for where there is little room.
 *
 * @param {number} share
 * @returns {string}
 */
export function wholePercent(share) {
  return `${Math.round(100 * share)}%`;
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
