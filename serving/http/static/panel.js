/** The panel of models: which versions there are, whether they are ready, and how they did lately. */

import { make, say } from "./elements.js";
import { keyOf } from "./models.js";
import { latest, peak, sparkline } from "./sparkline.js";
import { amount, duration, list, percent } from "./words.js";

/** @typedef {import("./api.js").Model} Model */
/** @typedef {import("./api.js").Series} Series */
/** @typedef {import("./api.js").Overview} Overview */
/** @typedef {import("./sparkline.js").Values} Values */
/** @typedef {{values: Values, kind: string, tell: (now: number, most: number) => string}} Curve */

const MOST_NAMED = 10;

/** One chart with its figures. */
class Chart {
  #figures = make("span", { class: "figures" });
  #plot = make("div", { class: "plot" });
  /** What is on show, as text: made anew only where that changed. */
  #drawn = "";

  /** @param {string} title */
  constructor(title) {
    this.#title = title;
    const caption = make("figcaption", {}, make("span", { class: "title" }, title), this.#figures);
    this.element = make("figure", { class: "chart" }, caption, this.#plot);
  }

  #title;

  /**
   * @param {number[]} ages
   * @param {Curve[]} lines
   */
  show(ages, lines) {
    const drawn = JSON.stringify([ages, lines.map((line) => line.values)]);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const figures = lines.flatMap(figure);
    const told = figures.map((each) => each.textContent).join(", ") || "idle";
    if (this.#figures.textContent !== told) {
      this.#figures.replaceChildren(...(figures.length ? parted(figures) : [told]));
    }
    this.#plot.replaceChildren(sparkline(ages, lines, `${this.#title}: ${told}`));
  }
}

/**
 * What is written over a line, in its colour.
 *
 * @param {Curve} curve
 * @returns {HTMLElement[]} nothing of one without values
 */
function figure({ values, kind, tell }) {
  const [now, most] = [latest(values), peak(values)];
  if (now === null || most === null) return [];
  return [make("span", { class: kind }, tell(now, most))];
}

/**
 * @param {HTMLElement[]} figures
 * @returns {(HTMLElement | string)[]} with commas between
 */
function parted(figures) {
  return figures.flatMap((each, index) => (index ? [", ", each] : [each]));
}

/**
 * @param {number} now
 * @param {number} most
 * @returns {string}
 */
function nowAndPeak(now, most) {
  return `${amount(now)}, peak ${amount(most)}`;
}

/** One version. */
class Row {
  #state = make("p", { class: "state" });
  #reason = make("p", { class: "reason" });
  #facts = make("p", { class: "facts" });
  #rate = new Chart("Rows/s");
  #batch = new Chart("Batch size");
  #latency = new Chart("Latency");
  #report = make("a", { class: "report" }, "Report");

  /** @param {Model} model */
  constructor(model) {
    const name = make("h3", {}, model.name, " ");
    name.append(make("span", { class: "version" }, `v${model.version}`));
    const title = make("div", { class: "title" }, name, this.#state);
    const more = make("div", { class: "more" }, this.#facts, this.#report);
    const charts = [this.#rate, this.#batch, this.#latency].map((chart) => chart.element);
    this.element = make(
      "li",
      { "data-name": model.name, "data-version": model.version },
      make("div", { class: "about" }, title, this.#reason, more),
      ...charts,
    );
  }

  /**
   * @param {Model} model
   * @param {number[]} ages
   * @param {Series | undefined} series
   */
  show(model, ages, series) {
    const ready = model.state === "READY";
    this.element.dataset.state = ready ? "ready" : "unready";
    say(this.#state, model.state.toLowerCase().replaceAll("_", " "));
    say(this.#reason, ready ? "" : model.reason);
    say(this.#facts, facts(model).join(" · "));
    this.#link(model);
    const none = ages.map(() => null);
    const { rows_per_second: rate = none, batch_size: batch = none } = series ?? {};
    const { latency_p50: p50 = none, latency_p99: p99 = none } = series ?? {};
    this.#rate.show(ages, [{ values: rate, kind: "first", tell: nowAndPeak }]);
    this.#batch.show(ages, [{ values: batch, kind: "first", tell: nowAndPeak }]);
    this.#latency.show(ages, [
      { values: p50, kind: "first", tell: (now) => `p50 ${duration(now)}` },
      { values: p99, kind: "second", tell: (now) => `p99 ${duration(now)}` },
    ]);
  }

  /** @param {Model} model */
  #link({ name, version, report }) {
    this.#report.hidden = report === null;
    if (report === null) return;
    this.#report.href = report.replace(/^\//, ""); // relative to the page, as all that it asks for
    this.#report.setAttribute("aria-label", `Report of ${name}, version ${version}`);
  }
}

export class Panel {
  /** @type {Map<string, Row>} */
  #rows = new Map();

  /**
   * @param {HTMLElement} container
   * @param {HTMLElement} span what the charts are of
   */
  constructor(container, span) {
    this.#container = container;
    this.#span = span;
  }

  #container;
  #span;

  /**
   * @param {Model[]} models in the order in which they are to be shown
   * @param {Overview["history"]} history
   */
  show(models, history) {
    const series = new Map(history.models.map((each) => [keyOf(each.model, each.version), each]));
    const before = [...this.#rows.keys()].join();
    const rows = models.map((model) => {
      const key = keyOf(model.name, model.version);
      const row = this.#rows.get(key) ?? new Row(model);
      row.show(model, history.ages, series.get(key));
      return /** @type {[string, Row]} */ ([key, row]);
    });
    this.#rows = new Map(rows);
    say(this.#span, spoken(models, history.ages));
    if ([...this.#rows.keys()].join() === before) return; // the keyboard may be on a link
    this.#container.replaceChildren(...rows.map(([, row]) => row.element));
  }
}

/**
 * @param {Model} model
 * @returns {string[]}
 */
function facts({ classes, accuracy, precision, device }) {
  const names = classes.length > MOST_NAMED ? `${classes.length} classes` : list(classes, "and");
  const known = classes.length ? [`knows ${classes.join("") === "0123456789" ? "0 to 9" : names}`] : [];
  if (accuracy !== null) known.push(`accuracy ${percent(accuracy)}`);
  return [...known, precision, device].filter(Boolean);
}

/**
 * @param {Model[]} models
 * @param {number[]} ages
 * @returns {string}
 */
function spoken(models, ages) {
  const minutes = Math.round(-(ages[0] ?? 0) / 60);
  const ready = models.filter((each) => each.state === "READY").length;
  const time = minutes ? ` Charts: the last ${minutes} minutes.` : "";
  return `${ready} of ${models.length} ready.${time}`;
}
