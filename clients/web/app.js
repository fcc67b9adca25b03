/** The page: controls → source and stream → captions, status, downloads. The only module that knows all the others. */

import { microphones, openFile, openMicrophone, openTab, SourceError } from "./audio.js";
import { KEPT_S, Stream } from "./connection.js";
import { offerDownloads } from "./downloads.js";
import * as key from "./key.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";
import { Transcript } from "./transcript.js";
import { CaptionView, languageName } from "./view.js";

const AHEAD_S = 5; // of a file: so much may wait for the server
const RECORDED = { nothing: "nothing", text: "the text", audio: "the audio", both: "audio and text" };
const MARGIN_S = 2; // so long before the server stops, the page ends its stream by itself

const find = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const view = new CaptionView(document);
const status = new Status(document);
const settings = new Settings(document, () => view.refit());
let transcript = new Transcript();
/** @type {import("./audio.js").Source | null} */
let source = null;
/** @type {Stream | null} */
let stream = null;
let starting = false;
let trouble = ""; // with the source, for the time being
let language = "en";

const refreshDownloads = offerDownloads(document, () => ({ segments: transcript.finished, language }));
find("start").addEventListener("click", toggle);
find("file").addEventListener("change", () => find("file").files.length && start());
document.addEventListener("keydown", (event) => {
  if (event.altKey && event.code === "KeyS") {
    event.preventDefault();
    toggle();
  }
});
addEventListener("beforeunload", (event) => stream && event.preventDefault());
find("key").addEventListener("change", () => {
  if (!key.keep(find("key").value)) return status.error("A key has 16 to 200 letters, digits and - . _ ~ +");
  status.clearError();
  learnLanguages();
});
addEventListener("hashchange", () => {
  key.takeFromAddress();
  learnLanguages();
});
key.takeFromAddress();
learnLanguages();
listMicrophones();

function toggle() {
  if (starting) return;
  if (stream) stop();
  else if (settings.source === "file") {
    find("file").value = ""; // so that the same file can be chosen again
    find("file").click();
  } else start();
}

async function start() {
  starting = true;
  status.clearError();
  status.state("wait", "Opening…");
  try {
    source = await openSource();
  } catch (error) {
    if (!(error instanceof SourceError)) console.error(error);
    fail(error instanceof Error ? error.message : String(error));
    return;
  } finally {
    starting = false;
  }
  listMicrophones(); // their names are known now
  transcript = new Transcript();
  view.clear();
  refreshDownloads();
  view.setLanguages(settings.wishes.language ?? language, settings.wishes.targets ?? []);
  status.begin(source);
  settings.lock(true);
  const url = new URL("v1/stream", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const live = source.duration_s === null;
  trouble = "";
  stream = new Stream(url.href, { sample_rate: source.sample_rate, ...settings.wishes }, handlers(live), live);
  const current = stream;
  const why = await source.run({
    take: (samples) => current.send(samples),
    lose: (samples) => current.lose(samples),
    room: () => current.unconfirmed_s < AHEAD_S,
    warn(message) {
      trouble = message;
      if (current.ready && !current.finishing) tellState(live);
    },
  });
  if (why) status.error(why);
  current.finish();
}

function openSource() {
  const { filter, device, realTime } = settings;
  if (settings.source === "file") return openFile(find("file").files[0], realTime);
  return settings.source === "tab" ? openTab() : openMicrophone({ filter, device });
}

/** First press: everything heard is still written down. Second press, or no server yet: give up. */
function stop() {
  source?.stop();
  if (!stream?.everReady || stream.finishing) stream?.close(null);
  else {
    stream.finish();
    status.state("wait", "Finishing…");
  }
}

/** What a stream that has its server is at. @param {boolean} live */
function tellState(live) {
  if (trouble) status.state("wait", trouble);
  else status.state("live", live ? "Listening" : "Reading the file");
}

/** @param {boolean} live @returns {import("./connection.js").Handlers} */
function handlers(live) {
  return {
    ready(message) {
      language = message.language;
      if (!message.resumed) view.setLanguages(message.language, message.targets);
      tellState(live);
    },
    event(event) {
      const segment = transcript.apply(event);
      if (segment) view.show(segment);
      if (segment?.final) refreshDownloads();
      if (event.type === "dropped") view.lost(event);
    },
    progress: (clocks, level) => stream && status.clocks(clocks, stream.captured_ms, level),
    notice(message, within_s) {
      if (live) return; // the stream goes on with another session
      status.error(message);
      const stopping = stream;
      setTimeout(() => stopping === stream && stream && !stream.finishing && stop(), Math.max(0, within_s - MARGIN_S) * 1000);
    },
    waiting(why, retry_in_s, message) {
      if (why === "busy") status.countDown(`Server busy (${message})`, retry_in_s);
      else status.state("wait", `Connection lost: reconnecting, ${live ? `the newest ${KEPT_S} s are kept` : "nothing said is lost"}`);
    },
    closed(failure) {
      source?.stop();
      source = stream = null;
      settings.lock(false);
      if (failure) {
        fail(meaning(failure));
        if (["unreachable", "unauthorized"].includes(failure.code)) learnLanguages(); // a socket does not tell that a key is asked for
      } else status.state("idle", transcript.byIndex.size ? "Finished" : "Not listening");
    },
  };
}

/** @param {import("./connection.js").Failure} failure what people read of it */
function meaning({ code, message }) {
  const known = {
    unreachable: `The server cannot be reached (${message}). Is it running?`,
    lost: `The connection could not be restored: ${message}. What was written stays here.`,
    unknown_session: `The server no longer has this session (${message}). What was written stays here; press Start to go on.`,
    replaced: "This stream goes on in another window.",
    bad_task: `The server cannot do that: ${message}`,
  };
  return known[/** @type {keyof typeof known} */ (code)] ?? `The server stopped: ${message} (${code})`;
}

/** @param {string} message */
function fail(message) {
  status.state("error", "Stopped");
  status.error(message);
}

/** What the server's model can do fills the menus; without an answer they stay hidden. */
async function learnLanguages() {
  try {
    const answer = await fetch("v1/info", { headers: key.headers() });
    if (answer.status === 401) return askForKey();
    const info = await answer.json();
    find("key-field").hidden = true;
    language = info.language;
    if (!settings.offered) settings.offer(info, languageName);
    find("recorded").hidden = info.recorded === "nothing";
    find("recorded").textContent = `It keeps ${RECORDED[/** @type {"text"} */ (info.recorded)]} of every session for ${info.record_days} days.`;
  } catch (error) {
    console.warn("no /v1/info:", error);
  }
}

function askForKey() {
  find("key-field").hidden = false;
  find("options").open = true;
  find("key").focus();
  status.error("This server asks for an access key: ask those who run it, and enter it under Options.");
}

async function listMicrophones() {
  settings.offerDevices(await microphones());
}
