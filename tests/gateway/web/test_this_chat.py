"""How a chat begins and the panel about it, in a real browser against a real server."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Page, WebSocketRoute


def open_chat(page: Page) -> None:
    page.locator("[data-persona=maren]").click()
    page.locator("#greetings").wait_for()


def say(page: Page, text: str, messages: int) -> None:
    """One whole turn, after which the chat has so many messages."""
    page.fill("#draft", text)
    page.press("#draft", "Enter")
    expect(page.locator(f".message:nth-of-type({messages}):not(.live)")).to_be_visible()


def shown(page: Page, greeting: str) -> str:
    """Waits until that greeting is shown; its text."""
    expect(page.locator("#greetings .words")).to_have_text(greeting)
    expect(page.locator(".message")).to_have_count(1)
    return page.locator(".message .text").inner_text()


def test_greetings_go_around(page: Page) -> None:
    """Arrows and arrow keys go through the greetings; the choice is kept, and then it stays."""
    open_chat(page)
    first = shown(page, "1 of 3")
    page.get_by_role("button", name="Next greeting").click()
    second = shown(page, "2 of 3")
    assert second != first
    expect(page.locator("#greeting-after")).to_be_focused()
    expect(page.locator("#announcer")).to_have_text(f"Greeting 2 of 3: {second}")
    page.locator("#draft").focus()
    page.keyboard.press("ArrowLeft")
    assert shown(page, "1 of 3") == first
    page.keyboard.press("ArrowLeft")
    third = shown(page, "3 of 3")
    assert third not in (first, second)
    page.fill("#draft", "ab")
    page.keyboard.press("ArrowLeft")  # within what is written the keys move the caret
    page.keyboard.type("-")
    expect(page.locator("#draft")).to_have_value("a-b")
    assert shown(page, "3 of 3") == third
    page.reload()
    assert shown(page, "3 of 3") == third
    say(page, "Good evening.", 3)
    expect(page.locator("#greetings")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".message .text").first).to_have_text(third)


def test_greeting_reaches_the_other_page(page: Page) -> None:
    """Who watches the same chat sees the greeting that was chosen, and what was given."""
    open_chat(page)
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#greetings").wait_for()
    other.locator("#more-about").click()
    page.locator("#greeting-before").click()
    assert shown(other, "3 of 3") == shown(page, "3 of 3")
    other.fill("#given-about", "half a thou")
    page.locator("#more-about").click()
    page.fill("#given-note", "Be dry.")
    page.fill("#given-about", "A surveyor.")
    page.locator("#given-save").click()
    expect(other.locator("#given-note")).to_have_value("Be dry.")
    expect(other.locator("#given-about")).to_have_value("half a thou")  # it is being written
    other.close()


def test_person_and_note_are_kept(page: Page) -> None:
    """Name, description and note are saved, are there after a reload, and reach the prompt."""
    open_chat(page)
    page.locator("#more-about").click()
    expect(page.locator("#panel-title")).to_be_focused()
    save = page.get_by_role("button", name="Save")
    expect(save).to_be_disabled()
    page.get_by_label("Your name").fill("Ines")
    page.get_by_label("Who you are").fill("A cartographer without a boat.")
    page.get_by_label("Author’s note").fill("Keep it short.")
    page.get_by_label("Messages before the reply").fill("0")
    save.click()
    expect(page.locator("#given-state")).to_have_text("Saved. It counts from your next message.")
    expect(save).to_be_disabled()
    say(page, "Good evening.", 3)
    expect(page.locator(".message.user")).to_have_attribute("aria-label", "Ines")
    tail = page.locator(".entries li", has_text="the author's note")
    expect(tail).to_contain_text("at the very end")
    page.reload()
    page.locator("#more-about").click()
    expect(page.get_by_label("Your name")).to_have_value("Ines")
    expect(page.get_by_label("Who you are")).to_have_value("A cartographer without a boat.")
    expect(page.get_by_label("Author’s note")).to_have_value("Keep it short.")
    expect(page.get_by_label("Messages before the reply")).to_have_value("0")
    page.get_by_label("Author’s note").fill("")
    save.click()
    expect(page.locator("#given-state")).to_contain_text("Saved")
    say(page, "And now?", 5)
    expect(page.locator("#trace .facts")).to_be_visible()
    expect(tail).to_have_count(0)


def test_depth_is_a_number(page: Page) -> None:
    """A depth that no prompt has is not sent; the browser says so at the field."""
    open_chat(page)
    page.locator("#more-about").click()
    page.fill("#given-note", "Be dry.")
    page.fill("#given-depth", "101")
    page.locator("#given-save").click()
    expect(page.locator("#given-depth:invalid")).to_be_visible()
    expect(page.locator("#given-state")).to_have_text("")
    page.fill("#given-depth", "3")
    page.locator("#given-save").click()
    expect(page.locator("#given-state")).to_contain_text("Saved")


@pytest.mark.parametrize("width", [1280, 390])
def test_panel_opens_and_closes(page: Page, width: int) -> None:
    """The button, Close and Escape close it, and the focus comes back to the button."""
    page.set_viewport_size({"width": width, "height": 800})
    open_chat(page)
    toggle, panel = page.locator("#more-about"), page.locator("#panel")
    expect(toggle).to_have_attribute("aria-expanded", "false")
    for close in ("Escape", "button", "toggle"):
        toggle.click()
        expect(panel).to_be_visible()
        expect(toggle).to_have_attribute("aria-expanded", "true")
        covered = page.locator("#talk[inert]")
        expect(covered).to_have_count(1 if width < 960 else 0)
        page.get_by_label("Who you are").focus()
        if close == "Escape":
            page.keyboard.press("Escape")
        else:
            (page.get_by_role("button", name="Close") if close == "button" else toggle).click()
        expect(panel).to_be_hidden()
        expect(toggle).to_be_focused()
        expect(covered).to_have_count(0)
    toggle.click()
    page.locator("#back").click()
    page.locator("#home").wait_for()
    expect(toggle).to_be_hidden()
    expect(panel).to_be_hidden()


def test_escape_in_the_panel_stops_no_reply(page: Page) -> None:
    """With the focus in the panel Escape closes it; with the focus elsewhere it stops a reply."""
    open_chat(page)
    page.locator("#more-about").click()
    page.fill("#draft", "Tell me everything, slowly.")
    page.press("#draft", "Enter")
    page.locator(".message.live:not(.waiting)").wait_for()
    page.locator("#given-about").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    expect(page.locator(".message:nth-of-type(3):not(.live) .stats")).to_be_visible()
    expect(page.locator(".message .mark")).to_have_count(0)


def test_trace_names_lore(page: Page) -> None:
    """The panel says which lore came in by which key, where, and at what cost."""
    open_chat(page)
    say(page, "Is there music, in the evening?", 3)
    page.locator("#more-about").click()
    entry = page.locator(".entries li", has_text="the radio")
    expect(entry).to_contain_text("by “music”, before “Is there music, in the evening?”")
    expect(entry.locator(".cost")).to_have_text(re.compile(r"\d+ tokens"))
    expect(page.locator("#trace .facts")).to_contain_text("tokens are taken.")


def test_trace_of_a_book_of_markup(page: Page) -> None:
    """What was cut says why, and names from a book stay text."""
    bad = "<img src=x onerror=boom()>"
    cut = "7 tokens, and 3 of 9 are left"
    empty = dict.fromkeys(("cause", "source", "place", "message"), "")
    entry = {**empty, "id": "0.1", "name": bad, "key": bad, "tokens": 7, "cut": cut}
    trace = {
        **{"room": 99, "tokens": 12, "lore_tokens": 0, "left_out": 2},
        **{"examples": False, "breaks": [], "entries": [entry] * 70},
    }
    page.route("**/trace", lambda route: route.fulfill(json=trace))
    open_chat(page)
    page.locator("#more-about").click()
    expect(page.locator(".entries .name").first).to_have_text(bad)
    expect(page.locator(".entries .why").first).to_contain_text(cut)
    expect(page.locator(".entries li")).to_have_count(61)
    expect(page.locator(".entries li").last).to_have_text("and 10 more")
    expect(page.locator("#trace img")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["wide", "narrow"])
def test_it_can_be_read_and_touched(page: Page, size: tuple[int, int], scheme: str) -> None:
    """Greetings and panel: AA contrast, controls of 24 pixels with names, no sideways scroll."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    open_chat(page)
    for opened in (False, True):
        if opened:
            page.locator("#more-about").click()
            page.locator(".entries").first.wait_for()
            page.fill("#given-note", "a_word_without_any_end_" * 40)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        for box in ("#bar", "#log", "#panel"):
            fits = "(element) => element.scrollWidth <= element.clientWidth"
            assert page.locator(box).evaluate(fits)
        assert page.evaluate("probes.poorContrast()") == []
        assert page.evaluate("probes.smallTargets()") == []
        assert page.evaluate("probes.unnamedControls()") == []


def test_refused_change_stays_in_the_panel(page: Page) -> None:
    """What the server cannot store stays in the field, and one line says why."""

    def refuse(ws: WebSocketRoute) -> None:
        server = ws.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            frame = json.loads(message)
            if frame["t"] == "chat.set":
                error = {"code": "storage_failed", "message": "the disk is full"}
                ws.send(json.dumps({"t": "error", "re": frame["id"], "d": error}))
            else:
                server.send(message)

        ws.on_message(pass_on)

    page.route_web_socket("**/v1/ws", refuse)
    page.reload()
    open_chat(page)
    page.locator("#more-about").click()
    page.fill("#given-about", "A surveyor.")
    page.locator("#given-save").click()
    expect(page.locator("#given-state")).to_have_text("Not saved.")
    expect(page.locator("#problem .words")).to_have_text("the disk is full")
    expect(page.locator("#given-about")).to_have_value("A surveyor.")
    expect(page.locator("#given-save")).to_be_enabled()
