from pathlib import Path

import pytest
import torch
import yaml
from processes import Processes, command_line, of_lightning

REPA = {
    "class_path": "zigma_pl.losses.REPA",
    "init_args": {
        "teacher": {"class_path": "losses.synthetic_teacher.RandomPatches", "init_args": {"dim": 6}},
        "hidden_width": 8,
        "end_step": 2,
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The checkpoints of one process and of two, each with the term in the first two of four steps."""
    folder, repository = tmp_path_factory.mktemp("repa"), Path(__file__).parents[2]
    (folder / "repa.yaml").write_text(yaml.safe_dump({"model": {"loss_terms": {"repa": REPA}}}))

    def start(name, batch_size, environments, *options):
        values = {
            "model.backbone.init_args.width": 16,
            "model.backbone.init_args.depth": 2,
            "trainer.max_steps": 4,
            "trainer.logger.init_args.name": name,
            "trainer.limit_val_batches": 0,
            "preview.num_samples": 0,
            "data.init_args.batch_size": batch_size,
        }
        given = [f"--config={repository}/experiments/digits.yaml", "--config=repa.yaml", *options]
        given += [f"--{key}={value}" for key, value in values.items()]
        return Processes(name, folder, *[(command_line, "fit", *given)] * len(environments), environments=environments)

    ddp = f"--config={repository}/configs/strategy/ddp.yaml"
    for run in (start("one", 8, [{}]), start("two", 4, of_lightning(2), ddp, "--trainer.devices=2")):
        run.wait()
    paths = [folder / "logs" / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("one", "two")]
    return [torch.load(path, weights_only=True)["current_model_state"] for path in paths]


def test_two_processes_end_the_term_and_have_the_weights_of_one(checkpoints):
    one, two = checkpoints
    assert "loss_terms.repa.head.0.weight" in one
    assert not any("teacher" in name for name in one)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5)
