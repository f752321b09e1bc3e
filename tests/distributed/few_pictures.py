"""Every kind of evaluation on so few pictures that a process of several may get none."""

import json

import lightning as L
from distributed.training_run import build
from evaluation.fake_extractor import build_fake

from zigma_pl.data import Digits
from zigma_pl.data.sources.digits import DigitImages
from zigma_pl.evaluation import scoring
from zigma_pl.evaluation.record import read_result
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.preview import PreviewGrid
from zigma_pl.training.callbacks.sample_writer import SampleWriter
from zigma_pl.training.callbacks.scorer import Scorer

# pictures -> samples for scoring, in chunks of 16, and scores: of one picture there is only the loss.
CASES = {1: (16, []), 3: (20, ["fid_lite", "kid_lite"])}
GLOBAL_BATCH_SIZE = 4


class FewDigits(Digits):
    """Digits with so few pictures in each held-out split."""

    def __init__(self, num_held_out, **options):
        super().__init__(**options)
        self.num_held_out = num_held_out

    def load_split(self, split):
        images = super().load_split(split)
        count = len(images) if split == "train" else self.num_held_out
        return DigitImages(images.pixels[:count], images.labels[:count])


def evaluate(folder, num_pictures, devices=1, **options):
    """Fit with a preview, validate, test and predict; returns the losses and scores."""
    scoring.build_extractor = build_fake
    num_samples, metrics = CASES[num_pictures]
    scorer = Scorer(
        num_samples=num_samples,
        metrics=metrics,
        kid_subset_size=2,
        name="few",
        results_dir=str(folder / "results"),
        samples_dir=str(folder / "scored"),
        reference_folder=str(folder / "reference"),
    )
    trainer = L.Trainer(
        default_root_dir=folder,
        max_steps=2,
        max_epochs=-1,
        accelerator="cpu",
        devices=devices,
        logger=False,
        callbacks=[EMA(decay=0.5), PreviewGrid(num_samples=2), SampleWriter(str(folder / "samples")), scorer],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=1,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        **options,
    )
    data = FewDigits(num_pictures, batch_size=GLOBAL_BATCH_SIZE // devices, num_predict_samples=num_pictures)
    module = build()
    module.sampler.num_steps = 2
    trainer.fit(module, datamodule=data)
    found = {"fit": float(trainer.callback_metrics["validation/loss"])}
    found |= {"validate": trainer.validate(module, datamodule=data, verbose=False)[0]["validation/loss"]}
    trainer.save_checkpoint(folder / "few.ckpt")
    trainer.test(module, datamodule=data, ckpt_path=folder / "few.ckpt", weights_only=True)
    trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.strategy.barrier()  # process 0 has written the table
    record = read_result(folder / "results" / "few.json")
    assert record.protocol["num_loss_samples"] == num_pictures
    drawn = [sample["file"] for sample in json.loads((folder / "samples" / "samples.json").read_text())["samples"]]
    assert sorted(path.name for path in (folder / "samples").glob("0*.png")) == drawn
    assert len(list((folder / "previews").iterdir())) == 2
    return found | {name: score.value for name, score in record.scores.items()}
