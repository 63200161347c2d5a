import functools
import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from ensemw2s.config import Config, Section
from ensemw2s.config.docs import render

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class Inner(Section):
    """What is inside."""

    size: int = Field(3, gt=1, le=8, description="How big | how wide.")
    names: list[str] = Field(min_length=2, description="Names.")


class Outer(Section):
    """The whole."""

    mode: Literal["a", "b"] = Field("a", description="Which one.")
    extra: dict[str, int] = Field(default_factory=dict, description="Free keys.")
    items: list[Inner] = Field(default_factory=list, description="Many.")
    one: Inner = Field(Inner(size=5, names=["x", "y"]), description="Just one.")
    again: Inner | None = Field(None, description="Perhaps one.")


def keys_of(page: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)


def test_the_committed_reference_is_up_to_date() -> None:
    committed = (DOCS / "config.md").read_text(encoding="utf-8")
    assert committed == render(), "docs/config.md is not what ensemw2s/config says: run `make docs` and commit the page"


def test_a_row_has_key_type_default_bounds_and_description() -> None:
    page = render(Outer)
    assert '| `mode` | `"a"` or `"b"` | `"a"` |  | Which one. |' in page
    assert "| `items.N.size` | int | `3` | > 1, ≤ 8 | How big \\| how wide. |" in page
    assert "| `items.N.names` | list of str | **required** | length ≥ 2 | Names. |" in page
    assert "| `extra` | mapping | `{}` |  | Free keys. |" in page
    assert "| `items` | list of section | `[]` |  | Many. |" in page
    assert "| `again` | section or null | `null` |  | Perhaps one. |" in page


def test_a_default_is_the_one_of_its_place_and_not_of_its_class() -> None:
    page = render(Outer)
    assert "| `one.size` | int | `5` |" in page
    real = render()
    assert '| `expert.epochs` | int or `"auto"` | `6` |' in real
    assert "| `student.epochs` | int | `4` |" in real
    assert "| `models.pretraining.weak.batch_size` | int | `128` |" in real


def test_a_repeated_section_links_to_the_first_one() -> None:
    page = render(Outer)
    assert "## `again`\n\nThe same as [`items.N`](#itemsn)" in page
    assert "again.size" not in page


def test_every_link_of_the_reference_has_its_heading() -> None:
    page = render()
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert links
    assert set(links) <= anchors
    assert len(headings) == len(set(headings)), "two headings with one name share an anchor"


def test_every_field_of_the_config_is_listed_under_its_section() -> None:
    listed = keys_of(render())
    for name, field in Config.model_fields.items():
        assert name in listed
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            assert {f"{name}.{inner}" for inner in section.model_fields} <= set(listed)
    assert {"data.source.dataset", "data.source.paths", "data.source.path", "models.weak.N.lora.rank"} <= set(listed)


def test_every_key_says_what_it_means() -> None:
    silent = [
        line
        for line in render().splitlines()
        if line.startswith("| `") and line.endswith("|  |") and "section" not in line
    ]
    assert silent == []


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")]), ids=lambda page: page.name)
def test_every_config_key_that_a_page_names_exists(page: Path) -> None:
    listed = all_keys()
    known = listed | {re.sub(r"\.N\b", "", key) for key in listed}
    sections = "|".join(Config.model_fields)
    text = page.read_text(encoding="utf-8")
    # A key stands alone in backticks, or opens a piece of YAML: `boosting.prior`, `boosting.weighting: loss`.
    named = re.findall(rf"`((?:{sections})\.[a-z_0-9.]+)(?::[^`]*|=[^`]*)?`", text)
    wrong = sorted({key for key in named if re.sub(r"\.\d+\b", ".N", key) not in known and not is_file(key)})
    assert wrong == []


@functools.cache
def all_keys() -> frozenset[str]:
    """Every key of the reference."""
    return frozenset(keys_of(render()))


def is_file(name: str) -> bool:
    """`student.py` and the like: names with the ending of a file."""
    return name.rpartition(".")[2] in {"py", "md", "yaml", "json", "parquet", "jsonl", "html"}
