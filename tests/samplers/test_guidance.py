import pytest
import torch

from zigma_pl.core.batch import Condition
from zigma_pl.core.errors import UserError
from zigma_pl.interpolant import Objective
from zigma_pl.samplers import Guidance, ODESampler, guided_network


class RecordingBackbone:
    """Output = x_t + t + class (100 in a dropped row) + the number of caption tokens that count (0 if dropped)."""

    droppable_conditions = ("class", "caption")

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, x_t, t, conditions=None, dropped=None):
        self.calls.append((len(x_t), conditions, dropped))
        conditions, dropped = conditions or {}, dropped or {}
        nowhere = torch.zeros(len(x_t), dtype=torch.bool)
        shift = torch.zeros(len(x_t))
        if "class" in conditions:
            shift = torch.where(dropped.get("class", nowhere), 100.0, conditions["class"].values.float())
        if "caption" in conditions:
            shift = shift + torch.where(dropped.get("caption", nowhere), 0, conditions["caption"].mask.sum(1))
        return x_t + (t + shift).reshape(-1, 1, 1, 1)


X_T = torch.arange(6.0).reshape(3, 1, 2, 1)
T = torch.tensor([0.2, 0.5, 0.8])
CONDITION = torch.tensor([4, 5, 6])
CLASSES = {"class": Condition(CONDITION)}


def plain(shift):
    return X_T + (T + torch.as_tensor(shift)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("guidance", [None, Guidance(), Guidance(1.0, (0.1, 0.6))])
def test_scale_one_is_one_conditional_evaluation(guidance) -> None:
    backbone = RecordingBackbone()
    output = guided_network(backbone, CLASSES, guidance)(X_T, T)
    torch.testing.assert_close(output, plain(CONDITION))
    assert [(rows, dropped) for rows, _, dropped in backbone.calls] == [(3, None)]


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_guided_output_is_null_plus_scale_times_difference(scale) -> None:
    backbone = RecordingBackbone()
    output = guided_network(backbone, CLASSES, Guidance(scale))(X_T, T)
    torch.testing.assert_close(output, plain(100 + scale * (CONDITION - 100)))
    ((rows, conditions, dropped),) = backbone.calls
    assert rows == 6
    assert conditions["class"].values.tolist() == [4, 5, 6, 4, 5, 6]
    assert dropped["class"].dtype == torch.bool
    assert dropped["class"].tolist() == [False] * 3 + [True] * 3


MASK = torch.tensor([[True, False], [True, True], [False, False]])
CLASSES_AND_CAPTIONS = {**CLASSES, "caption": Condition(torch.zeros(3, 2, 1), MASK)}


@pytest.mark.parametrize(
    ("drop", "null"),
    [
        (None, torch.full((3,), 100)),
        (["class"], 100 + MASK.sum(1)),
        (["caption"], CONDITION),
        (["class", "caption"], torch.full((3,), 100)),
    ],
)
def test_guidance_drops_all_or_chosen_conditions(drop, null) -> None:
    backbone = RecordingBackbone()
    output = guided_network(backbone, CLASSES_AND_CAPTIONS, Guidance(3.0, drop=drop))(X_T, T)
    torch.testing.assert_close(output, plain(null + 3.0 * (CONDITION + MASK.sum(1) - null)))
    assert torch.equal(backbone.calls[0][1]["caption"].mask, torch.cat([MASK, MASK]))


def test_a_condition_that_cannot_be_dropped_is_named() -> None:
    with pytest.raises(UserError, match="'depth' is not a condition"):
        guided_network(RecordingBackbone(), CLASSES, Guidance(3.0, drop=["depth"]))


def test_interval_is_inclusive_and_per_sample() -> None:
    backbone = RecordingBackbone()
    network = guided_network(backbone, CLASSES, Guidance(2.0, (0.25, 0.5)))
    torch.testing.assert_close(network(X_T, T), plain([4.0, 100 + 2 * (5 - 100), 6.0]))
    torch.testing.assert_close(network(X_T, torch.full((3,), 0.6)), X_T + 0.6 + CONDITION.reshape(3, 1, 1, 1))
    assert [rows for rows, *_ in backbone.calls] == [6, 3], "outside the interval nothing is evaluated twice"


def test_no_condition_is_one_unconditional_evaluation() -> None:
    backbone = RecordingBackbone()
    torch.testing.assert_close(guided_network(backbone, None, Guidance(4.0))(X_T, T), plain(0.0))
    assert backbone.calls == [(3, None, None)]


def test_a_doubled_batch_counts_as_one_call_and_interval_saves_rows() -> None:
    backbone = RecordingBackbone()
    network = guided_network(backbone, CLASSES, Guidance(2.0, (0.0, 0.5)))
    result = ODESampler("euler", 10).sample(network, X_T, objective=Objective())
    assert result.num_network_calls == 10
    assert [rows for rows, *_ in backbone.calls] == [3] * 5 + [6] * 5


def test_bfloat16_outputs_are_combined_in_float32() -> None:
    class Bfloat16Backbone(RecordingBackbone):
        def __call__(self, x_t, *arguments):
            return (super().__call__(x_t, *arguments) / 64).bfloat16()

    output = guided_network(Bfloat16Backbone(), CLASSES, Guidance(7.3))(X_T, T)
    conditional, null = (plain(CONDITION) / 64).bfloat16().float(), (plain(100.0) / 64).bfloat16().float()
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, null + 7.3 * (conditional - null), atol=1e-6, rtol=0)


def test_guidance_needs_a_null_condition() -> None:
    backbone = RecordingBackbone()
    backbone.droppable_conditions = ()
    with pytest.raises(UserError, match="null condition"):
        guided_network(backbone, CLASSES, Guidance(2.0))
    guided_network(backbone, CLASSES, Guidance(1.0))(X_T, T)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": -1.0},
        {"scale": float("nan")},
        {"interval": (0.5, 0.5)},
        {"interval": (-0.1, 1)},
        {"interval": (0, 2)},
        {"drop": []},
    ],
)
def test_bad_numbers_are_named(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Guidance(**options)


# ------------------------------------------------------------------------------------------------------- autoguidance
class WeakBackbone(RecordingBackbone):
    """Output of the other backbone, plus 10."""

    droppable_conditions = ()

    def __call__(self, x_t, t, conditions=None, dropped=None):
        return super().__call__(x_t, t, conditions, dropped) + 10


@pytest.mark.parametrize("conditions", [None, CLASSES])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_autoguidance_leads_away_from_the_weak_model(conditions, scale) -> None:
    backbone, weak = RecordingBackbone(), WeakBackbone()
    output = guided_network(backbone, conditions, Guidance(scale), weak=weak)(X_T, T)
    expected = CONDITION if conditions else 0.0
    torch.testing.assert_close(output, plain(expected + 10 - 10 * scale))
    assert backbone.calls == weak.calls == [(3, conditions, None)]


def test_autoguidance_at_scale_one_or_outside_its_interval_calls_no_weak_model() -> None:
    weak = WeakBackbone()
    torch.testing.assert_close(guided_network(RecordingBackbone(), CLASSES, weak=weak)(X_T, T), plain(CONDITION))
    network = guided_network(RecordingBackbone(), CLASSES, Guidance(2.0, (0.25, 0.5)), weak=weak)
    torch.testing.assert_close(network(X_T, torch.full((3,), 0.6)), X_T + 0.6 + CONDITION.reshape(3, 1, 1, 1))
    assert weak.calls == []
    torch.testing.assert_close(network(X_T, T), plain([4.0, 5 - 10, 6.0]))


def test_autoguidance_drops_no_conditions() -> None:
    with pytest.raises(UserError, match=r"guidance\.drop"):
        guided_network(RecordingBackbone(), CLASSES, Guidance(2.0, drop=["class"]), weak=WeakBackbone())


def test_one_step_of_an_autoguided_sampler_is_one_network_call() -> None:
    network = guided_network(RecordingBackbone(), None, Guidance(2.0), weak=WeakBackbone())
    assert ODESampler("euler", 4).sample(network, X_T, objective=Objective()).num_network_calls == 4
