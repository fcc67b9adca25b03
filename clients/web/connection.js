/**
 * One stream on the native socket (docs/protocol.md): audio out, events in, and on with it when the connection is lost.
 *
 * After a lost connection the session is resumed, and what the server lacks is sent again: no word is lost and none comes twice. A server
 * that no longer knows the session was started again (or had waited too long): a new session hears from where everything had been told to
 * the end, for which audio is kept until then; what was told stays (retelling.js). A live stream outlasts its sessions, and any outage.
 *
 * @typedef {{code: string, message: string, retry_after_s?: number}} Failure
 * @typedef {{
 *   ready?: (message: any) => void,
 *   event?: (event: any) => void,
 *   progress?: (clocks: {received_ms: number, processed_ms: number, committed_ms: number}, level?: number) => void,
 *   notice?: (message: string, within_s: number) => void,
 *   waiting?: (why: "connecting" | "lost" | "busy", retry_in_s: number, message: string) => void,
 *   closed?: (failure: Failure | null) => void,
 * }} Handlers `closed` is called exactly once; null: the stream ended as it should
 */

import { headers, subprotocols } from "./key.js";
import { Retelling } from "./retelling.js";
import { Unconfirmed } from "./unconfirmed.js";

export const KEPT_S = 120; // audio kept for a lost connection or a lost server; older audio becomes a gap
const SOCKET_BYTES = 256 * 1024; // the rest waits here, where it can still be counted
const PUMP_MS = 100;
const KEEP_ALIVE_MS = 20_000;
const BACKOFF_S = [0.25, 0.5, 1, 2, 4, 8];
const SHORTEST_RETRY_S = 0.5;
const BUSY_RETRY_S = 5;
const SILENCE_MS = 20_000; // without an answer, and there is something to answer: the network has died, and nobody will ever say so
const MOST_GAP = 11_520_000; // samples in one message
const FRUITLESS = 3; // servers in a row that were lost before they told anything: it may be this audio that kills them

export class Stream {
  /**
   * @param {string} url of the socket
   * @param {Record<string, any>} start what the start message says beside its type; sample_rate is required
   * @param {Handlers} handlers
   * @param {boolean} live its audio neither waits nor ends by itself: until `finish` a server that is away is waited for without end, and a
   *   session that it ends is followed by another
   */
  constructor(url, start, handlers, live = false) {
    this.url = url;
    this.live = live;
    this.startMessage = { type: "start", version: 1, channels: 1, encoding: "pcm_s16le", ...start };
    this.handlers = handlers;
    this.audio = new Unconfirmed(KEPT_S * start.sample_rate);
    this.sample_rate = start.sample_rate;
    this.retelling = new Retelling();
    this.session = "";
    this.lastSeq = 0;
    this.firstSample = 0; // of the stream, that the present session has heard
    /** @type {number[]} where other sessions began, in samples */
    this.restarts = [];
    this.resume_s = 60;
    this.finishing = this.finishSent = this.ready = this.closed = this.everOpen = this.everReady = false;
    /** @type {Failure | null} */
    this.failure = null;
    /** @type {number | null} when the connection was lost, ms of the page's clock */
    this.lostAt_ms = null;
    this.attempts = 0;
    this.lastSent_ms = 0;
    this.lastHeard_ms = 0; // or since when an answer is due
    this.pumping = setInterval(() => this.pump(), PUMP_MS);
    this.connect();
  }

  /** Audio that was handed over, in ms of stream time. */
  get captured_ms() {
    return (this.audio.end * 1000) / this.sample_rate;
  }

  /** Audio that was handed over and is not yet safe with the server, in seconds. */
  get unconfirmed_s() {
    return (this.audio.end - this.audio.confirmed) / this.sample_rate;
  }

  /** @param {Int16Array} samples */
  send(samples) {
    if (this.finishing || this.closed) return;
    if (!this.unconfirmed_s) this.lastHeard_ms = performance.now();
    this.audio.push(samples);
    this.pump();
  }

  /** Audio was lost before it could be handed over; the stream's time goes on over it. @param {number} samples */
  lose(samples) {
    if (this.finishing || this.closed) return;
    if (!this.unconfirmed_s) this.lastHeard_ms = performance.now();
    this.audio.skip(samples);
    this.pump();
  }

  /** No more audio comes: everything is committed, then `closed` is called. */
  finish() {
    this.finishing = true;
    this.pump();
  }

  /** Give up at once. @param {Failure | null} failure */
  close(failure) {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.pumping);
    clearTimeout(this.retrying);
    this.socket.close();
    this.handlers.closed?.(failure);
  }

  connect() {
    this.ready = this.finishSent = this.open = false;
    this.failure = null;
    this.lastHeard_ms = performance.now();
    const socket = (this.socket = new WebSocket(this.url, subprotocols()));
    socket.onopen = () => {
      this.open = this.everOpen = true;
      this.say(this.session ? { type: "resume", version: 1, session: this.session, after_seq: this.lastSeq } : this.startMessage);
    };
    socket.onmessage = ({ data }) => {
      this.lastHeard_ms = performance.now();
      this.take(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => socket === this.socket && this.dropped(code, reason);
  }

  /** @param {any} message of the server */
  take(message) {
    switch (message.type) {
      case "ready":
        return this.begin(message);
      case "progress": {
        const clocks = this.retelling.progressed(message.clocks, message.seq === this.lastSeq);
        this.audio.confirm(this.firstSample + message.received_samples);
        this.forget();
        this.handlers.progress?.(clocks, message.level);
        return this.pump();
      }
      case "notice":
        return this.handlers.notice?.(message.message, message.within_s);
      case "error":
        this.failure = message;
        return;
      default: {
        if (message.seq <= this.lastSeq) return; // came before the connection was lost
        this.lastSeq = message.seq;
        const ended = message.type === "ended";
        const goesOn = ended && this.live && !this.finishSent; // the server stops, or the time is up
        for (const told of this.retelling.tell(message)) if (!goesOn || told.type !== "ended") this.handlers.event?.(told);
        this.forget();
        this.handlers.progress?.(this.retelling.clocks);
        if (goesOn) {
          this.startAnew({ ended });
          this.giveUp("the session was ended");
        } else if (ended) this.close(null);
      }
    }
  }

  /** @param {any} message ready */
  begin(message) {
    this.session = message.session;
    this.resume_s = message.limits.resume_s;
    this.ready = this.everReady = true;
    this.lostAt_ms = null;
    this.attempts = 0;
    this.retelling.targets = message.targets;
    this.audio.confirm(this.firstSample + message.received_samples);
    this.audio.rewind(this.firstSample + message.received_samples);
    this.handlers.ready?.(message);
    this.pump();
  }

  /** Audio of which everything was told is not needed again. */
  forget() {
    this.audio.forget(this.sampleAt(this.retelling.keep_ms));
  }

  /** @param {number} at_ms */
  sampleAt(at_ms) {
    return Math.floor((at_ms * this.sample_rate) / 1000);
  }

  /**
   * The server does not know the session any more, or has ended it in order: another one begins.
   * @returns {boolean} false: it was lost, that has helped too often already, and there is no later audio of a live stream to go on with
   */
  startAnew({ ended = false } = {}) {
    const { retelling, audio, sample_rate } = this;
    let first = Math.max(this.sampleAt(retelling.resume_ms), audio.begin);
    const last = this.restarts.slice(-FRUITLESS);
    if (!ended && last.length === FRUITLESS && last.every((earlier) => earlier === first)) {
      if (!this.live || audio.cursor <= first) return false;
      first = audio.cursor; // behind what those servers were sent
    }
    this.restarts = ended ? [] : [...last, first];
    const at_ms = Math.max(retelling.resume_ms, Math.ceil((first * 1000) / sample_rate));
    for (const told of retelling.restart(at_ms)) this.handlers.event?.(told);
    audio.startOver(first);
    this.firstSample = first;
    this.session = "";
    this.lastSeq = 0;
    return true;
  }

  /** Gives the socket as much audio as it should hold, then the end of the stream. */
  pump() {
    if (this.isDead) return this.giveUp("no answer");
    if (!this.ready || this.socket.readyState !== WebSocket.OPEN) return;
    while (this.socket.bufferedAmount < SOCKET_BYTES) {
      for (let lost = this.audio.skipMissing(); lost > 0; lost -= MOST_GAP) this.say({ type: "gap", samples: Math.min(lost, MOST_GAP) });
      const block = this.audio.next();
      if (!block) {
        if (this.finishing && !this.finishSent) {
          this.finishSent = true;
          this.say({ type: "finish" });
        }
        break;
      }
      this.socket.send(block);
      this.lastSent_ms = performance.now();
    }
    if (!this.finishSent && performance.now() - this.lastSent_ms > KEEP_ALIVE_MS) this.say({ type: "keep_alive" });
  }

  /** Whether the server should have said something long ago: to the first message, to audio, or to the end of it. */
  get isDead() {
    const open = [WebSocket.CONNECTING, WebSocket.OPEN].includes(this.socket.readyState);
    const due = !this.ready || this.finishSent || this.unconfirmed_s > 1; // of less the server need not tell
    return open && due && performance.now() - this.lastHeard_ms > SILENCE_MS;
  }

  /** Take the connection for lost. A close waits for an answer, so nobody waits for the close. @param {string} reason */
  giveUp(reason) {
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.dropped(1006, reason);
  }

  /** @param {object} message */
  say(message) {
    this.socket.send(JSON.stringify(message));
    this.lastSent_ms = performance.now();
  }

  /** The socket has closed: for good, or to be opened again. @param {number} code @param {string} reason */
  dropped(code, reason) {
    this.ready = false;
    const failure = this.failure;
    if (this.closed) return;
    const patient = this.live && this.everReady && !this.finishing;
    const leaving = patient && failure?.code === "draining"; // how long that server stays says nothing of when the next one comes
    if (failure && ["overloaded", "draining"].includes(failure.code) && !this.session && !leaving) {
      return this.retry("busy", failure.retry_after_s ?? BUSY_RETRY_S, failure.message);
    }
    if (failure?.code === "unknown_session" && this.session && this.startAnew()) return this.connect();
    if (failure && failure.code !== "idle" && !leaving) return this.close(failure);
    if (!this.everOpen) return this.close({ code: "unreachable", message: `no answer from ${this.url}` });
    const now_ms = performance.now();
    this.lostAt_ms ??= now_ms;
    if (!patient && now_ms - this.lostAt_ms > this.resume_s * 1000) {
      return this.close({ code: "lost", message: `no connection for ${Math.round(this.resume_s)} s (${reason || `close code ${code}`})` });
    }
    if (patient && !this.open) this.closeIfLockedOut();
    this.retry("lost", BACKOFF_S[Math.min(this.attempts++, BACKOFF_S.length - 1)], reason);
  }

  /** A socket does not tell a page that a key is why it was refused, and no patience helps against that. */
  async closeIfLockedOut() {
    const info = new URL("info", this.url.replace(/^ws/, "http"));
    const status = await fetch(info, { headers: headers() }).then((answer) => answer.status, () => 0);
    if (status === 401) this.close({ code: "unauthorized", message: "it asks for a key" });
  }

  /** @param {"lost" | "busy"} why @param {number} wait_s @param {string} message */
  retry(why, wait_s, message) {
    const retry_in_s = why === "busy" ? Math.max(wait_s, SHORTEST_RETRY_S) : wait_s;
    this.handlers.waiting?.(why, retry_in_s, message);
    this.retrying = setTimeout(() => this.connect(), retry_in_s * 1000);
  }
}
