/**
 * The key of a server that asks for one: from the fragment of the page's address (`#key=…`, which browsers do not send) or typed, kept for
 * this tab alone. It goes out in a header, never in an address: addresses end up in logs and histories.
 */

const STORED = "dragoman-key";
const FORM = /^[A-Za-z0-9._~+-]{16,200}$/; // what a server takes, and what may stand in a subprotocol

let current = read();

/** Takes the key out of the address, so that it is neither bookmarked nor shown. */
export function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return;
  history.replaceState(null, "", location.pathname + location.search);
  keep(given);
}

/** @param {string} given @returns {boolean} whether it can be a key at all */
export function keep(given) {
  const key = given.replaceAll(" ", "+").trim(); // "+" of an address is read as a space
  current = FORM.test(key) ? key : "";
  try {
    sessionStorage.setItem(STORED, current);
  } catch {
    // The key is asked for again after a reload.
  }
  return current !== "";
}

/** @returns {Record<string, string>} for fetch */
export function headers() {
  return current ? { authorization: `Bearer ${current}` } : {};
}

/** @returns {string[]} for a WebSocket, which cannot have that header */
export function subprotocols() {
  return current ? ["bearer", current] : [];
}

function read() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return "";
  }
}
