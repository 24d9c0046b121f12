/**
 * One model's answer, as a card: what it says, how sure it is of each class, and the buttons that
 * tell it the truth. That is told once of a picture, by whatever prediction there is of it; where
 * the answer on show is of a picture that has grown since, the label waits for the one that is not.
 */

import { make, say } from "./elements.js";
import { duration, percent } from "./words.js";

/** @typedef {import("./api.js").Answer} Answer */
/** @typedef {import("./api.js").Refusal} Refusal */
/** @typedef {import("./api.js").FeedbackResult} FeedbackResult */
/**
 * @typedef {(model: string, predictionId: string, label: string) => Promise<FeedbackResult>} Send
 * @typedef {(model: string, label: string) => void} Lost hears of labels that are not sent
 */

/** What the server counts as no class of the model's. */
const OTHER = "other";
/** Of more classes, or longer names, columns would be too narrow. */
const MOST_COLUMNS = 12;
const LONGEST_NAME = 2;

export class Card {
  /**
   * @param {string} model
   * @param {string[]} classes
   * @param {Send} send
   * @param {Lost} lost
   */
  constructor(model, classes, send, lost) {
    this.model = model;
    this.classes = classes;
    this.#send = send;
    this.#lost = lost;
    this.#build();
  }

  element = make("article", { class: "card" });
  #send;
  #lost;
  #predictionId = "";
  #label = "";
  /** Whether what is on show is of the picture as it is. */
  #current = false;
  /** What was told of this picture. @type {{label: string, sent: boolean} | null} */
  #truth = null;
  #version = make("span", { class: "version" });
  #latency = make("p", { class: "latency" });
  #says = make("p", { class: "says" });
  #sure = make("p", { class: "sure" });
  #told = make("p", { class: "told" });
  #right = make("button", { class: "right", type: "button" });
  /** @type {{name: string, bar: HTMLElement, button: HTMLButtonElement}[]} */
  #columns = [];

  /** @returns {string} the version that answered, or would */
  get version() {
    return this.element.dataset.version ?? "";
  }

  /** @param {string} version that would answer now; what is on show keeps its own */
  expect(version) {
    if (!this.#label) this.#see(version);
  }

  /** @param {Answer} answer */
  show(answer) {
    this.#predictionId = answer.prediction_id;
    this.#label = answer.label;
    this.#see(answer.version);
    this.element.dataset.label = answer.label;
    this.element.dataset.predictionId = answer.prediction_id;
    say(this.#says, answer.label);
    say(this.#sure, percent(answer.probabilities[this.classes.indexOf(answer.label)] ?? 0));
    this.#time(answer);
    this.#columns.forEach((_, index) => this.#weigh(index, answer.probabilities[index] ?? 0));
    if (!this.#truth) this.#open(answer.prediction_id ? "" : "This server takes no feedback.");
  }

  /** @param {Refusal} refusal */
  refuse(refusal) {
    this.clear(refusal.version);
    this.element.dataset.state = "refused";
    const busy = refusal.status === "RESOURCE_EXHAUSTED";
    say(this.#told, busy ? "Busy just now." : refusal.error);
  }

  /** The picture is another one: what is on show is of the last, and of this nothing was told. */
  change() {
    this.#current = false;
    if (this.#truth) this.#open("");
  }

  /** What is on show is of the picture as it is. */
  settle() {
    this.#current = true;
    void this.#deliver();
  }

  /**
   * Nothing is said.
   *
   * @param {string} version that would answer
   */
  clear(version) {
    this.#predictionId = this.#label = "";
    this.#see(version);
    delete this.element.dataset.label;
    delete this.element.dataset.predictionId;
    say(this.#says, "–");
    say(this.#sure, "");
    say(this.#latency, "");
    this.#columns.forEach((_, index) => this.#weigh(index, 0));
    this.#open("");
  }

  #build() {
    const title = make("h4", { id: `card-${this.model}` }, this.model, " ", this.#version);
    const few = this.classes.length <= MOST_COLUMNS;
    const short = this.classes.every((name) => name.length <= LONGEST_NAME);
    this.#right.append(make("span", { "aria-hidden": "true" }, "✓ "), "Right");
    this.#right.addEventListener("click", () => this.#tell(this.#label, this.#right));
    const columns = make("div", { class: "classes", role: "group", "aria-label": "Which it was" });
    columns.append(...this.classes.map((name) => this.#column(name)));
    const feedback = make("div", { class: "feedback" }, this.#right, ...this.#none(), this.#told);
    const verdict = make("div", { class: "verdict" }, this.#says, this.#sure);
    this.element.append(make("header", {}, title, this.#latency), verdict, columns, feedback);
    this.element.setAttribute("aria-labelledby", title.id);
    this.element.dataset.model = this.model;
    this.element.dataset.layout = few && short ? "columns" : "list";
  }

  /**
   * @param {string} name of a class
   * @returns {HTMLElement}
   */
  #column(name) {
    const bar = make("span", { class: "bar", "aria-hidden": "true" });
    const button = this.#button("truth", name, name);
    this.#columns.push({ name, bar, button });
    return make("div", { class: "class" }, bar, button);
  }

  /** @returns {HTMLElement[]} the button for what is none of the classes */
  #none() {
    return this.classes.includes(OTHER) ? [] : [this.#button("truth none", OTHER, "None of them")];
  }

  /**
   * @param {string} kind its class
   * @param {string} truth
   * @param {string} words
   * @returns {HTMLButtonElement}
   */
  #button(kind, truth, words) {
    const button = make("button", { class: kind, type: "button", "data-truth": truth }, words);
    button.addEventListener("click", () => this.#tell(truth, button));
    return button;
  }

  /**
   * @param {number} index of a class
   * @param {number} share its probability
   */
  #weigh(index, share) {
    const { name, bar, button } = this.#columns[index];
    bar.style.setProperty("--share", share.toFixed(4));
    bar.classList.toggle("said", name === this.#label);
    const words = this.#label ? `It was ${name} (given ${percent(share)})` : `It was ${name}`;
    button.setAttribute("aria-label", words);
    button.title = words;
  }

  /** @param {Answer} answer */
  #time({ seconds, batch_size }) {
    say(this.#latency, duration(seconds.total));
    const [queue, compute] = [duration(seconds.queue), duration(seconds.compute)];
    this.#latency.title = `${queue} in the queue, ${compute} computing, in a batch of ${batch_size}`;
  }

  /** @param {string} version */
  #see(version) {
    this.element.dataset.version = version;
    say(this.#version, `v${version}`);
  }

  /** @param {string} hindrance why nothing can be told, or was not, or nothing */
  #open(hindrance) {
    const truth = this.#truth;
    this.#truth = null;
    if (truth && !truth.sent) this.#lost(this.model, truth.label);
    for (const button of this.#buttons()) button.removeAttribute("aria-pressed");
    say(this.#told, hindrance);
    this.#enter(this.#predictionId ? "open" : "closed");
  }

  /**
   * Buttons stay where the keyboard is, also where they do nothing: hence no `disabled`.
   *
   * @param {"open" | "closed" | "sending" | "sent" | "refused"} state
   */
  #enter(state) {
    this.element.dataset.state = this.#label ? "answered" : "idle";
    this.element.dataset.feedback = state;
    for (const button of this.#buttons()) {
      button.setAttribute("aria-disabled", String(state !== "open"));
    }
  }

  /** @returns {NodeListOf<HTMLButtonElement>} */
  #buttons() {
    return this.element.querySelectorAll("button");
  }

  /**
   * @param {string} label
   * @param {HTMLButtonElement} button
   */
  #tell(label, button) {
    if (this.element.dataset.feedback !== "open") return;
    this.#truth = { label, sent: false };
    this.#enter("sending");
    button.setAttribute("aria-pressed", "true");
    say(this.#told, "Sending …");
    if (this.#current) void this.#deliver();
  }

  /** Send what was told, if anything, and once; what becomes of it may come too late to be shown. */
  async #deliver() {
    const truth = this.#truth;
    if (!truth || truth.sent || !this.#predictionId) return;
    truth.sent = true;
    try {
      const result = await this.#send(this.model, this.#predictionId, truth.label);
      if (truth === this.#truth) this.#heard(result, truth.label);
    } catch (error) {
      if (truth === this.#truth) this.#open(`Not sent: ${messageOf(error)}`);
    }
  }

  /**
   * @param {FeedbackResult} result
   * @param {string} label
   */
  #heard(result, label) {
    const counted = result.outcome === "COUNTED";
    this.#enter(counted ? "sent" : "refused");
    const truth = label === OTHER ? "none of them" : label;
    const words = label === this.#label ? "Sent: right." : `Sent: it was ${truth}.`;
    say(this.#told, counted ? words : `Refused: ${result.reason}.`);
  }
}

/**
 * @param {unknown} error
 * @returns {string}
 */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
