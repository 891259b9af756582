"""Metrics to TensorBoard."""

from engine.train.tracking.backend import TrackedRun


class TensorboardBackend:
    """Metrics to TensorBoard event files in the run directory."""

    name = "tensorboard"
    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer_class = SummaryWriter

    def start(self, run: TrackedRun) -> None:
        self._writer = self._writer_class(str(run.directory.path / "tensorboard"), purge_step=run.resume_step + 1)

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def note(self, text: str) -> None:
        """TensorBoard shows numbers only."""

    def close(self) -> None:
        self._writer.close()
