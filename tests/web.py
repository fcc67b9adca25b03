"""What the page's tests stand on: the real server on a scripted model in a thread, a proxy that cuts connections, a Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from dragoman.stream.config import Options
from dragoman.stream.engine import Engine
from dragoman.stream.events import Word
from dragoman.stream.server import make_app
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from .fakes import ScriptedBackend
from .listeners import LoudnessVad, loaded

PAGES = Path(__file__).resolve().parents[1] / "clients" / "web"
PATIENCE_S = 30
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream --window-size=1280,800"
).split()


class Service:
    """The real app and engine, and in front of them a port that breaks connections.

    ``cut_after_bytes``: the next connections through ``cut_port`` break after so many bytes from the browser; then it only passes on.
    ``then_to``: ports of the servers that are there after each break; none: the same one.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = Options.model_validate(options)
        self.cut_after_bytes: list[int] = []
        self.then_to: list[int] = []
        self.cuts = 0
        self._started, self._thread = threading.Event(), threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(PATIENCE_S), "the server did not start"

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(PATIENCE_S)

    def end_sessions(self) -> None:
        """In order, as a server does that stops, or when the time is up."""
        self._loop.call_soon_threadsafe(lambda: [stream.close() for stream in self.engine.active])

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.engine = Engine(loaded(ScriptedBackend()), self.options, make_vad=LoudnessVad)
        app = make_app(self.engine, pages=PAGES)
        config = uvicorn.Config(app, port=0, ws="websockets-sansio", ws_per_message_deflate=False, lifespan="off", log_config=None)
        self._server = uvicorn.Server(config)
        async with self.engine:
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started:
                await asyncio.wait([serving], timeout=0.02)
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
            proxy = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
            self.cut_port = proxy.sockets[0].getsockname()[1]
            self._passes_to = self.port
            self._started.set()
            await serving
            proxy.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._passes_to)
        down = asyncio.create_task(self._copy(inner_reader, writer))
        await self._copy(reader, inner_writer, may_cut=True)
        down.cancel()
        for side in (writer, inner_writer):
            side.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, may_cut: bool = False) -> None:
        left_bytes: int | None = None
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                if may_cut and b"GET /v1/stream" in data and self.cut_after_bytes:  # a browser may open it on a connection it has
                    left_bytes = self.cut_after_bytes.pop(0)
                if left_bytes is not None and (left_bytes := left_bytes - len(data)) < 0:
                    self.cuts += 1
                    self._passes_to = self.then_to.pop(0) if self.then_to else self._passes_to
                    return
                writer.write(data)
                await writer.drain()
            writer.close()


class Page:
    """One Chromium whose microphone plays a file; what people see and do in it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, port: int) -> None:
        """A page without a memory."""
        self.driver.get(f"http://127.0.0.1:{port}/")
        self.driver.execute_script("localStorage.clear()")
        self.driver.refresh()
        self.until(lambda: self.find("#targets input[value=de]", visible=False) is not None)

    def find(self, selector: str, *, visible: bool = True) -> WebElement | None:
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return next((one for one in found if one.is_displayed() or not visible), None)

    def press(self, selector: str) -> None:
        element = self.find(selector)
        assert element is not None, f"{selector} is not to be seen"
        element.click()

    def text(self, selector: str) -> str:
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        found = self.driver.execute_script("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)
        return [text.strip() for text in found]

    def until(self, condition: Any, patience_s: float = PATIENCE_S) -> Any:
        shown = [self.text("body")]
        try:
            return WebDriverWait(self.driver, patience_s, poll_frequency=0.1).until(lambda _: condition())
        except TimeoutException as late:
            shown.append(self.text("body"))
            raise TimeoutException(f"waited {patience_s} s in vain; the page at first, and now: {shown}") from late

    def until_state(self, text: str, patience_s: float = PATIENCE_S) -> None:
        self.until(lambda: text in self.text("#state"), patience_s)

    def resize(self, width: int, height: int) -> None:
        """Asked again until the page is as wide: a window that leaves full screen takes back the size that it had."""
        self.until(lambda: not self.driver.execute_script("return document.fullscreenElement"))

        def wide() -> bool:
            if abs(self.driver.execute_script("return innerWidth") - width) < 40:  # a scroll bar may stand beside it
                return True
            self.driver.set_window_size(width, height)
            return False

        self.until(wide)

    def choose_file(self, path: Path) -> None:
        """Opening a file starts its stream."""
        self.press("#sources label:nth-of-type(3)")
        field = self.find("#file", visible=False)
        assert field is not None
        field.send_keys(str(path))

    def ask_for(self, *targets: str) -> None:
        self.press("summary")
        for target in targets:
            self.press(f"#targets input[value={target}]")
        self.press("summary")


def chromium() -> str | None:
    """The browser, if this machine has one and its driver."""
    return shutil.which("chromium") if shutil.which("chromedriver") else None


@contextlib.contextmanager
def running_page(microphone: Path, profile: Path) -> Iterator[Page]:
    """``microphone``: WAV that is played once each time the microphone is opened. ``profile``: an empty folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium() or ""
    for flag in (*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "accept")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield Page(driver)
    finally:
        driver.quit()


def random_segments(seed: int, count: int) -> list[list[Word]]:
    """Words of all lengths, signs and scripts, with times that do not go back."""
    dice, at_ms, segments = random.Random(seed), 0, list[list[Word]]()
    for _ in range(count):
        words = list[Word]()
        for _ in range(dice.randrange(40)):
            size = dice.choice((1, 3, 5, 8, 12, 41, 42, 43, 90))
            text = (
                dice.choice(("", " ", " ", " "))
                + "".join(dice.choices("abcé語😀-<&.?! «»\u00a0\u202f", k=size))
                + dice.choice(("", "", ".", "。", ".”", "?) ", " Mr.", " A.", "St.\x1c"))
            )
            start_ms = at_ms + dice.randrange(700)
            at_ms = start_ms + dice.randrange(900)
            words.append(Word(text, start_ms, at_ms, 0.0))
        segments.append(words)
    return segments


def contrast(page: Page, name: str) -> float:
    """Of a colour on the paper, as WCAG 2.2 computes it."""
    script = """
      const probe = document.body.appendChild(document.createElement('i'));
      const read = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number) };
      const both = [read(arguments[0]), read('paper')]; probe.remove(); return both;
    """
    light, dark = sorted((luminance(colour) for colour in page.driver.execute_script(script, name)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (value / 255 for value in colour[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
