"""Metrics to TensorBoard event files in the run directory."""

from engine.train.tracking.backend import TrackedRun, as_backend_error


class TensorboardBackend:
    name = "tensorboard"

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with as_backend_error(OSError):
            self._writer = SummaryWriter(str(run.directory.path / "tensorboard"), purge_step=run.resume_step + 1)

    def log(self, metrics: dict[str, float | int], step: int) -> None:
        with as_backend_error(OSError):
            for key, value in metrics.items():
                self._writer.add_scalar(key, value, step)

    def note(self, text: str) -> None:
        """TensorBoard shows numbers only."""

    def close(self) -> None:
        with as_backend_error(OSError):
            self._writer.close()
