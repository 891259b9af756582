"""The page in a real browser: depth and alternatives of each token, and settings that show what is in force."""

import json

QUESTION = "My name is Ada and I have <b>3</b> cats."


def sent(page):
    """The bodies of the requests for answers, as they are sent."""
    found = []
    page.on("request", lambda request: found.append(json.loads(request.post_data)) if request.post_data else None)
    return found


def ask(page, text, number):
    page.fill("#message", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(f".assistant[data-done] >> nth={number}")


def test_it_chats_and_shows_depth_and_alternatives(started, opened):
    page = opened(started())
    page.wait_for_selector("h1:has-text('ada')")
    ask(page, QUESTION, 0)
    page.hover(".assistant span:nth-child(1)")
    told = page.inner_text("#token")
    assert "3 supervision steps" in told and told.count("%") == 6
    assert page.inner_text(".user") == QUESTION
    assert page.get_attribute(".assistant span:nth-child(1)", "data-depth") == "3"
    bodies = sent(page)
    ask(page, "How many cats do I have?", 1)
    assert [message["role"] for message in bodies[0]["messages"]] == ["user", "assistant", "user"]
    assert page.locator(".note").count() == 0
    page.click("#reset")
    assert page.inner_text("#chat") == ""


def test_a_model_of_single_questions_is_sent_one_at_a_time_and_the_page_says_so(started, opened, instructed):
    page = opened(started(instructed))
    assert "single questions" in page.wait_for_selector(".note").inner_text()
    assert "each question by itself, with a system message" in page.inner_text("#inforce")
    page.click("summary")
    assert "AI assistant" in page.input_value("input[name=system]")
    page.fill("input[name=system]", "")  # too long for so small a window
    bodies = sent(page)
    for number, text in enumerate(("What is 2 plus 3?", "And 4 plus 4?")):
        ask(page, text, number)
    assert [[m["content"] for m in body["messages"] if m["role"] == "user"] for body in bodies] == [
        ["What is 2 plus 3?"],
        ["And 4 plus 4?"],
    ]
    page.check("input[name=turns]")
    page.fill("#message", "And 1 plus 1?")
    with page.expect_response("**/completions"):  # for which this window has no room
        page.keyboard.press("Enter")
    assert len([m for m in bodies[2]["messages"] if m["role"] != "system"]) == 5


def test_the_settings_show_what_is_in_force_and_what_is_changed_is_sent(started, opened):
    page = opened(started())
    page.wait_for_selector("h1:has-text('ada')")
    page.click("summary")
    values = {name: page.input_value(f"input[name={name}]") for name in ("temperature", "max_tokens", "depth")}
    assert values == {"temperature": "0", "max_tokens": "12", "depth": "3"}
    bodies = sent(page)
    ask(page, "Hello", 0)
    assert not {"temperature", "max_tokens", "depth"} & set(bodies[0])
    page.fill("input[name=depth]", "1")
    page.fill("input[name=max_tokens]", "4")
    page.fill("input[name=temperature]", "2")
    assert "temperature 2, at most 4 tokens, depth 1" in page.inner_text("#inforce")
    ask(page, "Hello", 1)
    assert {name: bodies[1][name] for name in values} == {"temperature": 2, "max_tokens": 4, "depth": 1}
    depths = page.locator(".assistant >> nth=1 >> span").evaluate_all("spans => spans.map(s => s.dataset.depth)")
    assert 0 < len(depths) <= 4 and set(depths) == {"1"}


def test_two_tabs_are_answered_at_once(started, opened):
    port = started()
    first, second = opened(port), opened(port)
    for page in (first, second):
        page.wait_for_selector("h1:has-text('ada')")
        page.fill("#message", QUESTION)
    for page in (first, second):
        page.click("#send")
    for page in (first, second):
        page.wait_for_selector(".assistant[data-done]")
    said = [page.inner_text(".assistant") for page in (first, second)]
    assert said[0] == said[1] != ""


def test_a_window_as_wide_as_a_phone_holds_the_settings(started, opened):
    page = opened(started(), width=375)
    page.wait_for_selector("h1:has-text('ada')")
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    boxes = [
        page.locator(f"#settings input[name={name}]").bounding_box() for name in ("temperature", "system", "turns")
    ]
    assert not page.is_visible("#key"), "this server asks for none"
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 375 for box in boxes)
    assert page.locator("#message").bounding_box()["width"] > 200
    ask(page, "Hello", 0)


def test_a_server_with_a_key_is_asked_with_it(started, opened):
    page = opened(started(api_key="sesame"))
    page.wait_for_selector("#key:not([hidden])")
    page.fill("input[name=key]", "sesame")
    page.keyboard.press("Tab")
    page.wait_for_selector("h1:has-text('ada')")
    ask(page, "Hello", 0)
    assert page.inner_text(".assistant")
