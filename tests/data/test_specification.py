"""Options of a backbone come from the data module; kind: options that had to be repeated, or were forgotten."""

import warnings

import lightning as L
import pytest

from zigma_pl.backbones import ZigMa
from zigma_pl.conditioners import Condition, Map
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.data.specification import (
    Specification,
    check_data_fit_backbone,
    fill_from,
    warn_of_ignored_conditions,
)
from zigma_pl.training.module import GenerativeModule

SIZES = {"patch_size": 2, "width": 16, "depth": 1}


def backbone_for(data, **stated):
    options = {**dict.fromkeys(Specification._fields), **SIZES, **stated}
    fill_from(Specification.of(data)._asdict(), options)
    return ZigMa(**options)


@pytest.mark.parametrize("condition", ["class", "none"])
def test_a_backbone_is_built_for_what_the_data_have(condition):
    data = Digits(condition=condition)
    backbone = backbone_for(data)
    assert Specification.of(backbone) == Specification.of(data)
    assert backbone.latent_shape == (1, 8, 8)
    assert backbone.num_classes == (10 if condition == "class" else None)
    check_data_fit_backbone(data, backbone)


def test_data_without_classes_have_samples_without_classes():
    data = Digits(condition="none", batch_size=4)
    data.setup("fit")
    assert next(iter(data.val_dataloader())).class_ids is None


@pytest.mark.parametrize(
    ("stated", "found"), [({"in_channels": 3}, "in_channels=1"), ({"num_classes": 7}, "num_classes=10")]
)
def test_what_is_stated_and_differs_is_named_with_both_values(stated, found):
    data = Digits()
    with pytest.raises(UserError, match=found) as caught:
        check_data_fit_backbone(data, backbone_for(data, **stated))
    assert "=".join(map(str, next(iter(stated.items())))) in str(caught.value)


def test_conditions_that_a_backbone_ignores_are_named_once(tmp_path):
    class Outlined(Digits):
        def encode_conditions(self, raw, device):
            given = super().encode_conditions(raw, device)
            return {**given, "outline": Condition((raw.images > 127).float()), "edges": Condition(raw.images.float())}

    module = GenerativeModule(ZigMa(1, 8, 8, **SIZES, num_classes=10, conditioners={"edges": Map()}))
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_steps=2, max_epochs=-1, limit_val_batches=0, default_root_dir=tmp_path, **options)
    with pytest.warns(UserWarning, match="ignores") as caught:
        trainer.fit(module, datamodule=Outlined(batch_size=2))
    (said,) = [str(one.message) for one in caught if "ignores" in str(one.message)]
    assert "'outline'" in said
    assert "'class'" not in said
    assert "'edges'" not in said


def test_all_conditions_taken_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_ignored_conditions(["class"], {"class": None})
        warn_of_ignored_conditions([], ())
    with pytest.warns(UserWarning, match="'class', 'caption'"):
        warn_of_ignored_conditions(["class", "caption"], ())


def test_a_backbone_made_in_python_needs_its_size():
    with pytest.raises(UserError, match="in_channels"):
        ZigMa(**SIZES)
