/**
 * Asks about the latest picture while it changes: at most one request is under way, and what was
 * drawn meanwhile is asked next. What failed is asked again while the page is looked at. Knows
 * neither pictures nor answers.
 */

import { again } from "./api.js";

/** Milliseconds in which changes gather before they are asked about. */
const GATHER = 80;

/**
 * @template Answer
 */
export class Live {
  /** What takes the latest picture; null where there is none. @type {(() => Promise<Blob>) | null} */
  #picture = null;
  /** Counts changes; the last one that needs no more asking. */
  #changes = 0;
  #settled = 0;
  #running = false;
  #request = new AbortController();
  /** Ends a wait before its time. */
  #wake = () => {};

  /**
   * @param {(image: Blob, signal: AbortSignal) => Promise<Answer>} ask
   * @param {(answer: Answer, latest: boolean) => number | null} answered hears whether
   *   the answer is of the picture as it is, and gives seconds after which to ask again
   * @param {(error: unknown, again: number | null) => void} failed
   */
  constructor(ask, answered, failed) {
    this.#ask = ask;
    this.#answered = answered;
    this.#failed = failed;
  }

  #ask;
  #answered;
  #failed;

  /**
   * There is another picture, or it changed.
   *
   * @param {() => Promise<Blob>} picture
   */
  change(picture) {
    this.#picture = picture;
    this.#changes += 1;
    void this.#run();
  }

  /** There is no picture any more, and what is asked of the last one is of no interest. */
  clear() {
    this.#picture = null;
    this.#changes += 1;
    this.#request.abort();
  }

  /** The server is back: do not wait any longer. */
  wake() {
    this.#wake();
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    let attempt = 0;
    for (let picture = await this.#next(); picture; picture = await this.#next()) {
      attempt = (await this.#once(picture, attempt)) ? 0 : attempt + 1;
    }
    this.#running = false;
  }

  /** @returns {Promise<(() => Promise<Blob>) | null>} what is to be asked about, if anything */
  async #next() {
    if (this.#settled === this.#changes) return null;
    await this.#pause(GATHER / 1000);
    return this.#picture;
  }

  /**
   * Ask once, and wait where that is to be tried again.
   *
   * @param {() => Promise<Blob>} picture
   * @param {number} attempt
   * @returns {Promise<boolean>} whether it was answered
   */
  async #once(picture, attempt) {
    const change = this.#changes;
    const request = (this.#request = new AbortController());
    let delay = null;
    let answered = false;
    try {
      const answer = await this.#ask(await picture(), request.signal);
      if (request.signal.aborted) return true;
      answered = true;
      delay = this.#answered(answer, change === this.#changes);
    } catch (error) {
      if (request.signal.aborted) return true;
      delay = again(error, attempt);
      this.#failed(error, delay);
    }
    if (delay === null) this.#settled = change;
    else await this.#pause(delay).then(seen);
    return answered;
  }

  /**
   * @param {number} seconds
   * @returns {Promise<void>}
   */
  #pause(seconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** @returns {Promise<void>} once somebody may look at the page */
function seen() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}
