/**
 * How right each version was by feedback: its accuracy and that interval, and the confusion matrix
 * of the one that is chosen, or was told something last.
 */

import { make, say } from "./elements.js";
import { keyOf } from "./models.js";
import { percent, range } from "./words.js";

/** @typedef {import("./api.js").Quality} Quality */
/** @typedef {import("./api.js").Model} Model */

/** What the server calls a truth that is none of the classes. */
const OTHER = "other";
/** Of more classes there is no matrix. */
const MOST_CLASSES = 40;

/** One version's line. */
class Line {
  #value = make("span", { class: "value" });
  #of = make("span", { class: "of" });
  #range = make("span", { class: "range" });
  #point = make("span", { class: "point" });

  /**
   * @param {Quality} quality
   * @param {() => void} chosen
   */
  constructor(quality, chosen) {
    const { model, version } = quality;
    this.input = make("input", { type: "radio", name: "matrix", value: keyOf(model, version) });
    this.input.addEventListener("change", chosen);
    const name = make("span", { class: "name" }, model, " ");
    name.append(make("span", { class: "version" }, `v${version}`));
    const plot = make("span", { class: "plot", "aria-hidden": "true" }, this.#range, this.#point);
    const attributes = { class: "line", "data-model": model, "data-version": version };
    this.element = make("label", attributes, this.input, name, this.#value, plot, this.#of);
  }

  /** @param {Quality} quality */
  show(quality) {
    const { accuracy, feedback_count: count } = quality;
    this.element.dataset.count = String(count);
    this.element.classList.toggle("untold", !accuracy);
    if (!accuracy) {
      say(this.#value, "no labels yet");
      say(this.#of, "");
      return;
    }
    const { value, low, high } = accuracy;
    say(this.#value, percent(value));
    say(this.#of, `${range(low, high)}, ${count} ${count === 1 ? "label" : "labels"}`);
    this.#range.style.setProperty("--low", String(low));
    this.#range.style.setProperty("--high", String(high));
    this.#point.style.setProperty("--at", String(value));
  }
}

export class QualityView {
  /** @type {Map<string, Line>} */
  #lines = new Map();
  /** @type {Map<string, Quality>} */
  #known = new Map();
  /** @type {Map<string, Model>} */
  #models = new Map();
  #chosen = "";
  /** Counts of this matrix as it was, to tell what moved. @type {Map<string, number> | null} */
  #before = null;
  #note = make("p", { class: "note" });
  /** What the matrix shows, as text: made anew only where that changed. */
  #drawn = "";

  /**
   * @param {HTMLElement} list
   * @param {HTMLElement} matrix
   */
  constructor(list, matrix) {
    this.#list = list;
    this.#matrix = matrix;
  }

  #list;
  #matrix;

  /**
   * @param {Quality[]} qualities
   * @param {Model[]} models in the order in which they are to be shown
   */
  show(qualities, models) {
    this.#models = new Map(models.map((each) => [keyOf(each.name, each.version), each]));
    const order = [...this.#models.keys()];
    const rank = (/** @type {Quality} */ each) => {
      const found = order.indexOf(keyOf(each.model, each.version));
      return found < 0 ? order.length : found;
    };
    const sorted = [...qualities].sort((a, b) => rank(a) - rank(b));
    this.#known = new Map(sorted.map((each) => [keyOf(each.model, each.version), each]));
    this.#lay();
    if (!this.#known.has(this.#chosen)) this.#chosen = [...this.#known.keys()][0] ?? "";
    this.#show();
  }

  /**
   * Show this version's matrix.
   *
   * @param {string} model
   * @param {string} version
   */
  choose(model, version) {
    this.#choose(keyOf(model, version));
  }

  /** Lines that are there stay: the keyboard may be on one. */
  #lay() {
    const before = [...this.#lines.keys()].join();
    for (const [key, quality] of this.#known) {
      if (!this.#lines.has(key)) this.#lines.set(key, new Line(quality, () => this.#choose(key)));
      this.#lines.get(key)?.show(quality);
    }
    const lines = [...this.#known.keys()].map((key) => [key, this.#lines.get(key)]);
    this.#lines = new Map(/** @type {[string, Line][]} */ (lines));
    if ([...this.#lines.keys()].join() === before) return;
    for (const old of this.#list.querySelectorAll("label")) old.remove();
    this.#list.append(...[...this.#lines.values()].map((line) => line.element));
  }

  /** @param {string} key */
  #choose(key) {
    if (key !== this.#chosen) this.#before = null;
    this.#chosen = key;
    this.#show();
  }

  #show() {
    const line = this.#lines.get(this.#chosen);
    const quality = this.#known.get(this.#chosen);
    if (line) line.input.checked = true;
    if (!quality) {
      this.#drawn = "";
      return this.#matrix.replaceChildren();
    }
    const { classes: known = [] } = this.#models.get(this.#chosen) ?? {};
    const classes = known.length ? known : named(quality);
    say(this.#note, unlabelled(quality));
    const drawn = JSON.stringify([this.#chosen, quality.confusion, classes]);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const parts = classes.length > MOST_CLASSES ? [] : [this.#table(quality, classes)];
    this.#matrix.replaceChildren(...parts, this.#note);
  }

  /**
   * Truth down, what was said across.
   *
   * @param {Quality} quality
   * @param {string[]} classes
   * @returns {HTMLTableElement}
   */
  #table(quality, classes) {
    const counts = new Map(quality.confusion.map((c) => [keyOf(c.truth, c.predicted), c.count]));
    const none = quality.confusion.some((cell) => cell.truth === OTHER);
    const truths = none && !classes.includes(OTHER) ? [...classes, OTHER] : classes;
    const most = Math.max(1, ...counts.values());
    const head = make("tr", {}, corner(), ...classes.map((name) => header(name, "col")));
    const rows = truths.map((truth) => {
      const cells = classes.map((said) => this.#cell(truth, said, counts, most));
      return make("tr", {}, header(truth, "row"), ...cells);
    });
    this.#before = counts;
    const caption = `${quality.model} v${quality.version}: truth (rows) and answer (columns)`;
    const body = make("tbody", {}, ...rows);
    return make("table", {}, make("caption", {}, caption), make("thead", {}, head), body);
  }

  /**
   * @param {string} truth
   * @param {string} said
   * @param {Map<string, number>} counts
   * @param {number} most of any cell
   * @returns {HTMLElement}
   */
  #cell(truth, said, counts, most) {
    const key = keyOf(truth, said);
    const count = counts.get(key) ?? 0;
    const cell = make("td", { "data-truth": truth, "data-predicted": said });
    cell.textContent = count ? String(count) : "";
    cell.className = count ? (truth === said ? "right" : "wrong") : "";
    cell.style.setProperty("--weight", (Math.sqrt(count / most) || 0).toFixed(3));
    const moved = this.#before !== null && count !== (this.#before.get(key) ?? 0);
    cell.classList.toggle("moved", moved);
    return cell;
  }
}

/**
 * What is known without labels, in a sentence.
 *
 * @param {Quality} quality
 * @returns {string}
 */
function unlabelled(quality) {
  const { holdout_accuracy: holdout, probe_accuracy: probe, estimated_accuracy: estimate } = quality;
  const parts = [];
  if (holdout !== null) parts.push(`holdout ${percent(holdout)}`);
  if (probe !== null) {
    parts.push(`last probe ${percent(probe)}${quality.probe_passed ? "" : " (failed)"}`);
  }
  if (estimate !== null) {
    const doubt = quality.estimate_reliable ? "" : " (inputs drifted: not reliable)";
    parts.push(`estimated by confidence ${percent(estimate)}${doubt}`);
  }
  return parts.length ? `Without labels: ${parts.join(", ")}.` : "";
}

/**
 * @param {Quality} quality
 * @returns {string[]} classes, where only feedback names them
 */
function named(quality) {
  const names = quality.confusion.flatMap((cell) => [cell.predicted, cell.truth]);
  return [...new Set(names)].filter((name) => name !== OTHER).sort();
}

/**
 * @param {string} name
 * @param {"row" | "col"} scope
 * @returns {HTMLElement}
 */
function header(name, scope) {
  return make("th", { scope }, name === OTHER ? "none" : name);
}

/** @returns {HTMLElement} */
function corner() {
  return make("td", { class: "corner" });
}
