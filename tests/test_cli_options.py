"""Every option of every command does something, or is refused."""

import argparse
import inspect
import re

import pytest

from hf_tl.cli import reading
from hf_tl.cli.main import COMMANDS, build_parser, main


def actions(parser):
    """The arguments of a parser and of its sub-commands, without --help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)
        elif action.dest not in ("help", "version"):
            yield action


def parser_of(command):
    return next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reads_every_argument_that_it_takes(command):
    text = inspect.getsource(COMMANDS[command])
    if "hf_tl.cli.reading" in text:
        text += inspect.getsource(reading)
    idle = [a.dest for a in actions(parser_of(command)) if not re.search(rf'options\.{a.dest}\b|"{a.dest}"', text)]
    assert not idle


VALUES = {
    "--image-size": "32",
    "--max-length": "8",
    "--label": "kind",
    "--input": "photo",
    "--problem": "regression",
    "--config": "small",
    "--batch-size": "4",
    "--device": "meta",
    "--on-bad-samples": "skip",
}


@pytest.mark.parametrize("option", VALUES)
def test_what_was_read_already_is_not_read_in_another_way(option, capsys):
    assert main(["probe", "runs/beans", option, VALUES[option]]) == 2
    assert f"{option} does nothing here: 'runs/beans' has been read already; leave it out" in capsys.readouterr().err


def test_all_options_of_reading_are_tried():
    parser = argparse.ArgumentParser()
    from hf_tl.cli.arguments import add_reading

    add_reading(parser, recipe=False)
    assert {max(a.option_strings, key=len) for a in actions(parser)} == set(VALUES)


def test_a_recipe_is_of_single_layers(timm_folder, capsys):
    assert main(["layers", str(timm_folder), "--recipe", "l2"]) == 2
    assert "add --level leaf" in capsys.readouterr().err
