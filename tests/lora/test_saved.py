"""A module that trains in full behaves as the module that was there."""

import pytest
import torch
from torch import nn

from hf_tl import InputError, LoraConfig, add_lora, load_adapter, save_adapter


class Heads(nn.Module):
    """Several heads, held and reached in one of torch's ways."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.body = kind, nn.Linear(4, 4)
        first, second = nn.Linear(4, 2), nn.Linear(4, 3)
        self.heads = {
            "dictionary": lambda: nn.ModuleDict({"colour": first, "size": second}),
            "list": lambda: nn.ModuleList([first, second]),
            "nested": lambda: nn.ModuleList([nn.ModuleList([first]), nn.ModuleList([second])]),
            "sequence": lambda: nn.Sequential(first, nn.Linear(2, 3)),
        }[kind]()

    def forward(self, x):
        h = self.body(x)
        if self.kind == "dictionary":
            parts = [self.heads[name](h) for name in ("colour", "size")]
        elif self.kind == "list":
            parts = [head(h) for head in self.heads]
        elif self.kind == "nested":
            parts = [head[0](h) for head in self.heads]
        else:
            assert len(self.heads) == 2
            parts = [self.heads[0](h), self.heads(h)]
            for head in self.heads:
                h = head(h)
        return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kind", ["dictionary", "list", "nested", "sequence"])
def test_heads_are_trained_and_saved_however_they_are_held(kind, tmp_path):
    model, x = Heads(kind), torch.randn(2, 4)
    expected = model(x)
    add_lora(model, LoraConfig(r=2, target_modules=["body"], modules_to_save=["heads"]))
    assert torch.equal(model(x), expected)
    model(x).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum("modules_to_save" in name for name in trained) == 4
    assert all(p.grad is not None for p in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1.0)
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(Heads(kind), tmp_path)(x), model(x))


def test_a_container_of_parameters_is_refused():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "scales": nn.ParameterDict({"a": torch.ones(2)})})
    with pytest.raises(InputError, match="names 'scales', a ParameterDict, which only holds parameters"):
        add_lora(model, LoraConfig(r=2, target_modules=["body"], modules_to_save=["scales"]))
    assert not any("lora" in name for name, _ in model.named_parameters())
