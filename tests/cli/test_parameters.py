import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

import isthmus
from isthmus.cli.main import app
from isthmus.workflows.organism_build import build_organism, fine_tune_organism

# Who shows progress is the terminal's own business.
_NOT_TYPED = {"progress"}
_SPELLED_OTHERWISE = {"is_cached": ("--cache", "--no-cache"), "is_quick": ("--quick", "--full")}


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that name it."""
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from leaves(child, (*words, name))
    else:
        yield words, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
VERBS = {words: command for words, command in COMMANDS.items() if words[0] != "organism"}


def verb(words: tuple[str, ...]) -> Callable[..., Any]:
    return getattr(isthmus, words[0].replace("-", "_"))


def names_of(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - _NOT_TYPED


def test_every_verb_of_the_package_is_a_command_and_the_other_way_round():
    in_python = {name.replace("_", "-") for name in isthmus.__all__}
    in_python -= {"build-organism", "fine-tune-organism"}
    assert {words[0] for words in VERBS} == in_python
    assert {words for words in COMMANDS if words[0] == "organism"} == {
        ("organism", "build"),
        ("organism", "list"),
    }


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_command_takes_what_its_python_function_takes(words: tuple[str, ...]):
    assert {param.name for param in COMMANDS[words].params} == names_of(verb(words))


def test_building_an_organism_takes_what_both_of_its_python_functions_take():
    params = {param.name for param in COMMANDS["organism", "build"].params}
    assert params == names_of(build_organism) | names_of(fine_tune_organism)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_is_spelled_as_its_parameter(words: tuple[str, ...]):
    for param in COMMANDS[words].params:
        if param.param_type_name == "option":
            plain = f"--{param.name.replace('_', '-')}"
            expected = _SPELLED_OTHERWISE.get(param.name, (plain,))
            assert (*param.opts, *param.secondary_opts) == expected


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_default_is_the_same_on_the_command_line_and_in_python(words: tuple[str, ...]):
    parameters = inspect.signature(verb(words)).parameters
    for param in COMMANDS[words].params:
        default = parameters[param.name].default
        if param.required:
            assert default in (inspect.Parameter.empty, None)
        else:
            assert str(param.default) == str(default)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_option_says_what_it_is_for(words: tuple[str, ...]):
    assert COMMANDS[words].help
    assert all(param.help for param in COMMANDS[words].params)


@pytest.mark.parametrize("name", isthmus.__all__)
def test_a_verb_stays_callable_after_every_package_was_used(name: str):
    for package in ("carrying", "directions", "maps", "models", "interventions", "evaluation"):
        importlib.import_module(f"isthmus.{package}")
    assert callable(getattr(isthmus, name))
