"""The page of puzzles in a real browser: drawing and typing, examples, and the answer step by step."""

import json

import pytest

from tests.engine.serve.test_page import sent


@pytest.fixture
def tab(opened, solving):
    """Opens the page of a model, and waits until it shows a held-out puzzle."""

    def open_page(model=None, width=1000, **options):
        page = opened(solving(*([model] if model else []), **options), width)
        page.wait_for_selector("#told:has-text('number')")
        return page

    return open_page


def texts(page, board="question"):
    return page.locator(f"#{board} [role=gridcell]").all_inner_texts()


def labels(page, board="question"):
    cells = page.locator(f"#{board} [role=gridcell]")
    return cells.evaluate_all("cells => cells.map(cell => cell.getAttribute('aria-label').split(': ')[1])")


def solved(page):
    """Have it solved; what the server answered."""
    with page.expect_response("**/puzzles/solve") as answer:
        page.click("#solve")
    page.wait_for_selector("#result:not([hidden])")
    page.wait_for_selector("#solve:text-is('Solve')")
    return answer.value.json()["steps"]


def test_a_held_out_sudoku_is_solved_step_by_step(tab):
    page = tab()
    assert "dots: Sudoku 4x4" in page.inner_text("h1") and "Held-out puzzle" in page.inner_text("#told")
    page.fill("#steps", "5")
    steps = solved(page)
    assert len(steps) == 5 and page.locator("#bars button").count() == 5
    for number, step in enumerate(steps, start=1):
        page.fill("#slider", str(number))
        assert texts(page, "answer") == [str(token - 1) if token > 1 else "–" for token in step["tokens"]]
        for kind in ("wrong", "changed"):
            marked = [cell for cell, words in enumerate(labels(page, "answer")) if kind in words]
            assert marked == step[kind] and page.locator(f"#answer .{kind}").count() == len(marked)
        said = page.inner_text("#verdict")
        assert f"Step {number} of 5" in said and f"{100 * step['halting']:.0f} %" in said
        assert (f"{len(step['wrong'])} wrong" if step["wrong"] else "all right") in said
        assert ("no valid" in said) is not step["valid"]
        bar = page.locator(f"#bars button >> nth={number - 1}")
        height = bar.locator("i").evaluate("bar => parseFloat(bar.style.height)")
        assert height == pytest.approx(100 * step["halting"], abs=1e-3) and bar.get_attribute("aria-current") == "step"
    beyond = page.locator("#bars button").evaluate_all("bars => bars.map(bar => bar.classList.contains('beyond'))")
    assert beyond == [False] * 3 + [True] * 2 and "more steps than the 3" in page.inner_text("#legend")


def test_it_plays_and_pauses(tab):
    page = tab()
    solved(page)
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    page.wait_for_selector("#verdict:has-text('Step 3 of 3')")
    page.wait_for_selector("#play:text-is('Play')")
    page.click("#play")  # from the start again
    page.wait_for_selector("#verdict:not(:has-text('Step 3 of 3'))")
    page.click("#bars button >> nth=1")
    assert page.inner_text("#play") == "Play", "who chooses a step wants to see it"
    page.wait_for_timeout(600)
    assert "Step 2 of 3" in page.inner_text("#verdict")
    page.click("#play")
    page.click("#play")
    said = page.inner_text("#verdict")
    page.wait_for_timeout(600)
    assert page.inner_text("#verdict") == said


def test_a_sudoku_is_typed_with_the_keyboard_alone(tab):
    page = tab()
    page.focus("#clear")
    page.keyboard.press("Enter")
    assert texts(page) == [""] * 16 and page.inner_text("#told") == ""
    page.focus("#question")
    moves = {"<": "ArrowLeft", ">": "ArrowRight", "^": "ArrowUp", "v": "ArrowDown"}
    for key in (moves.get(key, key) for key in "3>1v4v2^0<<5^^"):
        page.keyboard.press(key)
    assert texts(page) == ["3", "1", *[""] * 7, "2", *[""] * 6], "4 was erased, 5 is no digit, and the edge holds"
    assert page.get_attribute("#question", "aria-activedescendant") == "question-0"
    bodies = sent(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])")
    assert bodies == [{"inputs": [4, 2, *[1] * 7, 3, *[1] * 6], "labels": None, "steps": 3}]
    assert "wrong" not in page.inner_text("#verdict") and "valid" in page.inner_text("#verdict")
    page.click("#question [role=gridcell] >> nth=2")
    page.keyboard.press("3")
    assert page.is_hidden("#result"), "the answer was to another puzzle"
    solved(page)
    assert "twice" in page.inner_text("#problem")


def test_a_changed_example_has_no_known_answer(tab):
    page = tab()
    bodies = sent(page)
    solved(page)
    page.click("#question [role=gridcell] >> nth=0")
    page.keyboard.press("1" if texts(page)[0] != "1" else "2")
    solved(page)
    assert bodies[0]["labels"] is not None and bodies[1]["labels"] is None
    page.click("#random")
    page.wait_for_selector("#told:has-text('Held-out')")
    solved(page)
    assert bodies[2]["labels"] is not None


def test_a_maze_is_drawn(tab, maze):
    page = tab(maze)
    page.click("#clear")
    cells = page.locator("#question [role=gridcell]")
    boxes = [cells.nth(number).bounding_box() for number in range(25)]

    def middle(number):
        return boxes[number]["x"] + boxes[number]["width"] / 2, boxes[number]["y"] + boxes[number]["height"] / 2

    page.mouse.move(*middle(5))
    page.mouse.down()
    page.mouse.move(*middle(8), steps=20)
    page.mouse.up()
    page.mouse.move(*middle(12), steps=5)
    for symbol, where in (("S", 0), ("S", 1), ("G", 10), (" ", 6)):
        page.check(f"#tools input[value='{symbol}']")
        page.mouse.click(*middle(where))
    wanted = ["open"] * 25
    wanted[5] = wanted[7] = wanted[8] = "wall"
    wanted[1], wanted[10] = "start", "goal"
    assert labels(page) == wanted
    page.focus("#question")
    for key in ("ArrowRight", " ", "ArrowRight", "#", "ArrowRight", "g", " ", "."):
        page.keyboard.press(key)
    wanted[7], wanted[8], wanted[9], wanted[10] = "open", "wall", "open", "open"
    assert labels(page) == wanted
    solved(page)
    assert "0 goals" in page.inner_text("#problem")
    page.keyboard.press("Tab")
    page.click("#random")
    page.wait_for_selector("#told:has-text('Held-out')")
    assert solved(page) and page.inner_text("#problem") == ""


def test_an_arc_puzzle_is_taken_by_name_coloured_and_resized(tab, arc):
    page = tab(arc)
    page.wait_for_selector("#names:not([hidden])")
    options = page.locator("#names option").all_inner_texts()
    assert any("held out" in name for name in options) and any("training" in name for name in options)
    page.select_option("#names", index=len(options) - 1)
    page.wait_for_selector("#told:has-text('Training')")
    bodies = sent(page)
    solved(page)
    assert bodies[0]["identifier"] > 0 and "halting" in page.inner_text("#verdict")
    page.fill("#rows", "2")
    page.fill("#columns", "3")
    page.keyboard.press("Tab")
    page.check("#tools input[value='4']")
    page.click("#question [role=gridcell] >> nth=4")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("7")
    assert labels(page)[4:] == ["colour 4", "colour 7"]
    solved(page)
    grid = [bodies[1]["inputs"][row * 30 : row * 30 + 5] for row in range(4)]
    assert [row[3:] for row in grid] == [[1, 0], [1, 0], [0, 0], [0, 0]] and grid[2][:3] == [1, 1, 1]
    assert grid[1][1:3] == [6, 9] and bodies[1]["labels"] is None and bodies[1]["identifier"] == bodies[0]["identifier"]


def test_without_its_data_the_page_says_so_and_takes_what_is_typed(opened, solving, sudoku, monkeypatch):
    monkeypatch.chdir("/")
    monkeypatch.setitem(sudoku.config.__dict__, "data_paths", ["gone/away"])
    page = opened(solving())
    page.wait_for_selector("#problem:has-text('gone/away')")
    assert len(texts(page)) == 16 and solved(page)


def test_a_window_as_wide_as_a_phone_holds_it_in_light_and_dark(tab):
    page = tab(width=375)
    solved(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours.append(page.locator("#answer").evaluate("board => getComputedStyle(board).backgroundColor"))
    assert colours[0] != colours[1]


def test_a_server_with_a_key_is_asked_with_it(opened, solving):
    page = opened(solving(api_key="sesame"))
    page.wait_for_selector("#key:not([hidden])")
    page.fill("input[name=key]", "sesame")
    page.keyboard.press("Tab")
    page.wait_for_selector("#told:has-text('number')")
    assert solved(page)


def test_what_the_server_refuses_is_shown(tab):
    page = tab()
    page.fill("#steps", "65")
    with page.expect_response("**/puzzles/solve") as answer:
        page.click("#solve")
    assert json.loads(answer.value.text())["error"]["param"] == "steps"
    page.wait_for_selector("#problem:has-text('64')")
