/** Small charts of the last minutes: lines over time, from zero up. */

import { draw } from "./elements.js";

const WIDTH = 160;
const HEIGHT = 36;
/** Of the chart's units, above and below, so that a line is not cut. */
const PAD = 3;

/** @typedef {(number | null)[]} Values null where there is none */

/**
 * @param {number[]} ages seconds, of all values: the oldest first, the latest 0
 * @param {{values: Values, kind: string}[]} lines
 * @param {string} words that tell the same
 * @returns {SVGSVGElement}
 */
export function sparkline(ages, lines, words) {
  const most = peak(lines.flatMap((line) => line.values)) || 1;
  const attributes = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
  const labels = { class: "sparkline", role: "img", "aria-label": words };
  const ground = draw("path", { class: "ground", d: `M0 ${HEIGHT - 1}H${WIDTH}` });
  const paths = lines.map((line) =>
    draw("path", { class: `plot ${line.kind}`, d: outline(ages, line.values, most) }),
  );
  return draw("svg", { ...attributes, ...labels }, ground, ...paths);
}

/**
 * @param {Values} values
 * @returns {number | null} the largest
 */
export function peak(values) {
  const known = values.filter((value) => value !== null);
  return known.length ? Math.max(...known) : null;
}

/**
 * @param {Values} values
 * @returns {number | null} the latest that there is
 */
export function latest(values) {
  return values.findLast((value) => value !== null) ?? null;
}

/**
 * A path with a gap where there is no value; a value between gaps is a dot.
 *
 * @param {number[]} ages
 * @param {Values} values
 * @param {number} most
 * @returns {string}
 */
function outline(ages, values, most) {
  const span = Math.max(1, ...ages.map((age) => -age));
  let path = "";
  let open = false;
  values.forEach((value, index) => {
    if (value !== null) {
      const x = WIDTH * (1 + (ages[index] ?? 0) / span);
      const y = HEIGHT - PAD - ((HEIGHT - 2 * PAD) * value) / most;
      path += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${open ? "" : "h.1"}`;
    }
    open = value !== null;
  });
  return path;
}
