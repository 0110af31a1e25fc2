"""A real Chromium for the tests of pages, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Literal

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.support.processes import TIME_FACTOR, MissingRequirementError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

    from tests.support.deployment import Deployment

Theme = Literal["light", "dark"]

#: Limit for any action on a page, in milliseconds. (Playwright's own limit of an expectation is 5 s.)
PAGE_LIMIT = 30_000 * TIME_FACTOR

expect.set_options(timeout=PAGE_LIMIT)

#: Without features that contact hosts other than the one under test.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_path() -> str:
    """Return the path of the system's Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise MissingRequirementError("Chromium", "apt-get install chromium")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a headless Chromium with an empty profile."""
    path = chromium_path()
    with tempfile.TemporaryDirectory(prefix="worker-insight-chromium-") as scratch, sync_playwright() as playwright:
        # Crash reports and fonts' caches go there, not into the home of whoever runs the tests.
        env = {**os.environ, "XDG_CONFIG_HOME": scratch, "XDG_CACHE_HOME": scratch}
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), env=env)
        try:
            yield browser
        finally:
            browser.close()


class BrowserUser:
    """
    A user of one deployment in a browser; keeps every request that went elsewhere.

    The first one of a name logs in through the login page; later ones come back with its cookies.
    """

    def __init__(
        self,
        browser: Browser,
        deployment: Deployment,
        user: str | None = "admin",
        *,
        theme: Theme = "light",
        width: int = 1400,
        height: int = 900,
    ) -> None:
        self.deployment = deployment
        cookies = deployment.cookies.get(user) if user else None
        self.context: BrowserContext = browser.new_context(
            base_url=deployment.base_url, viewport={"width": width, "height": height}, color_scheme=theme
        )
        self.context.set_default_timeout(PAGE_LIMIT)
        #: Requests to hosts other than the deployment's.
        self.foreign_requests: list[str] = []
        #: Uncaught errors of pages' scripts, and errors on the console.
        self.uncaught: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", lambda request: self._seen(request.url))
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.uncaught.append(f"{self.page.url}: {error}"))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.set_theme(theme)
        if cookies:
            self.context.add_cookies(cookies)
            # Local storage now belongs to the deployment's origin, as after a login.
            self.open("/api/v2/monitor/health" if deployment.airflow3 else "/health", settle=False)
        elif user is not None:
            self.log_in(user)
            deployment.cookies[user] = self.context.cookies()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def _seen(self, url: str) -> None:
        own = self.deployment.base_url.split("//", 1)[1].split("/", 1)[0]
        if url.startswith(("http:", "https:", "ws:", "wss:")) and url.split("//", 1)[1].split("/", 1)[0] != own:
            self.foreign_requests.append(url)

    def set_theme(self, theme: Theme) -> None:
        """Choose Airflow's colour mode, for every page opened from now on."""
        self.context.add_init_script(f"try {{ localStorage.setItem('theme', '{theme}'); }} catch (error) {{ }}")

    def log_in(self, user: str) -> None:
        """Log in through the login page."""
        self.open("/auth/login/" if self.deployment.airflow3 else "/login/", settle=False)
        self.page.locator("input[name=username]").fill(user)
        self.page.locator("input[name=password]").fill(user)
        self.page.locator("button[type=submit], input[type=submit]").first.click()
        self.page.wait_for_url(lambda url: "/login" not in url)

    def open(self, path: str, *, settle: bool = True) -> Page:
        """Open a path of the deployment and wait until it stops loading."""
        self.page.goto(f"{self.deployment.base_url}{path}")
        if settle:
            self.settle()
        return self.page

    def settle(self) -> None:
        """Wait until the page has loaded; a page that polls may never become idle."""
        with contextlib.suppress(PlaywrightTimeout):
            self.page.wait_for_load_state("networkidle", timeout=10_000)
        # On a busy machine the scripts of Airflow's UI pause for longer: wait until no placeholder is left.
        with contextlib.suppress(PlaywrightTimeout):
            self.page.wait_for_function("() => !document.querySelector('.chakra-skeleton')", timeout=15_000)

    def screenshot(self, path: Path, *, theme: Theme | None = None, full_page: bool = False) -> Path:
        """Save a picture of the page; with ``theme``, reload it in that colour mode first."""
        if theme is not None:
            self.set_theme(theme)
            self.page.emulate_media(color_scheme=theme)
            self.page.reload()
            self.settle()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=full_page, animations="disabled")
        return path


__all__ = ["BrowserUser", "Page", "Theme", "chromium", "chromium_path"]
