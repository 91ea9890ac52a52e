"""The web page in a real browser: upload, type, click; what is refused; two users at the same time.

pip install gradio playwright, and a Chromium (Debian: apt-get install chromium); then `python -m pytest -m browser`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image

from demo import answers
from tests.fixtures.golden_files import ROOT

pytestmark = pytest.mark.browser
PICTURE = "docs/results/demo.png"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    command = [sys.executable, "main.py", "--config=configs/demo.py", f"--config.port={port}", "--config.most_names=3"]
    with open(log, "w") as out:
        served = subprocess.Popen([*command, f"--workdir={log.parent}"], cwd=ROOT, stdout=out, stderr=out)
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            time.sleep(0.5)
            try:
                urllib.request.urlopen(url, timeout=5).read()
                break
            except OSError:
                assert served.poll() is None, log.read_text()
        yield url
        served.terminate()
        served.wait(30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "no Chromium; install one, or name it in CHROMIUM"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1500, "height": 1150}, accept_downloads=True)
    opened = context.new_page()
    opened.goto(address)
    opened.get_by_role("button", name="Where?").wait_for(timeout=60_000)
    yield opened
    context.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    answers.compose(0, [("cat", 0.3, 0.3, 0.4), ("rocket", 0.7, 0.7, 0.4)]).save(path)
    return path


def upload(page, path) -> None:
    """Chooses a file once the page listens, as a user's first click would come later than a program's."""
    page.wait_for_timeout(3000)
    page.locator("#photo input[type=file]").set_input_files(str(path))


def shown(page) -> None:
    """Waits until the picture that is asked about is there."""
    page.locator("#shown img").first.wait_for(timeout=180_000)


def ask(page, names: str) -> None:
    page.locator("#names textarea, #names input").first.fill(names)
    page.locator("#ask").click()


def boxes(page) -> str:
    page.wait_for_function("document.querySelectorAll('#answers img').length >= 5", timeout=240_000)
    return page.locator("#boxes").inner_text()


def message(page) -> str:
    return page.locator(".toast-body").first.inner_text(timeout=120_000)


def test_upload_type_click_and_boxes_appear(page, photo, tmp_path):
    upload(page, photo)
    shown(page)
    ask(page, "cat, rocket")
    text = boxes(page)
    assert "cat" in text and "rocket" in text
    with page.expect_download(timeout=60_000) as download:
        page.locator("#json").click()
    download.value.save_as(tmp_path / "boxes.json")
    held = json.loads((tmp_path / "boxes.json").read_text())
    assert [category["name"] for category in held["categories"]] == ["cat", "rocket"]
    with page.expect_download(timeout=60_000) as download:
        page.locator("#png").click()
    download.value.save_as(tmp_path / "answers.png")
    assert Image.open(tmp_path / "answers.png").width == 960
    target = ROOT / PICTURE
    if os.environ.get("KEEP_PICTURE"):
        page.screenshot(path=tmp_path / "page.png")
        shot = Image.open(tmp_path / "page.png").convert("RGB").quantize(200)
        shot.save(target, optimize=True)
        assert target.stat().st_size <= 500_000


def test_an_example_and_a_sticker(page):
    page.wait_for_timeout(3000)
    page.get_by_role("button", name="guitar").click()
    shown(page)
    page.locator("#ask").click()
    assert "guitar" in boxes(page)
    page.get_by_role("tab", name="Stickers").click()
    page.locator("#board img").first.click(position={"x": 100, "y": 100})
    page.wait_for_function("document.querySelector('#names textarea, #names input').value === 'cat'", timeout=60_000)


@pytest.mark.parametrize(
    ("names", "said"),
    [("catt", "does not know that name"), ("", "no name"), ("cat, dog, pizza, rocket", "4 names: at most 3")],
)
def test_wrong_names_are_explained(page, photo, names, said):
    upload(page, photo)
    shown(page)
    ask(page, names)
    assert said in message(page)


def test_hostile_uploads_are_messages(page, tmp_path):
    page.wait_for_timeout(3000)
    ask(page, "cat")
    assert "no picture" in message(page)
    page.reload()
    page.get_by_role("button", name="Where?").wait_for(timeout=60_000)
    (tmp_path / "script.png").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    upload(page, tmp_path / "script.png")
    said = message(page)
    assert "script.png: not a picture that can be read" in said and str(tmp_path) not in said


def test_forty_megapixels(page, tmp_path):
    large = answers.compose(0, [("cat", 0.4, 0.4, 0.6)]).resize((8000, 5000), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.jpg", quality=60)
    upload(page, tmp_path / "large.jpg")
    shown(page)
    ask(page, "cat")
    assert "cat" in boxes(page)


def test_two_users_at_the_same_time(browser, address, photo):
    contexts = [browser.new_context() for _ in range(2)]
    pages = [context.new_page() for context in contexts]
    for opened in pages:
        opened.goto(address)
        opened.get_by_role("button", name="Where?").wait_for(timeout=60_000)
        opened.wait_for_timeout(3000)
    for opened, example in zip(pages, ("guitar", "pizza, dog"), strict=True):
        opened.get_by_role("button", name=example).click()
    for opened in pages:
        shown(opened)
    for opened in pages:
        opened.locator("#ask").click()
    first, second = (boxes(opened) for opened in pages)
    assert "guitar" in first and "pizza" not in first
    assert "pizza" in second and "dog" in second and "guitar" not in second
    for context in contexts:
        context.close()


def test_no_file_of_the_disk_can_be_read(address):
    for path in ("/etc/passwd", str(ROOT / "main.py"), "../../etc/passwd", "/proc/self/environ"):
        for route in ("/gradio_api/file=", "/file="):
            try:
                with urllib.request.urlopen(f"{address}{route}{path}", timeout=10) as answer:
                    content = answer.read()
            except urllib.error.HTTPError as error:
                assert error.code in (403, 404), path
                continue
            assert b"root:" not in content and b"absl" not in content, path
