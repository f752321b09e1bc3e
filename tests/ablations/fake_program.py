"""A fake `python -m zigma_pl`: `fit` copies a checkpoint and `test` writes a record, as behaviour.json says.

behaviour.json: experiment -> {"fit": ..., "test": ...}, each "fail", "hang", "preempted", "no_record" or absent.
"""

import json
import shutil
import sys
import time
from pathlib import Path

ARGUMENTS = dict(argument.split("=", 1) for argument in sys.argv[2:] if "=" in argument)
FOLDER = Path(
    *(ARGUMENTS[f"--trainer.logger.init_args.{name}"] for name in ("save_dir", "name", "version")), "checkpoints"
)
EXPERIMENT = ARGUMENTS["--trainer.logger.init_args.name"]


def fit():
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = "middle" if BEHAVIOUR in ("hang", "preempted") else "end"
    shutil.copy(f"{name}.pt", FOLDER / f"{name}.ckpt")


def test():
    checkpoint = sys.argv[sys.argv.index("--ckpt_path") + 1]
    assert Path(checkpoint).is_file()
    protocol = {"seed": int(ARGUMENTS["--seed_everything"])}
    training = {"checkpoint": checkpoint, "log_folder": str(FOLDER.parent)}
    record = {
        "format_version": 1,
        "row": EXPERIMENT,
        "scale": ARGUMENTS["--scorer.scale"],
        "scores": {"validation_loss": {"value": 0.125}},
        "protocol": protocol,
    }
    results = Path(ARGUMENTS["--scorer.results_dir"])
    results.mkdir(parents=True, exist_ok=True)
    rest = {"protocol": protocol, "training": training, "machine": {}, "pictures": {}}
    (results / f"{ARGUMENTS['--scorer.name']}.json").write_text(json.dumps(record | rest))


OPEN_FILES = Path("/proc/self/fd")
if OPEN_FILES.exists():  # this process keeps the lock if the runner is killed
    assert any(file.is_symlink() and file.readlink().name == ".lock" for file in OPEN_FILES.iterdir())
COMMAND = sys.argv[1]
BEHAVIOUR = json.loads(Path("behaviour.json").read_text()).get(EXPERIMENT, {}).get(COMMAND)
with open("calls.txt", "a") as calls:
    print(COMMAND, EXPERIMENT, "from " + Path(sys.argv[-1]).name if "--ckpt_path" in sys.argv else "", file=calls)
if BEHAVIOUR == "fail":
    print("a line before")
    sys.exit("error: the picture 3.jpg is broken")
if BEHAVIOUR != "no_record":
    {"fit": fit, "test": test}[COMMAND]()
if BEHAVIOUR == "preempted":
    sys.exit(75)
if BEHAVIOUR == "hang":
    Path("hangs").touch()
    time.sleep(60)
