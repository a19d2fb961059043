"""Names: globs, regular expressions, PEFT's names and patterns, those of untrusted files among them."""

import time
from contextlib import suppress

import pytest

from hf_tl import InputError
from hf_tl.names import closest, is_inside, match_names, match_pattern, name_matcher, peft_matcher


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
    assert match_pattern(patterns, "x.layer.2.q") == 1
    assert match_pattern(patterns, "x.layer.1.v") == 2
    assert match_pattern(patterns, "x.2.q") == 3
    assert match_pattern(patterns, "x.22.q") is None
    assert match_pattern({"^q": 1}, "x.q") is None
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
        assert match_pattern({pattern: 1}, name) is None
    assert time.process_time() - start < 2


def test_a_pattern_that_takes_too_long_is_refused():
    with pytest.raises(InputError, match="takes too long to match 'a"):
        match_pattern({"(a|a)" * 40 + "c": 1}, "a" * 40 + "b")


def test_a_broken_pattern_is_refused():
    for broken in ("(", "[", "*"):
        with pytest.raises(InputError, match="is not a regular expression"):
            match_pattern({broken: 1}, "a")
        with pytest.raises(InputError, match="is not a regular expression"):
            peft_matcher(broken)("a")


def test_closest_and_inside():
    assert closest("hed", NAMES).startswith("the closest are 'head', ")
    assert closest("hed", []) == "there are none to choose from"
    assert is_inside("a.b.c", ["x", "a.b"])
    assert is_inside("a.b", ["a.b"])
    assert not is_inside("a.bc", ["a.b"])
