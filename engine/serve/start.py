"""Serves a checkpoint until Ctrl-C: one of text or, with a page of its own, one of puzzles."""

import os
import sys

from engine.build.puzzle_checkpoint import is_of_puzzles
from engine.checkpoints.load import Checkpoint, load_checkpoint
from engine.entry import INTERRUPTED
from engine.generate.options import ServeOptions
from engine.serve.gate import LOOPBACK
from engine.serve.server import Servable, Server, listening_at

API_KEY_VARIABLE = "TRM_API_KEY"


def serve_checkpoint(options: ServeOptions) -> None:
    """Serve until Ctrl-C; the address goes to standard output once requests are taken."""
    stored = load_checkpoint(options.opening.path, newest=options.opening.newest)
    api_key = options.api_key or os.environ.get(API_KEY_VARIABLE) or None
    listening = listening_at(options.host, options.port)
    service = service_of(stored, options, LOOPBACK if options.host in LOOPBACK else (), api_key)
    host, port = listening.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    if options.host not in LOOPBACK:
        secret = "with an API key" if api_key else "without a password (--api-key asks for one)"
        print(f"open to other machines ({options.host}), {secret}; Ctrl-C ends", file=sys.stderr)
    try:
        Server(service.app, service.bounds, listening, service.stop).serve_forever()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        # The model's thread may still be inside torch, and Python's shutdown under it would abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def service_of(stored: Checkpoint, options: ServeOptions, names: tuple[str, ...], api_key: str | None) -> Servable:
    """What serves this kind of checkpoint; that of the other kind is not imported."""
    if is_of_puzzles(stored):
        from engine.serve.puzzles import puzzle_service

        return puzzle_service(stored, options, names, api_key)
    from engine.serve.app import text_service

    return text_service(stored, options, names, api_key)
