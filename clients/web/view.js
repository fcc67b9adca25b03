/**
 * The captions on the page. Committed text is only ever added to; the tail behind it is replaced. A segment never gets lower while it is
 * live, so nothing below or above it jumps when a tail becomes shorter. The log is a live region of ARIA; tails and drafts are hidden from it.
 *
 * @typedef {import("./transcript.js").Segment} Segment
 * @typedef {{row: HTMLElement, committed: HTMLElement, tail: HTMLElement, said: string, height_px: number,
 *   translations: Map<string, HTMLElement>}} Row
 */

const MOST_ROWS = 400; // older ones leave the page, not the download
const NEAR_END_PX = 40;

/** @param {string} tag @param {Record<string, string>} attributes @param {string} text */
export function element(tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/** The name of a language in the page's own. @param {string} code */
export function languageName(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code) ?? code;
  } catch {
    return code;
  }
}

/** @param {number} at_ms → m:ss or h:mm:ss */
export function clock(at_ms) {
  const s = Math.floor(at_ms / 1000);
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

export class CaptionView {
  /** @param {Document} page */
  constructor(page) {
    const find = (/** @type {string} */ id) => /** @type {HTMLElement} */ (page.getElementById(id));
    [this.stage, this.log, this.heads, this.empty, this.newest] = ["stage", "captions", "heads", "empty", "newest"].map(find);
    /** @type {Map<number, Row>} */
    this.rows = new Map();
    this.language = "";
    /** @type {string[]} */
    this.targets = [];
    this.following = true;
    /** @type {{line: HTMLElement, at_ms: number, end_ms: number} | null} told last */
    this.gap = null;
    this.stage.addEventListener("scroll", () => this.scrolled());
    this.newest.addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.refit()).observe(this.stage);
  }

  /** A new stream begins. */
  clear() {
    this.log.replaceChildren();
    this.rows.clear();
    this.empty.hidden = true;
    this.follow();
  }

  /** @param {string} language @param {string[]} targets */
  setLanguages(language, targets) {
    this.language = language;
    this.targets = targets;
    this.heads.parentElement?.style.setProperty("--columns", String(1 + targets.length));
    this.heads.parentElement?.classList.toggle("crowded", targets.length > 2);
    this.heads.replaceChildren(...[language, ...targets].map((code) => element("span", {}, languageName(code))));
    this.heads.hidden = !targets.length;
  }

  /** @param {Segment} segment as it is now */
  show(segment) {
    if (!segment.text && !segment.tail) {
      if (segment.final) this.remove(segment.segment); // while it is live, its words may come back
      if (!this.rows.has(segment.segment)) return;
    }
    const row = this.rows.get(segment.segment) ?? this.add(segment);
    if (segment.text.length > row.said.length) {
      row.committed.append(segment.text.slice(row.said.length)); // a text node of its own: what stands is not touched
      row.said = segment.text;
    }
    if (row.tail.textContent !== segment.tail) row.tail.textContent = segment.tail;
    if (segment.final || Object.keys(segment.drafts).length) this.showTranslations(row, segment);
    this.keepHeight(row);
    this.stay();
  }

  /**
   * A line between the segments. A long gap is told piece by piece, and read as one.
   * @param {{at_ms: number, duration_ms: number}} gap audio that was lost
   */
  lost({ at_ms, duration_ms }) {
    let { gap } = this;
    if (gap?.line !== this.log.lastElementChild || gap?.end_ms !== at_ms) {
      gap = { line: this.log.appendChild(element("p", { class: "note" })), at_ms, end_ms: at_ms };
    }
    gap.end_ms = at_ms + duration_ms;
    gap.line.textContent = `${((gap.end_ms - gap.at_ms) / 1000).toFixed(1)} s of audio were lost here`;
    this.gap = gap;
    this.stay();
  }

  /** Scroll to the newest text, and stay there. */
  follow() {
    this.following = true;
    this.stay();
  }

  /** Text or page have changed their size: heights that were kept mean nothing any more. */
  refit() {
    for (const row of this.rows.values()) {
      row.height_px = 0;
      row.row.style.minHeight = "";
    }
    this.stay();
  }

  /** @param {Segment} segment @returns {Row} */
  add(segment) {
    const last = [...this.rows.values()].at(-1);
    if (last) last.row.style.minHeight = ""; // settled: it may close up now, as everything moves for the new row anyway
    const text = element("p", { class: "text", lang: this.language });
    const committed = element("span", { class: "committed" });
    const tail = element("span", { class: "tail", "aria-hidden": "true" });
    text.append(committed, tail);
    const row = element("div", { class: "segment" });
    row.append(element("time", { "aria-hidden": "true" }, clock(segment.start_ms)), text);
    this.log.append(row);
    const made = { row, committed, tail, said: "", height_px: 0, translations: new Map() };
    this.rows.set(segment.segment, made);
    if (this.rows.size > MOST_ROWS) this.remove(/** @type {number} */ (this.rows.keys().next().value));
    return made;
  }

  /** @param {number} index */
  remove(index) {
    this.rows.get(index)?.row.remove();
    this.rows.delete(index);
  }

  /**
   * A draft, or "…" where there has been none, is hidden from screen readers; the translation that takes its place is an addition to the log.
   * @param {Row} row @param {Segment} segment
   */
  showTranslations(row, segment) {
    for (const language of this.targets) {
      let place = row.translations.get(language);
      if (!place) {
        place = element("p", { class: "translation", lang: language });
        place.append(element("span", { class: "pending", "aria-hidden": "true" }));
        row.row.append(place);
        row.translations.set(language, place);
      }
      const pending = place.firstElementChild;
      if (!pending) continue; // translated: that never changes
      const text = segment.translations[language];
      const draft = segment.drafts[language] || pending.textContent || "…";
      if (text !== undefined) place.replaceChildren(text);
      else if (pending.textContent !== draft) pending.textContent = draft;
    }
  }

  /** @param {Row} row */
  keepHeight(row) {
    const height_px = row.row.offsetHeight;
    if (height_px <= row.height_px) return;
    row.height_px = height_px;
    row.row.style.minHeight = `${height_px}px`;
  }

  stay() {
    if (this.following) this.stage.scrollTop = this.stage.scrollHeight;
  }

  scrolled() {
    const below_px = this.stage.scrollHeight - this.stage.clientHeight - this.stage.scrollTop;
    this.following = below_px < NEAR_END_PX;
    this.newest.hidden = this.following;
  }
}
