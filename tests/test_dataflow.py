"""The life of tensors in one forward pass: identity and version, what is learnt, what crosses a boundary."""

import torch
from torch import nn

from hf_tl.trace import trace


class Recorded(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(3, 3), nn.Linear(3, 3), between

    def forward(self, x):
        return self.between(x, self.first, self.second)


def crossings(between):
    """How many learnt values pass behind the first layer, and right before the second."""
    flow = trace(Recorded(between), torch.randn(2, 3)).flow
    first, second = flow.root.children
    return flow.crossing(first.stop), flow.crossing(second.start - 1)


def test_one_tensor_passes_a_chain():
    assert crossings(lambda x, first, second: second(first(x).relu())) == (1, 1)


def test_a_residual_connection_is_a_second_tensor():
    def between(x, first, second):
        y = first(x)
        return second(y.relu()) + y

    assert crossings(between) == (1, 2)


def test_the_input_itself_does_not_count():
    assert crossings(lambda x, first, second: second(first(x) + 1) + x) == (1, 1)


def test_what_is_overwritten_in_place_is_gone():
    assert crossings(lambda x, first, second: second(first(x).relu_())) == (1, 1)

    def between(x, first, second):
        y = first(x)
        z = y.clone()
        y.add_(1)
        return second(z) + y

    assert crossings(between) == (1, 2)


def test_a_change_through_a_view_keeps_the_value_alive():
    def between(x, first, second):
        y = first(x)
        y[:, 0] = 0
        return second(y)

    assert crossings(between) == (1, 1)


def test_what_is_written_into_another_tensor_lives_on_in_it():
    def between(x, first, second):
        whole = torch.zeros(2, 3)
        whole[:] = first(x)
        return second(whole)

    assert crossings(between) == (1, 1)


def test_shapes_alone_are_not_read():
    def between(x, first, second):
        y = first(x)
        z = torch.zeros_like(second(y.relu()))
        return z + torch.ones_like(y)

    assert crossings(between)[1] == 1


def test_the_tree_of_calls():
    root = trace(Recorded(lambda x, first, second: second(first(first(x)))), torch.randn(2, 3)).flow.root
    assert [call.name for call in root.walk()] == ["", "first", "first", "second"]
    assert [call.name for call in root.children] == ["first", "first", "second"]
    assert root.children[1].inputs == root.children[0].outputs
    assert root.start < root.children[0].start < root.children[0].stop < root.stop


def test_the_first_read_of_a_parameter():
    model = Recorded(lambda x, first, second: second(first(x)))
    flow = trace(model, torch.randn(2, 3)).flow
    first, second = flow.root.children
    assert first.start < flow.first_read[id(model.first.weight)] <= first.stop
    assert second.start < flow.first_read[id(model.second.weight)] <= second.stop
