"""`sample`: the pictures are those of the exported model, under what was asked for; the rest is one line."""

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from data.prepared.tiny import save_tiny_kl
from PIL import Image

import zigma_pl
from zigma_pl import samplers
from zigma_pl.backbones import ZigMa
from zigma_pl.cli.commands.export import data_options
from zigma_pl.cli.commands.sample_options import SAMPLERS
from zigma_pl.cli.main import main
from zigma_pl.conditioners import Map
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.class_paths import summary
from zigma_pl.core.clips import clip_suffix
from zigma_pl.data.images import resize_and_crop
from zigma_pl.encoders import HashingTextEncoder, KLAutoencoder
from zigma_pl.interpolant import Objective
from zigma_pl.samplers import Guidance, MultistepSampler, ODESampler, Sampler, SDESampler
from zigma_pl.training import trainer_options
from zigma_pl.training.callbacks import sampling_bar

# The second is longer than the 16 tokens that the model was trained with.
CAPTIONS = ["A smiling person with red hair.", "A hat, " * 8 + "and a beard, and glasses."]
REPOSITORY = Path(__file__).parents[2]
TINY = [
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=2",
    "--model.sampler.init_args.num_steps=2",
    "--trainer.max_steps=1",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--data.init_args.batch_size=4",
]
CAPTIONED = [
    "--model.guidance.scale=3",
    "--data.init_args.caption_dim=24",
    "--data.init_args.image_size_px=16",
    "--data.init_args.num_synthetic_items=8",
]


def trained(folder, row, *options):
    """Train a row for a step, give its checkpoint weights that react to conditions, and export it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(REPOSITORY / "experiments" / f"{row}.yaml"), *options, *TINY]) == 0
        path = next(Path("logs").glob("*/version_0/checkpoints/last.ckpt"))
        checkpoint = torch.load(path, weights_only=True)
        torch.manual_seed(0)
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point():
                std = 1.0 if "caption" in name or "class" in name else 0.2
                checkpoint["state_dict"][name] = torch.randn_like(value) * std
        torch.save(checkpoint, path.with_name("random.ckpt"))
        assert main(["export", "--ckpt_path", str(path.with_name("random.ckpt")), "--out", "model"]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("class"), "digits")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    options = ["--data.init_args.condition=none", "--model.guidance.scale=1"]
    return trained(tmp_path_factory.mktemp("unconditional"), "digits", *options)


@pytest.fixture(scope="module")
def by_caption(tmp_path_factory):
    """Of latents of an autoencoder, too."""
    folder = tmp_path_factory.mktemp("caption")
    smoke = ["--config", str(REPOSITORY / "configs" / "scale" / "smoke.yaml")]
    latents = f"--data.init_args.autoencoder={save_tiny_kl(folder / 'kl')}"
    return trained(folder, "table1_zigzag8", *smoke, *CAPTIONED, latents)


def sample(model, *options, out="out"):
    """Sample, and return the images as arrays and the contents of samples.json."""
    assert main(["sample", "--model", str(model), "--device", "cpu", "--out", str(out), *options]) == 0
    table = json.loads((Path(out) / "samples.json").read_text())
    return [np.asarray(Image.open(Path(out) / row["file"])) for row in table["samples"]], table


def as_pictures(pixels):
    """What is written of pixels (B, C, H, W) in [-1, 1]."""
    scaled = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().movedim(1, -1)
    return [picture.squeeze(-1).numpy() for picture in scaled]


def assert_same(pictures, expected):
    """Compare up to rounding, whose last bit depends on the batch size."""
    assert len(pictures) == len(expected)
    for picture, other in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(picture.astype(int), other.astype(int), atol=1)


def test_each_prompt_is_sampled_with_its_own_features(by_caption, in_tmp, capsys):
    options = ["--prompt", CAPTIONS[0], "--prompt", CAPTIONS[1], "--num_samples", "3", "--batch_size", "4"]
    pictures, table = sample(by_caption, *options, "--seed", "5", "--guidance", "2", "--num_steps", "3")
    assert capsys.readouterr().out.rstrip().endswith("out/grid.png")

    model = zigma_pl.from_pretrained(by_caption)
    assert (model.sampler.method, model.sampler.num_steps, model.guidance.scale) == ("euler", 2, 3.0)
    model.seed, model.sampler, model.guidance = 5, ODESampler(num_steps=3), Guidance(2.0)
    features, mask = HashingTextEncoder(24, 16)([caption for caption in CAPTIONS for _ in range(3)])
    latents = model.sample(Batch(None, torch.arange(6), {"caption": Condition(features, mask)})).latents
    assert_same(pictures, as_pictures(KLAutoencoder(str(by_caption.parent / "kl")).decode(latents)))
    assert pictures[0].shape == (16, 16, 3)

    assert [row["caption"] for row in table["samples"]] == [CAPTIONS[0]] * 3 + [CAPTIONS[1]] * 3
    assert (table["seed"], table["sampler"]["num_steps"], table["guidance"]["scale"]) == (5, 3, 2.0)
    assert Image.open("out/grid.png").size == (3 * 130 + 2, 2 * (130 + 68) + 2)  # one row per prompt


def test_classes_are_sampled_as_by_the_model(by_class, in_tmp):
    pictures, table = sample(by_class, "--class", "3", "--class", "0", "--num_samples", "2")
    model = zigma_pl.from_pretrained(by_class)
    assert (model.sampler.method, model.sampler.num_steps, model.guidance.scale) == ("heun", 2, 1.5)
    assert_same(
        pictures,
        as_pictures(
            model.sample(Batch(None, torch.arange(4), {"class": Condition(torch.tensor([3, 3, 0, 0]))})).latents
        ),
    )
    assert [row["class_id"] for row in table["samples"]] == [3, 3, 0, 0]


def test_the_model_that_comes_along_draws_what_it_is_told(repository, in_tmp):
    colours = ("green", "pink")
    prompts = [f"--prompt=a person in front of a {colour} background" for colour in colours]
    pictures, _ = sample(repository / "models/portraits", *prompts, "--num_samples=1", "--num_steps=3")
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 2
    (green, pink) = ((picture[:6, -6:].mean((0, 1)) - picture[:6, -6:].mean())[1] for picture in pictures)
    assert green > 15
    assert pink < -15


def test_the_shipped_model_samples_with_eight_calls_as_its_experiment(repository):
    experiment = yaml.safe_load((repository / "experiments/portraits.yaml").read_text())["model"]
    sampler = zigma_pl.from_pretrained(repository / "models/portraits").sampler
    assert isinstance(sampler, MultistepSampler)
    given = {name: getattr(sampler, name) for name in experiment["sampler"]["init_args"]}
    assert {**given, "lambda_range": list(given["lambda_range"])} == experiment["sampler"]["init_args"]
    assert sampler.num_steps == 8


@pytest.fixture
def weak(by_class, in_tmp):
    """A folder of a model like `by_class` with other weights."""
    model = zigma_pl.from_pretrained(by_class)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(0.5)
    return zigma_pl.save_pretrained(model, "weak")


def test_sampler_and_guidance_give_the_images_of_predict(by_class, in_tmp):
    checkpoint = by_class.parent / "logs" / "digits" / "version_0" / "checkpoints" / "random.ckpt"
    config = str(REPOSITORY / "experiments" / "digits.yaml")
    predict = ["predict", "--config", config, *TINY[:2], f"--ckpt_path={checkpoint}", "--seed_everything=3"]
    predict += ["--model.sampler=MultistepSampler", "--model.sampler.method=unipc", "--model.sampler.order=2"]
    predict += ["--model.sampler.num_steps=4", "--model.sampler.lambda_range=[-4,2.5]"]
    predict += ["--model.sampler.spacing=lambda", "--model.guidance.scale=3", "--model.guidance.interval=[0.1,0.8]"]
    predict += ["--model.guidance.drop=[class]", "--data.init_args.num_predict_samples=3"]
    predict += ["--samples.folder=predicted", "--trainer.accelerator=cpu"]
    assert main(predict) == 0
    expected = [np.asarray(Image.open(f"predicted/{number:08d}.png")) for number in range(3)]

    classes = [f"--class={number}" for number in range(3)]
    of_sampler = ["--sampler", "MultistepSampler", "--sampler.method", "unipc", "--sampler.order=2"]
    of_sampler += ["--sampler.lambda-range", "[-4, 2.5]", "--sampler.spacing", "lambda", "--num_steps", "4"]
    of_guidance = ["--guidance", "3", "--guidance_interval", "0.1", "0.8", "--guidance_drop", "class"]
    options = [*classes, "--num_samples=1", "--seed=3"]
    pictures, table = sample(by_class, *options, *of_sampler, *of_guidance)
    assert_same(pictures, expected)
    predicted = json.loads(Path("predicted/samples.json").read_text())
    for name in ("seed", "sampler", "guidance", "num_network_calls"):
        assert table[name] == predicted[name]
    assert "weak_model" not in predicted

    generated = zigma_pl.from_pretrained(by_class).generate(
        [0, 1, 2],
        seed=3,
        sampler=MultistepSampler("unipc", 2, 4, spacing="lambda", lambda_range=(-4, 2.5)),
        guidance=Guidance(3, (0.1, 0.8), ["class"]),
    )
    assert_same(list(map(np.asarray, generated)), expected)
    for changed in (of_sampler, of_guidance):  # each has an effect
        others, _ = sample(by_class, *options, *changed)
        assert any((picture != other).any() for picture, other in zip(pictures, others, strict=True))


def test_an_option_alone_changes_the_sampler_of_the_model(by_class, in_tmp):
    _, table = sample(by_class, "--class=1", "--num_samples=1", "--sampler.time_shift", "2")
    assert table["sampler"] == {**summary(zigma_pl.from_pretrained(by_class).sampler), "time_shift": 2.0}
    _, table = sample(by_class, "--class=1", "--num_samples=1", "--sampler", "SDESampler", "--sampler.num_steps=2")
    assert table["sampler"] == summary(SDESampler(num_steps=2))


def test_help_lists_the_options_of_every_sampler():
    assert {cls.__name__ for cls in Sampler.__subclasses__() if cls.__module__.startswith("zigma_pl.")} == {*SAMPLERS}
    for name, options in SAMPLERS.items():
        cls = getattr(samplers, name)
        hints = get_type_hints(cls.__init__)
        assert list(inspect.signature(cls.__init__).parameters)[1:] == list(options)
        for option, values in options.items():
            named = get_args(hints[option]) if get_origin(hints[option]) is Literal else ()
            assert tuple(filter(None, values.split(", "))) == named


def test_sampling_starts_from_an_image(by_class, in_tmp):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")
    options = ["--class=4", "--num_samples=3", "--image=image.png"]
    pictures, table = sample(by_class, *options, "--t_start=0.3", "--t_end=0.1", "--batch_size=2")
    assert (table["t_start"], table["t_end"]) == (0.3, 0.1)

    model = zigma_pl.from_pretrained(by_class)
    side = model.backbone.latent_shape[-1]
    grey = np.asarray(resize_and_crop(Image.fromarray(pixels).convert("L"), side))
    latents = (torch.tensor(grey).float() / 127.5 - 1).expand(3, 1, side, side)
    batch = Batch(latents, torch.arange(3), {"class": Condition(torch.full((3,), 4))})
    assert_same(pictures, as_pictures(model.sample(batch, t_start=0.3, t_end=0.1).latents))
    generated = model.generate(4, 3, image=Image.fromarray(pixels), t_start=0.3, t_end=0.1)
    assert_same(list(map(np.asarray, generated)), pictures)
    assert model.predict_times == (1.0, 0.0)
    close, _ = sample(by_class, *options, "--t_start=0.001")
    np.testing.assert_allclose(close[0].astype(int), grey.astype(int), atol=6)


def test_sampling_from_an_image_of_latents_in_another_shape(by_caption, in_tmp):
    image = Image.new("RGB", (50, 70), "red")
    model = zigma_pl.from_pretrained(by_caption)
    (picture,) = model.generate("a hat", image=image, t_start=0.5)
    assert picture.size == (16, 16)


def test_conditions_are_given_as_numbers_or_files(in_tmp, capsys):
    torch.manual_seed(0)
    backbone = ZigMa(1, 8, 8, patch_size=2, width=16, depth=2, conditioners={"edges": Map()})
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    module = zigma_pl.GenerativeModule(backbone, Objective(), ODESampler(num_steps=2))
    zigma_pl.save_pretrained(module, "model", {"data": {"autoencoder": "identity"}})
    edges = np.linspace(-3, 3, 64).reshape(1, 8, 8)
    np.save("edges.npy", edges)
    given, _ = sample("model", "--num_samples=3", "--condition=edges=edges.npy", "--batch_size=2")
    model = zigma_pl.from_pretrained("model")
    condition = Condition(torch.tensor(edges[None], dtype=torch.float32))
    assert_same(given, list(map(np.asarray, model.generate(num=3, conditions={"edges": condition}))))
    listed, _ = sample("model", "--num_samples=3", f"--condition=edges={edges.tolist()}")
    assert_same(given, listed)
    without, _ = sample("model", "--num_samples=3")
    assert any((picture != other).any() for picture, other in zip(given, without, strict=True))
    for wrong in ("edges", "edge=3", "edges=3", "edges=x", "edges=no.npy", "edges=[[1], [1, 2]]"):
        refused(["--model", "model", "--condition", wrong], r"condition.*edge", capsys, out="refused")


def test_a_weak_model_guides_sample_and_predict(by_class, weak, in_tmp):
    pictures, table = sample(by_class, "--class", "3", "--num_samples", "2", "--weak_model", str(weak))
    model, batch = (
        zigma_pl.from_pretrained(by_class),
        Batch(None, torch.arange(2), {"class": Condition(torch.full((2,), 3))}),
    )
    model.guide_with(zigma_pl.from_pretrained(weak))
    assert_same(pictures, as_pictures(model.sample(batch).latents))
    assert table["weak_model"]["class"] == "ZigMa"

    checkpoint = by_class.parent / "logs" / "digits" / "version_0" / "checkpoints" / "random.ckpt"
    options = [
        "predict",
        "--config",
        str(REPOSITORY / "experiments" / "digits.yaml"),
        *TINY,
        f"--ckpt_path={checkpoint}",
    ]
    options += ["--data.init_args.num_predict_samples=2", "--samples.folder=predicted", "--trainer.accelerator=cpu"]
    assert main([*options, f"--weak_model={weak}"]) == 0
    assert json.loads(Path("predicted/samples.json").read_text())["weak_model"]["class"] == "ZigMa"


def test_without_a_condition_it_goes_to_a_folder_of_the_models_name(unconditional, in_tmp):
    assert main(["sample", "--model", str(unconditional), "--num_samples", "9", "--device", "cpu"]) == 0
    pictures = [np.asarray(Image.open(f"samples/model/{number:08d}.png")) for number in range(9)]
    model = zigma_pl.from_pretrained(unconditional)
    assert_same(pictures, as_pictures(model.sample(Batch(None, torch.arange(9))).latents))
    assert Image.open("samples/model/grid.png").size == (8 * 130 + 2, 2 * 130 + 2)


def test_pictures_follow_the_seed_and_not_the_batch_size(by_class, in_tmp):
    options = ["--class", "7", "--num_samples", "5"]
    one_by_one, _ = sample(by_class, *options, "--batch_size", "1")
    assert_same(one_by_one, sample(by_class, *options, "--batch_size", "5")[0])
    assert_same(one_by_one[:2], sample(by_class, "--class", "7", "--num_samples", "2")[0])
    other_seed, _ = sample(by_class, *options, "--seed", "1")
    assert all((picture != other).any() for picture, other in zip(one_by_one, other_seed, strict=True))


def test_precision_is_the_given_one_or_that_of_the_gpu(by_class, in_tmp, monkeypatch):
    given = []
    build = L.Trainer.__init__
    monkeypatch.setattr(
        L.Trainer, "__init__", lambda *args, **options: given.append(options) or build(*args, **options)
    )
    sample(by_class, "--class", "0", "--num_samples", "1", "--precision", "bf16-mixed")
    monkeypatch.setattr(trainer_options, "default_precision", lambda options: f"32-true on {options['accelerator']}")
    sample(by_class, "--class", "0", "--num_samples", "1", "--precision", "32-true")
    with pytest.raises(ValueError, match="32-true on cpu"):
        sample(by_class, "--class", "0", "--num_samples", "1")
    assert [options["precision"] for options in given[:2]] == ["bf16-mixed", "32-true"]


def test_bar_moves_with_every_network_call(by_class, in_tmp, monkeypatch):
    places = []

    class Bar:
        n = 0.0

        def __init__(self, **options):
            assert options["total"] == 4

        def update(self, distance):
            self.n += distance
            places.append(self.n)

        def close(self):
            places.append("closed")

    monkeypatch.setattr(sampling_bar, "tqdm", Bar)
    sample(by_class, "--class", "0", "--num_samples", "4", "--batch_size", "2")
    first = [0, 1, 1, 2]  # Heun in two steps: called at t = 1, 1/2, 1/2, 0
    assert places == [*first, 2, *(2 + place for place in first), 4, "closed"]

    places.clear()
    Image.new("L", (8, 8)).save("image.png")
    start = ["--image=image.png", "--t_start=0.5", "--t_end=0.25"]
    sample(by_class, "--class", "0", "--num_samples", "4", "--batch_size", "4", *start)
    assert places == [0, 2, 2, 4, 4, "closed"]


def test_clips_are_written_as_clips(in_tmp):
    torch.manual_seed(0)
    backbone = ZigMa(3, 4, 6, latent_frames=2, patch_size=2, width=16, depth=2)
    zigma_pl.save_pretrained(zigma_pl.GenerativeModule(backbone, Objective(), ODESampler(num_steps=1)), "clips")
    options = ["--autoencoder", "identity", "--num_samples", "1", "--device", "cpu"]
    assert main(["sample", "--model", "clips", *options]) == 0
    assert Path(f"samples/clips/00000000{clip_suffix()}").is_file()


def refused(options, message, capsys, out="out"):
    """Check for one line with the message, and that nothing was written."""
    capsys.readouterr()
    assert main(["sample", "--device", "cpu", "--out", out, *map(str, options)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not list(Path(out).glob("*"))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("by_class", [], "--class.* 0 to 9"),
        ("by_class", ["--prompt", "a seven"], "--class.* 0 to 9"),
        ("by_class", ["--class", "1", "--prompt", "a seven"], "--class.* 0 to 9"),
        ("by_class", ["--class", "1", "--class", "10"], "class 10: the classes .* are 0 to 9"),
        ("by_class", ["--class", "nine"], "class 'nine'"),
        ("by_class", ["--class", "-1"], "class '-1'"),
        ("by_class", ["--class", "1", "--num_samples", "0"], "sample.num_samples"),
        ("by_class", ["--class", "1", "--batch_size", "0"], "sample.batch_size"),
        ("by_class", ["--class", "1", "--num_steps", "0"], "ODESampler.num_steps"),
        ("by_class", ["--class", "1", "--guidance", "-1"], "guidance.scale"),
        ("by_class", ["--class", "1", "--autoencoder", "nowhere"], "no folder 'nowhere'"),
        ("by_class", ["--class", "1", "--seed", "-1"], "seed"),
        ("by_class", ["--class", "1", "--sampler", "Guidance"], "Guidance.*MultistepSampler"),
        ("by_class", ["--class", "1", "--sampler", "own.Sampler"], "--allow_import own"),
        ("by_class", ["--class", "1", "--sampler.order", "2"], "order.*ODESampler.*time_shift"),
        ("by_class", ["--class", "1", "--sampler.method", "huen"], "method.*heun"),
        ("by_class", ["--class", "1", "--sampler", "MultistepSampler", "--sampler.order=x"], "order"),
        ("by_class", ["--class", "1", "--sampler", "MultistepSampler", "--sampler.order=9"], "order"),
        ("by_class", ["--class", "1", "--num_steps", "3", "--sampler.num_steps", "4"], "--num_steps"),
        ("by_class", ["--class", "1", "--guidance_interval", "0.5", "0.4"], "interval"),
        ("by_class", ["--class", "1", "--guidance", "2", "--guidance_drop", "caption"], "'caption'.*class"),
        ("by_class", ["--class", "1", "--guidance", "1", "--guidance_drop", "class"], "--guidance"),
        ("by_class", ["--class", "1", "--t_start", "0.5"], "--image"),
        ("by_class", ["--class", "1", "--image", "gone.png"], "--t_start"),
        ("by_class", ["--class", "1", "--image", "gone.png", "--t_start", "0.5"], "gone.png"),
        ("by_class", ["--class", "1", "--t_start", "0"], "t_start"),
        ("by_class", ["--class", "1", "--t_end", "1"], "t_end"),
        ("by_class", ["--class", "1", "--weak_model", str(REPOSITORY / "models/portraits")], "weak model"),
        ("by_class", ["--class", "1", "--weak_model", "nowhere"], "nowhere"),
        ("unconditional", ["--prompt", "a seven"], "--prompt"),
        ("unconditional", ["--class", "0"], "--class"),
        ("unconditional", ["--guidance", "2"], "null condition"),
        ("by_caption", [], "--prompt"),
        ("by_caption", ["--class", "0"], "--prompt"),
        ("by_caption", ["--prompt", "a", "--autoencoder", "identity"], "4 channels, .* give the folder of the Auto"),
        ("by_caption", ["--prompt", "a", "--text_encoder", "clip"], "'clip'.*data.text_encoder_path"),
        ("by_caption", ["--prompt", "a", "--text_encoder", "clip", "--text_encoder_path", "no"], "cannot load 'no'"),
    ],
)
def test_what_does_not_fit_is_one_line(kind, options, message, request, in_tmp, capsys):
    refused(["--model", request.getfixturevalue(kind), *options], message, capsys)


def test_folders_that_are_not_there_or_not_whole_are_one_line(by_class, in_tmp, capsys):
    refused(["--model", "models/none"], r"'models/none'.*zigma_pl export .*--out models/none", capsys)
    shutil.copytree(by_class, "cut")
    content = (by_class / "model.safetensors").read_bytes()
    Path("cut/model.safetensors").write_bytes(content[: len(content) // 2])
    refused(["--model", "cut", "--class", "1"], r"cut/model\.safetensors", capsys)


def test_autoencoder_of_other_latents_is_refused(by_class, by_caption, in_tmp, capsys):
    options = ["--model", by_class, "--class", "1", "--autoencoder", by_caption.parent / "kl"]
    refused(options, "autoencoder: .* 4 latent channels.* 1", capsys)


def test_adaptive_sampler_takes_no_number_of_steps(by_class, in_tmp, capsys):
    model = zigma_pl.from_pretrained(by_class)
    model.sampler = ODESampler("dopri5", atol=0.1, rtol=0.1)
    zigma_pl.save_pretrained(model, "model", {"data": {"class_path": "zigma_pl.data.Digits"}})
    refused(["--model", "model", "--class", "1", "--num_steps", "3"], "num_steps.*dopri5", capsys)
    assert len(sample("model", "--class", "1", "--num_samples", "1")[0]) == 1


def test_encoders_that_config_does_not_tell_have_to_be_given(by_caption, in_tmp, capsys):
    unknown = zigma_pl.from_pretrained(by_caption)
    unknown.trained_on = {}  # as in an old checkpoint that was moved away from its run
    zigma_pl.save_pretrained(unknown, "model")
    autoencoder = ["--autoencoder", by_caption.parent / "kl"]
    refused(["--model", "model", "--prompt", "a"], "--autoencoder", capsys)
    refused(["--model", "model", "--prompt", "a", *autoencoder], "--text_encoder", capsys)
    given = [*map(str, autoencoder), "--text_encoder", "hashing"]
    known, _ = sample(by_caption, "--prompt", "a hat", "--num_samples", "2")
    assert_same(sample("model", "--prompt", "a hat", "--num_samples", "2", *given)[0], known)


def test_another_encoder_than_that_of_config_does_not_get_its_path(by_caption, in_tmp):
    model, kl = zigma_pl.from_pretrained(by_caption), str(by_caption.parent / "kl")
    elsewhere = {"class_path": "MMCelebAHQ", "autoencoder": "gone", "autoencoder_subfolder": "vae"}
    zigma_pl.save_pretrained(model, "model", {"data": elsewhere | {"text_encoder": "clip", "text_encoder_path": "no"}})
    options = ["--prompt", "a hat", "--num_samples", "1"]
    pictures, _ = sample("model", *options, "--autoencoder", kl, "--text_encoder", "hashing")
    assert_same(pictures, sample(by_caption, *options)[0])


def test_a_hub_name_in_config_needs_the_callers_leave(by_caption, in_tmp, capsys, monkeypatch):
    """Kind: a file that makes a program fetch what its author chose."""
    asked = []

    class Refused(Exception):
        pass

    def autoencoder(path, subfolder):
        asked.append((path, subfolder))
        raise Refused

    monkeypatch.setattr("zigma_pl.data.requested.KLAutoencoder", autoencoder)
    data = {"autoencoder": "someone/vae", "autoencoder_subfolder": "vae", "text_encoder": "hashing"}
    zigma_pl.save_pretrained(zigma_pl.from_pretrained(by_caption), "model", {"data": data})
    options = ["--model", "model", "--prompt", "a hat"]
    refused(options, r"someone/vae.*--allow_hub", capsys)
    assert asked == []
    for allowed in (["--allow_hub"], ["--autoencoder", "someone/vae", "--autoencoder_subfolder", "vae"]):
        with pytest.raises(Refused):
            main(["sample", "--device", "cpu", *options, *allowed])
    assert asked == [("someone/vae", "vae")] * 2


def test_export_keeps_the_encoders_that_sampling_needs(by_caption, in_tmp):
    data = json.loads((by_caption / "config.json").read_text())["data"]
    assert (data["text_encoder"], data["max_caption_tokens"], data["image_size_px"]) == ("hashing", 16, 16)
    init_args = {"autoencoder": "kl", "text_encoder": "clip", "text_encoder_path": "weights/clip"}
    assert exported("MMCelebAHQ", init_args) == {"class_path": "MMCelebAHQ", **init_args}


def exported(class_path, init_args):
    """What `export` keeps of a run with this data set."""
    Path("run/checkpoints").mkdir(parents=True, exist_ok=True)
    Path("run/config.yaml").write_text(yaml.safe_dump({"data": {"class_path": class_path, "init_args": init_args}}))
    return data_options(Path("run/checkpoints/last.ckpt"))
