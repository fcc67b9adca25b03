/** Audio that may have to be sent again, by sample number; what is to be sent next is a place in it. Pure. */

export class Unconfirmed {
  /** @param {number} most_samples kept at most; older ones are forgotten, and `skipMissing` tells how many */
  constructor(most_samples) {
    this.most_samples = most_samples;
    /** @type {{at: number, samples: Int16Array}[]} in order; with holes where audio was lost before it came here */
    this.blocks = [];
    this.kept_samples = 0;
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
    this.kept_samples += samples.length;
    while (this.kept_samples > this.most_samples) this.shift();
  }

  /** Audio was lost before it came here. @param {number} samples at least one */
  skip(samples) {
    this.end += samples;
  }

  shift() {
    this.kept_samples -= this.blocks.shift()?.samples.length ?? 0;
  }

  /** Samples before number `count` are with the server, as long as it lives. @param {number} count */
  confirm(count) {
    this.confirmed = Math.max(this.confirmed, Math.min(count, this.end));
    this.cursor = Math.max(this.cursor, this.confirmed);
  }

  /** Samples before number `count` are not wanted again, whatever happens to the server. @param {number} count */
  forget(count) {
    const before = Math.min(count, this.confirmed);
    while (this.blocks.length && this.blocks[0].at + this.blocks[0].samples.length <= before) this.shift();
  }

  /** Send again from sample number `count` on. @param {number} count */
  rewind(count) {
    this.cursor = count;
  }

  /** Nobody has anything from sample number `count` on. @param {number} count */
  startOver(count) {
    this.cursor = this.confirmed = count;
  }

  /** How many samples that would be next are not here, lost or forgotten; asked once, they are passed over. */
  skipMissing() {
    const lost_samples = Math.max(0, (this.waiting?.at ?? this.end) - this.cursor);
    this.cursor += lost_samples;
    return lost_samples;
  }

  /** The first block of which not everything was sent. */
  get waiting() {
    return this.blocks.find(({ at, samples }) => at + samples.length > this.cursor);
  }

  /** The next block to send, or null when nothing waits; `skipMissing` comes first. @returns {Int16Array | null} */
  next() {
    if (!this.waiting) return null;
    const { at, samples } = this.waiting;
    const block = this.cursor > at ? samples.subarray(this.cursor - at) : samples;
    this.cursor = at + samples.length;
    return block;
  }
}
