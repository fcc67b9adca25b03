/** What the user chose: remembered in this browser, and what of it goes into the start message. */

const KEY = "dragoman";
const REMEMBERED = ["language", "block", "translation", "device", "speed", "glossary", "size"];
/** How captions come: audio between two hypotheses, and words that wait until others have followed, or until they will not change. */
const PACES = {
  320: { block_ms: 320, hold_back_words: 0, steady: false },
  640: { block_ms: 640, hold_back_words: 1, steady: false },
  960: { block_ms: 960, hold_back_words: 2, steady: false },
  steady: { block_ms: 640, steady: true },
};
const SIZE_STEP = 0.1;

export class Settings {
  /** @param {Document} page @param {() => void} resized called when text has changed its size */
  constructor(page, resized) {
    this.page = page;
    this.resized = resized;
    /** @type {Record<string, any>} */
    this.kept = this.read();
    for (const id of REMEMBERED) if (this.kept[id] !== undefined) this.field(id).value = this.kept[id];
    this.field("filter").checked = Boolean(this.kept.filter);
    const radio = page.querySelector(`[name="source"][value="${CSS.escape(this.kept.source ?? "")}"]`);
    if (radio instanceof HTMLInputElement) radio.checked = true;
    page.getElementById("controls")?.addEventListener("change", ({ target }) => {
      // Only who has chosen languages keeps them: others go on getting what the server is configured to give.
      if (/** @type {Element} */ (target).closest("#targets")) this.kept = { ...this.kept, targets: this.targets };
      this.changed();
    });
    this.field("size").addEventListener("input", () => this.changed());
    this.button("theme", () => this.setTheme(this.dark ? "light" : "dark"));
    this.button("large", () => this.setLarge(true));
    this.button("leave", () => this.setLarge(false));
    this.button("smaller", () => this.resize(-SIZE_STEP));
    this.button("bigger", () => this.resize(SIZE_STEP));
    page.addEventListener("keydown", (event) => this.key(event));
    page.addEventListener("fullscreenchange", () => page.fullscreenElement || this.setLarge(false));
    this.setTheme(this.kept.theme ?? "");
    this.changed();
  }

  /** @returns {"microphone" | "tab" | "file"} */
  get source() {
    return /** @type {any} */ (this.page.querySelector('[name="source"]:checked')).value;
  }

  get filter() {
    return this.field("filter").checked;
  }

  get device() {
    return this.field("device").value;
  }

  get realTime() {
    return this.field("speed").value === "real";
  }

  get dark() {
    const chosen = this.page.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  /** The part of the start message that the user decides; what is left open is as the server is configured. */
  get wishes() {
    const glossary = this.field("glossary").value.split(",").map((/** @type {string} */ term) => term.trim()).filter(Boolean);
    return {
      ...(this.offered && { targets: this.targets }),
      ...(this.offered && this.field("language").value && { language: this.field("language").value }),
      ...PACES[/** @type {"320"} */ (this.field("block").value)],
      ...(this.field("translation").value && { translation: this.field("translation").value }),
      ...(glossary.length && { glossary }),
    };
  }

  /** @returns {string[]} */
  get targets() {
    const ticked = this.page.querySelectorAll("#targets input:checked");
    return [...ticked].map((input) => /** @type {HTMLInputElement} */ (input).value);
  }

  /**
   * @param {{language: string, targets: string[], languages: string[], known_targets: string[]}} info of the server
   * @param {(code: string) => string} name
   */
  offer(info, name) {
    this.offered = true;
    const ticked = new Set(this.kept.targets ?? info.targets);
    this.field("targets").hidden = this.field("translation-field").hidden = !info.known_targets.length;
    for (const code of info.known_targets) {
      const input = Object.assign(this.page.createElement("input"), { type: "checkbox", value: code, checked: ticked.has(code) });
      const label = this.page.createElement("label");
      label.append(input, name(code));
      this.field("targets").append(label);
    }
    const menu = this.field("language");
    for (const code of info.languages) menu.add(new Option(name(code), code));
    menu.value = info.languages.includes(this.kept.language) ? this.kept.language : info.language;
    this.field("language-field").hidden = info.languages.length < 2;
  }

  /** @param {{deviceId: string, label: string}[]} found */
  offerDevices(found) {
    const menu = this.field("device");
    const chosen = menu.value || this.kept.device || "";
    while (menu.options.length > 1) menu.remove(1);
    for (const { deviceId, label } of found) menu.add(new Option(label, deviceId));
    menu.value = found.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
  }

  /** While a stream runs its settings cannot change. @param {boolean} running */
  lock(running) {
    const start = this.field("start");
    start.textContent = running ? "Stop" : "Start";
    start.setAttribute("aria-pressed", String(running));
    for (const field of this.page.querySelectorAll("#sources input, .options :is(input, select):not(#size)")) {
      /** @type {HTMLInputElement} */ (field).disabled = running;
    }
  }

  changed() {
    for (const label of this.page.querySelectorAll("[data-for]")) {
      /** @type {HTMLElement} */ (label).hidden = /** @type {HTMLElement} */ (label).dataset.for !== this.source;
    }
    this.page.documentElement.style.setProperty("--scale", this.field("size").value);
    this.resized();
    const values = Object.fromEntries(REMEMBERED.map((id) => [id, this.field(id).value]));
    const language = this.offered ? values.language : this.kept.language;
    this.write({ ...this.kept, ...values, language, source: this.source, filter: this.filter });
  }

  /** @param {string} theme "light", "dark" or "" for what the system says */
  setTheme(theme) {
    if (theme) this.page.documentElement.dataset.theme = theme;
    this.field("theme").setAttribute("aria-pressed", String(this.dark));
    this.write({ ...this.kept, theme });
  }

  /** @param {boolean} on */
  setLarge(on) {
    if (this.page.body.classList.contains("large") === on) return;
    this.page.body.classList.toggle("large", on);
    this.field("large-tools").hidden = !on;
    this.field(on ? "leave" : "large").focus();
    // The whole screen where the browser allows it; large captions work in a window as well.
    if (on) this.page.documentElement.requestFullscreen?.().catch(() => undefined);
    else if (this.page.fullscreenElement) this.page.exitFullscreen().catch(() => undefined);
    this.resized();
  }

  /** @param {number} step */
  resize(step) {
    this.field("size").value = String(Number(this.field("size").value) + step);
    this.changed();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const large = this.page.body.classList.contains("large");
    if (event.key === "Escape" && large) this.setLarge(false);
    else if (event.altKey && event.code === "KeyL") {
      event.preventDefault();
      this.setLarge(!large);
    }
  }

  /** @param {string} id @returns {any} */
  field(id) {
    return this.page.getElementById(id);
  }

  /** @param {string} id @param {() => void} press */
  button(id, press) {
    this.field(id).addEventListener("click", press);
  }

  read() {
    try {
      return JSON.parse(localStorage.getItem(KEY) ?? "{}");
    } catch {
      return {}; // no storage in this browser's mode
    }
  }

  /** @param {Record<string, any>} values */
  write(values) {
    this.kept = values;
    try {
      localStorage.setItem(KEY, JSON.stringify(values));
    } catch {
      // The page works without a memory.
    }
  }
}
