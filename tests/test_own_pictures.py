"""docs/own-pictures.md, run exactly as printed on a folder of 60 small pictures. Kind: a recipe that does not work."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from zigma_pl.cli.main import main

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "docs" / "own-pictures.md"
SMALL = [
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=2",
    "--trainer.val_check_interval=1",
]
QUICK = [
    "--model.sampler.init_args.num_steps=1",
    "--data.init_args.batch_size=2",
    "--data.init_args.num_workers=0",
    "--data.init_args.num_predict_samples=4",
    "--preview.num_samples=4",
    "--scorer.num_samples=4",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.enable_progress_bar=false",
]
# Options appended to a command for speed.
APPENDED = {
    "show-batch": ["--data.init_args.num_workers=0"],
    "fit": QUICK,
    "predict": QUICK,
    "test": QUICK,
    "export": [],
    "sample": ["--num_steps=1", "--num_samples=1", "--device=cpu"],
    "prepare": ["--num_workers=0", "--accelerator=cpu"],
    "ablations": ["--dry_run"],  # its commands are run here instead
}


def blocks():
    """Return language and text of each code block of the recipe."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", RECIPE.read_text(), flags=re.DOTALL | re.MULTILINE)


def draw_pictures(root):
    for number in range(60):
        name, colour = ("cats", "black") if number % 2 else ("dogs", "brown")
        picture = Image.new("RGB", (24 + number % 5, 20), (255, 4 * number, 128))
        ImageDraw.Draw(picture).ellipse((4, 4, 16, 16), fill=colour)
        path = root / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        path.with_suffix(".txt").write_text(f"a {colour} {name[:-1]}\na picture of a {name[:-1]}\n")


def run(arguments):
    command = arguments[0]
    small = [] if command not in ("fit", "predict", "test") or "--init_from" in arguments else SMALL
    assert main([*arguments, *APPENDED[command], *small]) == 0, arguments


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_runs_as_printed(in_tmp, capsys):
    draw_pictures(in_tmp / "pictures")
    (in_tmp / "models").mkdir()
    (in_tmp / "models" / "portraits").symlink_to(REPOSITORY / "models" / "portraits")
    done = []
    for language, text in blocks():
        if language == "yaml":
            file = Path(re.match(r"# (\S+\.yaml)\n", text)[1])
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        elif language == "python":
            exec(compile(text, str(RECIPE), "exec"), {})
        else:
            for line in text.replace("\\\n", " ").splitlines():
                program, option, module, *arguments = shlex.split(line)
                assert (program, option, module) == ("python", "-m", "zigma_pl")
                capsys.readouterr()
                run(arguments)
                done.append(arguments[0])
    assert set(done) == set(APPENDED)
    printed = [shlex.split(line)[4:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [arguments[0] for arguments in printed] == ["fit", "test"] * 2
    for arguments in printed[:2]:
        run(arguments)

    samples = json.loads(Path("samples/samples.json").read_text())["samples"]
    assert [row["class"] for row in samples] == ["cats", "dogs", "cats", "dogs"]
    assert [path.name for path in Path("samples/my").glob("*.png") if path.stem != "grid"] != []
    assert json.loads(Path("samples/my-captions/samples.json").read_text())["samples"][0]["caption"] == "a black cat"
    assert Image.open("cat.png").size == (64, 64)
    for path in ("batch.png", "logs/my/version_0/previews", "results/my.json", "results/my/grid.png"):
        assert Path(path).exists()
    (record,) = Path("results/own").glob("*.json")
    assert json.loads(record.read_text())["scores"].keys() == {"validation_loss", "velocity_loss"}


def test_what_the_recipe_names_exists():
    text = RECIPE.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (RECIPE.parent / link).exists(), link
