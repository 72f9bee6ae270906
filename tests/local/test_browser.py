"""A web page in the user's own browser, against a server on loopback: it reads nothing and starts nothing."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.local.test_jobs import CHAT_ROWS, upload
from tests.local.toy_server import ToyServer

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
HOW = "no Chromium found: install one (Debian: apt-get install chromium), or name it in $CHROMIUM"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=HOW),
    pytest.mark.xdist_group("browser"),  # one worker, one browser
]

ASK = """
async ([url, options]) => {
  try {
    const answer = await fetch(url, options);
    return {type: answer.type, status: answer.status, text: await answer.text()};
  } catch (error) { return {error: String(error)}; }
}
"""


class Quiet(http.server.BaseHTTPRequestHandler):
    """An empty page of a stranger."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>a page</title>")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a stranger; two names of the stranger's lead to this machine, as an attacker's DNS would make them."""
    stranger = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=stranger.serve_forever, daemon=True)
    thread.start()
    rules = "MAP *.example 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", f"--host-resolver-rules={rules}"], timeout=300_000
        )
        opened = browser.new_context().new_page()
        opened.set_default_timeout(120_000)
        opened.goto(f"http://evil.example:{stranger.server_port}/")
        yield opened
        browser.close()
    stranger.shutdown()
    stranger.server_close()
    thread.join()


def ask(page: Page, url: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(ASK, [url, options])
    return found


def test_a_page_reads_nothing_and_starts_nothing(server: ToyServer, page: Page) -> None:
    client = server.client()
    file_id = upload(client, CHAT_ROWS)
    before = [one.id for one in client.fine_tuning.jobs.list()]
    n_files = len(list(client.files.list()))
    for path in ("/files", f"/files/{file_id}/content", "/fine_tuning/jobs", "/models"):
        assert "error" in ask(page, server.url + path), path
        # Without asking for the answer it may be sent, but what comes back cannot be looked at.
        assert ask(page, server.url + path, mode="no-cors").get("text", "") == ""
    body = json.dumps({"model": "toy", "training_file": file_id})
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        for mode in ("cors", "no-cors"):
            ask(
                page,
                server.url + "/fine_tuning/jobs",
                method="POST",
                mode=mode,
                body=body,
                headers={"Content-Type": kind},
            )
    posted = """url => { const form = new FormData(); form.append("purpose", "fine-tune");
      form.append("file", new Blob(['{"a": 1}\\n']), "x.jsonl");
      return fetch(url, {method: "POST", mode: "no-cors", body: form}).then(() => "sent", String); }"""
    page.evaluate(posted, server.url + "/files")
    ask(page, f"{server.url}/files/{file_id}", method="DELETE")
    assert [one.id for one in client.fine_tuning.jobs.list()] == before
    assert len(list(client.files.list())) == n_files


def test_a_form_or_a_picture_on_a_page_does_nothing_either(server: ToyServer, page: Page) -> None:
    client = server.client()
    before = [one.id for one in client.fine_tuning.jobs.list()]
    page.evaluate(
        """url => { const form = document.createElement("form"); form.method = "POST"; form.enctype = "text/plain";
          form.action = url + "/fine_tuning/jobs"; form.target = "frame";
          const field = document.createElement("input"); field.name = '{"model":"toy","training_file":"f","x":"';
          field.value = '"}'; form.append(field); const frame = document.createElement("iframe"); frame.name = "frame";
          document.body.append(frame, form); const loaded = new Promise(done => frame.onload = done); form.submit();
          return loaded; }""",
        server.url,
    )
    loads = """url => new Promise(done => { const image = new Image(); image.onload = () => done("read");
      image.onerror = () => done("refused"); image.src = url; })"""
    assert page.evaluate(loads, server.url + "/models") == "refused"
    assert [one.id for one in client.fine_tuning.jobs.list()] == before


def test_a_name_that_leads_to_this_machine_opens_nothing(server: ToyServer, page: Page) -> None:
    """DNS rebinding: the page's own name suddenly leads to loopback, so that it asks its own origin."""
    port = server.url.rsplit(":", 1)[1].partition("/")[0]
    visited = page.context.new_page()
    visited.set_default_timeout(120_000)
    try:
        answer = visited.goto(f"http://rebound.example:{port}/v1/models")
        assert answer is not None
        assert answer.status == 403
        own = ask(visited, f"http://rebound.example:{port}/v1/files")
        assert own["status"] == 403
        assert "rebound.example" in own["text"]
    finally:
        visited.close()


def test_who_types_the_address_may_look(server: ToyServer, page: Page) -> None:
    visited = page.context.new_page()
    visited.set_default_timeout(120_000)
    try:
        answer = visited.goto(server.url + "/models")
        assert answer is not None
        assert answer.status == 200
        assert answer.header_value("x-content-type-options") == "nosniff"
    finally:
        visited.close()
