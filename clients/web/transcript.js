/**
 * What has been said so far: events of the server in, segments out. Knows nothing of the page or the socket.
 *
 * Text is append-only: the deltas of a segment joined are its transcript. The tail is what follows for the time being.
 *
 * @typedef {import("./captions.js").Word} Word
 * @typedef {{
 *   segment: number, text: string, tail: string, words: Word[], start_ms: number, end_ms: number, final: boolean,
 *   translations: Record<string, string>, drafts: Record<string, string>,
 * }} Segment drafts: translations for the time being, of languages whose translation has not come yet
 */

export class Transcript {
  constructor() {
    /** @type {Map<number, Segment>} in the order of their beginning */
    this.byIndex = new Map();
  }

  /** Segments that are finished and not empty, for a download. @returns {Segment[]} */
  get finished() {
    return [...this.byIndex.values()].filter((segment) => segment.final && segment.text.trim());
  }

  /**
   * Takes an event in.
   * @param {any} event one of the server's text events
   * @returns {Segment | null} the segment that it changed
   */
  apply(event) {
    switch (event.type) {
      case "speech_started":
        return this.at(event.segment, event.at_ms);
      case "partial": {
        const segment = this.at(event.segment, event.clocks.committed_ms);
        segment.text += event.delta;
        segment.tail = event.tail;
        segment.words.push(...event.words);
        return segment;
      }
      case "final": {
        const segment = this.at(event.segment, event.start_ms);
        const { text, words, start_ms, end_ms } = event;
        return Object.assign(segment, { text, words, start_ms, end_ms, tail: "", final: true });
      }
      case "translation": {
        const segment = this.at(event.segment, event.start_ms);
        segment.translations[event.language] = event.text;
        delete segment.drafts[event.language];
        return segment;
      }
      case "translation_draft": {
        const segment = this.at(event.segment, event.clocks.committed_ms);
        segment.drafts[event.language] = event.text;
        return segment;
      }
      default:
        return null;
    }
  }

  /** @param {number} index @param {number} start_ms @returns {Segment} */
  at(index, start_ms) {
    let segment = this.byIndex.get(index);
    if (!segment) {
      segment = { segment: index, text: "", tail: "", words: [], start_ms, end_ms: start_ms, final: false, translations: {}, drafts: {} };
      this.byIndex.set(index, segment);
    }
    return segment;
  }
}
