/**
 * Wires the page: pad and images → the server → cards, quality and panel. Owns what people are told
 * of all that, and when the server is asked.
 */

import { Answers } from "./answers.js";
import * as api from "./api.js";
import { byId, say } from "./elements.js";
import { bring, read } from "./images.js";
import { Live } from "./live.js";
import { answering, keyOf } from "./models.js";
import { Pad } from "./pad.js";
import { Panel } from "./panel.js";
import { QualityView } from "./quality.js";
import { percent } from "./words.js";

/** @typedef {import("./api.js").Answer} Answer */
/** @typedef {import("./api.js").Refusal} Refusal */

/** Milliseconds between two looks at the server, and while it is away. */
const REFRESH = 5000;
const REFRESH_AWAY = 2000;
/** Milliseconds without a change after which an answer is read out. */
const SETTLED = 800;
/** How often feedback, and models that were busy, are tried in all. */
const ATTEMPTS = 4;
/** Seconds after which models that were busy are asked again. */
const BUSY_AGAIN = 1;
/** A model's refusals that may pass. */
const BUSY = new Set(["RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"]);

/** What to do next. */
const DRAW = "Draw a digit, or drop an image of one: each model answers as you draw.";
const JUDGE = "Tell each model whether it was right, or click the digit that it was.";

const pad = new Pad(/** @type {HTMLCanvasElement} */ (byId("pad")), changed, mention);
const live = new Live(api.classify, answered, failed);
const answers = new Answers(byId("answers"), sendFeedback, lost);
const quality = new QualityView(byId("accuracies"), byId("matrix"));
const panel = new Panel(byId("panel"), byId("span"));
/** As style.css has it. */
const narrow = matchMedia("(width < 44rem)");
const normalised = /** @type {HTMLCanvasElement} */ (byId("normalised"));

/** In the server's order, in which they are shown. @type {import("./api.js").Model[]} */
let models = [];
let away = false;
/** The server's version when the page was loaded, which has this page's files. */
let version = "";
/** How often the same picture was asked again, as models were busy. */
let repeats = 0;
/** The latest question about quality: an older answer would turn back what a label has moved. */
let question = 0;
/** Counts what came onto the pad: an image that takes longer to read than the next comes too late. */
let pictures = 0;
/** Timers. */
let settling = 0;
let next = 0;

/** There is another picture on the pad, or none. */
function changed() {
  repeats = 0;
  pictures += 1;
  clearTimeout(settling);
  byId("invitation").hidden = !pad.blank;
  if (!pad.blank) {
    answers.change();
    return ask();
  }
  tell("");
  live.clear();
  answers.clear();
  showNormalised(null);
  say(byId("hint"), DRAW);
}

/** Ask about what is on the pad. */
function ask() {
  live.change(() => pad.picture());
}

/**
 * @param {import("./api.js").Classified} classified
 * @param {boolean} latest whether it is of the picture as it is
 * @returns {number | null} seconds after which to ask the same again
 */
function answered(classified, latest) {
  answers.show(classified.answers);
  if (latest) answers.settle();
  showNormalised(classified.normalised);
  say(byId("hint"), JUDGE);
  clearTimeout(settling);
  settling = setTimeout(() => tell(summary(classified.answers)), SETTLED);
  const busy = classified.answers.some((each) => "error" in each && BUSY.has(each.status));
  repeats = busy ? repeats + 1 : 0;
  return busy && repeats < ATTEMPTS ? BUSY_AGAIN : null;
}

/**
 * @param {unknown} error
 * @param {number | null} again seconds until it is asked again
 */
function failed(error, again) {
  clearTimeout(settling);
  answers.clear();
  showNormalised(null);
  if (error instanceof api.Away) return left();
  const message = error instanceof Error ? error.message : String(error);
  tell(again === null ? message : `${message}: trying again in ${Math.ceil(again)} s.`);
}

/**
 * What the models say that know most, to be read out.
 *
 * @param {(Answer | Refusal)[]} all
 * @returns {string}
 */
function summary(all) {
  const told = all.flatMap((each) => ("label" in each ? [each] : []));
  const most = Math.max(...told.map((each) => each.classes.length));
  const words = told
    .filter((each) => each.classes.length === most)
    .map((each) => `${each.model}: ${each.label}, ${percent(Math.max(...each.probabilities))}`);
  return words.length ? `${words.join("; ")}.` : "No model answered.";
}

/** @param {import("./api.js").Normalised | null} image */
function showNormalised(image) {
  const context = /** @type {CanvasRenderingContext2D} */ (normalised.getContext("2d"));
  const words = image ? "The picture as the models see it" : "Nothing was drawn yet";
  normalised.setAttribute("aria-label", words);
  if (!image) return context.clearRect(0, 0, normalised.width, normalised.height);
  const pixels = context.createImageData(image.width, image.height);
  image.pixels.forEach((level, i) => pixels.data.set([level, level, level, 255], 4 * i));
  context.putImageData(pixels, 0, 0);
}

/** @param {File} file */
async function brought(file) {
  const mine = (pictures += 1);
  try {
    const image = await read(file);
    if (mine !== pictures) return image.shown.close();
    pad.show(image);
    tell("");
  } catch {
    if (mine === pictures) tell(`${file.name || "That"} is no image that this browser can read.`);
  }
}

/**
 * @param {string} model
 * @param {string} predictionId
 * @param {string} label
 * @returns {Promise<import("./api.js").FeedbackResult>}
 */
async function sendFeedback(model, predictionId, label) {
  const result = await persistently(predictionId, label).catch((error) => {
    tell(`${model}: ${label} was not sent, ${error instanceof Error ? error.message : error}.`);
    throw error;
  });
  const card = models.find((each) => each.name === model && answering(models).includes(each));
  const counted = result.outcome === "COUNTED";
  tell(counted ? `${model}: counted as ${label}.` : `${model}: refused, ${result.reason}.`);
  if (card) quality.choose(model, card.version);
  void showQuality().catch(() => {});
  return result;
}

/**
 * @param {string} model
 * @param {string} label that waited for an answer which does not come any more
 */
function lost(model, label) {
  tell(`${model}: ${label} was not sent, as the picture has changed.`);
}

/**
 * A server counts a label once, however often it is sent: REPEATED is as good as COUNTED. Another
 * replica behind the same address knows nothing of that, and may count it again.
 *
 * @param {string} predictionId
 * @param {string} label
 * @returns {Promise<import("./api.js").FeedbackResult>}
 */
async function persistently(predictionId, label) {
  for (let attempt = 0; ; attempt++) {
    try {
      const result = await api.feedback(predictionId, label);
      if (result.outcome !== "REPEATED") return result;
      return { outcome: "COUNTED", reason: "" };
    } catch (error) {
      const delay = api.again(error, attempt);
      if (delay === null || attempt + 1 === ATTEMPTS) throw error;
      await new Promise((resolve) => setTimeout(resolve, delay * 1000));
    }
  }
}

async function showQuality() {
  const mine = (question += 1);
  const told = await api.quality();
  if (mine === question) quality.show(told.models, models);
}

async function showOverview() {
  const overview = await api.overview();
  const before = versions(answering(models));
  models = overview.models;
  answers.expect(answering(models));
  panel.show(models, overview.history);
  returned(overview.server);
  if (versions(answering(models)) !== before && !pad.blank) ask();
}

/**
 * @param {import("./api.js").Model[]} those
 * @returns {string}
 */
function versions(those) {
  return those.map((each) => keyOf(each.name, each.version)).join();
}

/** Look at the server now, and then again and again while the page is looked at. */
async function refresh() {
  clearTimeout(next);
  if (document.hidden) return;
  try {
    await showOverview();
    await showQuality();
  } catch (error) {
    if (error instanceof api.Away) left();
    else showServer("unready", error instanceof Error ? error.message : String(error));
  }
  clearTimeout(next);
  next = setTimeout(refresh, away ? REFRESH_AWAY : REFRESH);
}

/** No server answers. */
function left() {
  showServer("away", "no connection, trying again");
  if (away) return;
  away = true;
  tell("The server does not answer. This page goes on when it is back.");
  clearTimeout(next);
  next = setTimeout(refresh, REFRESH_AWAY);
}

/** @param {import("./api.js").Overview["server"]} server */
function returned(server) {
  if (away) tell("The server is back.");
  if (away) live.wake();
  away = false;
  version ||= server.version;
  if (version !== server.version) {
    return showServer("unready", `now version ${server.version}: reload this page`);
  }
  const words = `${server.name} ${server.version}, ${server.ready ? "ready" : "not ready"}`;
  showServer(server.ready ? "ready" : "unready", words);
}

/**
 * @param {"ready" | "unready" | "away"} state
 * @param {string} words
 */
function showServer(state, words) {
  byId("server").dataset.state = state;
  say(byId("server"), words);
}

/** @param {string} words what happens, also for those who hear it */
function tell(words) {
  clearTimeout(settling);
  say(byId("status"), words);
}

/** @param {string} words said meanwhile: what the models say is still to be told */
function mention(words) {
  say(byId("status"), words);
}

/** Where there is no room beside the pad, answers come right below it, and what explains it later. */
function arrange() {
  const above = byId(narrow.matches ? "answers" : "status");
  above.after(byId("aside"));
}

say(byId("hint"), DRAW);
bring(/** @type {HTMLInputElement} */ (byId("file")), brought, tell);
byId("clear").addEventListener("click", () => pad.clear());
byId("undo").addEventListener("click", () => pad.undo());
document.addEventListener("visibilitychange", refresh);
addEventListener("online", refresh);
narrow.addEventListener("change", arrange);
arrange();
if (api.supported()) void refresh();
else showServer("unready", "this browser is too old for this page");
