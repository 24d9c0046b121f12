/**
 * Images that people bring: dropped, pasted or chosen. Owns what is sent of one: the file itself
 * where the server reads such files, or else what this browser makes of it.
 */

/** What the server reads. */
const READ = new Set(["image/png", "image/jpeg"]);
/** Bytes; larger files are made smaller here, as the server does to a side of 1024 anyway. */
const LARGE = 1 << 20;
const SIDE = 1024;

/** @typedef {{shown: ImageBitmap, sent: Blob}} Brought */

/**
 * Hear of files, however they come.
 *
 * @param {HTMLInputElement} chooser
 * @param {(file: File) => void} brought
 * @param {(words: string) => void} told where what came is no file
 */
export function bring(chooser, brought, told) {
  chooser.addEventListener("change", () => {
    const file = chooser.files?.[0];
    if (file) brought(file);
    chooser.value = ""; // the same file again is a change, too
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (file) brought(file);
  });
  drop(brought, told);
}

/**
 * Anywhere on the page: who misses the pad would leave the page otherwise.
 *
 * @param {(file: File) => void} brought
 * @param {(words: string) => void} told
 */
function drop(brought, told) {
  const mark = (/** @type {boolean} */ over) => document.body.classList.toggle("dropping", over);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", (event) => mark(event.relatedTarget !== null));
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    const file = event.dataTransfer?.files[0];
    if (file) brought(file);
    else told("That was no file: drop an image file, or copy the image and paste it.");
  });
}

/**
 * What to show and what to send of a file; throws where this browser cannot read it.
 *
 * @param {Blob} file
 * @returns {Promise<Brought>}
 */
export async function read(file) {
  const shown = await createImageBitmap(file);
  const asItIs = READ.has(file.type) && file.size <= LARGE;
  return { shown, sent: asItIs ? file : await redrawn(shown) };
}

/**
 * @param {ImageBitmap} image
 * @returns {Promise<Blob>} a PNG file of moderate size
 */
function redrawn(image) {
  const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((made) => (made ? resolve(made) : reject(new Error("no PNG"))), "image/png");
  });
}
