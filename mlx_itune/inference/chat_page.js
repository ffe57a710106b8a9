"use strict";
const at = (id) => document.getElementById(id);
const sides = [...document.querySelectorAll(".pane")].map((pane) => pane.id);
const turns = Object.fromEntries(sides.map((side) => [side, []]));
let running = null;

function add(side, kind, text) {
  const block = document.createElement("div");
  block.className = "turn " + kind;
  block.textContent = text;
  const log = at(side + "-log");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.append(block);
  if (follows) log.scrollTop = log.scrollHeight;
  return block;
}

function grow(side, block, text) {
  const log = at(side + "-log");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  block.textContent += text;
  if (follows) log.scrollTop = log.scrollHeight;
}

async function* events(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function ask(side, question, signal) {
  const model = at(side + "-model").value, status = at(side + "-status");
  if (!model) return;
  add(side, "asked", question);
  const before = turns[side];
  const system = at("system").value.trim();
  const messages = [...before, { role: "user", content: question }];
  const body = {
    model, stream: true, stream_options: { include_usage: true },
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: Number(at("temperature").value) || 0,
    max_tokens: Math.max(1, Math.round(Number(at("max-tokens").value) || 512)),
  };
  const schema = at("schema").value.trim();
  const began = performance.now(), blocks = {};
  let first = 0, said = "", end = "";
  const say = (kind, text) => {
    blocks[kind] = blocks[kind] || add(side, kind, "");
    grow(side, blocks[kind], text);
  };
  status.textContent = "waiting";
  try {
    if (schema) body.response_format =
      { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema) } };
    const response = await fetch(at(side).dataset.url + "/v1/chat/completions", {
      method: "POST", signal, body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0], delta = choice ? choice.delta : {};
      first = first || performance.now();
      if (delta.reasoning_content) say("thought", delta.reasoning_content);
      if (delta.content) { said += delta.content; say("answer", delta.content); }
      for (const { function: call } of delta.tool_calls || [])
        add(side, "call", `${call.name}(${call.arguments})`);
      if (choice && choice.finish_reason === "length") end = ", cut at the longest answer";
      const seconds = (performance.now() - began) / 1000;
      if (event.usage) {
        const tokens = event.usage.completion_tokens;
        const rate = tokens / Math.max((performance.now() - first) / 1000, 0.001);
        status.textContent = `${tokens} tokens in ${seconds.toFixed(1)} s` +
          (tokens > 1 ? `, ${rate.toFixed(0)} a second` : "") + end;
      } else status.textContent = "answering";
    }
  } catch (error) {
    if (error.name === "AbortError") status.textContent = "stopped";
    else { add(side, "error", error.message); status.textContent = "failed"; return; }
  }
  // A conversation that was begun anew meanwhile stays empty.
  if (turns[side] === before && said.trim())
    turns[side] = [...messages, { role: "assistant", content: said }];
}

async function send() {
  const question = at("prompt").value.trim();
  if (!question || running) return;
  running = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  at("prompt").value = "";
  await Promise.all(sides.map((side) => ask(side, question, running.signal)));
  running = null;
  at("send").disabled = false;
  at("stop").disabled = true;
  at("prompt").focus();
}

function stop() { if (running) running.abort(); }

function clear(side) {
  turns[side] = [];
  at(side + "-log").replaceChildren();
  at(side + "-status").textContent = "ready";
}

function show(side) { at(side + "-log").hidden = !at(side + "-model").value; }

at("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
at("stop").addEventListener("click", stop);
at("clear").addEventListener("click", () => { stop(); sides.forEach(clear); at("prompt").focus(); });
for (const side of sides) {
  at(side + "-model").addEventListener("change", () => { stop(); clear(side); show(side); });
  show(side);
}
