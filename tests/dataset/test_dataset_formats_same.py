"""What must come out the same: by short cut or long way, and written and read again."""

import json
import random

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats import parse_row, parse_rows
from mlx_itune.dataset.formats.detect import _parsed
from mlx_itune.dataset.sources import content_key, read_rows, said_bytes, to_row


def chat(*roles, key="messages"):
    names = ("role", "content") if key == "messages" else ("from", "value")
    return {key: [{names[0]: role, names[1]: f"{role} {n}"} for n, role in enumerate(roles)]}


def test_the_short_cut_for_plain_rows_gives_what_the_long_way_gives():
    random_ = random.Random(5)
    keys = "messages conversations instruction input output response answer question prompt text "
    keys = (keys + "completion context inputs targets system metadata tools source").split()
    lists = [chat("user", "assistant"), chat("user"), chat("system", "user", "assistant")]
    items = ["x", "", " ", "n/a", None, 7, ["x"], {"a": "b"}]
    items += [next(iter(row.values())) for row in lists]
    items += [chat("human", "gpt", key="conversations")["conversations"]]
    seen = set()
    for _ in range(8000):
        row = {key: random_.choice(items) for key in random_.sample(keys, random_.randint(1, 5))}
        outcomes = []
        for way in (parse_rows, lambda r, o: _parsed(r, o, None, {}, forced=None)):
            try:
                outcomes.append(way(row, "f:1"))
            except RowFault as found:
                outcomes.append((found.code, found.message))
        assert outcomes[0] == outcomes[1], row
        seen.add(type(outcomes[0][0]))
    assert seen == {Conversation, str}


def any_conversation(random_):
    def text():
        return (
            "".join(random_.choices("ab \n\"'{}[]:,\\é😀\u2028#", k=random_.randint(1, 30))) + "x"
        )

    made = [Turn("system", text())] if random_.random() < 0.5 else []
    for _ in range(random_.randint(1, 3)):
        context = text() if random_.random() < 0.3 else None
        asked = text() if context is None else f"{text()}\n\n{context}"
        made.append(Turn("user", asked, name=random_.choice([None, "ann"]), input=context))
        if random_.random() < 0.3:
            arguments = {text(): random_.choice([1, 2.5, 10**20, None, [text()], {"k": text()}])}
            call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
            call = call if random_.random() < 0.5 else {**call, "id": "c1"}
            made.append(Turn("assistant", random_.choice(["", text()]), tool_calls=(call,)))
            made.append(Turn("tool", random_.choice(["", text()]), tool_call_id="c1"))
        made.append(Turn("assistant", text(), random_.choice([None, 0, 0.5, 1.0])))
    names = "source text messages system metadata input question kind tools 1 é".split()
    tags = {name: text() for name in random_.sample(names, random_.randint(0, 5))}
    tools = ({"type": "function", "function": {"name": text()}},) if random_.random() < 0.3 else ()
    return Conversation(tuple(made), "f:1", tools, tags)


def test_rows_written_and_read_again_are_the_same(tmp_path):
    random_ = random.Random(11)
    conversations = [any_conversation(random_) for _ in range(800)]
    path = tmp_path / "a.jsonl"
    for ascii_only in (True, False):
        lines = [json.dumps(to_row(c), ensure_ascii=ascii_only) for c in conversations]
        path.write_text("\n".join(lines), encoding="utf-8")
        found = list(read_rows(path))
        assert [c.turns for c in found] == [c.turns for c in conversations]
        assert [c.tools for c in found] == [c.tools for c in conversations]
        assert [c.tags for c in found] == [c.tags for c in conversations]
    assert [said_bytes(c) for c in found] == [said_bytes(c) for c in conversations]


def test_what_is_said_has_its_keys():
    one = parse_row({"instruction": "i", "input": "x", "output": "o"}, "f:1")
    assert content_key(one) == 4138581881464177436
    assert content_key(parse_row({"question": "q", "answer": "a"}, "g:2")) == 15299395578411588967
