"""A logger that, like Weights & Biases', gives each run an id and has no folder of its own for it."""

from lightning.pytorch.loggers.logger import Logger


class IdLogger(Logger):
    """Keeps nothing."""

    def __init__(self, save_dir: str = ".", name: str | None = None, id: str = "a1b2c3") -> None:
        super().__init__()
        self._save_dir, self._id = save_dir, id

    @property
    def save_dir(self):
        return self._save_dir

    @property
    def name(self):
        return "project"

    @property
    def version(self):
        return self._id

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass
