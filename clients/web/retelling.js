/**
 * One stream's events, although the server that heard it is gone and another one hears the unfinished part again. Pure.
 *
 * What was told stays told: numbers and times of the new session are put behind those of the old one, and words that are heard a second time
 * are not told a second time. As long as no server is lost, events go through as they are. The same rules as in clients/retelling.py
 * (tests/test_web.py holds the two together), without formatted text, which the page does not ask for.
 *
 * @typedef {import("./captions.js").Word} Word
 * @typedef {{received_ms: number, processed_ms: number, committed_ms: number}} Clocks
 * @typedef {{number: number, at_ms: number, words: Word[], ended_ms: number | null, final: boolean, waits_for: Set<string>}} Open
 *   a segment of which not everything was told; `waits_for`: languages of the translations that are to come after its final
 */

const TIMES = ["at_ms", "start_ms", "end_ms", "audio_ms"];
const LEAD_IN_MS = 400;
const KEPT_SILENCE_MS = 2000; // a segment begins at most so long before the audio in which its server notices it, lead-in included
const CLOCKS = /** @type {const} */ (["received_ms", "processed_ms", "committed_ms"]);

export class Retelling {
  constructor() {
    /** @type {string[]} translations that the session makes */
    this.targets = [];
    /** @type {Clocks} told last */
    this.clocks = { received_ms: 0, processed_ms: 0, committed_ms: 0 };
    /** @type {Open | null} */
    this.open = null;
    this.next = 0; // number of the next segment
    this.ended_ms = 0; // where the last segment that was told to the end ends
    this.last_ms = 0; // where the last word that was told ends
    this.dropped_ms = 0; // where the last gap that was told ends
    // Since a restart
    this.restarted = false;
    this.offset_ms = this.first = 0; // of the session: its beginning, and the number of its first segment, as told
    this.again = false; // the open segment was told in part by a server that is gone
    /** @type {Word[]} its words that were not yet heard again */
    this.left = [];
    this.told_ms = 0; // where they end
    this.heard = 0; // words of the present segment that this session has told us of
  }

  /** Everything before this moment was told, and told to the end: a server that knows nothing must begin to listen here. */
  get resume_ms() {
    if (!this.open) return this.clocks.committed_ms;
    return Math.max(Math.min(this.ended_ms, this.open.at_ms), this.open.at_ms - LEAD_IN_MS);
  }

  /** Audio before this is not needed for a restart, now or later: `resume_ms` goes back when a segment begins. */
  get keep_ms() {
    return Math.min(this.resume_ms, Math.max(this.ended_ms, this.clocks.committed_ms - KEPT_SILENCE_MS));
  }

  /**
   * A new session hears the stream from `at_ms` on.
   * @param {number} at_ms
   * @returns {any[]} what is told at once: audio that nobody has any more, if that is later than `resume_ms`
   */
  restart(at_ms) {
    const lost_ms = at_ms - this.resume_ms;
    Object.assign(this, { restarted: true, again: this.open !== null, offset_ms: at_ms, heard: 0 });
    this.first = this.open?.number ?? this.next;
    this.left = this.open?.words.filter((word) => word.end_ms > at_ms) ?? [];
    this.told_ms = this.left.at(-1)?.end_ms ?? 0;
    if (lost_ms <= 0) return [];
    this.dropped_ms = at_ms;
    return [{ type: "dropped", clocks: this.clocks, at_ms: at_ms - lost_ms, duration_ms: lost_ms }];
  }

  /** Clocks of a progress message in times of the stream. @param {Clocks} clocks @param {boolean} complete no event is still on its way */
  progressed(clocks, complete) {
    const later = this.later(clocks);
    if (complete) this.clocks = later;
    return later;
  }

  /** @param {any} event of the server @returns {any[]} what the user is told */
  tell(event) {
    event = this.shifted(event);
    const told = this.restarted ? this.retold(event) : [event];
    told.forEach((each) => this.follow(each));
    this.clocks = event.clocks;
    return told;
  }

  /** Keeps track of what was told. @param {any} event */
  follow(event) {
    const segment = this.open;
    if ((event.type === "partial" || event.type === "final") && event.words.length) this.last_ms = event.words.at(-1).end_ms;
    if (event.type === "speech_started") {
      this.open = { number: event.segment, at_ms: event.at_ms, words: [], ended_ms: null, final: false, waits_for: new Set() };
      this.next = event.segment + 1;
    } else if (event.type === "dropped") this.dropped_ms = event.at_ms + event.duration_ms;
    if (!segment) return;
    if (event.type === "partial") segment.words.push(...event.words);
    else if (event.type === "speech_ended") segment.ended_ms = event.at_ms;
    else if (event.type === "final") {
      segment.final = true;
      segment.words = [...event.words];
      if (event.text) segment.waits_for = new Set(this.targets);
    } else if (event.type === "translation") segment.waits_for.delete(event.language);
    if (segment === this.open && segment.final && !segment.waits_for.size) {
      Object.assign(this, { open: null, again: false, ended_ms: segment.ended_ms ?? 0 });
    }
  }

  /** In times of the stream; no clock goes back. @param {Clocks} clocks @returns {Clocks} */
  later(clocks) {
    if (!this.restarted) return clocks;
    const later = { ...clocks };
    for (const name of CLOCKS) later[name] = Math.max(this.clocks[name], clocks[name] + this.offset_ms);
    return later;
  }

  /** In times and numbers of the stream. @param {any} event */
  shifted(event) {
    if (!this.restarted) return event;
    const shifted = { ...event, clocks: this.later(event.clocks) };
    for (const name of TIMES) if (name in shifted) shifted[name] += this.offset_ms;
    if ("segment" in shifted) shifted.segment += this.first;
    const later = (/** @type {Word} */ word) => ({ ...word, start_ms: word.start_ms + this.offset_ms, end_ms: word.end_ms + this.offset_ms });
    if (shifted.words) shifted.words = shifted.words.map(later);
    return shifted;
  }

  /** @param {any} event @returns {any[]} */
  retold(event) {
    switch (event.type) {
      case "speech_started":
        return this.started(event);
      case "partial":
        return this.partial(event);
      case "speech_ended":
        return this.again && this.open && this.open.ended_ms !== null ? [] : [event];
      case "final":
        return this.final(event);
      case "translation":
        return !this.again || (this.open?.final && this.open.waits_for.has(event.language)) ? [event] : [];
      case "translation_draft":
        return this.left.length || this.open?.final ? [] : [event];
      case "dropped":
        return event.at_ms + event.duration_ms > this.dropped_ms ? [event] : [];
      case "ended":
        return [...this.closing(event.clocks), event];
      default:
        return [event];
    }
  }

  /** @param {any} event speech_started @returns {any[]} */
  started(event) {
    this.heard = 0;
    const segment = this.open;
    if (!segment || !this.again || event.segment !== segment.number) {
      this.again = false;
      return [event];
    }
    if (segment.ended_ms === null || event.at_ms < segment.ended_ms) return []; // the open segment, heard again
    const closing = this.closing(event.clocks); // nothing was heard of it this time
    this.first += 1;
    this.again = false;
    return [...closing, { ...event, segment: event.segment + 1 }];
  }

  /** @param {any} event partial @returns {any[]} */
  partial(event) {
    const fresh = this.fresh(event.words);
    this.heard += event.words.length;
    if ((this.left.length && !fresh.length) || (this.again && this.open?.final)) return [];
    return [{ ...event, delta: joined(fresh), words: fresh }];
  }

  /** @param {any} event final @returns {any[]} */
  final(event) {
    const fresh = this.fresh(event.words.slice(this.heard));
    if (event.end_ms >= this.told_ms) this.left = [];
    const segment = this.open;
    if (!segment || segment.final) return [];
    const words = [...segment.words, ...fresh];
    const end_ms = Math.max(event.end_ms, words.at(-1)?.end_ms ?? 0);
    return [{ ...event, delta: joined(fresh), text: joined(words), words, start_ms: segment.at_ms, end_ms }];
  }

  /** Those that were not told before the restart, and not before any that were. @param {Word[]} words */
  fresh(words) {
    /** @type {Word[]} */
    const fresh = [];
    let { last_ms } = this;
    for (const word of words) {
      if (this.left.length && !fresh.length) {
        if (bare(word) === bare(this.left[0])) {
          this.left.shift();
          continue;
        }
        if (word.end_ms <= this.told_ms) continue; // it is heard differently this time; what was told stays
        this.left = [];
      }
      const start_ms = Math.max(last_ms, word.start_ms);
      last_ms = Math.max(last_ms, word.end_ms);
      fresh.push({ ...word, start_ms, end_ms: Math.max(start_ms, word.end_ms) });
    }
    return fresh;
  }

  /** The end of a segment that the new session has not heard again. @param {Clocks} clocks @returns {any[]} */
  closing(clocks) {
    const segment = this.open;
    if (!segment || segment.final) return [];
    const end_ms = segment.ended_ms || Math.max(segment.at_ms, segment.words.at(-1)?.end_ms ?? 0);
    const { number, words, at_ms } = segment;
    const ended = { type: "speech_ended", clocks, segment: number, at_ms: end_ms, reason: "finish" };
    const final = { type: "final", clocks, segment: number, delta: "", text: joined(words), words, start_ms: at_ms, end_ms, reason: "finish" };
    return segment.ended_ms === null ? [ended, final] : [final];
  }
}

/** @param {Word[]} words */
function joined(words) {
  return words.map((word) => word.text).join("");
}

/** @param {Word} word */
function bare({ text }) {
  return text.trim().replace(/^[.,;:!?]+|[.,;:!?]+$/g, "").toLowerCase();
}
