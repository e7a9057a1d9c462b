"""Bringing characters on the page, in a real browser against a real server.

As everywhere on the page: no error is logged, no content policy is broken, nobody else is asked.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from personas.library import Library
from tests.personas import makers

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Locator, Page

SHIPPED = len(Library.shipped().list())


def file(name: str, raw: bytes) -> FilePayload:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": raw}


def bring(page: Page, *files: FilePayload) -> Locator:
    """Chooses files as with the button; returns the rows of the answer, the newest first."""
    page.locator("[data-persona]").first.wait_for()
    page.set_input_files("#files", [*files])
    rows = page.locator(".brought")
    rows.nth(len(files) - 1).wait_for()
    return rows


def test_brought_and_talked_with(page: Page) -> None:
    """A card becomes a character with a report and a picture, and one click starts the talk."""
    raw = makers.card(name="Ada Lang", tags=["clocks"], mood="odd", personality=None)
    [row] = bring(page, file("ada.png", makers.png(makers.text(raw)))).all()
    expect(row.locator(".says")).to_have_text("Ada Lang is here.")
    summary = row.locator("summary")
    expect(summary).to_have_text(re.compile(r"^Import report \(png\): .*1 repaired"))
    summary.click()
    expect(row.locator("dl")).to_contain_text("personality")
    expect(row.locator("dl")).to_contain_text("mood")
    card = page.locator("[data-persona=ada-lang]")
    card.locator("img").wait_for()
    expect(card.locator(".tag")).to_have_text(["clocks"])
    row.get_by_role("button", name="Start talking").click()
    expect(page.locator(".message .text")).to_have_text(["Tick?"])
    page.click("#back")
    page.locator("[data-persona=ada-lang]").wait_for()
    expect(page.locator(".brought")).to_have_count(0)  # read and done with


def test_refused_and_undone(page: Page) -> None:
    """A bad file says why beside the good ones; what was just brought can be taken away."""
    rows = bring(
        page,
        file("page.png", b"<!doctype html>"),
        file("bea.json", makers.card(name="Bea")),
        file("bea again.json", makers.card(name="Bea")),
    )
    refused = re.compile("^page.png could not be read: the file is a web page")
    says = rows.locator(".says")
    expect(says).to_have_text([refused, "Bea is here.", "Bea was here already."])
    expect(rows.nth(0).locator("button, details")).to_have_count(0)
    rows.nth(1).get_by_role("button", name="Undo").click()
    page.locator("[data-persona=bea]").wait_for(state="detached")
    expect(says).to_have_text([refused])
    page.reload()
    page.locator("[data-persona]").first.wait_for()
    expect(page.locator("[data-persona=bea]")).to_have_count(0)


def test_dropped(page: Page) -> None:
    """A file that is dropped on the page is brought; other things that are dragged are not."""
    page.locator("[data-persona]").first.wait_for()
    raw = base64.b64encode(makers.card(name="Cy")).decode()
    drag = """
        ([type, raw]) => {
            const data = new DataTransfer();
            if (raw) data.items.add(new File([atob(raw)], "cy.json"));
            else data.setData("text/plain", "words");
            const home = document.querySelector("#home");
            const init = { dataTransfer: data, bubbles: true, cancelable: true };
            const taken = !home.dispatchEvent(new DragEvent(type, init));
            return [taken, home.classList.contains("dropping")];
        }"""
    assert page.evaluate(drag, ["dragenter", raw]) == [False, True]
    assert page.evaluate(drag, ["dragleave", raw]) == [False, False]
    assert page.evaluate(drag, ["dragover", raw])[0] is True
    assert page.evaluate(drag, ["dragover", ""])[0] is False
    assert page.evaluate(drag, ["drop", ""])[0] is False
    assert page.evaluate(drag, ["drop", raw])[0] is True
    page.locator("[data-persona=cy]").wait_for()


def test_markup_of_a_card_stays_text(page: Page) -> None:
    """Whatever a card is called, it is text on the page."""
    bad = '<img src=x onerror="boom()">'
    bring(page, file("x.json", makers.card(name=bad, tags=[bad], creator_notes=bad)))
    card = page.locator(".card", has_text="onerror").first
    expect(card.locator(".name")).to_have_text(bad)
    expect(page.locator("img[onerror]")).to_have_count(0)


def test_found_by_words(page: Page) -> None:
    """Words narrow the list to those who have them all; nothing found is said."""
    cards = [
        file(f"{n}.json", makers.card(name=f"Finder {n}", tags=[f"odd{n % 2}"])) for n in range(8)
    ]
    bring(page, *cards)
    page.locator("[data-persona=finder-7]").wait_for()
    page.fill("#find", "finder ODD1")
    names = page.locator(".card .name")
    expect(names).to_have_text(["Finder 1", "Finder 3", "Finder 5", "Finder 7"])
    page.fill("#find", "nobody at all")
    page.locator("#unfound").wait_for()
    page.fill("#find", "")
    page.locator(".card").nth(SHIPPED + 7).wait_for()
    expect(page.locator("#more")).to_be_hidden()


def test_many_are_shown_in_parts(page: Page) -> None:
    """With more characters than fit, the rest comes at a click; all files were read."""
    cards = [file(f"{n}.json", makers.card(name=f"Many {n:02}")) for n in range(50)]
    bring(page, *cards)
    expect(page.locator(".brought.added")).to_have_count(50)
    more = page.locator("#more")
    more.wait_for()
    cards_shown = page.locator(".card")
    expect(cards_shown).to_have_count(48)
    more.click()
    cards_shown.nth(48).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable(page: Page, scheme: str) -> None:
    """The report has enough contrast in both schemes, also of what was refused."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    card = json.loads(makers.card(name=f"Dee {scheme}", tags=7))
    rows = bring(page, file("d.json", json.dumps(card).encode()), file("e.json", b"{"))
    rows.first.locator("summary").click()
    rows.first.locator("dl").wait_for()
    assert page.evaluate("probes.poorContrast()") == []
