/** The line at the bottom, and the message at the top when something went wrong. */

const SLOW_S = 2;
const LATE_S = 5;
const LEVELS = ["", "busy: larger steps", "busy: fewer updates", "busy: translations wait", "busy: no new listeners"];

export class Status {
  /** @param {Document} page */
  constructor(page) {
    const find = (/** @type {string} */ id) => /** @type {HTMLElement} */ (page.getElementById(id));
    [this.place, this.lag, this.times, this.load, this.alert] = ["state", "lag", "clocks", "load", "error"].map(find);
    /** @type {{live: boolean, duration_s: number | null}} */
    this.source = { live: true, duration_s: null };
    this.alert.querySelector("button")?.addEventListener("click", () => this.clearError());
    const names = ["received", "processed", "committed"];
    this.times.replaceChildren(...names.map((name) => Object.assign(page.createElement("span"), { textContent: `${name} ` })));
    this.numbers = [...this.times.children].map((span) => span.appendChild(page.createElement("b")));
    for (const number of this.numbers) number.textContent = "–";
  }

  /** @param {{live: boolean, duration_s: number | null}} source whose lag is shown from now on */
  begin(source) {
    this.source = source;
    this.clocks({ received_ms: 0, processed_ms: 0, committed_ms: 0 }, 0, 0);
    this.state("wait", "Connecting…");
  }

  /** @param {"idle" | "wait" | "live" | "error"} kind @param {string} text */
  state(kind, text) {
    clearInterval(this.counting);
    this.place.dataset.state = kind;
    if (this.place.textContent !== text) this.place.textContent = text;
  }

  /** Told aloud once; the seconds, which change, are for the eye. @param {string} why @param {number} seconds */
  countDown(why, seconds) {
    this.state("wait", `${why}; trying again`);
    const number = document.createElement("span");
    number.setAttribute("aria-hidden", "true");
    this.place.append(number);
    let left_s = Math.ceil(seconds);
    const tick = () => {
      number.textContent = left_s > 0 ? `in ${left_s} s` : "…";
      left_s -= 1;
    };
    tick();
    this.counting = setInterval(tick, 1000);
  }

  /**
   * Lag is audio that is there and not yet processed. For live audio that is counted from what was recorded, so a slow network shows too; a
   * file that is sent ahead is not late for that.
   * @param {{received_ms: number, processed_ms: number, committed_ms: number}} clocks
   * @param {number} captured_ms
   * @param {number} [level] of the server's economy, if it was told
   */
  clocks({ received_ms, processed_ms, committed_ms }, captured_ms, level) {
    const there_ms = this.source.live ? Math.max(captured_ms, received_ms) : received_ms;
    const lag_s = Math.max(0, there_ms - processed_ms) / 1000;
    const number = /** @type {HTMLElement} */ (this.lag.querySelector("b"));
    number.textContent = `${lag_s.toFixed(1)} s`;
    this.lag.dataset.level = !this.source.live || lag_s < SLOW_S ? "good" : lag_s < LATE_S ? "warn" : "bad";
    [received_ms, processed_ms, committed_ms].forEach((time_ms, place) => {
      this.numbers[place].textContent = `${(time_ms / 1000).toFixed(1)} s`;
    });
    if (level !== undefined) {
      this.load.textContent = LEVELS[level];
      this.load.hidden = !level;
    }
  }

  /** @param {string} message stays until it is closed */
  error(message) {
    this.alert.hidden = false;
    /** @type {HTMLElement} */ (this.alert.querySelector("p")).textContent = message;
  }

  clearError() {
    this.alert.hidden = true;
  }
}
