import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from benchmarks.demo_table import BEGIN, END, with_table

import isthmus
from isthmus.cli.exit_codes import EXIT_CODES
from isthmus.cli.main import app
from isthmus.core.artifacts import read_artifact
from isthmus.core.errors import ArtifactError
from isthmus.evaluation.measurements import CONDITIONS, METRICS, Measurement
from isthmus.models.organisms import packed_folder, shipped_organisms
from isthmus.workflows.config import RunConfig, make_config

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "isthmus"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^[ ]*```(\w+)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [body for found, body in FENCE.findall(text) if found == language]


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of all tables whose first column has this heading."""
    found: list[list[str]] = []
    is_inside = False
    for line in text.splitlines():
        cells = [one.strip() for one in re.split(r"(?<!\\)\|", line.strip("|"))]
        if not line.startswith("|"):
            is_inside = False
        elif is_inside and not set(line) <= set("|- "):
            found.append(cells)
        elif cells[0] == heading:
            is_inside = True
    return found


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in headings}


def commands(text: str) -> list[list[str]]:
    """Words of every `isthmus` command in shell blocks, and of those quoted in the text."""
    lines = [line for body in blocks(text, "sh") for line in body.splitlines()]
    quoted = re.findall(r"`(isthmus [^`\n]+)`", text)
    return [line.split()[1:] for line in [*lines, *quoted] if line.startswith("isthmus ")]


def verbs_of(group: Any, prefix: str = "") -> dict[str, Any]:
    """Commands by the words that call them, those of groups included."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        is_group = hasattr(command, "commands")
        found |= verbs_of(command, f"{prefix}{name} ") if is_group else {prefix + name: command}
    return found


VERBS = verbs_of(typer.main.get_command(app))


def known_command(words: list[str]) -> str | None:
    """What is wrong with a command, if anything."""
    verb = next((v for v in (" ".join(words[:2]), words[0]) if v in VERBS), None)
    if verb is None:
        return f"no verb {words}"
    known = {option for one in VERBS[verb].params for option in one.opts + one.secondary_opts}
    unknown = [w for w in words if w.startswith("--") and w not in known | {"--help"}]
    return f"{verb} has no {unknown}" if unknown else None


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    for link in LINK.findall(read(name)):
        path, _, anchor = link.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        # What `make bench` writes may be of another machine's name, or not be there yet.
        if page.resolve().parent == ROOT / "benchmarks" / "results":
            continue
        assert page.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(page), f"{name} links to {link}"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_on_a_page_has_a_verb_with_these_options(name: str) -> None:
    problems = [problem for words in commands(read(name)) if (problem := known_command(words))]
    assert not problems


def test_a_misspelt_command_would_be_noticed() -> None:
    assert known_command(["learn-maps", "a", "b"])
    assert known_command(["organism", "build", "x", "--steps", "3"])


def test_every_verb_is_shown_on_a_page() -> None:
    text = "\n".join(read(name) for name in NAMES)
    assert not [verb for verb in VERBS if f"isthmus {verb}" not in text]


@pytest.mark.parametrize("name", NAMES)
def test_python_on_a_page_compiles_and_names_what_exists(name: str) -> None:
    for body in blocks(read(name), "python"):
        text = body if not body.startswith("   ") else re.sub(r"^   ", "", body, flags=re.MULTILINE)
        compile(text, name, "exec")
        for verb in re.findall(r"isthmus\.(\w+)\(", text):
            assert verb in isthmus.__all__
        for module, names in re.findall(r"^from (isthmus[\w.]*) import (.+)$", text, re.MULTILINE):
            found = importlib.import_module(module)
            assert all(hasattr(found, one.strip()) for one in names.split(","))


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_on_a_page_can_be_read(name: str) -> None:
    for body in blocks(read(name), "yaml"):
        make_config(yaml.safe_load(body))


def test_configuration_names_every_field_with_its_default() -> None:
    shown = {code(row[0])[0]: row[1] for row in rows(read("docs/configuration.md"), "field")}
    assert list(shown) == [*RunConfig.model_fields], "fields, in the order of RunConfig"
    for name, field in RunConfig.model_fields.items():
        assert default_matches(shown[name], field.get_default(), is_required=field.is_required()), (
            f"{name} is shown with the default {shown[name]}"
        )


def default_matches(cell: str, default: object, *, is_required: bool) -> bool:
    if is_required:
        return cell == "required"
    written = ", ".join(code(cell)).replace("\\|", "|")
    if isinstance(default, tuple):
        return [one.strip() for one in written.split(",")] == [str(one) for one in default]
    if isinstance(default, str) and cell.endswith("10 times"):
        return default == " ".join([written] * 10)
    return bool(yaml.safe_load(written) == default)


def test_results_names_every_field_condition_and_metric() -> None:
    text = read("docs/results.md")
    shown = {
        h: [name for row in rows(text, h) for name in code(row[0])]
        for h in ("field", "condition", "metric")
    }
    assert shown["field"] == [field.name for field in fields(Measurement)]
    assert shown["condition"] == [*CONDITIONS]
    assert sorted(shown["metric"]) == sorted(METRICS)


def test_exit_codes_are_those_of_the_command_line() -> None:
    table = rows(read("docs/exit-codes.md"), "code")
    shown = {error: int(row[0]) for row in table for error in code(row[1])}
    assert shown == {error.__name__: number for error, number in EXIT_CODES.items()}


def test_organisms_are_named_with_their_size_and_seed() -> None:
    table = {one: row for row in rows(read("docs/organisms.md"), "name") for one in code(row[0])}
    assert set(table) == set(shipped_organisms())
    for name, row in table.items():
        facts = read_artifact(packed_folder(name)).fields
        assert int(row[4].replace(",", "")) == facts["n_parameters"]
        assert facts["base"] or int(row[5]) == facts["recipe"]["seed"]
        assert facts["competence"]["passes"]


def test_architecture_owns_every_module_and_nothing_else() -> None:
    table = rows(read("ARCHITECTURE.md"), "concern")
    owned = {path for row in table for path in code(row[1])}
    assert not [path for path in owned if not (SOURCE / path).exists()]
    modules = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")]
    ownerless = [
        module.as_posix()
        for module in modules
        if module.name != "__init__.py"
        and not owned & {module.as_posix(), *(f"{p.as_posix()}/" for p in module.parents)}
    ]
    assert not ownerless


def test_pages_name_only_modules_and_tests_that_exist() -> None:
    tops = (
        "core|data|models|directions|maps|features|interventions|carrying|evaluation|tasks|workflows"
        "|studies|cli"
    )
    named = re.compile(rf"`((?:{tops}|tests|src|benchmarks|docs|examples)/[\w/.-]+\.(?:py|md))")
    # How-to pages call the file that is to be written by the name of their example.
    examples = re.compile(r"nearest|median|clamp|flattery|NAME")
    missing = [
        f"{name}: {path}"
        for name in NAMES
        for path in named.findall(read(name))
        if not examples.search(path) and not ((ROOT / path).exists() or (SOURCE / path).exists())
    ]
    assert not missing


def test_readme_has_a_place_for_the_table_of_the_demonstration() -> None:
    page = read("README.md")
    changed = with_table(page, "| new |")
    assert f"{BEGIN}\n| new |\n{END}" in changed
    assert changed.partition(BEGIN)[0] == page.partition(BEGIN)[0]
    assert changed.rpartition(END)[2] == page.rpartition(END)[2]
    with pytest.raises(ArtifactError, match="markers"):
        with_table("no markers", "| new |")


def test_readme_stays_readable() -> None:
    assert len(read("README.md").splitlines()) <= 160
