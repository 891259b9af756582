"""A checkpoint as lm-evaluation-harness asks for a model: how likely texts are, and how they go on."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from dataset.text.conversation import parse_messages
from engine.build.text_checkpoint import LoadedModel
from engine.generate.options import DecodeOptions, ReplyOptions, SamplingOptions
from engine.generate.reply import Answering, continued, open_length_of
from engine.generate.score import score

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM

Pair = tuple[tuple[str, str], list[int], list[int]]  # a request, and its ids: what is given, and what is scored
Asked = tuple[int, str, dict[str, Any]]  # number, prompt and generation_kwargs of a request
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Prompt(NamedTuple):
    """A conversation before the answer, whose beginning may be given."""

    ids: list[int]
    open_length: int  # how much of it sees itself in both directions, in models that were trained so
    begun: str


def checkpoint_lm(loaded: LoadedModel, depth: int | None, batch_size: int) -> "TemplateLM":
    """The model of a checkpoint at one depth."""
    from lm_eval.api.model import TemplateLM

    class CheckpointLM(Answers, TemplateLM):
        """What lm-eval has of its own, with our answers."""

    return CheckpointLM(loaded, depth, batch_size)


class Answers:
    """What lm-eval asks of a model, except for its class, which not everybody has installed.

    Plain text is encoded as it stands. A conversation is encoded as in training, its parts apart, so that no text makes
    a special token; lm-eval carries prompts as text, and gets the messages as JSON.
    """

    def __init__(self, loaded: LoadedModel, depth: int | None, batch_size: int) -> None:
        super().__init__()
        self.loaded, self.batch_size = loaded, batch_size
        self.decode = DecodeOptions(depth=depth)
        self.prompts: dict[str, Prompt] = {}
        self.num_shortened = 0

    @property
    def eot_token_id(self) -> int:
        return self.loaded.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing comes before."""
        tokenizer = self.loaded.tokenizer
        return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

    @property
    def max_length(self) -> int:
        return self.loaded.window

    @property
    def tokenizer_name(self) -> str:
        return str(self.loaded.path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.loaded.tokenizer.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as text, whose ids are remembered; without `add_generation_prompt` the last begins the answer."""
        turns = parse_messages(chat_history)
        begun = "" if add_generation_prompt else turns.pop().text
        text = json.dumps([chat_history, add_generation_prompt], ensure_ascii=False)
        ids = self.loaded.template.encode_prompt(turns)
        self.prompts[text] = Prompt(ids, open_length_of(self.loaded, turns, ids), begun)
        return text

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        prompt = self.prompts.get(context)
        if prompt is None:
            return super()._encode_pair(context, continuation)  # type: ignore[misc]  # that of TemplateLM
        if not prompt.begun:
            return prompt.ids, self.tok_encode(continuation)
        begun, rest = super()._encode_pair(prompt.begun, continuation)  # type: ignore[misc]
        return prompt.ids + begun, rest

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        from lm_eval.models.utils import Collator

        order = Collator(requests, sort_fn=lambda request: -len(request[1]) - len(request[2]))
        found: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="texts") as progress:
            for batch in order.get_batched(n=self.batch_size):
                found += self._scored(batch)
                progress.update(len(batch))
        self._tell_shortened()
        return order.get_original(found)

    def _scored(self, requests: Sequence[Pair]) -> list[tuple[float, bool]]:
        texts, given, opened = [], [], []
        for (context, _), before, after in requests:
            if len(after) > self.loaded.window:
                raise ValueError(
                    f"An answer takes {len(after)} tokens, more than the window of {self.loaded.window} positions that "
                    "the model was made for. Leave the task out, or train with a longer dataset.seq_len."
                )
            kept = self._shortened(before, self.loaded.window + 1 - len(after))
            texts.append(kept + after)
            given.append(len(kept))
            prompt = self.prompts.get(context)
            opened.append(len(kept) if prompt is None else max(0, prompt.open_length - len(before) + len(kept)))
        scored = score(self.loaded.model, texts, self.decode, given=given, open_lengths=opened, rows=self.batch_size)
        return [(sum(token.logprob for token in text), all(token.is_greedy for token in text)) for text in scored]

    def _shortened(self, ids: list[int], room: int) -> list[int]:
        """The end of a prompt that does not fit, as lm-eval does it."""
        self.num_shortened += len(ids) > room
        return ids[-room:]

    def _tell_shortened(self) -> None:
        if self.num_shortened:
            print(
                f"notice: the beginnings of {self.num_shortened} prompts were cut off, for they did not fit the window of "
                f"{self.loaded.window} positions",
                file=sys.stderr,
            )
        self.num_shortened = 0

    def loglikelihood_rolling(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of which each sees as much of what comes before as fits."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        pairs: list[Pair] = []
        owners = []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1):
                pairs.append((("", text), *make_disjoint_window(window)))
                owners.append(number)
        found = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(pairs, disable_tqdm), strict=True):
            found[owner] += logprob
        return found

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        from lm_eval.models.utils import Collator

        asked: list[Asked] = [(number, *request.args) for number, request in enumerate(requests)]
        order = Collator(asked, sort_fn=lambda ask: -len(ask[1]), group_fn=lambda ask: ask[2], group_by="gen_kwargs")
        found: list[str] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="answers") as progress:
            for batch in order.get_batched(n=self.batch_size):
                is_sampled = self._reply_options(batch[0]).decode.sampling.temperature > 0
                for part in [[ask] for ask in batch] if is_sampled else [batch]:  # rows of a batch share their noise
                    options = self._reply_options(part[0])
                    rows = [self._row(context, options) for _, context, _ in part]
                    answers = continued(self.loaded, rows, options)
                    if any(answer.finish == "interrupted" for answer in answers):
                        raise KeyboardInterrupt
                    found += [answer.text for answer in answers]
                progress.update(len(batch))
        self._tell_shortened()
        return order.get_original(found)

    def _reply_options(self, asked: Asked) -> ReplyOptions:
        """What a task says about generating; anything we do not have is refused."""
        from lm_eval.models.utils import normalize_gen_kwargs

        seed, _, how = asked
        known = normalize_gen_kwargs(how, max(1, self.loaded.window // 2))
        stop, most, is_sampled = known.pop("until"), known.pop("max_gen_toks"), known.pop("do_sample")
        chosen = {name: known.pop(name) for name in SAMPLING if name in known}
        if known:
            raise ValueError(f"The task asks for {', '.join(known)} in generation_kwargs, which we do not have.")
        sampling = SamplingOptions(**chosen, seed=seed) if is_sampled else SamplingOptions()
        decode = DecodeOptions(sampling=sampling, depth=self.decode.depth)
        return ReplyOptions(max_tokens=most, stop=[text for text in stop if text], decode=decode)

    def _row(self, context: str, options: ReplyOptions) -> Answering:
        prompt = self.prompts.get(context)
        if prompt is None:
            ids = self.tok_encode(context) or [self.prefix_token_id]
            opened = len(ids)
        else:
            ids, opened = prompt.ids + self.tok_encode(prompt.begun), prompt.open_length
        assert options.max_tokens is not None
        half = max(1, self.loaded.window // 2)  # of the window, which the prompt keeps in any case
        kept = self._shortened(ids, self.loaded.window + 1 - min(options.max_tokens, half))
        room = min(options.max_tokens, self.loaded.window + 1 - len(kept))
        make = Answering.of_text if prompt is None or prompt.begun else Answering
        return make(self.loaded, kept, room, options, max(0, opened - len(ids) + len(kept)))
