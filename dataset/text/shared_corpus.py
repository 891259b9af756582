"""A tokenized corpus whose stores are files: what another process of the machine needs to map them."""

import json
from collections import Counter
from pathlib import Path

from dataset.text.encoded import LoadReport, SplitReport
from dataset.text.slimorca import InstructCorpus
from dataset.text.token_store import map_documents
from dataset.tokenization.lookup import load_tokenizer


def described(corpus: InstructCorpus, folder: Path) -> str:
    """All of a corpus that `load_corpus` has put into `folder` but its tokens."""
    report = corpus.report
    return json.dumps(
        {
            "folder": str(folder),
            "tokenizer": str(corpus.tokenizer.files()[0].absolute()),
            "stages": [(documents.start, documents.stop) for documents in corpus.stages],
            "test_sets": {name: (documents.start, documents.stop) for name, documents in corpus.test_sets.items()},
            "report": vars(report) | {"splits": {name: vars(split) for name, split in report.splits.items()}},
        }
    )


def map_corpus(text: str) -> InstructCorpus:
    """The corpus that `described` has put into words; its files may be removed afterwards."""
    found = json.loads(text)
    folder, tokenizer = Path(found["folder"]), load_tokenizer(found["tokenizer"])
    report = found["report"]
    splits = {
        name: SplitReport(**counts | {"dropped": Counter(counts["dropped"])})
        for name, counts in report["splits"].items()
    }
    return InstructCorpus(
        tokenizer=tokenizer,
        train=map_documents(folder / "train", tokenizer.vocab_size),
        test=map_documents(folder / "test", tokenizer.vocab_size),
        stages=[range(*ends) for ends in found["stages"]],
        test_sets={name: range(*ends) for name, ends in found["test_sets"].items()},
        report=LoadReport(report["source"], splits, report["seconds"]),
    )
