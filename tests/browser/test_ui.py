"""Prefect's UI, as a user with the password sees it: log in, run the master flow, read the counts.

``SCREENSHOTS`` names a directory for screenshots.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests import limits

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

# The first message of Prefect's own pages and clients.
OPEN = """
    ([address, token]) => new Promise((resolve, reject) => {
        const socket = new WebSocket(address, "prefect")
        socket.onopen = () => socket.send(JSON.stringify({type: "auth", token}))
        socket.onmessage = message => resolve(JSON.parse(message.data).type)
        socket.onerror = () => reject(new Error(`${address} was refused`))
    })
"""

# Returns which of the rules of the content security policy refuses an image of another host.
IMAGE = """() => new Promise((resolve) => {
    document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
    const image = new Image();
    image.onload = image.onerror = () => setTimeout(() => resolve("asked for"), 1000);
    image.src = "https://elsewhere.example/?secret";
})"""


@pytest.fixture
def take(page: Page, tmp_path: Path) -> "Take":
    """Return an object that takes screenshots."""
    return Take(page, Path(os.environ.get("SCREENSHOTS") or tmp_path))


class Take:
    """Takes screenshots of a page."""

    def __init__(self, page: Page, directory: Path) -> None:
        self._page, self._directory = page, directory

    def __call__(self, name: str) -> None:
        """Take one when the page is idle."""
        self._page.wait_for_load_state("networkidle")
        self._page.screenshot(path=self._directory / f"{name}.png", animations="disabled")


def test_the_master_flow_is_run_by_clicking(page: Page, inventory: "Inventory", take: Take) -> None:
    api = inventory.value("prefect_api_url")
    answered: list[str] = []
    failed: list[tuple[str, str | None]] = []
    page.on("response", lambda answer: answered.append(answer.url))
    page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(api.removesuffix("/api"), wait_until="commit")
    login = page.get_by_placeholder("admin:pass")
    expect(login).to_be_visible()
    take("login")
    login.fill(f"biocirv:{inventory.value('prefect_api_password')}")
    page.get_by_role("button", name="Login").click()
    page.get_by_role("link", name="Deployments").click()
    deployment = page.get_by_role("link", name="master-etl-deployment")
    expect(deployment).to_be_visible()
    take("deployments")
    deployment.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Quick run").click()
    page.get_by_role("link", name="View run").click()

    # The page updates itself without a reload.
    state = page.get_by_text("Completed", exact=True).first
    expect(state).to_be_visible(timeout=limits.limit(limits.START) * 1000)
    # The notice stays while the mouse is over it.
    page.mouse.move(0, 0)
    expect(page.get_by_role("link", name="View run")).to_be_hidden()
    take("master-run")
    # Such as those of the flow run's graph, if the policy does not let it compute how to draw. Once its page is left, a
    # graph that is still being drawn has others (Prefect 3.9.1: "Cannot set properties of null").
    assert errors == []

    page.get_by_role("tab", name="Subflow Runs").click()
    flows = page.get_by_role("tabpanel").locator('a[href*="/runs/flow-run/"]')
    flows.first.click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link", name="accounting-").click()
    expect(page.get_by_role("columnheader", name="inserted")).to_be_visible()
    take("accounting")
    assert {urlsplit(url).netloc for url in answered if url.startswith("http")} == {urlsplit(api).netloc}
    # Requests that the proxy's policy blocked, or that the page aborted, never reached another host.
    assert [url for url, reason in failed if reason not in ("csp", "net::ERR_ABORTED")] == []


def test_a_websocket_opens(page: Page, inventory: "Inventory") -> None:
    """A page can open one through the proxy, and the proxy's content security policy permits it."""
    address = inventory.value("prefect_api_url").replace("https://", "wss://") + "/events/out"
    page.goto(inventory.value("prefect_api_url").removesuffix("/api"), wait_until="commit")
    password = f"biocirv:{inventory.value('prefect_api_password')}"
    assert page.evaluate(OPEN, [address, password]) == "auth_success"


def test_a_page_loads_no_image_of_another_host(page: Page, inventory: "Inventory") -> None:
    """Flows write the text of artifacts, which can name one, with what they know in its address."""
    page.goto(inventory.value("prefect_api_url").removesuffix("/api"), wait_until="commit")
    assert page.evaluate(IMAGE) == "img-src"
