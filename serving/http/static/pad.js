/**
 * The drawing area: strokes by mouse, pen, finger or keyboard, or one image that was brought; and
 * what is sent of them. Knows nothing of models.
 *
 * Strokes are kept as points, so that they are sharp at any size and can be taken back.
 */

/** The pad's side, in its own units, whatever its size on the screen. */
const SIDE = 280;
/** Of a stroke: a digit that fills the pad then looks like one of MNIST's. */
const WIDTH = 22;
/** Paper around what is sent: by its border, the server tells paper from ink. */
const MARGIN = 20;
/** What a press of an arrow key moves the pen by, and with Shift. */
const STEP = 7;
const LEAP = 28;
const ARROWS = new Map([
  ["ArrowLeft", [-1, 0]],
  ["ArrowRight", [1, 0]],
  ["ArrowUp", [0, -1]],
  ["ArrowDown", [0, 1]],
]);

/** @typedef {[number, number]} Point in the pad's units */
/** @typedef {import("./images.js").Brought} Brought */

export class Pad {
  /** @type {Point[][]} */
  #strokes = [];
  /** What was brought, where it was not drawn. @type {Brought | null} */
  #image = null;
  /** The pointer that draws. @type {number | null} */
  #pointer = null;
  /** Where the keyboard's pen is, and whether it is down. @type {Point} */
  #pen = [SIDE / 2, SIDE / 4];
  #penDown = false;
  /** Arrow keys that are held: two of them go aslant. @type {Set<string>} */
  #held = new Set();
  #frame = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {() => void} changed there is more, less or something else to be seen
   * @param {(words: string) => void} told for who does not see the pen
   */
  constructor(canvas, changed, told) {
    this.#canvas = canvas;
    this.#changed = changed;
    this.#told = told;
    this.#listen();
  }

  #canvas;
  #changed;
  #told;

  /** Whether nothing is drawn or shown. */
  get blank() {
    return this.#strokes.length === 0 && !this.#image;
  }

  clear() {
    this.#strokes = [];
    this.#hold(null);
    this.#pointer = null;
    this.#penDown = false;
    this.#after();
  }

  /** Take back the last stroke, or the image. */
  undo() {
    if (this.#image) this.#hold(null);
    else this.#strokes.pop();
    this.#pointer = null;
    this.#penDown = false;
    this.#after();
  }

  /**
   * Show an image in place of what was drawn.
   *
   * @param {Brought} image
   */
  show(image) {
    this.#strokes = [];
    this.#pointer = null;
    this.#penDown = false;
    this.#hold(image);
    this.#after();
  }

  /**
   * What was brought, or else what was drawn, as a PNG file: white ink on black, whatever the page's
   * colours.
   *
   * @returns {Promise<Blob>}
   */
  picture() {
    if (this.#image) return Promise.resolve(this.#image.sent);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE + 2 * MARGIN;
    const context = contextOf(canvas);
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.translate(MARGIN, MARGIN);
    ink(context, this.#strokes, "#fff");
    return new Promise((resolve, reject) => {
      canvas.toBlob((file) => (file ? resolve(file) : reject(new Error("no PNG"))), "image/png");
    });
  }

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => this.#up(/** @type {PointerEvent} */ (event)));
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", (event) => this.#held.delete(event.key));
    canvas.addEventListener("focus", () => this.#later());
    canvas.addEventListener("blur", () => this.#left());
    new ResizeObserver(() => this.#later()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#later());
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (!event.isPrimary || event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#pointer = event.pointerId;
    this.#penDown = false;
    this.#begin(this.#at(event));
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    // Browsers have it in secure contexts only: not for a server of the network without TLS.
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.#extend(this.#at(each));
    this.#after();
  }

  /** @param {PointerEvent} event */
  #up(event) {
    if (event.pointerId === this.#pointer) this.#pointer = null;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key === "z") this.undo();
    else if (control || event.altKey) return;
    else if (ARROWS.has(event.key)) this.#steer(event);
    else if (event.key === " ") this.#lift(event);
    else if (event.key === "Backspace" || event.key === "Delete") this.undo();
    else if (event.key === "Escape") this.clear();
    else return;
    event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  #steer(event) {
    this.#held.add(event.key);
    const far = event.shiftKey ? LEAP : STEP;
    for (const key of this.#held) {
      const [x, y] = /** @type {Point} */ (ARROWS.get(key));
      this.#pen = [within(this.#pen[0] + x * far), within(this.#pen[1] + y * far)];
    }
    if (!this.#penDown) return this.#later();
    this.#extend(this.#pen);
    this.#after();
  }

  /** @param {KeyboardEvent} event */
  #lift(event) {
    if (event.repeat) return;
    this.#pointer = null;
    this.#penDown = !this.#penDown;
    if (this.#penDown) this.#begin(this.#pen);
    else this.#later();
    this.#told(this.#penDown ? "The pen is down." : "The pen is up.");
  }

  /** The keyboard is elsewhere: nothing is held there any more. */
  #left() {
    this.#held.clear();
    this.#penDown = false;
    this.#later();
  }

  /** @param {Point} point */
  #begin(point) {
    this.#hold(null);
    this.#strokes.push([point]);
    this.#after();
  }

  /** @param {Brought | null} image in place of the one before, whose memory is freed */
  #hold(image) {
    this.#image?.shown.close();
    this.#image = image;
  }

  /** @param {Point} point */
  #extend(point) {
    this.#strokes[this.#strokes.length - 1]?.push(point);
  }

  /**
   * @param {PointerEvent} event
   * @returns {Point}
   */
  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return [within((x * SIDE) / box.width), within((y * SIDE) / box.height)];
  }

  #after() {
    this.#later();
    this.#changed();
  }

  /** Paint with the next frame, once for all that happened until then. */
  #later() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  #paint() {
    const canvas = this.#canvas;
    const side = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = contextOf(canvas);
    const colours = getComputedStyle(canvas);
    context.setTransform(side / SIDE, 0, 0, side / SIDE, 0, 0);
    context.clearRect(0, 0, SIDE, SIDE);
    if (this.#image) fit(context, this.#image.shown);
    ink(context, this.#strokes, colours.color);
    if (canvas.matches(":focus-visible")) cross(context, this.#pen, this.#penDown, colours.accentColor);
  }
}

/**
 * @param {number} coordinate
 * @returns {number} on the pad
 */
function within(coordinate) {
  return Math.min(SIDE, Math.max(0, coordinate));
}

/**
 * @param {HTMLCanvasElement} canvas
 * @returns {CanvasRenderingContext2D}
 */
function contextOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}

/**
 * Smooth lines: curves from middle to middle of what was measured.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Point[][]} strokes
 * @param {string} colour
 */
function ink(context, strokes, colour) {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = WIDTH;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    if (stroke.length === 1) dot(context, stroke[0], WIDTH / 2);
    else curve(context, stroke);
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Point[]} stroke of at least two points
 */
function curve(context, stroke) {
  context.moveTo(...stroke[0]);
  for (let i = 1; i + 1 < stroke.length; i++) {
    const [x, y] = stroke[i];
    const [nextX, nextY] = stroke[i + 1];
    context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  }
  context.lineTo(...stroke[stroke.length - 1]);
  context.stroke();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Point} point
 * @param {number} radius
 */
function dot(context, point, radius) {
  context.beginPath();
  context.arc(...point, radius, 0, 2 * Math.PI);
  context.fill();
}

/**
 * Where the keyboard's pen is: a ring, filled while it draws.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Point} pen
 * @param {boolean} down
 * @param {string} colour
 */
function cross(context, pen, down, colour) {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = 2;
  context.beginPath();
  context.arc(...pen, WIDTH / 2, 0, 2 * Math.PI);
  context.stroke();
  dot(context, pen, down ? WIDTH / 4 : 1.5);
}

/**
 * The whole image, in the middle.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {ImageBitmap} image
 */
function fit(context, image) {
  const scale = SIDE / Math.max(image.width, image.height);
  const [width, height] = [image.width * scale, image.height * scale];
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(image, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
}
