/**
 * The token that a server may ask for: typed once, and kept until the tab is closed. Nothing shows it.
 */

import { byId } from "./elements.js";

const KEPT = "token";

const form = /** @type {HTMLFormElement} */ (byId("token-form"));
const field = /** @type {HTMLInputElement} */ (byId("token"));

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEPT, field.value.trim());
  location.reload();
});

/**
 * Headers that show it, where there is one.
 *
 * @returns {Record<string, string>}
 */
export function authorization() {
  const token = sessionStorage.getItem(KEPT);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** The server asked for one, or for another. */
export function askForToken() {
  form.hidden = false;
}
