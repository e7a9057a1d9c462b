"""The page in a real browser against a real server whose backend speaks from a script.

Skipped with a printed reason where there is no Chromium; TEST_REQUIRE_BROWSER=1 makes that a
failure. Every test also holds what `conftest.Watch` does: no error is logged, no content policy
is broken, and no other server is asked for anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from personas.library import Library

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

    from tests.gateway.web.conftest import Server, Watch


def open_chat(page: Page, persona: int = 0) -> None:
    page.locator("[data-persona]").nth(persona).click()
    page.locator(".message.assistant").first.wait_for()


def say(page: Page, text: str) -> None:
    page.fill("#draft", text)
    page.press("#draft", "Enter")


def reply_ends(page: Page, messages: int) -> Locator:
    """Waits until `messages` messages are there and the last is not live; returns it."""
    expect(page.locator(".message")).to_have_count(messages)
    last = page.locator(f".message:nth-of-type({messages}):not(.live)")
    last.wait_for()
    return last


def texts(page: Page) -> list[str]:
    """What is shown now: of use once the page was waited for."""
    return page.locator(".message .text").all_text_contents()


def test_characters_wait_at_home(page: Page) -> None:
    """The page lists the shipped characters by name, with a line about each."""
    shipped = Library.shipped().list()
    expect(page.locator(".card .name")).to_have_text([p.name for p in shipped])
    lines = [re.compile(r"\S")] * len(shipped)
    expect(page.locator(".card .tagline")).to_have_text(lines)


def test_greeting_reply_and_stats(page: Page) -> None:
    """A click opens a chat with its greeting; a reply grows in place and ends with its numbers."""
    name = page.locator(".card .name").first.inner_text()
    open_chat(page)
    expect(page.locator("#who .name")).to_have_text(name)
    expect(page).to_have_url(re.compile(r"#/chat/.+"))
    expect(page.locator(".message .text")).to_have_text([re.compile(r"\S")])
    expect(page).to_have_title(re.compile(re.escape(name)))

    page.evaluate("window.seen = probes.watchReply(); null")
    say(page, "It rained slowly.\nAnd the bus was late.")
    page.locator("#stop").wait_for()
    seen = page.evaluate("window.seen")
    assert len(seen["lengths"]) >= 3
    assert seen["lengths"] == sorted(seen["lengths"])
    assert seen["nodes"] == 0  # text was only ever appended
    assert set(seen["busy"]) == {"true"}

    last = reply_ends(page, 3)
    expect(page.locator("#log")).to_have_attribute("aria-busy", "false")
    said = page.locator(".message.user .text")
    assert said.inner_text() == "It rained slowly.\nAnd the bus was late."
    stats = last.locator(".stats").inner_text()
    number = r"\d+(\.\d+)?"
    assert re.fullmatch(
        rf"{number} s to first token · {number} tokens/s · "
        r"\d+ prompt tokens, none cached · scripted",
        stats,
    )
    spoken = last.locator(".text").inner_text()
    signed = last.get_attribute("aria-label")  # a nickname, where the persona has one
    assert signed
    assert signed == page.locator(".message").first.get_attribute("aria-label")
    expect(page.locator("#announcer")).to_have_text(f"{signed}: {spoken}")
    expect(page.locator("#draft")).to_have_value("")
    expect(page.locator("#send")).to_be_visible()


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_keeps_what_was_said(page: Page, way: str) -> None:
    """Stop and Esc end a reply; the partial text stays, is marked, and the chat goes on."""
    open_chat(page)
    say(page, "Tell me everything, slowly.")
    page.locator(".message.live:not(.waiting)").wait_for()
    if way == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    last = reply_ends(page, 3)
    expect(last.locator(".mark")).to_have_text("Stopped")
    partial = last.locator(".text").inner_text()
    assert 0 < len(partial.split()) < 20
    expect(page.locator("#draft")).to_be_focused()
    say(page, "Go on.")
    reply_ends(page, 5)
    assert texts(page)[2] == partial


def test_reload_comes_back_to_the_conversation(page: Page) -> None:
    """A reload shows the same messages, numbers and the draft that was not sent."""
    open_chat(page)
    say(page, "Remember this.")
    reply_ends(page, 3)
    before = (texts(page), page.locator(".stats").all_text_contents())
    page.fill("#draft", "half a thou")
    page.reload()
    reply_ends(page, 3)
    assert (texts(page), page.locator(".stats").all_text_contents()) == before
    expect(page.locator("#draft")).to_have_value("half a thou")


def test_reload_in_the_middle_of_a_reply(page: Page) -> None:
    """The server goes on speaking while the page is away, and the page catches up."""
    open_chat(page)
    say(page, "Go on slowly, do not let me interrupt you.")
    page.locator(".message.live:not(.waiting)").wait_for()
    page.reload()
    last = reply_ends(page, 3)
    expect(last.locator(".stats")).to_be_visible()
    expect(last.locator(".mark")).to_have_count(0)


def test_home_lists_the_chat_to_go_on_with(page: Page) -> None:
    """The recent chats lead back into the conversation."""
    open_chat(page, 1)
    name = page.locator("#who .name").inner_text()
    say(page, "See you later.")
    reply_ends(page, 3)
    before = texts(page)
    page.click("#back")
    row = page.locator(".row").first
    expect(row.locator(".name")).to_have_text(name)
    expect(row.locator("time")).to_have_text("just now")
    row.click()
    reply_ends(page, 3)
    assert texts(page) == before


def test_the_reader_may_have_a_name(page: Page) -> None:
    """The name is used for new chats and kept over a reload."""
    page.fill("#name", " Ada ")
    open_chat(page)
    say(page, "Hello.")
    reply_ends(page, 3)
    expect(page.locator(".message.user")).to_have_attribute("aria-label", "Ada")
    page.click("#back")
    page.reload()
    expect(page.locator("#name")).to_have_value("Ada")


def test_markup_in_messages_stays_text(page: Page) -> None:
    """A script or an image in a message is shown as it was typed and does nothing."""
    attack = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'> & *<b>x</b>*"
    page.fill("#name", "<i>Eve</i>")
    open_chat(page)
    say(page, attack)
    reply_ends(page, 3)
    page.reload()
    reply_ends(page, 3)
    assert texts(page)[1] == attack
    assert page.evaluate("window.hit") is None
    assert page.locator("#messages script, #messages img[onerror], #messages b").count() == 0


def test_keys(page: Page) -> None:
    """Shift+Enter starts a line, Enter sends, blank text is not sent, a live reply holds Enter."""
    open_chat(page)
    page.press("#draft", "Enter")
    page.fill("#draft", "   ")
    expect(page.locator("#send")).to_be_disabled()
    page.press("#draft", "Enter")
    page.fill("#draft", "slowly")
    page.press("#draft", "Shift+Enter")
    page.type("#draft", "two")
    page.press("#draft", "Enter")
    page.locator(".message.live").wait_for()
    expect(page.locator("#draft")).to_have_value("")
    assert texts(page)[1] == "slowly\ntwo"
    say(page, "typed too soon")
    expect(page.locator("#draft")).to_have_value("typed too soon")
    page.keyboard.press("Escape")
    reply_ends(page, 3)
    expect(page.locator("#draft")).to_have_value("typed too soon")
    expect(page.locator(".message")).to_have_count(3)


def test_too_long_a_message_is_refused_and_kept(page: Page) -> None:
    """One clear line says so, nothing is stored, and the words stay in the box."""
    open_chat(page)
    long = "words " * 4000
    say(page, long)
    problem = page.locator("#problem")
    expect(problem).to_contain_text("characters")
    expect(page.locator("#draft")).to_have_value(long)
    page.reload()
    expect(page.locator(".message")).to_have_count(1)
    expect(page.locator("#draft")).to_have_value(long)
    say(page, "Shorter.")
    reply_ends(page, 3)
    expect(problem).to_be_hidden()


def test_a_second_page_sees_the_same_reply(page: Page, server: Server) -> None:
    """Both pages of a chat show the message and the reply as they come."""
    open_chat(page)
    other = page.context.new_page()
    other.goto(page.url)
    other.locator(".message").first.wait_for()
    say(page, "Is anyone slowly coming in?")
    other.locator(".message.live:not(.waiting)").wait_for()
    reply_ends(page, 3)
    reply_ends(other, 3)
    assert texts(other) == texts(page)


def test_an_unknown_address_says_so(page: Page, server: Server) -> None:
    """A chat that is not there leads home again."""
    page.goto(server.url + "#/chat/c_nothing")
    page.locator("#missing").wait_for()
    page.locator("#missing a").click()
    page.locator("[data-persona]").first.wait_for()


def test_reading_back_is_not_disturbed(page: Page) -> None:
    """New text scrolls only for a reader at the end; a button leads there."""
    page.set_viewport_size({"width": 800, "height": 420})
    open_chat(page)
    for count in (3, 5):
        say(page, "Go on.\n" * 8)
        reply_ends(page, count)
    log = page.locator("#log")
    gap = "(log) => log.scrollHeight - log.scrollTop - log.clientHeight"
    at_end = f"({gap})(document.querySelector('#log')) < 2"
    page.wait_for_function(at_end)
    say(page, "And then, slowly?")
    page.locator(".message.live").wait_for()
    log.evaluate("(log) => { log.scrollTop = 0; }")
    newer = page.locator("#newer")
    newer.wait_for()
    reply_ends(page, 7)
    assert log.evaluate("(log) => log.scrollTop") == 0
    newer.click()
    page.wait_for_function(at_end)
    expect(newer).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["wide", "narrow"])
def test_it_can_be_read_and_touched(page: Page, size: tuple[int, int], scheme: str) -> None:
    """No sideways scroll, AA contrast, controls of 24 pixels and with names, in every view."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")

    def look() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        for box in ("#bar", "#home", "#log"):
            fits = "(element) => element.scrollWidth <= element.clientWidth"
            assert page.locator(box).evaluate(fits)
        assert page.evaluate("probes.poorContrast()") == []
        assert page.evaluate("probes.smallTargets()") == []
        assert page.evaluate("probes.unnamedControls()") == []

    page.locator("[data-persona]").first.wait_for()
    look()
    open_chat(page)
    say(page, "slowly_a_word_without_any_end_" * 40)
    page.locator(".message.live:not(.waiting)").wait_for()
    page.keyboard.press("Escape")
    reply_ends(page, 3)
    say(page, "x" * 20_000)
    page.locator("#problem").wait_for()
    look()
    page.click("#back")
    page.locator(".row").first.wait_for()
    look()


def test_killed_server_comes_back(page: Page, watch: Watch, server: Server) -> None:
    """After SIGKILL and a new start the page reconnects by itself and the chat goes on whole."""
    watch.may_lose_connection = True
    open_chat(page)
    say(page, "Before the fall.")
    reply_ends(page, 3)
    say(page, "In the middle of a slowly spoken word.")
    page.locator(".message.live:not(.waiting)").wait_for()
    server.kill()
    banner = page.locator("#banner")
    expect(banner).to_contain_text("Connection lost")
    before = texts(page)[:4]
    say(page, "Is anyone there?")
    server.start()
    banner.wait_for(state="hidden", timeout=40_000)
    last = reply_ends(page, 5)
    assert texts(page)[:4] == before
    expect(last.locator(".mark")).to_contain_text("Interrupted")
    expect(page.locator("#draft")).to_have_value("Is anyone there?")
    page.press("#draft", "Enter")
    last = reply_ends(page, 7)
    expect(last.locator(".stats")).to_be_visible()
    expect(page.locator("#draft")).to_have_value("")


def test_picker_of_the_voice(page: Page) -> None:
    """A chat's backend is picked on the page, kept over a reload, and locked while it speaks."""
    open_chat(page)
    voices = page.locator("#voices")
    options = voices.locator("option")
    expect(options).to_have_text(["scripted", re.compile(r"remote( \(\w+\))?")])
    expect(voices).to_have_value("scripted")
    expect(page.get_by_label("Voice")).to_have_id("voices")
    line = page.locator("#backend")
    expect(line).to_have_attribute("data-state", "ready")
    say(page, "Good evening, slowly.")
    page.locator("#stop").wait_for()
    expect(voices).to_be_disabled()
    reply_ends(page, 3)
    expect(page.locator(".spoke").last).to_have_text("· scripted")
    voices.select_option("remote")
    expect(options).to_have_text(["scripted", "remote (down)"])
    expect(line).to_have_attribute("data-state", "down")
    say(page, "And who are you?")
    reply_ends(page, 5)
    mark = page.locator(".message .mark").last
    expect(mark).to_contain_text("cannot reach the server")
    failed = mark.inner_text()
    page.reload()
    page.locator(".message").nth(4).wait_for()
    expect(mark).to_have_text(failed)
    voices.locator("[value=remote]:checked").wait_for(state="attached")
    voices.select_option("scripted")
    page.locator("#backend[data-state=ready]").wait_for()
    say(page, "Come back.")
    last = reply_ends(page, 7)
    expect(last.locator(".stats")).to_be_visible()


def test_two_pages_share_the_choice(page: Page) -> None:
    """A choice made in one page shows in the other."""
    open_chat(page)
    other = page.context.new_page()
    other.goto(page.url)
    other.locator(".message").first.wait_for()
    page.locator("#voices").select_option("remote")
    other.locator("#voices [value=remote]:checked").wait_for(state="attached")
    other.close()


def test_one_voice_needs_no_picker(page: Page) -> None:
    """Where one backend is offered there is no picker, and no reply says who spoke it."""

    def only_the_first(route: Route) -> None:
        listed = route.fetch().json()
        route.fulfill(json={"data": listed["data"][:1]})

    page.route("**/v1/backends", only_the_first)
    page.reload()
    open_chat(page)
    say(page, "Good evening.")
    last = reply_ends(page, 3)
    expect(page.locator("#voice")).to_be_hidden()
    expect(last.locator(".stats")).to_have_text(re.compile("cached$"), use_inner_text=True)
