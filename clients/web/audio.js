/**
 * Where audio comes from: the microphone, a shared tab, a file. Each is a Source: 16-bit samples of one channel at a stated rate.
 *
 * @typedef {{
 *   take: (samples: Int16Array) => void,
 *   lose: (samples: number) => void,
 *   room: () => boolean,
 *   warn: (message: string) => void,
 * }} Sink `lose`: so much was not recorded after what was taken last. `room`: whether more is wanted; live audio does not wait for it.
 *   `warn`: what is wrong from now on, "": nothing any more.
 * @typedef {{
 *   sample_rate: number, live: boolean, duration_s: number | null,
 *   run: (sink: Sink) => Promise<string>,
 *   stop: () => void,
 * }} Source `run` ends when the audio does, and tells why if nobody asked for it (else ""). `stop` makes `run` end soon.
 */

const FILE_RATE = 16_000;
const FILE_BLOCK_S = 0.1;
const POLL_MS = 20;
const STALL_MS = 2000; // without a block: whatever the browser says, no sound arrives
const WATCH_MS = 500;
const LAST_MS = 500; // after `stop` the last block has come, or never will

/** A fault that people can do something about: its message says what. */
export class SourceError extends Error {}

/** @param {{filter: boolean, device: string}} wish @returns {Promise<Source>} */
export async function openMicrophone({ filter, device }) {
  // Filters made for telephones take parts of speech away; the model was trained without them.
  const audio = { echoCancellation: filter, noiseSuppression: filter, autoGainControl: filter, ...(device && { deviceId: { exact: device } }) };
  const stream = await ask(() => devices().getUserMedia({ audio }), {
    NotAllowedError: "The browser may not use the microphone. Allow it in the address bar (or in the system's privacy settings), then press Start again.",
    NotFoundError: "No microphone was found. Plug one in, then press Start again.",
    OverconstrainedError: "The chosen microphone is gone. Choose another one under Options.",
    NotReadableError: "The microphone does not answer: another program may be using it. Close that program, then press Start again.",
  });
  return liveSource(stream, { ended: "The microphone was unplugged or switched off.", silent: "No sound arrives from the microphone" });
}

/** The sound of a tab, window or screen that the user picks. @returns {Promise<Source>} */
export async function openTab() {
  const devicesWithScreen = devices();
  if (!devicesWithScreen.getDisplayMedia) throw new SourceError("This browser cannot share the sound of a tab. Chrome and Edge on a computer can.");
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, suppressLocalAudioPlayback: false };
  const stream = await ask(() => devicesWithScreen.getDisplayMedia({ video: true, audio, systemAudio: "include" }), {
    NotAllowedError: "Nothing was shared. Press Start again and pick a tab.",
  });
  if (!stream.getAudioTracks().length) {
    for (const track of stream.getTracks()) track.stop();
    throw new SourceError("What you shared has no sound. Pick a tab, and tick “Also share tab audio” in the same window.");
  }
  return liveSource(stream, { ended: "Sharing has ended.", silent: "No sound arrives from the tab" });
}

/** The sound of an audio or video file. @param {File} file @param {boolean} real_time @returns {Promise<Source>} */
export async function openFile(file, real_time) {
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, FILE_RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new SourceError(`This browser cannot read “${file.name}” as sound. WAV, MP3, FLAC, Ogg and MP4 files usually work.`);
  }
  return fileSource(mixed(sound), real_time);
}

/** Microphones by id and name; names are known only after the first permission. */
export async function microphones() {
  const found = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return found.filter(({ kind, deviceId, label }) => kind === "audioinput" && deviceId && label);
}

function devices() {
  if (!navigator.mediaDevices) {
    throw new SourceError("Browsers record only on secure pages. Open this page on http://localhost, or put the server behind https.");
  }
  return navigator.mediaDevices;
}

/**
 * @template T
 * @param {() => Promise<T>} request
 * @param {Record<string, string>} meanings the error's name → what to tell
 */
async function ask(request, meanings) {
  try {
    return await request();
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    throw new SourceError(meanings[error.name] ?? `The browser gave no sound: ${error.message} (${error.name}).`);
  }
}

/**
 * @param {MediaStream} stream
 * @param {{ended: string, silent: string}} meanings what to tell when its sound ends by itself, and while none arrives
 * @returns {Promise<Source>}
 */
async function liveSource(stream, { ended, silent }) {
  const release = () => stream.getTracks().forEach((track) => track.stop());
  const context = new AudioContext({ latencyHint: "interactive" });
  const { tap, sample_rate } = await openTap(context, stream).catch((error) => {
    release();
    context.close();
    throw error;
  });

  let why = "";
  let end = () => {};
  const over = new Promise((resolve) => (end = () => resolve(null)));
  const stop = () => {
    release(); // at once: nobody shall be recorded who has pressed Stop, whatever state the context is in
    tap.port.postMessage("stop");
    setTimeout(end, LAST_MS);
  };
  const [track] = stream.getAudioTracks();
  track.addEventListener("ended", () => {
    why = ended;
    stop();
  });
  /** @param {Sink} sink */
  const run = async ({ take, lose, warn }) => {
    let heard_ms = performance.now();
    let warned = false;
    tap.port.onmessage = ({ data }) => {
      if (data.type === "end") return end();
      if (!track.muted) heard_ms = performance.now(); // a muted one gives silence
      if (data.type === "gap") lose(data.samples);
      else take(data.samples);
    };
    const watching = setInterval(() => {
      const stalled = performance.now() - heard_ms > STALL_MS;
      if (stalled) context.resume().catch(() => undefined); // e.g. while a call has the microphone; the next try may succeed
      if (stalled !== warned) warn((warned = stalled) ? silent : "");
    }, WATCH_MS);
    await over;
    clearInterval(watching);
    context.close();
    return why;
  };
  return { sample_rate, live: true, duration_s: null, run, stop };
}

/** @param {AudioContext} context @param {MediaStream} stream */
async function openTap(context, stream) {
  await context.resume();
  await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
  const tap = new AudioWorkletNode(context, "tap");
  const next = () => new Promise((resolve) => tap.port.addEventListener("message", resolve, { once: true }));
  const first = next();
  tap.port.start();
  const { data } = await first; // {type: "rate"}: posted by its constructor
  // Some browsers run only nodes that lead to the loudspeaker; what the tap puts out is silence.
  context.createMediaStreamSource(new MediaStream(stream.getAudioTracks())).connect(tap).connect(context.destination);
  return { tap, sample_rate: data.sample_rate };
}

/** @param {AudioBuffer} sound @returns {Int16Array} the mean of its channels */
function mixed(sound) {
  const channels = Array.from({ length: sound.numberOfChannels }, (_, place) => sound.getChannelData(place));
  return Int16Array.from({ length: sound.length }, (_, at) => {
    let sum = 0;
    for (const channel of channels) sum += channel[at];
    return Math.round(Math.max(-1, Math.min(1, sum / channels.length)) * 32767);
  });
}

/** @param {Int16Array} samples at FILE_RATE @param {boolean} real_time @returns {Source} */
function fileSource(samples, real_time) {
  let stopped = false;
  const block_samples = FILE_RATE * FILE_BLOCK_S;
  /** @type {Source["run"]} */
  const run = async ({ take, room }) => {
    const began_ms = performance.now();
    for (let at = 0; at < samples.length && !stopped; at += block_samples) {
      const due_ms = real_time ? began_ms + (Math.min(at + block_samples, samples.length) * 1000) / FILE_RATE : 0;
      while (!stopped && (!room() || performance.now() < due_ms)) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      if (!stopped) take(samples.subarray(at, at + block_samples));
    }
    return "";
  };
  const stop = () => {
    stopped = true;
  };
  return { sample_rate: FILE_RATE, live: real_time, duration_s: samples.length / FILE_RATE, run, stop };
}
