"""What the pages of the experiments say is what the examples printed when they were last run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "experiments"
NAMES = "exhaustion", "gallery", "ill_conditioned", "sinenet", "sum_of_squares", "xor"
FILES = [PAGES / f"{name}.md" for name in NAMES]
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.fixture(scope="module")
def gallery(as_script):
    return as_script("gallery")


def numbers(text):
    """The numbers of a text as they are written; 90 000 is one."""
    return set(NUMBER.findall(re.sub(r"(?<=\d) (?=\d{3}\b)", "", text.replace("_", ""))))


def prose(page):
    """A page without code, comments, links and pictures."""
    page = re.sub(r"```.*?```|<!--.*?-->|`[^`]*`", " ", page, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", page)


def examples_of(page):
    """The examples that a page names."""
    return {a or b for a, b in re.findall(r"examples/(\w+)\.py|<!-- (\w+):", page)}


def sources_of(name):
    """The text of an example, and of those that it takes something from."""
    text = (ROOT / "examples" / f"{name}.py").read_text("utf-8")
    imported = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    neighbours = [other for other in imported if (ROOT / "examples" / f"{other}.py").exists()]
    return [text, *(source for other in neighbours for source in sources_of(other))]


def strange(page, outputs):
    """The numbers of a page that are neither output nor settings of the examples it names."""
    known = set()
    for name in examples_of(page):
        for text in (outputs[name], *sources_of(name)):
            known |= numbers(text)
    return numbers(prose(page)) - known


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_blocks_and_numbers_are_the_runs(file, gallery):
    page, outputs = file.read_text("utf-8"), gallery.recorded(PAGES)
    assert gallery.filled(page, outputs) == page
    assert not strange(page, outputs)


def test_numbers_from_nowhere_are_found(gallery):
    outputs = {"sinenet": "$ sinenet\n\nwidth 8: 4.5e-03\n"}
    page = "<!-- sinenet: width 8 -->\n\n```text\nold\n```\n\nIt ended at 4.5e-03{}, see\n"
    assert gallery.filled(page, outputs) == page.replace("old", "width 8: 4.5e-03")
    assert not strange(page.format(""), outputs)
    assert strange(page.format(" or 4.6e-03"), outputs) == {"4.6e-03"}
    with pytest.raises(ValueError, match="0 paragraphs of sinenet begin with 'width 9'"):
        gallery.filled(page.replace("width 8", "width 9"), outputs)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_wrong_number_in_a_page_is_found(file, gallery):
    page, outputs = file.read_text("utf-8"), gallery.recorded(PAGES)
    assert strange(f"{page}\nIt ends at 61.7391.\n", outputs) == {"61.7391"}
    for block in gallery.BLOCK.finditer(page):
        shown = block.group(0)
        # the last digit that is shown
        *_, digit = re.finditer(r"\d", shown)
        other = str((int(digit[0]) + 1) % 10)
        planted = page.replace(shown, shown[: digit.start()] + other + shown[digit.end() :])
        assert planted != page
        assert gallery.filled(planted, outputs) == page


def test_every_example_in_the_pages_was_recorded_with_the_gallerys_settings(gallery):
    outputs = gallery.recorded(PAGES)
    named = {name for file in FILES for name in examples_of(file.read_text("utf-8"))}
    assert named <= set(outputs) <= set(gallery.SETTINGS)
    for name, text in outputs.items():
        command = " ".join(["$ python", f"examples/{name}.py", *gallery.SETTINGS[name]])
        assert text.startswith(f"{command}\n"), name


def column(text, title, place):
    """Numbers of one column of a recorded table, columns being apart by two spaces."""
    paragraph = next(p for p in text.split("\n\n") if p.startswith(title))
    return [re.split(r"\s{2,}", line.strip())[place] for line in paragraph.splitlines()[2:]]


def test_recorded_runs_have_the_originals_figures(gallery):
    """What the five experiments are known to give; other draws of the same: a quarter each way."""
    outputs = gallery.recorded(PAGES)
    orders = "sin on [-10, 10], RMS"
    in_order = [float(v) for v in column(outputs["exhaustion"], orders, 2)]
    shuffled = [float(v) for v in column(outputs["exhaustion"], orders, 4)]
    assert in_order == pytest.approx([0.49, 0.48], rel=0.25)
    assert shuffled == pytest.approx([0.07, 0.029], rel=0.25)
    # moved on to [5, 15] the wide net forgets [-10, 10]: of single nets 0.28 to 1.14
    moved = column(outputs["exhaustion"], "sin, H = 30, moved", 2)
    kept, forgotten = ([float(v) for v in NUMBER.findall(cell)] for cell in moved[:2])
    assert 0.28 <= forgotten[0] <= 1.14
    assert forgotten[0] > 1.25 * kept[0]
    # as exp(x) becomes exp(-x) an L2 penalty keeps units alive, and halves the error
    regularised = outputs["exhaustion_questions"]
    dead = [float(v.split()[0]) for v in column(regularised, "L2 against dropout", 4)]
    assert dead[:3] == pytest.approx([12.8, 8.6, 7.3], rel=0.25)
    after = [float(v[:-1]) for v in column(regularised, "L2 against dropout", 2)]
    assert max(after[1:4]) < 0.75 * after[0]
    # ten starts of Levenberg–Marquardt on 1/x
    ten = column(regularised, "Freezing at 1/x", 1)[4]
    assert float(ten[:-1]) <= 0.6
    drop = re.search(r"width 8 over 4: median ([\d.]+) ×", outputs["sinenet"])
    assert float(drop[1]) >= 10
    parity = re.findall(r"^float64.*?([\d.e+-]+) +\(limit 1e-12\)", outputs["xor_parity"], re.M)
    assert len(parity) == 2
    assert all(float(difference) <= 1e-12 for difference in parity)
    draws = r"20 draws: relative loss ≤ 1e-28 after \d+ to (\d+) accepted steps"
    assert int(re.search(draws, outputs["ill_conditioned"])[1]) <= 30
