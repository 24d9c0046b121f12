/**
 * All cards, in groups of models that know the same classes: so that nobody expects an 8 from one
 * that knows threes and sevens only. Who knows most comes first.
 */

import { Card } from "./card.js";
import { make, say } from "./elements.js";
import { list } from "./words.js";

/** @typedef {import("./api.js").Answer} Answer */
/** @typedef {import("./api.js").Refusal} Refusal */
/** @typedef {{name: string, version: string, classes: string[]}} Expected */

const TEN = "0 1 2 3 4 5 6 7 8 9";
/** Of more, a heading has the number only. */
const MOST_NAMED = 6;

export class Answers {
  /** By model. @type {Map<string, Card>} */
  #cards = new Map();

  /**
   * @param {HTMLElement} container
   * @param {import("./card.js").Send} send
   * @param {import("./card.js").Lost} lost
   */
  constructor(container, send, lost) {
    this.#container = container;
    this.#send = send;
    this.#lost = lost;
  }

  #container;
  #send;
  #lost;

  /**
   * These models would answer now; the cards of others go.
   *
   * @param {Expected[]} models in the order in which they are to be shown
   */
  expect(models) {
    const before = [...this.#cards.values()];
    const names = new Set(models.map((each) => each.name));
    for (const card of before) if (!names.has(card.model)) this.#cards.delete(card.model);
    const after = models.map((each) => this.#card(each));
    if (after.length !== before.length || after.some((card, i) => card !== before[i])) {
      this.#cards = new Map(after.map((card) => [card.model, card]));
      this.#lay(after);
    }
  }

  /** @param {(Answer | Refusal)[]} answers */
  show(answers) {
    const unknown = answers.filter((each) => "label" in each && !this.#fits(each));
    if (unknown.length) this.expect(answers.map((each) => this.#expected(each)));
    const silent = new Map(this.#cards);
    for (const each of answers) {
      silent.delete(each.model);
      const card = this.#cards.get(each.model);
      if ("label" in each) card?.show(each);
      else card?.refuse(each);
    }
    for (const card of silent.values()) card.clear(card.version);
  }

  /** The picture is another one, which is asked about. */
  change() {
    this.#container.setAttribute("aria-busy", "true");
    for (const card of this.#cards.values()) card.change();
  }

  /** What is on show is of the picture as it is. */
  settle() {
    this.#container.setAttribute("aria-busy", "false");
    for (const card of this.#cards.values()) card.settle();
  }

  /** Nothing was asked, or what was said is of no interest any more. */
  clear() {
    this.#container.setAttribute("aria-busy", "false");
    for (const card of this.#cards.values()) card.clear(card.version);
  }

  /**
   * @param {Answer | Refusal} answer
   * @returns {Expected}
   */
  #expected(answer) {
    const classes = "label" in answer ? answer.classes : this.#cards.get(answer.model)?.classes;
    return { name: answer.model, version: answer.version, classes: classes ?? [] };
  }

  /**
   * @param {Answer} answer
   * @returns {boolean} whether there is a card of its model and classes
   */
  #fits(answer) {
    return this.#cards.get(answer.model)?.classes.join(" ") === answer.classes.join(" ");
  }

  /**
   * The card of a model that knows these classes.
   *
   * @param {Expected} expected
   * @returns {Card}
   */
  #card({ name, version, classes }) {
    const found = this.#cards.get(name);
    if (found && found.classes.join(" ") === classes.join(" ")) {
      found.expect(version);
      return found;
    }
    const card = new Card(name, classes, this.#send, this.#lost);
    card.clear(version);
    this.#cards.set(name, card);
    return card;
  }

  /** @param {Card[]} cards */
  #lay(cards) {
    const groups = Map.groupBy(cards, (card) => card.classes.join(" "));
    this.#container.replaceChildren(...[...groups.values()].map(group));
  }
}

/**
 * @param {Card[]} cards of the same classes
 * @returns {HTMLElement}
 */
function group(cards) {
  const { classes } = cards[0];
  const heading = make("h3", {}, title(classes));
  const note = make("p", { class: "note" });
  if (classes.length === 2) {
    say(note, `Whatever it is that you draw, they say ${list(classes, "or")}.`);
  }
  const elements = cards.map((card) => card.element);
  const cardsOf = make("div", { class: "cards" }, ...elements);
  cardsOf.dataset.classes = classes.length > 5 ? "many" : "few";
  return make("div", { class: "group" }, heading, ...(note.textContent ? [note] : []), cardsOf);
}

/**
 * @param {string[]} classes
 * @returns {string}
 */
function title(classes) {
  if (classes.join(" ") === TEN) return "All ten digits";
  if (classes.length > MOST_NAMED) return `${classes.length} classes`;
  return `Only ${list(classes, "and")}`;
}
