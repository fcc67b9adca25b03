/** Audio that may have to be sent again, by sample number; what is to be sent next is a place in it. Pure. */

export class Unconfirmed {
  /** @param {number} most_samples kept at most; older ones are forgotten, and `skipForgotten` tells how many */
  constructor(most_samples) {
    this.most_samples = most_samples;
    /** @type {{at: number, samples: Int16Array}[]} without holes, in order */
    this.blocks = [];
    this.end = 0; // number of the sample that comes next
    this.cursor = 0; // number of the sample to be sent next
    this.confirmed = 0; // samples before this number are with the server
  }

  /** Number of the oldest sample that is kept. */
  get begin() {
    return this.blocks.length ? this.blocks[0].at : this.end;
  }

  /** @param {Int16Array} samples at least one */
  push(samples) {
    this.blocks.push({ at: this.end, samples });
    this.end += samples.length;
    while (this.end - this.begin > this.most_samples) this.blocks.shift();
  }

  /** Samples before number `count` are with the server, as long as it lives. @param {number} count */
  confirm(count) {
    this.confirmed = Math.max(this.confirmed, Math.min(count, this.end));
    this.cursor = Math.max(this.cursor, this.confirmed);
  }

  /** Samples before number `count` are not wanted again, whatever happens to the server. @param {number} count */
  forget(count) {
    const before = Math.min(count, this.confirmed);
    while (this.blocks.length && this.blocks[0].at + this.blocks[0].samples.length <= before) this.blocks.shift();
  }

  /** Send again from sample number `count` on. @param {number} count */
  rewind(count) {
    this.cursor = count;
  }

  /** Nobody has anything from sample number `count` on. @param {number} count */
  startOver(count) {
    this.cursor = this.confirmed = count;
  }

  /** How many samples were forgotten before they could be sent; asked once, they are passed over. */
  skipForgotten() {
    const lost_samples = Math.max(0, this.begin - this.cursor);
    this.cursor += lost_samples;
    return lost_samples;
  }

  /** The next block to send, or null when nothing waits. @returns {Int16Array | null} */
  next() {
    if (this.cursor >= this.end) return null;
    const place = this.blocks.findIndex(({ at, samples }) => at + samples.length > this.cursor);
    const { at, samples } = this.blocks[place];
    const block = this.cursor > at ? samples.subarray(this.cursor - at) : samples;
    this.cursor = at + samples.length;
    return block;
  }
}
