"""What every picture shares: its colours, and the error where matplotlib is missing."""

INK, MUTED, FAINT, PAPER = "#2b2f36", "#767c87", "#c9ced6", "#ffffff"
RED = "#c8553d"


def require_matplotlib() -> None:
    """Say what is missing before anything takes time."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as problem:
        advice = "pip install -r requirements-dev.txt or: pip install -e '.[plots]'"
        raise ValueError(f"Drawing needs matplotlib ({problem}). Install it with: {advice}") from problem
