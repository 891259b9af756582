"""The options of runs on text: where conversations come from and how they become rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from engine.config.schema import MAX_ROW, EvalDepthConfig, RunConfig, Strict, project_name_of

MOST_QUESTIONS = 1_000_000
TokensPerPass = Annotated[int, Field(ge=1)] | Literal["auto"]
TOKENS_PER_PASS: Any = Field(
    "auto", description="positions that go through the model at once; auto: by the free memory of a GPU, else 3072"
)


class RowsConfig(Strict):
    """How conversations share rows, and rows a pass through the model."""

    packing: bool = Field(True, description="several conversations a row, none of which sees another")
    tokens_per_pass: TokensPerPass = TOKENS_PER_PASS


class CompositionConfig(Strict):
    """The made-up world of dataset.source=composition, and the questions that are asked about it."""

    form: Literal["symbols", "sentences"] = Field("symbols", description="symbols: the person, then the relations")
    people: int = Field(32, ge=2, le=200)
    relations: int = Field(4, ge=1, le=8)
    hops: int = Field(4, ge=1, le=12, description="facts that the longest trained questions chain")
    longer: int = Field(2, ge=0, le=12, description="how many hops more are tested")
    questions: int = Field(2000, ge=1, le=MOST_QUESTIONS, description="trained ones; single facts come on top")
    held_out: int = Field(200, ge=1, le=MOST_QUESTIONS, description="of each held-out set, where there are so many")
    turns: int = Field(3, ge=1, le=100, description="questions of the longest trained conversations")
    mix: bool = Field(False, description="add the questions to the corpus of another source")


class CorpusConfig(Strict):
    """Which records of which files are read."""

    repo: str = Field(
        "Open-Orca/SlimOrca",
        min_length=1,
        description="repository of the Hub, such as Open-Orca/OpenOrca, or a folder or file of Parquet or JSON Lines",
    )
    files: str | None = Field(None, description="only its files like this, such as 1M-GPT4*; null: all of one kind")
    data_dir: str | None = Field(None, description="where its files go to; null: data/slimorca, or as repo is called")
    sample: float = Field(1.0, gt=0, le=1, description="share of its records that is used, by a hash of what they say")

    def problems(self) -> list[str]:
        if self.data_dir is None or not Path(self.repo).exists():
            return []
        return [
            f"data_dir={self.data_dir} changes nothing with repo={self.repo}, which is on this machine. Leave one out"
        ]


class StageConfig(CorpusConfig):
    """One of several corpora that follow each other."""

    epochs: int | None = Field(None, ge=1, description="null: as many as the run's option says")


class TextDataConfig(RowsConfig, CorpusConfig):
    """Where conversations come from and how they become rows."""

    source: Literal["auto", "local", "hub", "sample", "composition"] = Field(
        "auto",
        description="auto: what lies in data_dir, else the Hub; sample: the built-in conversations; composition: questions "
        "that chain made-up facts",
    )
    tokenizer_path: str | None = Field(None, description="null: LLAMA_TOKENIZER, tokenizers/llama-32k, the Hub")
    stages: list[StageConfig] | None = Field(
        None,
        min_length=1,
        description="corpora that follow each other, such as [{repo: Open-Orca/SlimOrca}, {repo: Open-Orca/OpenOrca, "
        "sample: 0.2}], each with repo, files, data_dir, sample and epochs; records of the first are held out",
    )
    subset_size: int | None = Field(1000, ge=1, description="at most so many records for training; null: all")
    test_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto", description="at most so many held-out records; auto: a tenth of subset_size; null: all"
    )
    sample_size: int = Field(20_000, ge=1, description="records of the built-in corpus")
    sample_tasks: list[str] | None = Field(
        None, description="kinds of questions of the built-in corpus, such as [addition,counting]; null: all"
    )
    composition: CompositionConfig = Field(default_factory=lambda: CompositionConfig.model_validate({}))
    template: Literal["markers", "plain"] = Field(
        "markers", description="plain: the texts alone, so that an answer directly follows its question"
    )
    seq_len: int = Field(512, ge=2, le=MAX_ROW)
    test_ratio: float = Field(0.05, ge=0, lt=1)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    truncate: Literal["right", "prompt"] = Field("right", description="prompt: shorten it for the answer to fit")
    on_error: Literal["raise", "skip"] = Field("raise", description="skip: leave broken lines out and count them")

    @property
    def is_built_in(self) -> bool:
        """Whether the corpus is made here rather than read."""
        return self.source in ("sample", "composition")

    @property
    def is_of_orca(self) -> bool:
        """Whether its records have the system prompts of the Orca corpora."""
        corpora: Sequence[CorpusConfig] = self.stages or [self]
        return not self.is_built_in and all(corpus.repo.startswith("Open-Orca/") for corpus in corpora)

    def problems(self) -> list[str]:
        return super().problems() + self.repo_problems() + self.composition_problems()

    def repo_problems(self) -> list[str]:
        """Which options of a corpus on disk or of the Hub mean nothing here."""
        if self.is_built_in:
            given = self.model_dump(include={"repo", "files", "sample", "stages"}, exclude_defaults=True)
            return [
                f"{name}={value} changes nothing with source={self.source}. Leave one out"
                for name, value in given.items()
            ]
        if self.stages is not None:
            given = self.model_dump(include={"repo", "files", "sample"}, exclude_defaults=True)
            return [f"{name}={value} beside stages: give it to one of them" for name, value in given.items()]
        if self.source == "hub" and Path(self.repo).exists():
            return [f"source=hub changes nothing with repo={self.repo}, which is on this machine. Leave one out"]
        return []

    def composition_problems(self) -> list[str]:
        if self.composition.mix and self.source == "composition":
            return ["composition.mix=true adds to another source, but source=composition. Leave one out"]
        given = self.composition.model_dump(exclude_defaults=True)
        if given and not self.composition.mix and self.source != "composition":
            words = " ".join(f"composition.{name}={value}" for name, value in given.items())
            return [
                f"{words} changes nothing with source={self.source}. Set composition.mix=true, or source=composition"
            ]
        return []


class TextLossConfig(Strict):
    """How the losses of tokens become one number, and whether logits are made in chunks."""

    reduction: Literal["token", "sequence"] = Field("token", description="sequence: mean over each conversation first")
    chunked: bool = Field(True, description="never hold tokens x vocabulary")


class TextConfig(RunConfig):
    """Options of runs on text, wherever it comes from."""

    outputs = ("inputs", "labels", "positions", "documents", "is_prompt", "preds")

    attention: Literal["auto", "sdpa", "flex"] = Field(
        "auto",
        description="auto: compiled on CUDA, FlexAttention skips what the mask hides, if a try shows that it can; sdpa: never",
    )
    loss: TextLossConfig = Field(default_factory=lambda: TextLossConfig.model_validate({}))
    eval: EvalDepthConfig = Field(default_factory=lambda: EvalDepthConfig.model_validate({}))

    @property
    def rows(self) -> RowsConfig:
        raise TypeError(f"{type(self).__name__} must say how conversations become rows")

    @property
    def row_length(self) -> int:
        raise TypeError(f"{type(self).__name__} must say how many positions a row has")

    @property
    def stage_epochs(self) -> list[int]:
        """How often each of several corpora is passed over, one after the other."""
        return [self.epochs]

    @property
    def total_epochs(self) -> int:
        return sum(self.stage_epochs)

    @property
    def more_examples(self) -> str:
        raise TypeError(f"{type(self).__name__} must say how to get more examples")


class InstructConfig(TextConfig):
    """Options of `pretrain_instruct.py`."""

    dataset: TextDataConfig = Field(default_factory=lambda: TextDataConfig.model_validate({}))

    @property
    def rows(self) -> RowsConfig:
        return self.dataset

    @property
    def row_length(self) -> int:
        return self.dataset.seq_len

    @property
    def stage_epochs(self) -> list[int]:
        stages = self.dataset.stages
        return [self.epochs] if stages is None else [stage.epochs or self.epochs for stage in stages]

    @property
    def more_examples(self) -> str:
        return "take a larger corpus" if self.dataset.subset_size is None else "raise dataset.subset_size"

    def default_project_name(self) -> str:
        return "SlimOrca-ACT"


class ChatConfig(TextConfig):
    """Options of `pretrain.py --config-name cfg_chat`."""

    dataset_type: Literal["chat"]
    data_paths: list[str] = Field(min_length=1)
    seq_len: int | None = Field(
        None, ge=2, le=MAX_ROW, description="positions of a row, given as arch.seq_len; null: those of the data"
    )
    packing: bool = True
    tokens_per_pass: TokensPerPass = TOKENS_PER_PASS

    @property
    def rows(self) -> RowsConfig:
        return RowsConfig(packing=self.packing, tokens_per_pass=self.tokens_per_pass)

    @property
    def row_length(self) -> int:
        if self.seq_len is None:
            raise ValueError("The config does not say how many positions a row has. Give seq_len=<number>.")
        return self.seq_len

    @property
    def more_examples(self) -> str:
        return "build a data set of more conversations for data_paths"

    def default_project_name(self) -> str:
        return project_name_of(self.data_paths)
