"""Seeded conversations: everyday ones with every awkward content, and hostile ones."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from masks.family import Family
from mlx_itune.dataset.conversation import Conversation, Turn

_WORDS = (
    "the patient takes metformin 500 mg twice daily Answer yes or no then a reason café naïve "
    "Übergröße 3.14 x=1 don't it's user assistant system model tool 日本語 中文字 한국어 مرحبا "
    "עברית हिन्दी ไทย e\u0301 n\u0303 🦙 👩‍👩‍👧 🇫🇷 ½ ∑ — “quoted” <b>html</b> "
    "{json} [list] \\n $5 100% #1 @x"
).split(" ")
_SHORT = (
    ".", "1", " a", "0", "no", "\n\nyes", "ok ", "\t-", "日", "🦙", "e\u0301", "I", "}", '"', "]]",
    "'", "\\", "\u200b.", "\u00a0x\u00a0", ")",
)  # fmt: skip
_NAMES = ("assistant", "user", "system", "model", "tool", "final", "analysis", "a", "think", "eos")
_BLOCKS = (
    "```python\ndef f(x):\n    return x  # twice\n```",
    "- one\n- two\n\n  1. three\r\n",
    "a\tb\n\n\n\nc",
    "\u202bמשהו\u202c (rtl)",
    "line one\nline two\n",
    "{'a': 1, \"b\": [1, 2]}",
    "https://example.org/?a=1&b=2#x",
    "  indented\n    more\n",
    "Re: Re: Fwd:",
    "\ufeffbom",
    "x" * 40,
    "\r\n\r\nwindows\r\n",
    "a\u2028b\u2029c",
)
_EDGES = ("", "", "", "", " ", "  ", "\n", "\n\n", "\t", " \n ", "\u00a0", "\u3000")
_THOUGHTS = (
    "<think>\n{}\n</think>\n\n{}",
    "<think>{}</think>{}",
    "<think>\n\n</think>\n\n{1}",
    "{}</think>\n{}",
    "\n<think>\n{}\n\n</think>\n\n\n{}\n",
    "<think>{}</think><think>again</think>\n{}",
)
_FUNCTIONS = ("get_weather", "search", "add", "final", "assistant")


class Generator:
    """Conversations for one family. `hostile`: contents spell the family's control strings."""

    def __init__(self, family: Family, seed: int, *, hostile: bool = False) -> None:
        self.family = family
        self.random = random.Random(f"{family.name}/{seed}/{hostile}")
        self.hostile = hostile
        self._seen: list[str] = []
        self._strings = (*family.controls, *family.words, "</s>", "<s>", "<unk>", "<0x0A>")

    def conversation(self, number: int) -> Conversation:
        """The next conversation; `number` becomes its origin's line."""
        chance = self.random
        self._seen = []
        turns: list[Turn] = []
        # One row in fifty breaks the family's rules on purpose.
        against = chance.random() < 0.02
        if (self.family.system and chance.random() < 0.4) or (against and not self.family.system):
            turns.append(Turn("system", self._system()))
        calls = self.family.calls and chance.random() < 0.3
        exchanges = chance.choice((1, 1, 1, 2, 2, 3) if calls else (1, 1, 1, 1, 2, 2, 3, 4, 6))
        for _ in range(exchanges):
            turns.append(self._question())
            if calls and chance.random() < 0.6:
                turns += self._called(against)
            turns.append(self._thoughtful(self._answer(), turns[-1].role == "tool"))
        if chance.random() < 0.03:
            turns.append(self._question())
        listed = self.family.tools and (bool(calls) or chance.random() < 0.1)
        if against and self.family.built_in == "chatml":
            listed = True
        tools = tuple(self._tool(n) for n in range(chance.choice((1, 1, 1, 2)))) if listed else ()
        return Conversation(tuple(turns), f"f.jsonl:{number}", tools)

    def learn(self) -> str:
        """all, last or marked."""
        return self.random.choice(("all", "all", "last", "marked"))

    def _system(self) -> str:
        if self.family.name != "smollm3":
            return self._text()
        text, choice = "", self.random.choice
        if self.random.random() < 0.4:
            extra = choice(("/no_think", "/think", "/system_override", "/no_think /think"))
            text = choice((extra, f"{self._text()} {extra}", f"{extra}\n{self._text()}"))
        return text or self._text()

    def _question(self) -> Turn:
        text = self._text()
        if self.family.inputs and self.random.random() < 0.4:
            given = self._text()
            return Turn("user", f"{text}\n\n{given}", input=given)
        return Turn("user", text)

    def _answer(self) -> Turn:
        weight = self.random.choice((None, None, None, 1.0, 0.5, 0.0, 2.0))
        text = self._text()
        if self.family.thinks and self.random.random() < 0.35:
            if self.family.name != "qwen3_off" or self.random.random() < 0.1:
                text = self.random.choice(_THOUGHTS).format(self._text(), text)
            else:
                text = f"<think>\n\n</think>\n\n{text}"
        return Turn("assistant", text, weight)

    def _thoughtful(self, turn: Turn, after_tool: bool) -> Turn:
        """A turn of an assistant that may have thought first."""
        often = 0.5 if self.family.thinks_after_tools or not after_tool else 0.02
        thinks = self.family.reasons and self.random.random() < often
        return replace(turn, reasoning=self._text()) if thinks else turn

    def _called(self, against: bool) -> list[Turn]:
        turns: list[Turn] = []
        for _ in range(self.random.choice((1, 1, 1, 2))):
            count = self.random.randint(1, min(2, self.family.calls) + (1 if against else 0))
            calls = tuple(self._call(n) for n in range(count))
            if against and self.random.random() < 0.5:
                calls = tuple({k: v for k, v in call.items() if k != "id"} for call in calls)
            said = self._text() if self.random.random() < 0.3 else ""
            if self.family.name == "qwen3" and self.random.random() < 0.4:
                said = f"<think>\n{self._text()}\n</think>\n\n{said}"
            weight = self.random.choice((None, None, None, 0.5, 0.0))
            called = Turn("assistant", said, weight, calls)
            turns.append(self._thoughtful(called, bool(turns)))
            turns += [self._result(call) for call in calls]
        return turns

    def _call(self, n: int) -> dict[str, Any]:
        arguments = {
            self._name(("city", "query", "a", "x y")): self._value()
            for _ in range(self.random.choice((0, 1, 1, 2)))
        }
        function = {"name": self._name(_FUNCTIONS), "arguments": arguments}
        call: dict[str, Any] = {"type": "function", "function": function}
        named = self.family.call_ids or self.random.random() < 0.5
        return {**call, "id": f"call{n:05d}"} if named else call

    def _result(self, call: dict[str, Any]) -> Turn:
        text = self._text() if self.random.random() < 0.8 else ""
        return Turn("tool", text, tool_call_id=call.get("id"))

    def _name(self, names: tuple[str, ...]) -> str:
        if self.hostile and self.random.random() < 0.1:
            return self.random.choice(self._strings)
        return self.random.choice(names)

    def _value(self) -> Any:
        plain = (1, 2.5, True, None, [1, "a"], {"deep": "er"})
        return self._text() if self.random.random() < 0.7 else self.random.choice(plain)

    def _tool(self, n: int) -> dict[str, Any]:
        city = {"type": "string", "description": self._text()}
        days = {"type": self.random.choice(("integer", "boolean", "array"))}
        parameters = {"type": "object", "properties": {"city": city, "days": days}}
        parameters["required"] = ["city"]
        name = f"{self._name(_FUNCTIONS)}_{n}"
        function = {"name": name, "description": self._text(), "parameters": parameters}
        return {"type": "function", "function": function}

    def _text(self) -> str:
        """Text that is more than white space."""
        hostile = self.hostile and self.random.random() < 0.8
        text = self._hostile_text() if hostile else self._plain()
        self._seen.append(text if text.strip() else ".")
        return self._seen[-1]

    def _plain(self) -> str:
        kind = self.random.random()
        if kind < 0.2:
            return self.random.choice(_SHORT)
        if kind < 0.3:
            return self.random.choice(_NAMES)
        if kind < 0.4 and self._seen:
            # The same words again, alone or inside others.
            again = self.random.choice(self._seen)
            return self.random.choice((again, again, f"{again} {again}", f"You said: {again}"))
        if kind < 0.5:
            return self.random.choice(_BLOCKS)
        words = " ".join(self.random.choices(_WORDS, k=self.random.randint(1, 14)))
        return self.random.choice(_EDGES) + words + self.random.choice(_EDGES)

    def _hostile_text(self) -> str:
        parts = []
        for _ in range(self.random.choice((1, 1, 2, 3, 5))):
            control, other = self.random.choices(self._strings, k=2)
            cut = self.random.randint(0, len(control))
            # What takes a string out of a text may put two halves of another together.
            around = control[:cut] + other + control[cut:]
            alone = (control, control, control, control * 2, around, control[:cut], control[cut:])
            spaced = (f" {control} ", f"\n{control}\n", self._plain(), "".join(self._strings))
            parts.append(self.random.choice((*alone, *spaced)))
        return self.random.choice(("", " ", "\n")).join(parts)
