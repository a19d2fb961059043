"""Names: globs, regular expressions, PEFT's names and patterns, those of untrusted files among them."""

import fnmatch
import re
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tl import InputError
from hf_tl.names import (
    check_pattern,
    closest,
    exact_names,
    is_inside,
    match_names,
    match_pattern,
    name_matcher,
    peft_matcher,
)


NAMES = ["stem", "layers.0.q", "layers.0.v", "layers.1.q", "head"]


def test_globs_and_regular_expressions_keep_the_networks_order():
    assert match_names(["head", "layers.*.q"], NAMES) == ["layers.0.q", "layers.1.q", "head"]
    assert match_names([r"/\.0\.[qv]$/"], NAMES) == ["layers.0.q", "layers.0.v"]
    assert match_names([], NAMES) == []


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match=r"pattern 'layer\.0\.q' matches none of the 5 layers; the closest are "):
        match_names(["layer.0.q"], NAMES)
    with pytest.raises(InputError, match="stands between two slashes, got '/head'"):
        match_names(["/head"], NAMES)
    assert [name_matcher(broken) for broken in ("/", "//", "/(/", "/a")] == [None] * 4


def test_pefts_names_are_whole_or_the_last_parts():
    matches = peft_matcher(["q", "0.v"])
    assert [name for name in NAMES if matches(name)] == ["layers.0.q", "layers.0.v", "layers.1.q"]
    assert not peft_matcher(["tem"])("stem")


def test_pefts_pattern_matches_in_full():
    matches = peft_matcher(r".*\.[01]\.q|head")
    assert [name for name in NAMES if matches(name)] == ["layers.0.q", "layers.1.q", "head"]


def test_the_first_of_pefts_patterns_counts_for_a_name_or_its_end():
    patterns = {r"layer\.(0|2)\.q": 1, ".*v": 2, r"2\.q": 3}
    assert match_pattern(patterns, "x.layer.2.q", default=None) == 1
    assert match_pattern(patterns, "x.layer.1.v", default=None) == 2
    assert match_pattern(patterns, "x.2.q", default=None) == 3
    assert match_pattern(patterns, "x.22.q", default=None) is None
    assert match_pattern({"^q": 1}, "x.q", default=None) is None
    assert match_pattern({}, "q", default=8) == 8
    assert match_pattern({"q": None}, "q", default=8) is None


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(a+)+$", "a" * 200 + "!"),
        ("(a|a)*b", "a" * 200),
        (".*.*.*.*.*b", "a" * 200),
        (r"(a*)\1\1\1b", "a" * 200),
        ("a?" * 40 + "a" * 40, "a" * 39 + "b"),
        ("(a|a)" * 40 + "c", "a" * 40 + "b"),
        ("[ab].*a.*a.*ac", "a." * 250),
        ("(.|a)?" * 30 + "b", "a" * 60),
    ],
)
def test_a_pattern_of_an_untrusted_file_ends(pattern, name):
    start = time.process_time()
    with suppress(InputError):
        assert match_pattern({pattern: 1}, name, default=None) is None
    assert time.process_time() - start < 2


def test_a_pattern_that_takes_too_long_is_refused():
    with pytest.raises(InputError, match="takes too long to match 'a"):
        match_pattern({"(a|a)" * 40 + "c": 1}, "a" * 40 + "b", default=None)


def test_a_broken_pattern_is_refused():
    for broken in ("(", "[", "*"):
        with pytest.raises(InputError, match="is not a regular expression"):
            match_pattern({broken: 1}, "a", default=None)
        with pytest.raises(InputError, match="is not a regular expression"):
            peft_matcher(broken)("a")


def test_closest_and_inside():
    assert closest("hed", NAMES).startswith("the closest are 'head', ")
    assert closest("stm", ["stem", "stem", "head"]) == "the closest are 'stem', 'head'"
    assert closest("hed", []) == "there are none to choose from"
    assert is_inside("a.b.c", ["x", "a.b"])
    assert is_inside("a.b", ["a.b"])
    assert not is_inside("a.bc", ["a.b"])


PARTS = st.sampled_from(["0", "1", "10", "q", "qv", "layer", "h", "q_proj"])
MODULES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
NETWORKS = st.lists(MODULES, min_size=1, max_size=12, unique=True)
PIECES = st.sampled_from(["0", "q", "layer", r"\.", ".", ".*", "[01]", "(0|1)", "q?", r"\d+", "(?:h|q)"])
PATTERNS = st.lists(PIECES, min_size=1, max_size=4).map("".join)
GLOBS = st.text(alphabet="01qh.*?[]!-", min_size=1, max_size=6)


@settings(max_examples=50)
@given(GLOBS, NETWORKS)
def test_a_glob_is_pythons(glob, names):
    matched = {name for name in names if fnmatch.fnmatchcase(name, glob)}
    if matched:
        assert match_names([glob], names) == [name for name in names if name in matched]
    else:
        with pytest.raises(InputError, match="matches none of"):
            match_names([glob], names)


@settings(max_examples=50)
@given(NETWORKS, st.data())
def test_several_patterns_choose_what_each_does_in_the_networks_order(names, data):
    patterns = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    assert match_names(patterns, names) == [name for name in names if name in patterns]
    assert match_names([*patterns, "*"], names) == names
    assert match_names([f"/^({name})$/".replace(".", "[.]") for name in patterns], names) == match_names(
        patterns, names
    )


@settings(max_examples=50)
@given(st.lists(MODULES, max_size=3), MODULES)
def test_listed_names_are_pefts(listed, name):
    """As peft.tuners.tuners_utils.check_target_module_exists has it."""
    assert peft_matcher(listed)(name) == (name in listed or any(name.endswith(f".{one}") for one in listed))


@settings(max_examples=50)
@given(PATTERNS, MODULES)
def test_a_pattern_in_full_is_pefts(pattern, name):
    assert bool(peft_matcher(pattern)(name)) == bool(re.fullmatch(pattern, name))


@settings(max_examples=50)
@given(st.lists(PATTERNS, max_size=4, unique=True), MODULES)
def test_the_first_pattern_that_matches_is_pefts(patterns, name):
    """As peft.utils.other.get_pattern_key has it."""
    first = next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", name)), None)
    assert match_pattern({pattern: pattern for pattern in patterns}, name, default=None) == first


@settings(max_examples=50)
@given(NETWORKS, st.data())
def test_exact_names_are_what_peft_chooses(known, data):
    some = data.draw(st.sets(st.sampled_from(known), min_size=1))
    names = [name for name in known if name in some]
    matches = peft_matcher(exact_names(names, known))
    assert [name for name in known if matches(name)] == names


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=30), st.text(alphabet="a.()|*+?[]{}\\^$1,", max_size=30)), st.text(max_size=40))
def test_whatever_a_file_gives_as_a_pattern_matches_or_is_refused(pattern, name):
    start = time.process_time()
    with suppress(InputError):
        check_pattern(pattern)
        assert match_pattern({pattern: 1}, name, default=0) in (0, 1)
    assert time.process_time() - start < 2
