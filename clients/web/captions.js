/**
 * Words with times → caption cues → SRT, VTT, TXT, JSON. The rules are those of stream/captions.py, step by step, so that a download from
 * the page equals the command's file; tests/test_web.py compares the two on random words. Pure: nothing here knows the page.
 *
 * @typedef {{text: string, start_ms: number, end_ms: number}} Word
 * @typedef {{start_ms: number, end_ms: number, lines: string[]}} Cue
 * @typedef {import("./transcript.js").Segment} Segment
 */

const LINE_CHARACTERS = 42;
const LINES = 2;
const LONGEST_MS = 6000;
const SHORTEST_MS = 1000;
const LETTER = /[\p{L}\p{N}]/u;
// What Python's str.strip() and str.split() take for white space; JavaScript's \s is a slightly different set.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const OUTER_SPACE = new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, "gu");
// model/sentences.py: a mark, and perhaps quotation marks or brackets behind it; a full stop behind the second ends no sentence.
const CLOSED = new RegExp(`[.?!。？！…]["'”’)\\]]*[${SPACE}]*$`, "u");
const SHORT = new RegExp(
  `(?:^|[${SPACE}("'“‘])(?:[A-HJ-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Mt|vs|etc|e\\.g|i\\.e|Gen|Col|Capt|Lt|Rev|Hon)\\.[${SPACE}]*$`,
  "u",
);
const BREAKS = new RegExp(`(?:(?![\\xa0\\u2007\\u202f])[${SPACE}])+`, "u"); // where a line may end

/** @param {string} text */
export const strip = (text) => text.replace(OUTER_SPACE, "");

/** Characters as people and Python count them, not UTF-16 units. @param {string} text */
const size = (text) => Array.from(text).length;

/**
 * The lines of a text, as Python's textwrap.wrap(text, 42, break_on_hyphens=False) makes them.
 * @param {string} text
 * @returns {string[]}
 */
export function wrap(text) {
  const chunks = text.replace(/[\t\n\v\f\r]/g, " ").split(/( +)/).filter(Boolean).reverse();
  const lines = [];
  while (chunks.length) {
    const line = [];
    let room = LINE_CHARACTERS;
    if (lines.length && !strip(chunks.at(-1))) chunks.pop();
    while (chunks.length && size(chunks.at(-1)) <= room) {
      room -= size(chunks.at(-1));
      line.push(chunks.pop());
    }
    if (chunks.length && size(chunks.at(-1)) > LINE_CHARACTERS) {
      const letters = Array.from(chunks.pop());
      line.push(letters.slice(0, room).join(""));
      chunks.push(letters.slice(room).join(""));
    }
    if (line.length && !strip(line.at(-1))) line.pop();
    if (line.length) lines.push(line.join(""));
  }
  return lines;
}

/** A full stop that was committed after its word belongs to it. @param {Word[]} words @returns {Word[]} */
function wholeWords(words) {
  /** @type {Word[]} */
  const whole = [];
  for (const word of words) {
    const last = whole.at(-1);
    if (last && !LETTER.test(word.text)) whole[whole.length - 1] = { ...last, text: last.text + word.text, end_ms: word.end_ms };
    else whole.push(word);
  }
  return whole;
}

/** @param {Word[]} group */
const linesOf = (group) => wrap(strip(group.map((word) => word.text).join("")));

/** @param {Word[]} group @returns {Cue} */
const cueOf = (group) => ({ start_ms: group[0].start_ms, end_ms: group.at(-1).end_ms, lines: linesOf(group) });

/**
 * The words of one segment → its cues. A cue ends where it is full, has stood long enough, or a sentence ends on its second line.
 * @param {Word[]} words
 * @returns {Cue[]}
 */
export function cutCues(words) {
  const cues = [];
  /** @type {Word[]} */
  let group = [];
  for (const word of wholeWords(words)) {
    if (group.length && (linesOf([...group, word]).length > LINES || word.end_ms - group[0].start_ms > LONGEST_MS)) {
      cues.push(cueOf(group));
      group = [];
    }
    group.push(word);
    if (CLOSED.test(word.text) && !SHORT.test(word.text) && linesOf(group).length > 1) {
      cues.push(cueOf(group));
      group = [];
    }
  }
  if (group.length) cues.push(cueOf(group));
  return cues.flatMap(splitLong);
}

/** A single word longer than a whole cue is shared out over several. @param {Cue} cue @returns {Cue[]} */
function splitLong(cue) {
  const count = Math.ceil(cue.lines.length / LINES);
  const at_ms = (/** @type {number} */ place) => cue.start_ms + Math.floor(((cue.end_ms - cue.start_ms) * place) / count);
  return Array.from({ length: count }, (_, place) => ({
    start_ms: at_ms(place),
    end_ms: at_ms(place + 1),
    lines: cue.lines.slice(place * LINES, (place + 1) * LINES),
  }));
}

/** Words, with marks that stand apart (French ? ! : ; » and «): what no line end may part. @param {string} text */
function piecesOf(text) {
  /** @type {string[]} */
  const pieces = [];
  for (const piece of text.split(BREAKS).filter(Boolean)) {
    const last = pieces.at(-1);
    if (last !== undefined && (last.endsWith("«") || !(piece.endsWith("«") || LETTER.test(piece)))) {
      pieces[pieces.length - 1] = `${last}\u00a0${piece}`;
    } else pieces.push(piece);
  }
  return pieces;
}

/**
 * A text without word times (a translation) → words that share its time by their length.
 * @param {string} text @param {number} start_ms @param {number} end_ms
 * @returns {Word[]}
 */
export function spread(text, start_ms, end_ms) {
  const pieces = piecesOf(text);
  const total = pieces.reduce((sum, piece) => sum + size(piece) + 1, 0);
  let before = 0;
  return pieces.map((piece) => {
    const after = before + size(piece) + 1;
    const [begin, end] = [before, after].map((part) => start_ms + Math.floor(((end_ms - start_ms) * part) / total));
    before = after;
    return { text: ` ${piece}`, start_ms: begin, end_ms: end };
  });
}

/**
 * Cues of all segments, in order → none overlaps the next, and each stands for a second where there is room.
 * @param {Cue[]} cues
 * @returns {Cue[]}
 */
export function settleTimes(cues) {
  const readable_ms = (/** @type {Cue} */ cue) => Math.max(cue.end_ms, cue.start_ms + SHORTEST_MS);
  /** @type {Cue[]} */
  const settled = [];
  for (const cue of cues) {
    const held = settled.at(-1);
    const start_ms = held ? Math.max(cue.start_ms, held.start_ms + 1) : cue.start_ms;
    if (held) held.end_ms = Math.min(readable_ms(held), start_ms);
    settled.push({ ...cue, start_ms });
  }
  const last = settled.at(-1);
  if (last) last.end_ms = readable_ms(last);
  return settled;
}

/** Milliseconds → hh:mm:ss,mmm. @param {number} at_ms @param {string} point stands before the milliseconds */
export function stamp(at_ms, point) {
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  const seconds = Math.floor(at_ms / 1000);
  const clock = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map(two).join(":");
  return `${clock}${point}${String(at_ms % 1000).padStart(3, "0")}`;
}

/**
 * @param {Segment[]} segments finished ones, in order
 * @param {string | null} language a translation's, or null for the transcript
 * @returns {Cue[]}
 */
function cuesOf(segments, language) {
  const words = segments.map((segment) => {
    if (language === null) return segment.words;
    const translation = segment.translations[language];
    return translation === undefined ? [] : spread(translation, segment.start_ms, segment.end_ms);
  });
  return settleTimes(words.flatMap(cutCues));
}

/** SubRip. @param {Segment[]} segments @param {string | null} language */
export function toSrt(segments, language = null) {
  const block = (/** @type {Cue} */ cue, /** @type {number} */ place) =>
    `${place + 1}\n${stamp(cue.start_ms, ",")} --> ${stamp(cue.end_ms, ",")}\n${cue.lines.join("\n")}\n\n`;
  return cuesOf(segments, language).map(block).join("");
}

/** WebVTT. @param {Segment[]} segments @param {string | null} language */
export function toVtt(segments, language = null) {
  const safe = (/** @type {string} */ text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const block = (/** @type {Cue} */ cue) => `${stamp(cue.start_ms, ".")} --> ${stamp(cue.end_ms, ".")}\n${safe(cue.lines.join("\n"))}\n\n`;
  return "WEBVTT\n\n" + cuesOf(segments, language).map(block).join("");
}

/** One line for each segment; translations below it, each behind its language. @param {Segment[]} segments */
export function toTxt(segments) {
  const lines = segments.flatMap((segment) => [
    strip(segment.text),
    ...Object.entries(segment.translations).map(([language, text]) => text && `[${language}] ${text}`),
  ]);
  return lines.filter(Boolean).map((line) => `${line}\n`).join("");
}

/** Everything that is known, word times included. @param {Segment[]} segments @param {string} language */
export function toJson(segments, language) {
  const known = segments.map(({ segment, start_ms, end_ms, text, words, translations }) => ({
    segment, start_ms, end_ms, text, words, translations,
  }));
  return JSON.stringify({ language, segments: known }, null, 2) + "\n";
}
