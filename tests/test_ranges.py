"""Kind: nonsense values of numeric options, which train wrongly, run out of memory, or end in a traceback."""

import inspect
import math
import pkgutil
from importlib import import_module
from typing import get_args

import lightning as L
import pytest
import torch

import zigma_pl
from zigma_pl.backbones import Backbone, ZigMa
from zigma_pl.conditioners import ConditionerOptions, Sizes
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers, check_whole_numbers
from zigma_pl.data import Digits
from zigma_pl.data.base import ImageDataModule
from zigma_pl.encoders import HashingTextEncoder
from zigma_pl.evaluation.metrics.feature_sets import GivenFeatures
from zigma_pl.evaluation.metrics.kernel_distance import KernelDistance
from zigma_pl.evaluation.metrics.precision_recall import PrecisionRecall
from zigma_pl.interpolant import LossTerm, Objective
from zigma_pl.interpolant.schedules import VPSchedule
from zigma_pl.losses import REPA, LiteTeacher, Teacher
from zigma_pl.mixers import Mamba, MixerOptions
from zigma_pl.models.zigzag_mamba import ZigzagMamba
from zigma_pl.optimizers import LearningRateSchedule, Muon
from zigma_pl.samplers import Guidance, ODESampler, Sampler, SDESampler
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.module import GenerativeModule

ANY_VALUE = {
    ("Objective", "logit_mean"),
    ("PlainTerm", "weight"),
    ("REPA", "weight"),
}  # numeric options that may be negative
NOT_OPTIONS = {"RequestedData", "SamplingBar"}  # built by our code alone
BACKBONE = {"in_channels": 1, "latent_height": 4, "latent_width": 4, "width": 8, "depth": 1, "num_classes": None}
REQUIRED = {
    "root": "nowhere",
    "path": "progress.json",
    "folder": "samples",
    "width": 8,
    "objective": Objective(),
    "synthetic": True,
    "teacher": LiteTeacher(),
    "params": [torch.zeros(2, 2)],
}


class PlainTerm(LossTerm):
    """Has the options that all loss terms have."""

    def forward(self, inputs):
        raise AssertionError


def subclasses(base):
    found = {base} if base.__module__.startswith("zigma_pl.") and not inspect.isabstract(base) else set()
    return found.union(*(subclasses(child) for child in base.__subclasses__()))


def our_classes():
    """Every class of ours that YAML or Python can give numbers to."""
    for module in pkgutil.walk_packages(zigma_pl.__path__, "zigma_pl."):
        if module.name.startswith(("zigma_pl.training.callbacks.", "zigma_pl.data.", "zigma_pl.samplers.")):
            import_module(module.name)
    found = {ScanConfig, Guidance, Objective, VPSchedule, GenerativeModule, ZigzagMamba, PlainTerm, Muon}
    found |= {HashingTextEncoder, REPA}
    bases = (Backbone, Sampler, L.Callback, ImageDataModule, LearningRateSchedule, MixerOptions, ConditionerOptions)
    bases += (Teacher,)
    for base in bases:
        found |= subclasses(base)
    return sorted((each for each in found if each.__name__ not in NOT_OPTIONS), key=lambda each: each.__name__)


def numeric_options(some_class):
    """Options of a class and of those that its `**options` go to."""
    for parent in some_class.__mro__:
        if not parent.__module__.startswith("zigma_pl.") or "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent).parameters.values()
        for parameter in parameters:
            parts = [parameter.annotation, *get_args(parameter.annotation)]
            parts += [part for tuple_or_not in parts[1:] for part in get_args(tuple_or_not)]
            if {int, float} & {part for part in parts if isinstance(part, type)}:
                yield parameter.name
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return


def build(some_class, **options):
    names = inspect.signature(some_class).parameters
    required = BACKBONE if issubclass(some_class, Backbone) else REQUIRED
    given = {name: value for name, value in required.items() if name in names}
    if some_class is GenerativeModule:
        given["backbone"] = ZigMa(**BACKBONE)
    built = some_class(**{**given, **options})
    return built.build(Sizes(8, (1, 4, 4), 3, 4)) if isinstance(built, ConditionerOptions) else built


CASES = [(each, option) for each in our_classes() for option in sorted(set(numeric_options(each)))]


def test_walk_finds_the_options():
    found = {(each.__name__, option) for each, option in CASES}
    assert {
        ("ZigMa", "patch_size"),
        ("Mamba", "state_size"),
        ("EMA", "decay"),
        ("GenerativeModule", "condition_dropout"),
        ("UCF101", "batch_size"),
        ("Scorer", "kid_subset_size"),
        ("ScanConfig", "indices"),
        ("ClassLabel", "dropout"),
        ("Map", "num_channels"),
        ("PlainTerm", "end_step"),
        ("REPA", "hidden_width"),
        ("Dinov2Teacher", "size_px"),
        ("Muon", "lr"),
    } <= found
    assert len(found) > 100


@pytest.mark.parametrize(("some_class", "option"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_every_numeric_option_refuses_nonsense(some_class, option):
    build(some_class)
    allowed = (some_class.__name__, option) in ANY_VALUE
    pair = option in ("interval", "indices", "lambda_range")
    for value in [math.nan] if allowed else [-1, math.nan]:
        with pytest.raises(UserError, match=option):
            build(some_class, **{option: (value, value) if pair else value})


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (ZigMa, "depth", 10**9),
        (ZigMa, "width", 10**6),
        (ZigMa, "num_classes", 10**12),
        (Mamba, "state_size", 10**9),
        (ZigMa, "latent_height", 10**9),
        (ZigMa, "width", 0),
        (ZigMa, "depth", "12"),
        (ZigMa, "depth", [12]),
        (ZigMa, "depth", 1.5),
        (ZigMa, "depth", True),
        pytest.param(ZigMa, "depth", 10**5000, id="5000 digits"),
        (ODESampler, "num_steps", 10**12),
        (SDESampler, "num_steps", 10**12),
        (SDESampler, "last_step_size", 1),
        (ScanConfig, "num_orders", 9),
        (Digits, "num_workers", 10**6),
        (Guidance, "scale", math.inf),
        (Objective, "logit_std", 0),
        (HashingTextEncoder, "dim", 10**9),
        (HashingTextEncoder, "max_tokens", 10**6),
    ],
)
def test_values_out_of_range_are_refused_in_one_short_line(make, option, value):
    with pytest.raises(UserError, match=option) as refused:
        build(make, **{option: value})
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 200


def test_products_out_of_range_are_refused_before_anything_is_allocated():
    with torch.device("meta"):
        with pytest.raises(UserError, match="tokens"):
            build(ZigMa, latent_height=16_384, latent_width=16_384)
        scan = ScanConfig(scheme="random", num_orders=4096)
        with pytest.raises(UserError, match="num_orders"):
            build(ZigMa, latent_height=1024, latent_width=1024, scan=scan)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": math.nan}, {"betas": (2.0, 0.9)}, {"weight_decay": -1.0}])
def test_options_of_optimisers_are_refused_in_one_line(options):
    module = build(GenerativeModule, optimizer=lambda groups: torch.optim.AdamW(groups, **options))
    with pytest.raises(UserError, match=r"model\.optimizer"):
        module.configure_optimizers()


@pytest.mark.parametrize(
    ("metric", "option"),
    [
        (KernelDistance, "num_subsets"),
        (KernelDistance, "subset_size"),
        (KernelDistance, "seed"),
        (PrecisionRecall, "num_neighbours"),
    ],
)
def test_options_of_metrics_are_refused_when_they_are_made(metric, option):
    for value in (-1, 0.5):
        with pytest.raises(UserError, match=option):
            metric(GivenFeatures(2), **{option: value})


def test_bounds_are_exact():
    check_whole_numbers("owner", least=1, most=3, low=1, high=3, left_out=None)
    check_numbers("owner", least=0, below=1, low=0, high=0.999, left_out=None)
    for wrong in (0, 4):
        with pytest.raises(UserError, match=r"owner\.count: must be a whole number from 1 to 3"):
            check_whole_numbers("owner", least=1, most=3, count=wrong)
    for wrong in (-0.1, 1.0, "0.5", True):
        with pytest.raises(UserError, match=r"owner\.share: must be a finite number >= 0 and < 1"):
            check_numbers("owner", least=0, below=1, share=wrong)
