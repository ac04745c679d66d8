"""The page of properties, docs/conformance.md, is of the properties and ops that are declared."""

import platform
import re
from pathlib import Path

import conformance
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "conformance.md").read_text("utf-8")


def test_every_op_has_a_row_for_every_property(page):
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    titles = [section.splitlines()[0] for section in sections]
    assert titles == [*conformance.OPS, "Why there is nothing to pass"]
    for section in sections[:-1]:
        rows = re.findall(r"^\| (.*) \|$", section, flags=re.MULTILINE)
        header, *rows = [row.split(" | ") for row in rows]
        assert header == ["property", *conformance.BACKENDS]
        assert [row[0] for row in rows] == list(conformance.PROPERTIES)
        for row in rows:
            assert all(re.fullmatch(r"pass \(\d+\)|n/a \[\d+\]", cell) for cell in row[1:]), row


def test_every_reason_is_given_once_and_used(page):
    notes = [int(n) for n in re.findall(r"^(\d+)\. ", page, flags=re.MULTILINE)]
    assert notes == list(range(1, len(notes) + 1))
    assert {int(n) for n in re.findall(r"n/a \[(\d+)\]", page)} == set(notes)


def test_the_page_tells_nothing_of_the_machine_but_its_kind(page):
    assert platform.node() not in page
    assert not re.search(r"(^|\s)/\w|\\\\|\w+\.py\b", page)


def test_every_property_names_tests_that_exist():
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name, tests in conformance.PROPERTIES.items():
        for test in tests:
            assert f"def {test}(" in sources, (name, test)
