import json

import numpy as np
import pytest
from PIL import Image

from zigma_pl.cli.commands.demo import judge, real_digits
from zigma_pl.cli.main import main


def test_demo_ends_with_the_figure_and_the_picture(in_tmp, capsys):
    assert main(["demo", "--max_steps", "2", "--num_samples", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(": samples/demo/grid.png")
    assert any("% of 20 " in line for line in lines)
    assert (in_tmp / "samples" / "demo" / "grid.png").is_file()


@pytest.mark.parametrize(("asked_for", "expected"), [("right", 0.9), ("wrong", 0.0)])
def test_judge_recognises_real_digits_and_nothing_else(tmp_path, asked_for, expected):
    images, labels = real_digits("test")
    rows = []
    for index in range(50):
        pixels = np.rint(images[index].reshape(8, 8) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        class_id = int(labels[index]) if asked_for == "right" else int(labels[index] + 1) % 10
        rows.append({"file": f"{index}.png", "class_id": class_id})
    (tmp_path / "samples.json").write_text(json.dumps({"samples": rows}))
    recognised, real_accuracy, num_samples = judge(tmp_path)
    assert real_accuracy > 0.95
    assert num_samples == 50
    assert recognised >= expected if asked_for == "right" else recognised < 0.05
