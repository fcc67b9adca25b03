/** Buttons that save what was said. */

import { toJson, toSrt, toTxt, toVtt } from "./captions.js";

const FORMS = {
  srt: { type: "application/x-subrip", write: toSrt },
  vtt: { type: "text/vtt", write: toVtt },
  txt: { type: "text/plain", write: toTxt },
  json: { type: "application/json", write: toJson },
};

/**
 * @param {Document} page
 * @param {() => {segments: import("./transcript.js").Segment[], language: string}} said
 * @returns {() => void} to be called when there may be more to save
 */
export function offerDownloads(page, said) {
  const buttons = /** @type {NodeListOf<HTMLButtonElement>} */ (page.querySelectorAll("#downloads button"));
  const choice = /** @type {HTMLSelectElement} */ (page.getElementById("text-of"));
  for (const button of buttons) {
    const name = /** @type {keyof typeof FORMS} */ (button.dataset.form);
    button.addEventListener("click", () => {
      const { segments, language } = said();
      save(page, `captions${choice.value && "." + choice.value}.${name}`, FORMS[name].type, compose(name, segments, language, choice.value));
    });
  }
  return () => refresh(buttons, choice, said().segments);
}

/**
 * @param {keyof typeof FORMS} name
 * @param {import("./transcript.js").Segment[]} segments
 * @param {string} language spoken
 * @param {string} target a translation for SRT and VTT, or "" for the transcript
 */
function compose(name, segments, language, target) {
  if (name === "json") return toJson(segments, language);
  return name === "txt" ? toTxt(segments) : FORMS[name].write(segments, target || null);
}

/** @param {NodeListOf<HTMLButtonElement>} buttons @param {HTMLSelectElement} choice @param {import("./transcript.js").Segment[]} segments */
function refresh(buttons, choice, segments) {
  for (const button of buttons) button.disabled = !segments.length;
  const codes = new Set(segments.flatMap((segment) => Object.keys(segment.translations)));
  for (const option of [...choice.options].slice(1)) if (!codes.has(option.value)) option.remove();
  for (const code of codes) if (![...choice.options].some(({ value }) => value === code)) choice.add(new Option(code, code));
}

/** @param {Document} page @param {string} name @param {string} type @param {string} text */
function save(page, name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = page.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
