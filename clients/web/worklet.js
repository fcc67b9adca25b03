/**
 * Runs on the audio thread: mixes down to one channel, turns samples into 16-bit integers and posts them in blocks of 40 ms.
 *
 * The first message states the rate that this thread really runs at (`sampleRate`, a global here). What the page asked the device for is
 * only a wish, and audio sent under a wrong rate is transcribed as nonsense.
 *
 * Out: {type: "rate", sample_rate}, then {type: "audio", samples: Int16Array} and, for what was not recorded between two of them,
 * {type: "gap", samples: number}; {type: "end"} after "stop" came in.
 */

const BLOCK_MS = 40;
const STALL_MS = 2000; // between two calls with sound: the browser has not been recording

class Tap extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round((sampleRate * BLOCK_MS) / 1000));
    this.filled = 0;
    this.heard_ms = 0; // when sound came last; of the clock on the wall, for that of the audio stands still with it
    this.stopped = false;
    this.port.onmessage = () => {
      this.stopped = true; // told from here: nobody calls `process` while the context is suspended
      this.post();
      this.port.postMessage({ type: "end" });
    };
    this.port.postMessage({ type: "rate", sample_rate: sampleRate });
  }

  /**
   * @param {Float32Array[][]} inputs the first input's channels, 128 samples each; no channels while nothing is connected
   * @returns {boolean} false: this node is done
   */
  process([channels]) {
    if (this.stopped) return false;
    const count = channels.length ? channels[0].length : 0;
    if (count) this.heard(count);
    for (let at = 0; at < count; at++) {
      let sum = 0;
      for (const channel of channels) sum += channel[at];
      const sample = Math.max(-1, Math.min(1, sum / channels.length));
      this.block[this.filled++] = Math.round(sample * 32767);
      if (this.filled === this.block.length) this.post();
    }
    return true;
  }

  /** Time that went by without sound is told. @param {number} count samples that have come now */
  heard(count) {
    const now_ms = Date.now();
    const away_ms = now_ms - this.heard_ms;
    if (this.heard_ms && away_ms > STALL_MS) {
      this.post();
      this.port.postMessage({ type: "gap", samples: Math.round((away_ms * sampleRate) / 1000) - count });
    }
    this.heard_ms = now_ms;
  }

  /** Hands the block over without a copy and begins a new one. */
  post() {
    if (!this.filled) return;
    const samples = this.block.subarray(0, this.filled).slice();
    this.filled = 0;
    this.port.postMessage({ type: "audio", samples }, [samples.buffer]);
  }
}

registerProcessor("tap", Tap);
