"""Fresh values: for every tensor of the chosen layers, after from_pretrained, by seed and name alone."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from zoo import ZOO

from hf_tl import InputError, Policy, list_layers, reinit_layers, select_layers


pytestmark = pytest.mark.filterwarnings("ignore")


def trained(model):
    """The model with values that no initialiser gives."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and "inv_freq" not in name:
                tensor.fill_(7.0)
    return model


def reloaded(specimen, folder):
    """The trained model; of transformers, which marks what it has loaded, through a checkpoint on disk."""
    model = trained(specimen.model())
    if specimen.family == "timm":
        return model
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    assert all((parameter == 7).all() for parameter in loaded.parameters())
    return loaded


def state(model):
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def test_there_are_many_that_come_from_pretrained():
    assert len([specimen for specimen in ZOO if specimen.family == "transformers"]) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("specimen", [s for s in ZOO if s.name != "timm/vgg16"], ids=str)  # its twin is vgg11_bn
def test_every_tensor_of_the_chosen_layers_changes_and_no_other(specimen, tmp_path):
    model = reloaded(specimen, tmp_path)
    layers = list_layers(model)
    tower = layers.towers[-1] if layers.towers else ""
    last = "-2.." if specimen.blocks[tower] > 1 else "-1.."
    chosen = select_layers(layers, f"{tower}.{last}" if tower else last)
    if not tower and not any(len({*names}) > 1 for names in layers.tied):
        chosen += [layer for layer in layers if layer.kind == "head"]
    before, random = state(model), torch.get_rng_state()
    build = specimen.build if specimen.name == "timm/vgg11_bn" else None  # narrower than timm's of this name
    names = set(reinit_layers(model, chosen, seed=0, build=build))
    assert torch.equal(random, torch.get_rng_state())
    owned = {id(parameter) for layer in chosen for parameter in layer.parameters()}
    expected = {name for name, parameter in model.named_parameters() if id(parameter) in owned}
    assert expected <= names
    for name, tensor in state(model).items():
        if name in names and tensor.is_floating_point() and "inv_freq" not in name:
            assert not torch.equal(tensor, before[name]), f"{name} did not change"
            assert not (tensor == 7).any(), f"{name} changed in part"
        elif name not in names:
            assert torch.equal(tensor, before[name]), f"{name} should not change"


def some(name):
    return next(specimen for specimen in ZOO if specimen.name == name)


def test_the_old_recipe_does_nothing_and_this_one_does(tmp_path):
    """In transformers 5, what everybody does to reinitialise a layer is silently ignored."""
    model = reloaded(some("BertForSequenceClassification"), tmp_path)
    block = model.bert.encoder.layer[-1]
    block.apply(model._init_weights)
    assert all((parameter == 7).all() for parameter in block.parameters())
    reinit_layers(model, select_layers(list_layers(model), "-1"))
    assert not any((parameter == 7).any() for parameter in block.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "timm/resnet18"])
def test_values_depend_on_seed_and_name_alone(name):
    def values(selection, seed=0):
        model = trained(some(name).model())
        torch.rand(3)  # whatever came before
        reinit_layers(model, select_layers(list_layers(model), selection), seed=seed)
        return state(model)

    every, last, other = values("-3.., head"), values("-1"), values("-1", seed=1)
    touched = [name for name, tensor in last.items() if tensor.is_floating_point() and not (tensor == 7).all()]
    assert touched
    assert all(torch.equal(every[name], last[name]) for name in touched)
    assert any(not torch.equal(other[name], last[name]) for name in touched)


def test_values_are_those_of_the_networks_initialiser():
    model = trained(some("ViTForImageClassification").model())
    layers = list_layers(model)
    reinit_layers(model, list(layers), seed=3)
    torch.manual_seed(3)
    fresh = type(model)(model.config)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


class Own(nn.Module):
    def __init__(self, scale=True):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3))
        self.scale = nn.Parameter(torch.full((1,), 0.5)) if scale else 1.0
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x * self.scale)


def test_modules_of_ones_own_reset_themselves():
    twins = [trained(Own(scale=False)) for _ in range(2)]
    for twin, selection in zip(twins, ("all", "-1"), strict=True):
        reinit_layers(twin, select_layers(list_layers(twin), selection))
    assert not any((tensor == 7).all() for tensor in twins[0].state_dict().values())
    name = "layers.2.0.weight"
    assert torch.equal(twins[0].state_dict()[name], twins[1].state_dict()[name])
    assert not torch.equal(twins[0].layers[1][0].weight, twins[0].layers[2][0].weight)  # a seed of its own each


def test_what_cannot_be_reinitialised_is_said_and_nothing_changes():
    model = trained(Own())
    layers = list_layers(model, example=torch.randn(2, 4))
    before = state(model)
    with pytest.raises(InputError, match=r"'scale' belongs to no module with reset_parameters.*build="):
        reinit_layers(model, list(layers))
    with pytest.raises(InputError, match=r"'scale' is .1,. here and missing in a new Own"):
        reinit_layers(model, select_layers(layers, "head"), build=lambda: nn.Linear(2, 2))
    with pytest.raises(InputError, match="a new Own cannot be built: ZeroDivisionError"):
        reinit_layers(model, select_layers(layers, "head"), build=lambda: 1 / 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    reinit_layers(model, list(layers), build=Own)
    assert model.scale.item() == 0.5


def test_timm_of_another_size():
    model = trained(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, in_chans=1))
    reinit_layers(model, list(list_layers(model)))
    assert not any((parameter == 7).all() for parameter in model.parameters())


def test_a_policy_reinitialises_once_with_its_seed():
    models = [trained(some("BertForSequenceClassification").model()) for _ in range(2)]
    applied = Policy("reinit: -1, head", seed=5).apply(models[0])
    reinit_layers(models[1], select_layers(list_layers(models[1]), "-1, head"), seed=5)
    assert "classifier.weight" in applied.reinitialised
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


class Inside(nn.Module):
    """A network of transformers among modules of one's own."""

    def __init__(self):
        super().__init__()
        self.backbone = some("BertForSequenceClassification").model().bert
        self.head = nn.Linear(self.backbone.config.hidden_size, 2)

    def forward(self, input_ids):
        return self.head(self.backbone(input_ids).last_hidden_state[:, 0])


def test_a_network_inside_another_module_has_its_own_initialiser():
    model = trained(Inside())
    layers = list_layers(model, example={"input_ids": torch.ones(1, 4, dtype=torch.long)})
    reinit_layers(model, select_layers(layers, "-1, head"), seed=1)
    torch.manual_seed(1)
    fresh = type(model.backbone)(model.backbone.config).encoder.layer[-1]
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(model.backbone.encoder.layer[-1].state_dict()[name], tensor), name
    assert not any((parameter == 7).any() for parameter in model.head.parameters())

    plain, wrapped = (trained(timm.create_model("resnet10t", num_classes=3)) for _ in range(2))
    reinit_layers(plain, select_layers(list_layers(plain), "-1"))
    parallel = nn.DataParallel(wrapped)
    reinit_layers(parallel, select_layers(list_layers(parallel, example=torch.ones(1, 3, 64, 64)), "-1"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, wrapped.state_dict()[name]), name


@pytest.mark.slow
def test_norms_that_begin_at_zero_do_so_at_another_size_of_images():
    model = trained(timm.create_model("efficientvit_m0", img_size=64, num_classes=3))
    reinit_layers(model, list(list_layers(model)))
    for name, fresh in timm.create_model("efficientvit_m0", img_size=64, num_classes=3).named_parameters():
        if name.endswith("bn.weight"):
            assert torch.equal(model.get_parameter(name), fresh), name


@pytest.mark.slow
def test_timm_of_other_widths_initialises_itself():
    model = trained(timm.create_model("vit_tiny_patch16_224", embed_dim=96, depth=3, num_heads=3, img_size=32))
    reinit_layers(model, list(list_layers(model)))
    assert not any((parameter == 7).any() for parameter in model.parameters())
    assert model.blocks[-1].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)  # timm's, not nn.Linear's
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


def test_what_a_parametrized_layer_computes_with_is_fresh():
    model = nn.Sequential(*[weight_norm(nn.Linear(4, 4)) for _ in range(3)], nn.Linear(4, 2))
    model[1] = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    before = [layer.weight.detach().clone() for layer in model]
    layers = list_layers(model, example=torch.ones(1, 4), blocks=["0", "1", "2"])
    names = reinit_layers(model, select_layers(layers, "0, 1"))
    assert "0.parametrizations.weight.original1" in names
    assert not (model[0].weight == before[0]).any()
    assert not (model[1].weight == before[1]).any()
    assert torch.equal(model[2].weight, before[2])
    assert model[0].weight.abs().max() <= 0.5  # nn.Linear's own range
    model[0].parametrizations.weight.original0.sum().backward()  # still a parameter


class Partial(nn.Linear):
    """Its reset leaves the scale out."""

    def __init__(self, n: int):
        super().__init__(n, n)
        self.scale = nn.Parameter(torch.ones(()))


def test_a_reset_that_leaves_something_out_is_refused():
    model = trained(nn.Sequential(Partial(4), nn.Linear(4, 2)))
    layers = list_layers(model, example=torch.ones(1, 4))
    with pytest.raises(InputError, match=r"'0\.scale' belongs to no module with reset_parameters that sets it"):
        reinit_layers(model, list(layers))
    assert all((parameter == 7).all() for parameter in model.parameters())


@pytest.mark.slow
def test_a_compiled_part_has_its_networks_initialiser():
    plain, compiled = (trained(some("BertForSequenceClassification").model()) for _ in range(2))
    compiled.bert = torch.compile(compiled.bert, backend="eager")
    for model in (plain, compiled):
        reinit_layers(model, select_layers(list_layers(model), "-1"), seed=1)
    inside = compiled.bert._orig_mod.encoder.layer[-1].state_dict()
    for name, tensor in plain.bert.encoder.layer[-1].state_dict().items():
        assert torch.equal(inside[name], tensor), name


@pytest.mark.slow
def test_an_initialiser_that_does_other_than_the_constructor_is_refused():
    model = timm.create_model("resnetv2_50", layers=(1, 1, 1, 1), channels=(32, 48, 64, 96), num_classes=3)
    with pytest.raises(InputError, match=r"a new ResNetV2 cannot be built: .* its init_weights does not give 'stages"):
        reinit_layers(model, select_layers(list_layers(model), "-1"))
