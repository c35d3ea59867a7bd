"""Specs derived from models: right (the function stays), maximal (the expected atoms), and explained."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffmatch.errors import InputError
from diffmatch.matching.weights import PermutationSpec, apply_permutations, permutation_spec, random_permutations

NAMES = ["mlp", "resnet8", "resnet20", "resnet50", "vgg16", "encoder", "decoder", "decoder, gqa", "decoder, rope"]
NAMES += ["densenet", "unet", "grouped", "vit", "recurrent"]


def randomize(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Double precision, with norm parameters and running statistics that hide nothing."""
    model = model.double().eval()
    with torch.no_grad():
        for tensor in model.parameters():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) / fan_in**0.5)
        for name, tensor in model.named_buffers():
            if "running" in name:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_atoms_move_and_the_function_stays(cases, name, generator):
    case = cases[name]
    model, inputs = randomize(case.make(), generator), case.inputs()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    spec = permutation_spec(model, inputs)
    assert spec.checked
    assert len(spec.atoms) == case.atoms, case.why
    assert all(frozen.reason for frozen in spec.frozen)

    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = model(inputs)
    permutations = random_permutations(spec, generator=generator)
    for atom, found in permutations.items():  # a size of two is the identity every other time
        if torch.equal(found, found.sort(-1).values):
            permutations[atom] = found.flip(-1)
    permuted = apply_permutations(state, spec, permutations)
    for atom in spec.atoms:
        for key, _ in spec.touched(atom):
            assert not torch.equal(permuted[key], state[key])
    assert {key for key in state if permuted[key] is not state[key]} == {
        k for a in spec.atoms for k, _ in spec.touched(a)
    }
    model.load_state_dict(permuted)
    assert (model(inputs) - wanted).abs().max() <= 1e-9 * wanted.abs().max()


def test_heads_carry_their_own_inner_permutations(cases):
    spec = permutation_spec(cases["decoder, gqa"].make(), cases["decoder, gqa"].inputs())
    groups = next(name for name, atom in spec.atoms.items() if atom.size == 2 and not atom.parents)
    of_groups = [atom for atom in spec.atoms.values() if atom.parents == (groups,)]
    assert sorted(atom.size for atom in of_groups) == [2, 6, 6]  # members of a group, q with k, v


class SingleNorm(nn.Module):
    """RMSNorm that computes in single precision whatever it is given, as many language models do."""

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def test_a_norm_in_single_precision_holds_nothing():
    model = nn.Sequential(nn.Linear(3, 6), SingleNorm(), nn.Linear(6, 2))
    assert [atom.size for atom in permutation_spec(model, torch.zeros(2, 3)).atoms.values()] == [6]


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_of_the_transformers_package():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    spec = permutation_spec(transformers.LlamaForCausalLM(config), torch.arange(10).reshape(2, 5))
    assert spec.checked
    # The stream; in each layer groups of heads, members of a group, v, the gated hidden layer: q and k are held by the
    # rotation.
    assert sorted(atom.size for atom in spec.atoms.values()) == [2, 2, 2, 2, 4, 4, 16, 24, 24]
    wanted = {
        "model.embed_tokens.weight",
        "lm_head.weight",
        *(f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)),
    }
    assert {frozen.parameter for frozen in spec.frozen} >= wanted


def test_tied_weights_stay_tied(cases, generator):
    model = cases["decoder"].make()
    spec = permutation_spec(model, cases["decoder"].inputs())
    permuted = apply_permutations(model.state_dict(), spec, random_permutations(spec, generator=generator))
    assert permuted["head.weight"].data_ptr() == permuted["embed.weight"].data_ptr()
    assert spec.layouts["head.weight"] == spec.layouts["embed.weight"]


def test_the_model_is_left_as_it_was(cases):
    model = cases["encoder"].make().train()
    model.encoder.layers[1].eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    permutation_spec(model, cases["encoder"].inputs())
    assert model.training
    assert not model.encoder.layers[1].training
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_without_weights_has_a_spec_that_is_not_checked():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        spec = permutation_spec(model, torch.empty(2, 5))
    assert list(spec.atoms) == ["0.weight[0]"]
    assert not spec.checked


class Reads(nn.Module):
    """A hidden layer whose units are read by something that depends on their order, or on none."""

    def __init__(self, read):
        super().__init__()
        self.first, self.read, self.last = nn.Linear(3, 6), read, nn.LazyLinear(2)
        self(torch.zeros(2, 3))

    def forward(self, x):
        return self.last(self.read(self.first(x)))


@pytest.mark.parametrize(
    ("read", "sizes"),
    [
        (lambda y: y.cumsum(-1), []),
        (lambda y: torch.diff(y, 1, -1, y[:, :1]), []),
        (lambda y: y.roll(1, -1), []),
        (lambda y: y.sort(-1).values, []),
        (lambda y: y * torch.arange(6), []),
        (lambda y: torch.fft.rfft(y).abs(), []),
        (lambda y: y[:, [3, 1, 0]], []),
        (lambda y: y[:, ::2], []),
        (lambda y: F.softmax(y, -1), [6]),
        (lambda y: F.softmax(y.view(-1, 2, 3), 1).flatten(1), [2, 3]),
        (lambda y: y * torch.ones(6), [6]),
        (lambda y: y[:, 1:4], [3, 2]),
        (lambda y: torch.cat(y.chunk(2, -1)[::-1], -1), [3, 3]),
        (lambda y: F.glu(y), [3]),
        (lambda y: F.pad(y, (1, 2)), [6, 2]),
        (lambda y: torch.einsum("bi,bj->bij", y, y).flatten(1), [6]),
        (lambda y: y.view(-1, 2, 3).mean(1), [2, 3]),
        (lambda y: torch.stack([y, 2 * y], 1).sum(1), [6]),
    ],
)
def test_what_reads_the_units_decides_what_may_move(read, sizes):
    spec = permutation_spec(Reads(read), torch.randn(2, 3))
    assert sorted(atom.size for atom in spec.atoms.values()) == sorted(sizes)


def test_writing_into_zeros_binds():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            out = x.new_zeros(2, len(x), 4)
            out[0] = self.a(x)
            out[1] = self.b(x)
            return self.c(out.sum(0))

    spec = permutation_spec(Writes(), torch.randn(2, 3))
    assert spec.checked
    assert {key for atom in spec.atoms for key, _ in spec.touched(atom)} in (
        set(),
        {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight"},
    )


def test_unused_parameters_and_constants_are_fixed_with_a_reason():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.unused, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("scale", torch.arange(3.0))

        def forward(self, x):
            return self.last(self.first(x * self.scale))

    spec = permutation_spec(Extra(), torch.randn(2, 3))
    reasons = {(frozen.parameter, frozen.axis): frozen.reason for frozen in spec.frozen}
    assert len(spec.atoms) == 1
    assert reasons["unused.weight", 0] == "not used by the forward pass"
    assert "constant" in reasons["scale", 0]
    assert "output" in reasons["last.weight", 0]
    assert "scale" in reasons["first.weight", 1]  # the first of two reasons


def test_a_spec_by_hand_wins_and_is_checked():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    axes = {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h"), "4.weight": (None, "wrong")}
    spec = permutation_spec(model, torch.randn(2, 3), by_hand=PermutationSpec.by_hand(model.state_dict(), axes))
    assert list(spec.atoms) == ["h"]
    assert [f.reason for f in spec.frozen if f.parameter == "4.weight"][1].startswith("moving it changes")


def test_a_model_that_cannot_be_exported_is_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"model: want a model that torch.export can trace .*by_hand"):
        permutation_spec(Branches(), torch.randn(2))
