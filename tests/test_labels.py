"""Labels: classes, several classes a sample, numbers; found in tables, and tables of names compared."""

import datasets
import numpy as np
import pytest

from hf_tl import InputError
from hf_tl.labels import LabelTable, find_label, find_problem, read_labels, renumber


def table(**columns):
    return datasets.Dataset.from_dict(columns)


def test_classes_in_another_order_are_numbered_alike():
    assert renumber(np.array([0, 1, 1]), ("dog", "cat"), ("cat", "dog")).tolist() == [1, 0, 0]
    several = np.array([[1, 0, 0], [0, 1, 0]])
    assert renumber(several, ("dog", "cat", "cow"), ("cat", "dog")).tolist() == [[0, 1], [1, 0]]
    for labels in (np.array([0]), np.array([[1]])):
        with pytest.raises(InputError, match="class 'cow' is none of"):
            renumber(labels, ("cow",), ("cat", "dog"))


@pytest.mark.parametrize(
    ("columns", "problem", "labels", "names"),
    [
        ({"y": [2, 1]}, None, [2, 1], None),
        ({"y": ["b", "a"]}, None, ["b", "a"], None),
        ({"y": [0.5, 2.0]}, None, [0.5, 2.0], None),
        ({"y": [1.0, 2.0]}, "regression", [1.0, 2.0], None),
        ({"y": [1.0, 2.0]}, "classification", [1, 2], None),
        ({"y": [3, 4]}, "regression", [3.0, 4.0], None),
        ({"y": [["b", "a"], []]}, None, [[1, 1], [0, 0]], ("a", "b")),
        ({"y": [[7], [7, 5]]}, "multilabel", [[0, 1], [1, 1]], ("5", "7")),
        ({"a": [0, 1], "b": [True, True]}, None, [[0, 1], [1, 1]], ("a", "b")),
    ],
)
def test_labels_of_every_kind(columns, problem, labels, names):
    found, called = read_labels(table(**columns), list(columns), problem=problem)
    assert (found.tolist(), called) == (labels, names)
    kinds = {"f": "regression"}.get(found.dtype.kind, "classification")
    assert find_problem(found) == ("multilabel" if names else kinds)


def test_lists_of_class_labels_have_the_names_of_their_table():
    features = datasets.Features({"y": datasets.List(datasets.ClassLabel(names=["x", "y", "z"]))})
    found, names = read_labels(datasets.Dataset.from_dict({"y": [[2], [0, 2]]}, features=features), ["y"])
    assert (found.tolist(), names) == ([[0, 0, 1], [1, 0, 1]], ("x", "y", "z"))


@pytest.mark.parametrize(
    ("columns", "problem", "sentence"),
    [
        ({"y": [1.0, 2.0]}, None, "holds whole numbers as floats, such as 1.0: give problem="),
        ({"y": [1.5, 2.0]}, "classification", "one class per sample, got the number 1.5"),
        ({"y": ["a", "b"]}, "regression", "should hold numbers, got"),
        ({"y": [1, 2]}, "multilabel", "should hold lists of classes, got int; or name several columns"),
        ({"y": [[1], [2]]}, "regression", "holds lists of classes, which is multilabel, got problem='regression'"),
        ({"y": [["a"], None]}, None, "1 of 2 samples have no list in label column 'y', first sample 1"),
        ({"y": [["a"], ["a"]]}, None, r"two classes or more, got \['a'\] only"),
        ({"y": [0.5, float("nan")]}, None, "1 of 2 samples have no value in label column 'y', first sample 1"),
        ({"y": [0.5, float("inf")]}, None, "should hold finite numbers"),
        ({"a": [0, 1], "b": [0, 2]}, None, "each should hold 0 and 1, whether a sample has the class; 'b' holds"),
        ({"y": [{"z": 1}, {"z": 2}]}, None, "a number, or a list of classes, got dict"),
    ],
)
def test_labels_that_are_none(columns, problem, sentence):
    with pytest.raises(InputError, match=sentence):
        read_labels(table(**columns), list(columns), problem=problem)


def test_a_column_whose_strings_come_again_and_again_is_the_label():
    texts = [f"text {i}" for i in range(12)]
    assert find_label(table(words=texts, verdict=["yes", "no"] * 6)) == "verdict"
    assert find_label(table(words=texts, other=texts)) is None
    assert find_label(table(words=["a", "b"] * 6, verdict=["yes", "no"] * 6), inputs=["words"]) == "verdict"
    with pytest.raises(InputError, match=r"several columns hold classes: \['verdict', 'source'\]"):
        find_label(table(words=texts, verdict=["yes", "no"] * 6, source=["web", "book", "film"] * 4))


def test_labels_align_by_what_they_are_called():
    numbers = LabelTable(np.array([0, 1]), ("cat", "dog"), "test")
    words = LabelTable(np.array(["dog", "cat"]), None, "train")
    assert numbers.aligned_to(words).labels.tolist() == ["cat", "dog"]
    assert words.aligned_to(numbers).labels.tolist() == [1, 0]
    assert LabelTable(np.array([1, 1]), ("dog", "cat"), "test").aligned_to(numbers).labels.tolist() == [0, 0]
    for other in (np.array([0, 1]), np.array([0.5, 1.5]), np.array([[0, 1]])):
        with pytest.raises(InputError, match=r"labels of train are such as .* give both in one form"):
            LabelTable(other, None, "test").aligned_to(LabelTable(np.array([0, 1]), ("cat", "dog"), "train"))
    assert numbers.untaught(LabelTable(np.array([1, 1]), ("cat", "dog"), "train")) == [
        "1 of 2 test samples are of class 'cat', of which there is no training sample"
    ]
