"""One raw row of any accepted format -> its conversation, or the fault that it has.

| format | keys |
|---|---|
| openai | `messages` [{role, content, tool_calls?, function_call?, weight?, name?}], `tools`? |
| sharegpt | `conversations` [{from, value}] (or role, content), `system`?, `tools`? |
| openhermes | the same with `weight` in turns (null: as the run decides) and `system_prompt`? |
| seed-tasks | `instruction`, `instances` [{input, output}]: a conversation for each |
| alpaca | `instruction`, `input` (or `context`), `output` (or `response`...), `system`? |
| instruction-output | the same without `input` |
| prompt-completion | `prompt`, `completion`: texts or lists of messages |
| question-answer | `question`, `answer` |
| inputs-targets | `inputs`, `targets`, as FLAN writes them |
| input-output | `input`, `output` |
| text | `text` in which marks part the turns; forced, any text: it is learned whole |

The format is found per row: null and empty keys do not count. What a format does not use becomes a
tag of the conversation, as text.
"""

from mlx_itune.dataset.formats.detect import (
    FORMATS,
    NO_INPUT,
    check_columns,
    check_format,
    names_positions,
    parse_rows,
)

__all__ = [
    "FORMATS",
    "NO_INPUT",
    "check_columns",
    "check_format",
    "names_positions",
    "parse_rows",
]
