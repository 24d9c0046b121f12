/**
 * Asks the server, and says what came of it: JSON, or one of two errors. Knows the JSON's types.
 *
 * Paths are relative to the page, so that it also works below a prefix of somebody's proxy.
 */

import { askForToken, authorization } from "./token.js";

/**
 * @typedef {{model: string, version: string, label: string, classes: string[],
 *   probabilities: number[], prediction_id: string, batch_size: number,
 *   seconds: {queue: number, compute: number, total: number}}} Answer
 * @typedef {{model: string, version: string, status: string, error: string}} Refusal
 * @typedef {{height: number, width: number, pixels: number[]}} Normalised
 * @typedef {{normalised: Normalised, answers: (Answer | Refusal)[]}} Classified
 *
 * @typedef {{outcome: string, reason: string}} FeedbackResult
 *
 * @typedef {{truth: string, predicted: string, count: number}} Cell
 * @typedef {{value: number, low: number, high: number}} Interval
 * @typedef {{model: string, version: string, feedback_count: number, correct_count: number,
 *   accuracy: Interval | null, confusion: Cell[], holdout_accuracy: number | null,
 *   probe_accuracy: number | null, probe_passed: boolean, estimated_accuracy: number | null,
 *   estimate_reliable: boolean, drift: {drifted: boolean} | null}} Quality
 *
 * @typedef {{name: string, version: string, state: string, reason: string, precision: string,
 *   device: string, accuracy: number | null, classes: string[], takes_digits: boolean,
 *   report: string | null}} Model
 * @typedef {{model: string, version: string, rows_per_second: (number | null)[],
 *   batch_size: (number | null)[], latency_p50: (number | null)[],
 *   latency_p99: (number | null)[]}} Series
 * @typedef {{server: {name: string, version: string, ready: boolean}, models: Model[],
 *   history: {interval_seconds: number, ages: number[], models: Series[]}}} Overview
 */

/** Seconds after which a server that says nothing counts as away. */
const PATIENCE = 15;
/** Seconds to wait where the server is full and does not say for how long. */
const SOON = 1;
/** Seconds that pauses grow to. */
const LONGEST = 10;
/** What a proxy says where the server behind it does not answer. */
const NOBODY_BEHIND = new Set([502, 504]);

/** The server answered, and did not do it. */
export class Refused extends Error {
  /**
   * @param {number} status HTTP's
   * @param {string} message the server's
   * @param {number | null} again seconds after which asking again may help, or null: it will not
   */
  constructor(status, message, again) {
    super(message);
    this.status = status;
    this.again = again;
  }
}

/** No server answered. */
export class Away extends Error {}

/**
 * What each model says of an image file.
 *
 * @param {Blob} image
 * @param {AbortSignal} signal
 * @returns {Promise<Classified>}
 */
export function classify(image, signal) {
  const headers = { "Content-Type": image.type || "application/octet-stream" };
  return request("v1/classify", { method: "POST", body: image, headers }, signal);
}

/**
 * Tell the true label of a prediction.
 *
 * @param {string} predictionId
 * @param {string} label
 * @returns {Promise<FeedbackResult>}
 */
export async function feedback(predictionId, label) {
  const body = JSON.stringify({ feedback: [{ prediction_id: predictionId, label }] });
  const headers = { "Content-Type": "application/json" };
  const answer = await request("v1/feedback", { method: "POST", body, headers });
  return answer.results[0];
}

/**
 * How right each version was.
 *
 * @returns {Promise<{models: Quality[]}>}
 */
export function quality() {
  return request("v1/quality");
}

/**
 * Which models there are, and how they did over the last minutes.
 *
 * @returns {Promise<Overview>}
 */
export function overview() {
  return request("v1/overview");
}

/** @returns {boolean} whether this browser has what the page needs: those of 2024 do */
export function supported() {
  return "any" in AbortSignal && "groupBy" in Map;
}

/**
 * Seconds after which to ask again what failed so, or null where that would not help. They grow, are
 * random, so that not all pages come back at once, and are no less than the server told.
 *
 * @param {unknown} error
 * @param {number} attempt how often it failed before
 * @returns {number | null}
 */
export function again(error, attempt) {
  const told = error instanceof Away ? 0 : error instanceof Refused ? error.again : null;
  if (told === null) return null;
  const grown = Math.min(LONGEST, 2 ** attempt);
  return Math.max(told, grown / 2) + (Math.random() * grown) / 2;
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @param {AbortSignal} [signal] the caller's; its abort is thrown as it is
 * @returns {Promise<any>}
 */
async function request(path, options = {}, signal = new AbortController().signal) {
  const late = AbortSignal.timeout(PATIENCE * 1000);
  const ends = AbortSignal.any([signal, late]);
  const headers = { ...options.headers, ...authorization() };
  const told = { ...options, headers, signal: ends };
  const { response, text } = await fetched(path, told).catch((error) => {
    if (signal.aborted) throw error;
    throw new Away(late.aborted ? `no answer in ${PATIENCE} s` : "no connection");
  });
  if (response.status === 401) askForToken();
  if (!response.ok) throw refused(response, text);
  return JSON.parse(text);
}

/**
 * @param {string} path
 * @param {RequestInit} options
 * @returns {Promise<{response: Response, text: string}>}
 */
async function fetched(path, options) {
  const response = await fetch(path, options);
  return { response, text: await response.text() };
}

/**
 * @param {Response} response
 * @param {string} text its body
 * @returns {Refused | Away}
 */
function refused(response, text) {
  const { status, statusText, headers } = response;
  const words = errorOf(text);
  if (!words && NOBODY_BEHIND.has(status)) return new Away("nobody behind the proxy");
  const full = status === 429 || status === 503;
  const told = Number(headers.get("Retry-After") ?? SOON);
  return new Refused(status, words || `${status} ${statusText}`, full ? told || SOON : null);
}

/**
 * The words in `{"error": ...}`; a proxy's page has none.
 *
 * @param {string} text
 * @returns {string}
 */
function errorOf(text) {
  try {
    return String(JSON.parse(text).error ?? "");
  } catch {
    return "";
  }
}
