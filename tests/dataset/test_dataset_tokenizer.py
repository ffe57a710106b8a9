"""Tokenizer and template: offsets, end tokens, the built-in templates, refusals."""

import json

import chat_templates as t
import pytest
from small_tokenizers import TOKENIZERS, fast

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.rendering.render import render
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.kit.errors import DataError, ModelError, UsageError

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nAdd.\n\n### Response:"
)


@pytest.fixture
def folder(tmp_path):
    """A model directory that holds a tokenizer alone."""

    def build(kind="gpt2", template=t.CHATML, **files):
        hf = fast(kind)
        hf.chat_template = template
        hf.save_pretrained(tmp_path)
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return build


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_character_ranges_cover_multi_byte_text_in_order(chat, kind):
    text = "Wörd 日本🦙 e\u0301 x<|end|>é it"
    (encoded,) = chat(kind).encode_many([text])
    starts = [start for start, _ in encoded.offsets]
    assert starts == sorted(starts)
    covered = {n for start, end in encoded.offsets for n in range(start, end)}
    assert all(n in covered or char == " " for n, char in enumerate(text))
    at = text.index("<|end|>")
    token = encoded.ids.index(chat(kind).hf.convert_tokens_to_ids("<|end|>"))
    assert encoded.offsets[token] == (at, at + 7)


def test_the_end_of_a_turn_is_found_where_no_config_names_it(chat):
    tokenizer = chat("gpt2", t.CHATML)
    names = {tokenizer.hf.convert_ids_to_tokens(i) for i in tokenizer.eos_ids}
    assert names == {"</s>", "<|im_end|>"} and tokenizer.stop_strings == ()
    plain = chat("gpt2", t.PLAIN)
    assert plain.stop_strings == ("~~",), "an end in plain text"
    (example,) = render(Conversation((Turn("user", "a"), Turn("assistant", "b")), "f:1"), plain)
    start, end = example.spans[0]
    assert plain.decode(example.input_ids[start:end]) == " b\n~~</s>"
    hf = fast("gpt2")
    hf.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        ChatTokenizer(hf, t.PLAIN)


def test_config_files_add_end_tokens_and_wrong_types_in_them_are_refused(folder):
    tokenizer = load_tokenizer(folder(config={"eos_token_id": [3, 10**9]}))
    assert 3 in tokenizer.eos_ids and max(tokenizer.eos_ids) < 10**9
    with pytest.raises(ModelError, match=r"generation_config\.json: is not a JSON object"):
        load_tokenizer(folder(config={}, generation_config=[1]))


def test_the_name_and_hash_of_the_template_are_told(folder):
    path = folder()
    auto, again, other = (load_tokenizer(path, template=n) for n in ("auto", "auto", "alpaca"))
    assert (auto.name, auto.template_text, other.name) == ("auto", t.CHATML, "alpaca")
    assert auto.template_sha256 == again.template_sha256 != other.template_sha256
    with pytest.raises(UsageError, match="did you mean alpaca"):
        load_tokenizer(path, template="alpacca")


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_alpaca_prompts_are_alpacas_byte_for_byte(folder, kind):
    tokenizer = load_tokenizer(folder(kind, None), template="alpaca")
    bos = "<s>" if kind == "llama2" else ""
    given = Turn("user", "Add.\n\n1 2", input="1 2")
    for turn, text in ((given, WITH_INPUT), (Turn("user", "Add."), WITHOUT_INPUT)):
        rendered = tokenizer.render_text([turn.message()], add_generation_prompt=True)
        assert rendered == bos + text
        (example,) = render(Conversation((turn, Turn("assistant", "3")), "f:1"), tokenizer)
        start, end = example.spans[0]
        assert example.input_ids[:start].tolist() == tokenizer.prompt_ids([turn])
        assert tokenizer.decode(example.input_ids[start:end]) == "3</s>"


def test_built_in_templates_take_dialogues_end_turns_with_a_token_and_refuse_tools(folder):
    path = folder("gpt2", None)
    turns = [Turn("system", "Be brief."), Turn("user", "a"), Turn("assistant", "b")]
    messages = [turn.message() for turn in [*turns, Turn("user", "c")]]
    alpaca = load_tokenizer(path, template="alpaca")
    assert alpaca.render_text(messages, add_generation_prompt=True) == (
        "Be brief.\n\n### Instruction:\na\n\n### Response:b</s>"
        "\n\n### Instruction:\nc\n\n### Response:"
    )
    for name in ("alpaca", "chatml", "vicuna"):
        with pytest.raises(DataError, match="no place for tools"):
            load_tokenizer(path, template=name).prompt_ids(turns[1:2], [{"name": "x"}])
    with pytest.raises(ModelError, match="no chat template; pass --template chatml, alpaca"):
        load_tokenizer(path)
    state = json.loads((path / "tokenizer.json").read_text())
    for end in ("<|im_end|>", "</s>"):
        chatml = load_tokenizer(path, template="chatml")
        text = chatml.render_text(messages[1:2], add_generation_prompt=True)
        assert text == f"<|im_start|>user\na{end}\n<|im_start|>assistant\n"
        # Now without a token of that name.
        kept = [token for token in state["added_tokens"] if token["content"] != "<|im_end|>"]
        (path / "tokenizer.json").write_text(json.dumps({**state, "added_tokens": kept}))
        change(path / "tokenizer_config.json", added_tokens_decoder={})


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ dict.__base__ }}",
        "{{ (messages[0].content.format)('a') and ''.format.__self__.__class__ }}",
    ],
)
def test_templates_stay_in_their_sandbox(attack):
    user = [{"role": "user", "content": "x"}]
    try:
        tokenizer = ChatTokenizer(fast("gpt2"), t.CHATML + attack)
        text = tokenizer.render_text(user, add_generation_prompt=False)
    except DataError:
        return
    assert text in ("<|im_start|>user\nx<|im_end|>\n", "<|im_start|>user\nx<|im_end|>\nNone")


def test_missing_broken_and_hostile_tokenizers_are_refused_in_one_line(folder, tmp_path):
    with pytest.raises(ModelError, match="is not a model directory"):
        load_tokenizer(tmp_path / "none")
    path = folder()
    for hostile in ("{{ ''.__class__.__mro__ }}", "{% for %}", "{{ messages[99].content }}", "no"):
        (path / "chat_template.jinja").write_text(hostile)
        with pytest.raises(ModelError) as caught:
            load_tokenizer(path)
        assert len(str(caught.value).splitlines()) == 1
    heads = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 3}
    (path / "config.json").write_text(json.dumps(heads))
    with pytest.raises(ModelError, match=r"tokenizer: .* is not a multiple") as told:
        load_tokenizer(path)
    assert len(str(told.value).splitlines()) == 1
    (path / "config.json").unlink()
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(path)


def test_python_of_a_model_directory_is_never_run(folder):
    path = folder()
    evil = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    change(path / "tokenizer_config.json", auto_map=evil, tokenizer_class="Evil")
    (path / "evil.py").write_text(f"open({str(path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ModelError):
        load_tokenizer(path)
    assert not (path / "ran").exists()


@pytest.mark.parametrize(
    "broken",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"model": {"type": "BPE", "vocab": [], "merges": 3}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?i"}, "behavior": "Isolated"}},
    ],
)
def test_native_code_that_gives_up_is_one_line(broken, folder, capfd):
    path = folder()
    change(path / "tokenizer.json", **broken)
    with pytest.raises(ModelError, match="cannot load the tokenizer: ") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_padding_without_end_is_not_made(folder):
    path = folder()
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    change(path / "tokenizer.json", padding=padding)
    assert load_tokenizer(path, template="vicuna").name == "vicuna"
