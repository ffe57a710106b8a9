"use strict";
// A part of the page that a command still changes: read again until it has ended.
for (const part of document.querySelectorAll("[data-goes-on]")) {
  const again = async () => {
    try {
      const answer = await fetch(part.dataset.live);
      const text = await answer.text();
      if (answer.ok && answer.headers.get("X-Running") !== "1") { location.reload(); return; }
      if (answer.ok && part.tagName === "DIV" && part.innerHTML !== text) {
        const logs = [...part.querySelectorAll(".log")].map((log) => log.scrollTop);
        part.innerHTML = text;
        part.querySelectorAll(".log").forEach((log, n) => { log.scrollTop = logs[n] || 0; });
      }
    } catch { /* The studio is away: the command goes on without it. */ }
    setTimeout(again, 1500);
  };
  setTimeout(again, 1000);
}
for (const button of document.querySelectorAll("[data-copy]"))
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    try { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(text); }
  });
for (const form of document.querySelectorAll("[data-preview]")) {
  let asked = 0;
  const show = async () => {
    const mine = ++asked;
    const answer = await fetch(form.dataset.preview,
      { method: "POST", body: new URLSearchParams(new FormData(form)) });
    const text = await answer.text();
    if (mine === asked) document.getElementById("command").textContent = text;
  };
  form.addEventListener("input", show);
}
document.addEventListener("keydown", (event) => {
  const typing = /INPUT|TEXTAREA|SELECT/.test(event.target.tagName);
  if (event.key === "Escape" && typing) { event.target.blur(); return; }
  const saves = typing && event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if ((typing && !saves) || (!saves && (event.ctrlKey || event.metaKey || event.altKey))) return;
  const button = document.querySelector(`[data-key="${CSS.escape(saves ? "s" : event.key)}"]`);
  if (!button) return;
  event.preventDefault();
  button.click();
});
for (const button of document.querySelectorAll("[data-focus]"))
  button.addEventListener("click", () => document.getElementById(button.dataset.focus).focus());
