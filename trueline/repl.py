"""`trueline chat`: talk to a model in the terminal, or through a pipe.

The conversation goes through the model's own chat template and the answer is printed as it is drawn. `/system TEXT` sets
the system prompt (and starts over), `/reset` forgets the conversation, `/quit` or the end of input leaves.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, TextIO

import torch
from transformers import TextStreamer

from trueline.errors import TruelineError
from trueline.models import Loaded, load
from trueline.randomness import derive

HELP = "/reset forgets the conversation, /system TEXT sets the system prompt, /quit leaves."
DEFAULT_CONTEXT = 2048


def chat(
    run: str,
    *,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
    offline: bool = False,
    input: TextIO | None = None,
    output: TextIO | None = None,
) -> None:
    """Read lines from `input` and answer each on `output` until /quit or the end of input.

    run: a run folder, model folder, adapter or hub id. temperature: 0 is greedy. seed: names the draws, so a piped
    conversation can be repeated. Raises TruelineError for a model without a chat template.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise TruelineError(
            f"chat: temperature is {temperature} (at least 0), max_new_tokens {max_new_tokens} (at least 1)."
        )
    source, target = input or sys.stdin, output or sys.stdout
    loaded = load(run, offline=offline, dtype="auto", for_training=False)
    if loaded.chat_template is None:
        raise TruelineError(
            f"'{run}' has no chat template, so it cannot hold a conversation. Save one beside it as chat_template.jinja, or train "
            "with --chat-template."
        )
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    talk = _Conversation(loaded, target, max_new_tokens, temperature, seed, system)
    asking = source.isatty()
    if asking:
        print(HELP, file=target)
    while True:
        if asking:
            print("> ", end="", file=target, flush=True)
        line = source.readline()
        if not line or line.strip() == "/quit":
            return
        talk.hear(line.strip())


@dataclass
class _Conversation:
    """Turns so far, and how the next one is drawn."""

    loaded: Loaded
    output: TextIO
    max_new_tokens: int
    temperature: float
    seed: int
    system: str | None
    turns: list[dict[str, str]] = field(default_factory=list)
    answers: int = 0

    def hear(self, line: str) -> None:
        """A command, or words to answer."""
        command, _, rest = line.partition(" ")
        if not line:
            return
        if command == "/system":
            self.system, self.turns = rest.strip() or None, []
            self._say(f"(system prompt: {self.system or 'none'})")
        elif line == "/reset":
            self.turns = []
            self._say("(forgotten)")
        elif line.startswith("/"):
            self._say(f"({command} is no command. {HELP})")
        else:
            self._answer(line)

    def _answer(self, words: str) -> None:
        """Answer the user; both turns are remembered."""
        self.turns.append({"role": "user", "content": words})
        try:
            ids_BT = self._prompt()
        except TruelineError as error:
            self._say(f"({error})")
            return
        streamer = _Printer(self.loaded.tokenizer, self.output)
        law: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            law = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(derive(self.seed, "chat", self.answers))
            drawn_BT = self.loaded.model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                streamer=streamer,
                max_new_tokens=self._answer_room(),
                eos_token_id=self.loaded.eos_ids,
                pad_token_id=self.loaded.tokenizer.pad_token_id,
                **law,
            )
        text = self.loaded.tokenizer.decode(drawn_BT[0, ids_BT.shape[1] :], skip_special_tokens=True)
        self.turns.append({"role": "assistant", "content": text.strip()})
        self.answers += 1

    def _prompt(self) -> torch.Tensor:
        """Token ids [1, T] of the conversation, the oldest exchanges left out where the context is full."""
        room = self._context() - self._answer_room()
        while True:
            head = [{"role": "system", "content": self.system}] if self.system else []
            rendered = self.loaded.tokenizer.apply_chat_template(
                [*head, *self.turns], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            if len(rendered) <= room:
                return torch.tensor([rendered], device=self.loaded.model.device)
            if len(self.turns) == 1:
                turn = self.turns.pop()
                raise TruelineError(
                    f"A message of {len(turn['content'])} characters makes a prompt of {len(rendered)} tokens; the model's context "
                    f"leaves {room} beside an answer of {self._answer_room()}."
                )
            self.turns = self.turns[2:]
            self._say("(context full: the oldest exchange is left out)")

    def _answer_room(self) -> int:
        """Tokens kept free for an answer: never more than half of a small context."""
        return min(self.max_new_tokens, self._context() // 2)

    def _context(self) -> int:
        config = self.loaded.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT)

    def _say(self, text: str) -> None:
        print(text, file=self.output, flush=True)


class _Printer(TextStreamer):
    """Print each finished word as it is drawn, to any file."""

    def __init__(self, tokenizer: Any, output: TextIO):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.output = output

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(text, end="\n" if stream_end else "", file=self.output, flush=True)
