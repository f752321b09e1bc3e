"""One of two processes, which train together in several ways and write down what came of it."""

import json

import torch
from distributed.few_pictures import CASES, FewDigits, evaluate
from distributed.training_run import GLOBAL_BATCH_SIZE, MUON, NUM_STEPS, build, train
from torch.distributed import get_rank

from zigma_pl.core.errors import UserError
from zigma_pl.strategies import FullySharded
from zigma_pl.training.callbacks.agreement import Agreement
from zigma_pl.training.callbacks.non_finite import NonFiniteGuard
from zigma_pl.training.module import GenerativeModule

HALF = GLOBAL_BATCH_SIZE // 2


class Spoiled(GenerativeModule):
    """In step 2 process 1 has data that are NaN; in step 4 process 0 has an infinite loss with finite gradients."""

    never_recovers = False

    def training_loss(self, batch):
        step, rank = self.trainer.global_step, self.trainer.global_rank
        if rank == 1 and (step == 2 or (self.never_recovers and step >= 2)):
            batch = batch._replace(latents=batch.latents * torch.nan)
        loss = super().training_loss(batch)
        return loss + torch.inf if (rank, step) == (0, 4) else loss


class StaysSpoiled(Spoiled):
    never_recovers = True


def main(folder):
    """Train, and write found<rank>.json to the folder."""
    found = {}
    two = {"devices": 2, "batch_size": HALF}
    # Of nine pictures in batches of four, process 1 has none for the last batch.
    validated = two | {"limit_val_batches": 1.0, "val_check_interval": NUM_STEPS}
    for name, strategy in (("ddp", "ddp"), ("fsdp", FullySharded())):
        trainer, remember = train(folder / name, **validated, data=FewDigits(9, batch_size=HALF), strategy=strategy)
        found[name] = remember.trace()
        found[f"validation of {name}"] = float(trainer.callback_metrics["validation/loss"])
    found["local_parameters"] = sum(p.to_local().numel() for p in trainer.lightning_module.parameters())
    resumed = train(folder / "fsdp-resumed", ckpt_path=folder / "fsdp" / "step=3.ckpt", **two, strategy=FullySharded())
    found["fsdp-resumed"] = resumed[1].trace()

    for name, strategy in (("ddp", "ddp"), ("fsdp", FullySharded())):
        module = build(optimizer=MUON)
        found[f"muon {name}"] = train(folder / f"muon-{name}", module, **two, strategy=strategy)[1].trace()
    step_3 = folder / "muon-fsdp" / "step=3.ckpt"
    resumed = train(folder / "muon-resumed", build(optimizer=MUON), ckpt_path=step_3, **two, strategy=FullySharded())
    found["muon resumed"] = resumed[1].trace()

    for num_pictures in CASES:
        found[f"few {num_pictures}"] = evaluate(folder / f"few{num_pictures}", num_pictures, devices=2, strategy="ddp")

    rank = get_rank()
    unequal = {
        "data": ({}, FewDigits(2 + rank, batch_size=HALF)),
        "options": ({"model.learning_rate": 1e-3 * rank}, FewDigits(2, batch_size=HALF)),
    }
    for name, (options, data) in unequal.items():
        try:
            train(folder / name, callbacks=[Agreement(options)], data=data, **two, strategy="ddp")
        except UserError as error:
            found[f"unequal {name}"] = str(error)

    trainer, remember = train(folder / "spoiled", build(Spoiled), [NonFiniteGuard()], **two, strategy="ddp")
    found["skipped"] = [row["train/skipped_steps"] for row in remember.logged]
    moments = [state[name] for state in trainer.optimizers[0].state.values() for name in ("exp_avg", "exp_avg_sq")]
    weights = dict(trainer.lightning_module.named_parameters()) | {f"moment {i}": m for i, m in enumerate(moments)}
    torch.save({name: value.detach() for name, value in weights.items()}, folder / f"weights{rank}.pt")

    guard = NonFiniteGuard(max_in_a_row=2, check_every_n_steps=2)
    try:
        train(folder / "stopped", build(StaysSpoiled), [guard], **two, strategy="ddp")
    except UserError as error:
        found["error"] = str(error)
    (folder / f"found{rank}.json").write_text(json.dumps(found))
