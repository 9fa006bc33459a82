"""The report in a real headless browser: it renders, its figures are there, and it asks nothing of the network."""

import shutil

import pytest

from hf_gradkit.reporting.page import write_report
from pair_helpers import pairs, save_policy, train_dpo

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium, such as with `apt-get install chromium`")
def test_the_page_renders(tokenizer, tmp_path):
    import hf_gradkit

    sync = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    policy = save_policy(tmp_path / "policy", tokenizer)
    for name in ("first", "second"):
        trainer = train_dpo(
            hf_gradkit.DPOTrainer,
            hf_gradkit.DPOConfig,
            policy,
            tmp_path / name,
            pairs(16),
            max_steps=3,
            loss_type=["rpo"],
            monitors=["entanglement"],
        )
        trainer.save_state()
    page = write_report([tmp_path / "first", tmp_path / "second"])
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page()
        messages, requests = [], []
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url[:40]))
        tab.goto(page.as_uri())
        sizes = tab.eval_on_selector_all("img", "all => all.map(one => [one.alt, one.naturalWidth, one.clientHeight])")
        rows = tab.locator("table").first.locator("tr").all_inner_texts()
        folded = tab.locator("details table").first
        assert not folded.is_visible()
        tab.locator("summary").click()
        assert folded.is_visible()
        browser.close()
    assert messages == []
    assert all(request.startswith(("file:", "data:")) for request in requests)
    names = {name for name, _, _ in sizes}
    assert {"Losses", "Implicit rewards", "Drift of log-probabilities", "Gradient entanglement"} <= names
    assert all(width > 300 and height > 100 for _, width, height in sizes)
    assert [row.split("\t")[0] for row in rows] == ["run", "first", "second"]
