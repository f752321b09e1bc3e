"""`generate`: pictures under prompts and class names; and training that starts from another model's weights."""

import warnings

import lightning as L
import numpy as np
import pytest
import torch

import zigma_pl
from zigma_pl.cli.main import main
from zigma_pl.conditioners import Map
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.interop import sampling
from zigma_pl.interop.training_checkpoint import initialise
from zigma_pl.interpolant import Objective
from zigma_pl.samplers import ODESampler
from zigma_pl.scan import ScanConfig

NAMES = ["circle", "square", "triangle"]
ABOUT = {"class_names": NAMES, "data": {"class_path": "own.Shapes", "autoencoder": "identity"}}
SHAPE = {"in_channels": 1, "latent_height": 8, "latent_width": 8, "patch_size": 2, "width": 16, "depth": 2}


def saved(folder, about=ABOUT, **options):
    """Save a model whose output depends on its condition, and load it again."""
    torch.manual_seed(0)
    backbone = zigma_pl.ZigMa(**{**SHAPE, "num_classes": 3, **options})
    for name, parameter in backbone.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if "class" in name else 0.2)
    model = zigma_pl.GenerativeModule(backbone, Objective(), ODESampler(num_steps=2), seed=5)
    zigma_pl.save_pretrained(model, folder, about)
    return zigma_pl.from_pretrained(folder)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


def as_pixels(pictures):
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


def test_pictures_are_those_of_the_model_decoded(by_class):
    pictures = by_class.generate(["triangle", "circle"], num=2, num_steps=3, seed=7, guidance=2.0)
    model = zigma_pl.GenerativeModule(by_class.backbone, by_class.objective, ODESampler(num_steps=3), seed=7)
    guidance = zigma_pl.samplers.Guidance(2.0)
    latents = model.sample(
        Batch(None, torch.arange(4), {"class": Condition(torch.tensor([2, 2, 0, 0]))}), guidance
    ).latents
    expected = ((latents[:, 0] / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert {picture.mode for picture in pictures} == {"L"}
    np.testing.assert_allclose(as_pixels(pictures), expected, atol=1)
    assert (by_class.seed, by_class.sampler.num_steps, by_class.guidance.scale) == (5, 2, 1.0)  # as before


def dtypes(model, call):
    """The dtypes of the outputs of the first projection while `call` runs."""
    found = set()
    hook = model.backbone.blocks[0].mixer.in_proj.register_forward_hook(lambda *given: found.add(given[2].dtype))
    call()
    hook.remove()
    return found


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (None, torch.float32),
        ("32-true", torch.float32),
        ("32", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("bf16", torch.bfloat16),
    ],
)
def test_precision_is_that_of_the_backbone(by_class, precision, expected):
    assert dtypes(by_class, lambda: by_class.generate("circle", precision=precision)) == {expected}


def test_without_a_precision_it_is_that_of_the_caller_or_of_the_gpu(by_class, monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        assert dtypes(by_class, lambda: by_class.generate("circle")) == {torch.bfloat16}
        assert dtypes(by_class, lambda: by_class.generate("circle", precision="32-true")) == {torch.float32}
    monkeypatch.setattr(sampling, "default_precision", lambda options: "bf16-mixed")  # as on a GPU
    assert dtypes(by_class, lambda: by_class.generate("circle")) == {torch.bfloat16}
    with pytest.raises(UserError, match="precision"):
        by_class.generate("circle", precision="bf16-true")


def test_a_picture_depends_on_seed_and_number_alone(by_class):
    many = as_pixels(by_class.generate("square", num=5, batch_size=5))
    np.testing.assert_allclose(as_pixels(by_class.generate("square", num=5, batch_size=1)), many, atol=1)
    np.testing.assert_allclose(as_pixels(by_class.generate(1, num=2)), many[:2], atol=1)
    assert not np.array_equal(as_pixels(by_class.generate("square", num=5, seed=1)), many)


def test_further_conditions_are_those_of_every_picture(tmp_path):
    model = saved(tmp_path, conditioners={"edges": Map()}, position_embedding="none")
    edges = {"edges": Condition(torch.linspace(-3, 3, 64).reshape(1, 1, 8, 8))}
    pictures = as_pixels(model.generate("circle", num=3, batch_size=2, conditions=edges))
    conditions = {
        "class": Condition(torch.zeros(3).long()),
        "edges": Condition(edges["edges"].values.repeat(3, 1, 1, 1)),
    }
    model.seed = 0
    latents = model.sample(Batch(None, torch.arange(3), conditions)).latents
    np.testing.assert_allclose(pictures, ((latents[:, 0] / 2 + 0.5).clamp(0, 1) * 255).round().numpy(), atol=1)
    assert not np.array_equal(pictures, as_pixels(model.generate("circle", num=3)))
    for wrong in ({"edge": edges["edges"]}, {"edges": conditions["edges"]}):
        with pytest.raises(UserError, match=r"conditions: .*edge"):
            model.generate("circle", conditions=wrong)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("triangel", {}, "did you mean 'triangle'"),
        ("Triangle", {}, "did you mean 'triangle'"),
        ("x" * 10_000, {}, "circle, square, triangle, or 0 to 2"),
        (3, {}, "0 to 2"),
        ("-1", {}, "0 to 2"),
        (None, {}, "--class.* circle"),
        ([], {}, "--class.* circle"),
        ("circle", {"num": 0}, "num"),
        ("circle", {"num_steps": 0}, "num_steps"),
        ("circle", {"image_size_px": 16}, "image_size_px"),
        ("circle", {"seed": -1}, "seed"),
        ("circle", {"autoencoder": "nowhere"}, "no folder 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(by_class, prompts, options, message):
    with pytest.raises(UserError, match=message) as caught:
        by_class.generate(prompts, **options)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_numbers_of_classes_may_be_names(tmp_path):
    model = saved(tmp_path, {**ABOUT, "class_names": ["7", "1", "0"]})
    assert np.array_equal(as_pixels(model.generate("7")), as_pixels(model.generate(0)))
    assert np.array_equal(as_pixels(model.generate("2")), as_pixels(model.generate(2)))  # no class has this name


def test_clips_are_lists_of_frames(tmp_path):
    model = saved(tmp_path, latent_frames=3, in_channels=3, num_classes=None)
    (clip,) = model.generate()
    assert [frame.size for frame in clip] == [(8, 8)] * 3


def test_another_size_without_weights_of_a_size(tmp_path):
    model = saved(tmp_path, num_classes=None, position_embedding="none")
    (picture,) = model.generate(image_size_px=(12, 16))
    assert picture.size == (16, 12)
    assert model.backbone.latent_shape == (1, 8, 8)
    with pytest.raises(UserError, match="image_size_px"):
        model.generate(image_size_px=0)
    model.guide_with(saved(tmp_path / "weak", num_classes=None, position_embedding="none"))
    (guided,) = model.generate(image_size_px=(12, 16), guidance=3.0)
    assert guided.size == (16, 12)
    model.guide_with(None)
    with pytest.raises(UserError, match="null condition"):
        model.generate(image_size_px=(12, 16), guidance=3.0)


def test_encoders_of_the_hub_need_leave(tmp_path, monkeypatch):
    """Kind: a file that makes a program fetch what its author chose."""
    model = saved(tmp_path, {"data": {"autoencoder": "someone/vae"}}, num_classes=None)
    monkeypatch.setattr("zigma_pl.data.requested.KLAutoencoder", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UserError, match=r"someone/vae.*allow_hub"):
        model.generate()
    assert len(model.generate(autoencoder="identity")) == 1


def test_public_names_are_found_by_completion():
    assert {*zigma_pl.__all__, "samplers", "data"} <= set(dir(zigma_pl))
    assert not [name for name in dir(zigma_pl) if name.startswith("_") and name != "__version__"]


def test_fine_tuning_in_python_trains_and_keeps_what_is_known(tmp_path):
    """Kind: a model in evaluation mode, whose condition is never dropped, and metadata that saving loses."""
    saved(tmp_path / "model", {**ABOUT, "class_names": list("abcdefghij")}, num_classes=10)
    model = zigma_pl.from_pretrained(tmp_path / "model", train=True, condition_dropout=0.5)
    assert model.training
    assert model.condition_dropout == 0.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, datamodule=Digits(batch_size=4))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("class" in name for name in moved)
    zigma_pl.save_pretrained(model, tmp_path / "tuned")
    tuned = zigma_pl.from_pretrained(tmp_path / "tuned")
    assert not tuned.training
    assert tuned.trained_on["class_names"] == list("0123456789")
    assert tuned.trained_on["data"]["class_path"] == "zigma_pl.data.Digits"
    assert len(tuned.generate("7")) == 1


FIT = [
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=2",
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.init_args.lr=0",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_n_train_steps=1",
    "--data.init_args.batch_size=4",
]


def test_fit_starts_from_a_folder_or_a_checkpoint(repository, in_tmp, capsys):
    model = saved(in_tmp / "model", num_classes=10)
    fit = ["fit", "--config", str(repository / "experiments" / "digits.yaml"), *FIT]
    fit += ["--model.backbone.init_args.mixers=zigma_pl.mixers.Mamba"]
    assert main([*fit, "--init_from", "model"]) == 0
    path = in_tmp / "logs" / "digits" / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    weights = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    for name, value in weights.items():
        assert torch.equal(checkpoint["state_dict"][name], value)
    assert checkpoint["global_step"] == 1

    other = zigma_pl.GenerativeModule(zigma_pl.ZigMa(**SHAPE, num_classes=10))
    for kind in ("average", "raw"):
        initialise(other, path, kind)
        assert torch.equal(
            other.backbone.state_dict()["final_layer.projection.weight"],
            weights["backbone.final_layer.projection.weight"],
        )
    assert other.trained_on["class_names"] == list("0123456789")

    # Kind: wrong numbers without a word, as weights fit a network of another scan.
    for source in ("model", path):
        changed = zigma_pl.GenerativeModule(
            zigma_pl.ZigMa(**SHAPE, num_classes=10, scan=ScanConfig("hilbert")), Objective(prediction="noise")
        )
        with pytest.warns(
            UserWarning, match=r"scan\.scheme zigzag -> hilbert.*objective\.prediction velocity -> noise"
        ):
            initialise(changed, source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialise(zigma_pl.GenerativeModule(zigma_pl.ZigMa(**SHAPE, num_classes=10)), "model")

    capsys.readouterr()
    assert main([*fit, "--init_from", "model", "--model.backbone.init_args.depth=3"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "model does not fit this ZigMa" in line
    with pytest.raises(UserError, match="nowhere does not exist"):
        initialise(other, "nowhere")
