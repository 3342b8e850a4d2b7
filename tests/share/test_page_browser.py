"""The page of a run in a real browser: it makes names, shows attention and checks itself, from disk."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, expect

from browsers import Visit
from flashmore.cli.main import main
from flashmore.config import TrainConfig
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.generation.text import continue_text
from flashmore.runs import Run
from flashmore.share.page import page
from flashmore.training.loop import train

NAMES = "#made section:nth-child({}) .name"


@pytest.fixture(scope="module")
def two(trained: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Transformer beside a Bigram."""
    path = tmp_path_factory.mktemp("pages") / "names.html"
    runs = [str(trained[name].path) for name in ("transformer", "bigram")]
    assert main(["page", *runs, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def text(trained: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "text.html"
    assert main(["page", str(trained["text"].path), "--out", str(path)]) == 0
    return path


def checked(visit: Visit) -> str:
    """Waits until the page has checked itself."""
    visit.page.locator("html[data-checked]").wait_for(state="attached", timeout=60_000)
    return str(visit.page.locator("#checked").inner_text())


def names(visit: Visit, place: int) -> list[str]:
    return visit.page.locator(NAMES.format(place)).all_inner_texts()


def test_it_works_from_disk_without_a_request_and_checks_itself(
    browser: Browser, two: Path, trained: dict[str, Run]
) -> None:
    with Visit(browser, two, 1280, "light") as visit:
        told = checked(visit)
        assert re.match(r"Checked\. .* at most \d\.\de-\d, and 40 of 40 names drawn", told)
        assert visit.requests == [two.as_uri()]
        assert visit.complaints == []
        assert visit.page.title() == "More names like those in some names.txt"
        for place, name in enumerate(("transformer", "bigram"), start=1):
            expected = generate(trained[name], GenerateOptions(count=20, seed=1)).names
            assert names(visit, place) == [each.text for each in expected]
            labels = visit.page.locator(f"#made section:nth-child({place}) .novelty").all_inner_texts()
            assert labels == [each.novelty for each in expected]


def test_options_change_the_names_and_stand_in_the_address(
    browser: Browser, two: Path, trained: dict[str, Run]
) -> None:
    with Visit(browser, two, 1280, "light") as visit:
        checked(visit)
        page = visit.page
        before = names(visit, 1)
        page.get_by_role("button", name="More names").click()
        expect(page.get_by_label("Seed")).to_have_value("2")
        page.get_by_label("Prefix").fill("Ma")
        expect(page.get_by_role("alert").filter(has_text="“M”")).to_be_visible()
        page.get_by_label("Prefix").fill("ma")
        page.get_by_text("More options").click()
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_label("Top-k").fill("5")
        page.get_by_label("Top-p").fill("0.95")
        page.get_by_label("How many").fill("7")
        page.get_by_label("Only new names").check()
        expect(page.locator("#status")).to_have_text("Transformer: 7 names. Bigram: 7 names.")
        options = GenerateOptions(
            count=7, seed=2, prefix="ma", temperature=0.5, top_k=5, top_p=0.95, new_only=True
        )
        expected = [name.text for name in generate(trained["transformer"], options).names]
        assert names(visit, 1) == expected != before[:7]
        told = page.locator("#made section:nth-child(1) code").inner_text()
        assert told == (
            "flashmore generate transformer --prefix=ma --temperature 0.5 --top-k 5 --top-p 0.95 --count 7 "
            "--new-only --seed 2"
        )
        address = page.url
        with Visit(browser, two, 390, "dark", "#" + address.partition("#")[2]) as again:
            checked(again)
            assert names(again, 1) == expected
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        assert Path(download.value.path()).read_text(encoding="utf-8").splitlines()[:7] == expected


def test_bad_options_are_named_and_break_nothing(browser: Browser, two: Path) -> None:
    with Visit(browser, two, 1280, "light") as visit:
        checked(visit)
        page, before = visit.page, names(visit, 1)
        for label, bad in (("Seed", "x"), ("How many", "0"), ("Prefix", "a" * 40)):
            good = page.get_by_label(label).input_value()
            page.get_by_label(label).fill(bad)
            expect(page.locator("#problems p").first).to_be_visible()
            assert names(visit, 1) == before
            page.get_by_label(label).fill(good)
            expect(page.locator("#problems p")).to_have_count(0)
        assert visit.complaints == []


def test_the_next_character_and_attention_follow_a_typed_name(browser: Browser, two: Path) -> None:
    with Visit(browser, two, 1280, "light", "#name=anna&layer=1&head=2&row=3") as visit:
        checked(visit)
        page = visit.page
        cards = page.locator("#next > li")
        assert cards.count() == 5
        assert cards.nth(2).locator("h3").inner_text() == "after “an”"
        assert cards.nth(2).locator(".actual th").first.inner_text().startswith("n")
        assert page.locator("#head-title").inner_text().startswith("Layer 2 of")
        assert page.locator("#row-title").inner_text() == "What “n” attends to, at position 3"
        cells = page.locator(".matrix tbody tr").nth(3).locator("td:not(.never) .hidden").all_text_contents()
        assert sum(float(cell.split()[0]) for cell in cells) == pytest.approx(100, abs=2)
        assert page.locator(".matrix tbody tr").nth(3).locator(".never").count() == 1
        page.locator("#matrix").focus()
        page.keyboard.press("ArrowUp")
        assert page.locator("#row-title").inner_text() == "What “n” attends to, at position 2"
        assert "row=2" in page.url
        difference = page.locator("#fused p").last.inner_text()
        found = re.search(r"Largest difference from the four steps: (\S+)\.$", difference)
        assert found
        assert float(found[1]) < 1e-12
        page.get_by_label("A name").fill("an^ña")
        expect(page.locator("#typed-problems")).to_contain_text("“^”, “ñ”")
        assert cards.count() == 4
        page.get_by_label("Length").fill("12")
        expect(page.locator("#tiles-told")).to_contain_text("64 × 64 tiles of 64 × 64: 2,080 of 4,096")
        assert visit.complaints == []


def test_what_cannot_be_seen_alone_is_shown_with_a_sign(
    browser: Browser, trained: dict[str, Run], two: Path
) -> None:
    with Visit(browser, two, 1280, "light") as visit:
        checked(visit)
        visit.page.get_by_label("Prefix").fill("a\u200b\u0323")
        told = visit.page.locator("#problems")
        expect(told).to_contain_text("“U+200B”, “◌\u0323”")
        visit.page.get_by_label("A name").fill("a\u200b\u0323")
        expect(visit.page.locator("#typed-problems")).to_contain_text("“U+200B”, “◌\u0323”")


def test_one_name_is_not_called_names_and_chosen_options_are_open(browser: Browser, two: Path) -> None:
    with Visit(browser, two, 1280, "light", "#topk=1&count=2") as visit:
        checked(visit)
        expect(visit.page.locator("#status")).to_have_text("Transformer: 1 name. Bigram: 1 name.")
        expect(visit.page.locator("#made .note").first).to_contain_text("1 name from 20,000 draws")
        expect(visit.page.get_by_label("Top-k")).to_be_visible()
    with Visit(browser, two, 1280, "light", "#count=2") as visit:
        checked(visit)
        expect(visit.page.get_by_label("Top-k")).to_be_hidden()


def test_the_chosen_model_stands_in_the_address(
    browser: Browser, trained: dict[str, Run], tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    run = trained["transformer"]
    path.write_text(page([run, run]), encoding="utf-8")
    with Visit(browser, path, 1280, "light") as visit:
        checked(visit)
        visit.page.get_by_label("Model").select_option("1")
        visit.page.reload()
        checked(visit)
        expect(visit.page.get_by_label("Model")).to_have_value("1")


def test_a_browser_that_refuses_another_address_still_makes_names(browser: Browser, two: Path) -> None:
    context = browser.new_context()
    opened = context.new_page()
    opened.add_init_script("history.replaceState = () => { throw new DOMException('no', 'SecurityError'); }")
    opened.goto(two.as_uri())
    expect(opened.locator("#status")).to_have_text("Transformer: 20 names. Bigram: 20 names.")
    context.close()


def test_training_is_replayed(browser: Browser, two: Path, trained: dict[str, Run]) -> None:
    lines = [line for line in trained["bigram"].read_metrics() if "samples" in line]
    with Visit(browser, two, 1280, "light") as visit:
        checked(visit)
        slider = visit.page.get_by_label("Step of Bigram")
        slider.fill("0")
        shown = visit.page.locator("#samples .card").nth(1).inner_text()
        assert f"Bigram after {lines[0]['step']} steps" in shown
        assert ", ".join(lines[0]["samples"]) in shown
        assert visit.page.locator("#curves polyline").count() == 4


def test_text_is_continued_as_generate_does(browser: Browser, text: Path, trained: dict[str, Run]) -> None:
    with Visit(browser, text, 1280, "light") as visit:
        assert re.match(r"Checked\. .* 60 of 60 characters drawn", checked(visit))
        expect(visit.page.locator("#status")).to_have_text("Transformer: done.")
        expected = continue_text(trained["text"], GenerateOptions(seed=1), 300)
        assert visit.page.locator("#made pre").text_content() == expected.texts[0]
        assert visit.complaints == []


def test_texts_with_other_characters_and_runs_of_one_logged_step(browser: Browser, tmp_path: Path) -> None:
    def visit(name: str, *texts: str, **options: Any) -> Visit:
        runs = []
        for number, text in enumerate(texts):
            file, out = tmp_path / "text.txt", tmp_path / f"{name} {number}"
            file.write_text(text * 30, encoding="utf-8")
            common: dict[str, Any] = {
                "preset": "shakespeare",
                "block_size": 8,
                "max_steps": 1,
                "eval_interval": 1,
            }
            train(TrainConfig(file=file, mode="text", device="cpu", **common | options), out)
            runs.append(Run.open(out))
        path = tmp_path / f"{name}.html"
        path.write_text(page(runs), encoding="utf-8")
        return Visit(browser, path, 1280, "light")

    small = {"n_layer": 1, "n_embd": 8, "log_interval": 1}
    with visit("nothing in common", "abc de\n", "12345", **small) as two:
        assert checked(two).startswith("Checked.")
        expect(two.page.locator("#typed-problems")).to_contain_text("have no character in common")
        assert two.page.locator("#next > li").count() == 0
        assert two.page.locator("#attention").is_hidden()
        assert two.page.get_by_role("link", name="Attention").count() == 0
        assert two.page.locator("#curves circle").count() == 4
        assert two.complaints == []
    with visit("tabs", "ab\tc", "abc", **small) as two:
        checked(two)
        two.page.get_by_label("A text").fill("")
        expect(two.page.locator("#next h3")).to_have_text(["after “a”"])
        assert two.complaints == []
    with visit("long", "abc de\n" * 20, block_size=40, **small) as one:
        checked(one)
        one.page.get_by_label("A text").fill("abc " * 8)
        expect(one.page.locator("#typed-problems")).to_have_text("")
        one.page.get_by_label("A text").fill("abc " * 9)
        expect(one.page.locator("#typed-problems")).to_contain_text("Only the last 32 positions are shown")
        assert one.page.locator("#next > li").count() == 32
    diverging = {
        "learning_rate": 1e17,
        "weight_decay": 0.0,
        "lr_schedule": "constant",
        "warmup_steps": 0,
        "grad_clip": 0.0,
    }
    with visit("diverged", "abcacb", model="bigram", max_steps=10, eval_interval=10, **diverging) as one:
        checked(one)
        assert one.complaints == []


def test_without_data_nothing_is_labelled(browser: Browser, trained: dict[str, Run], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    run = trained["bigram"]
    assert main(["page", str(run.path), "--out", str(path), "--without-data"]) == 0
    with Visit(browser, path, 1280, "light") as visit:
        checked(visit)
        assert len(names(visit, 1)) == 20
        assert visit.page.locator(".novelty").count() == 0
        assert visit.page.get_by_label("Only new names").count() == 0
        assert "not the names it learned from" in visit.page.locator("#about").inner_text()
        assert visit.page.locator("#attention").is_hidden()


@pytest.mark.parametrize("place", [0.2, 0.9])
def test_a_damaged_file_says_so(browser: Browser, two: Path, tmp_path: Path, place: float) -> None:
    content = two.read_text(encoding="utf-8")
    start, end = content.index('id="payload">'), content.index("</script>")
    at = int(start + place * (end - start))
    path = tmp_path / "page.html"
    path.write_text(content[:at] + ("A" if content[at] != "A" else "B") + content[at + 1 :], encoding="utf-8")
    with Visit(browser, path, 1280, "light") as visit:
        checked(visit)
        assert "This file is damaged" in visit.page.get_by_role("alert").first.inner_text()
        assert names(visit, 1) == []


def test_a_browser_that_lacks_something_is_told(browser: Browser, two: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(two.as_uri())
    told = page.get_by_role("alert").first
    expect(told).to_have_text(
        "This browser is too old: it lacks DecompressionStream. Any browser released since 2023 will do."
    )
    context.close()


def test_a_changed_script_does_not_run(browser: Browser, two: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        two.read_text(encoding="utf-8").replace("const EOS = 0", "const EOS = 1"), encoding="utf-8"
    )
    with Visit(browser, path, 1280, "light") as visit:
        expect(visit.page.locator(".waiting")).to_be_visible()
        assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_a_jump_keeps_the_options_in_the_address(browser: Browser, two: Path) -> None:
    with Visit(browser, two, 1280, "light", "#prefix=ma") as visit:
        checked(visit)
        visit.page.get_by_role("link", name="Attention").click()
        assert "prefix=ma" in visit.page.url
        assert visit.page.evaluate("document.activeElement.id") == "attention"
        assert visit.page.evaluate("window.scrollY") > 300


@pytest.mark.parametrize("kind", ["transformer", "text"])
def test_a_long_input_does_not_make_a_phone_scroll_sideways(
    browser: Browser, trained: dict[str, Run], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "page.html"
    assert main(["page", str(trained[kind].path), "--out", str(path)]) == 0
    with Visit(browser, path, 390, "light", "#name=annabellabellabella") as visit:
        checked(visit)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_no_violation_and_nothing_scrolls_sideways(
    browser: Browser, two: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    with Visit(browser, two, width, scheme) as visit:
        checked(visit)
        visit.page.get_by_text("More options").click()
        assert visit.violations() == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
