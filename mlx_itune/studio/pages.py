"""The pages: what is in the folder, forms of commands, what they say, drafts, runs, answers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from mlx_itune.api.shown import Skipped, examples_shown
from mlx_itune.dataset.drafts.review import Review
from mlx_itune.dataset.rendering import show_rows
from mlx_itune.inference import chat_page
from mlx_itune.kit.errors import DataError, ItuneError, UsageError
from mlx_itune.kit.json_files import read_object
from mlx_itune.kit.lock import holder
from mlx_itune.kit.page import Html
from mlx_itune.studio.forms import FIRST, Commands, Given, shown
from mlx_itune.studio.found import found
from mlx_itune.studio.jobs import Job, Jobs
from mlx_itune.studio.templating import Templates, live_part
from mlx_itune.training.run import catalogue, curves, run, story
from mlx_itune.training.run.verdict import verdict

_BODY_BYTES, _SHOWN_BYTES, _EVENTS = 4_000_000, 200_000, 30
# The commands of each page, in the order of work.
_DATA = [name for name in FIRST if name.startswith("data ")]
_RUNS = ["train", "tune", "sweep", "runs compare", "eval", "compare"]
_SHIP = ["fuse", "export", "verify"]


class Studio:
    """What answers requests, once the door has let them in. It keeps nothing."""

    def __init__(self, commands: Commands, jobs: Jobs) -> None:
        self._commands, self._jobs, self._folder = commands, jobs, commands.folder
        self._pages = Templates(self._folder.name, has=commands.has)
        self._page = self._pages.page

    def application(self, middleware: Sequence[Middleware]) -> Starlette:
        """The routes, behind what decides who may use them."""
        gets: dict[str, Callable[[Request], Response]] = {
            "/": self.data,
            "/rows": self.rows,
            "/file": self.file,
            "/review": self.review,
            "/runs": self.runs,
            "/runs/{path:path}/live": self.run_live,
            "/runs/{path:path}": self.run,
            "/try": self.ask,
            "/try/live": self.ask_live,
            "/ship": self.ship,
            "/jobs": self.jobs,
            "/jobs/{id}/live": self.job_live,
            "/jobs/{id}": self.job,
            "/form/{name:path}": self.form,
        }
        posts: dict[str, Callable[[Request, Given], Response]] = {
            "/review": self.decide,
            "/runs/{path:path}/stop": self.stop_run,
            "/try": self.open_models,
            "/jobs/{id}/stop": self.stop_job,
            "/form/{name:path}": self.start,
            "/command/{name:path}": self.preview,
        }
        routes = [Route(path, each) for path, each in gets.items()]
        routes += [Route(path, _posted(each), methods=["POST"]) for path, each in posts.items()]
        handlers: Any = {ItuneError: self._refused, HTTPException: self._refused}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    # Data

    def data(self, request: Request) -> Response:
        """What is in the folder, and what can be done with it."""
        here = found(self._folder)
        command = "mlx-itune data --help"
        return self._page("data.html", "Data", command=command, found=here, commands=_DATA)

    def rows(self, request: Request) -> Response:
        """Rows as a model is trained on them."""
        asked = _asked(request, data="", model="starter", template="auto", rows="3", row="")
        path = self._commands.place(asked["data"])
        self._commands.place(asked["model"])
        wanted = asked["row"].split()
        argv = ["data", "show", asked["data"], "--model", asked["model"]]
        argv += ["--template", asked["template"]] if asked["template"] != "auto" else []
        argv += [word for each in wanted for word in ("--row", each)]
        argv += [] if wanted else ["--rows", asked["rows"]]
        how: dict[str, Any] = {"row": tuple(wanted)} if wanted else {"rows": _whole(asked["rows"])}
        body, skipped, fault = Html(""), tuple[Skipped, ...](), None
        more: dict[str, Any]
        try:
            own = self._folder / asked["model"]
            model = str(own) if own.exists() else asked["model"]
            made = examples_shown(path, model, template=asked["template"], **how)
            examples, tokenizer, told = made
            body, skipped = show_rows.tokens_body(examples, tokenizer), told.skipped
        except ItuneError as error:
            fault = error
        inside = sorted(path.iterdir()) if path.is_dir() else []
        more = {"fault": fault, "files": [each.name for each in inside if each.is_file()]}
        more |= {"asked": asked, "body": body, "skipped": skipped, "command": shown(argv)}
        return self._page("rows.html", asked["data"], [show_rows.STYLE], **more)

    def file(self, request: Request) -> Response:
        """The beginning of a file, as it is."""
        asked = _asked(request, path="")
        path = self._commands.place(asked["path"])
        if not path.is_file():
            raise UsageError("is no file", where=asked["path"])
        with path.open("rb") as opened:
            text = opened.read(_SHOWN_BYTES).decode(errors="replace")
        more = path.stat().st_size > _SHOWN_BYTES
        command = f"less {shown([asked['path']]).removeprefix('mlx-itune ')}"
        return self._page("file.html", asked["path"], text=text, more=more, command=command)

    def review(self, request: Request) -> Response:
        """The most doubtful draft that nobody has decided, or one of a sample."""
        asked = _asked(request, drafts="", by="", sample="")
        made = self._review(asked["drafts"], asked["by"])
        waiting = made.pending(_whole(asked["sample"]) if asked["sample"] else None)
        draft = waiting[0] if waiting else None
        words = [*filter(None, [asked["by"] and f"--by={asked['by']}"])]
        words += [f"--sample={asked['sample']}"] if asked["sample"] else []
        passage = made.passage(draft, self._folder) if draft else None
        about: dict[str, Any] = {"asked": asked, "draft": draft, "passage": passage}
        about |= {"left": len(waiting), "state": made.state(), "agreement": made.agreement()}
        about["command"] = shown(["data", "review", asked["drafts"], *words])
        return self._page("review.html", asked["drafts"], **about)

    def decide(self, request: Request, given: Given) -> Response:
        """Log a decision, and show the next draft."""
        asked = {name: _one(given, name) for name in ("drafts", "by", "sample")}
        made = self._review(asked["drafts"], asked["by"])
        choice, id, messages = _one(given, "decision"), _one(given, "id"), None
        if choice not in ("accept", "edit", "reject"):
            raise UsageError(f"{choice!r} is no decision")
        if choice == "edit":
            contents = given.get("content", [])
            old = made.draft(id).messages
            if len(contents) != len(old):
                raise UsageError("a message is missing")
            # A form ends its lines as no file here does.
            texts = [text.replace("\r\n", "\n") for text in contents]
            messages = [{**was, "content": text} for was, text in zip(old, texts, strict=True)]
        reason = _one(given, "reason") or None
        sample = bool(asked["sample"])
        made.decide(id, choice, messages=messages, reason=reason, sample=sample)  # type: ignore[arg-type]
        return _to(f"/review?{urlencode({k: v for k, v in asked.items() if v})}")

    def _review(self, drafts: str, by: str) -> Review:
        return Review(self._commands.place(drafts), by or None)

    # Runs

    def runs(self, request: Request) -> Response:
        """Every run, and the forms that make more."""
        every = [each.path for each in found(self._folder) if each.kind == "run"]
        standings = []
        for path in sorted(every, key=lambda each: Path(each).name, reverse=True):
            with contextlib.suppress(ItuneError):
                standings.append((path, catalogue.standing(self._folder / path)))
        command = shown(["runs", "list"])
        return self._page("runs.html", "Runs", standings=standings, commands=_RUNS, command=command)

    def run(self, request: Request) -> Response:
        """One run: how it goes, and all that its folder says."""
        path, folder = self._run(request)
        about = catalogue.details(folder)
        adapter = about["result"].adapter if about["result"] else None
        adapter = self._inside(adapter)
        command = shown(["runs", "show", path])
        more: dict[str, Any] = {
            "path": path,
            "about": about,
            "adapter": adapter,
            "command": command,
        }
        live = self._live_run(folder)
        return self._page("run.html", Path(path).name, [curves.STYLE], live=live, **more)

    def run_live(self, request: Request) -> Response:
        """What of a run's page changes while it trains."""
        _, folder = self._run(request)
        return live_part(self._live_run(folder), holder(folder / run.LOCK) is not None)

    def stop_run(self, request: Request, given: Given) -> Response:
        """End a run as Ctrl-C would: it seals a checkpoint."""
        path, folder = self._run(request)
        who = holder(folder / run.LOCK)
        if who is not None and who.pid is not None and who.host == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                os.kill(who.pid, signal.SIGTERM)
        return _to(f"/runs/{quote(path)}")

    def _run(self, request: Request) -> tuple[str, Path]:
        path = request.path_params["path"]
        folder = self._commands.place(path)
        if not (folder / run.EVENTS).is_file():
            raise UsageError(f"there is no run {path!r}")
        return path, folder

    def _live_run(self, folder: Path) -> Html:
        told, standing = story.read(folder), catalogue.standing(folder)
        with (folder / run.EVENTS).open("rb") as file:
            file.seek(max(0, (folder / run.EVENTS).stat().st_size - _SHOWN_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_EVENTS:]
        more = {"verdict": verdict(told), "curves": curves.curves(told)}
        return self._pages.render(
            "run_live.html", it=standing, log="\n".join(reversed(lines)), **more
        )

    def _inside(self, path: str | None) -> str | None:
        """A path from the folder on; None for one that is not in it."""
        if path is None:
            return None
        full = (self._folder / path).resolve()
        return str(full.relative_to(self._folder)) if full.is_relative_to(self._folder) else None

    # Try

    def ask(self, request: Request) -> Response:
        """Base, tuned and shipped asked the same, once their servers answer."""
        asked = _asked(request, model="", adapter="", shipped="", schema="")
        panes, waiting, command = self._servers()
        schema, named = "", self._commands.place(asked["schema"])
        with contextlib.suppress(OSError, UnicodeDecodeError):
            schema = named.read_text(encoding="utf-8") if asked["schema"] else ""
        body = chat_page.chat_body(panes, schema) if panes and not waiting else Html("")
        typed = self._serving(asked, "ORIGIN") or [["serve", "--adapter", "last"]]
        about: dict[str, Any] = {
            "body": body,
            "waiting": waiting,
            "asked": asked,
            "found": found(self._folder),
        }
        about["command"] = "\n".join(command or map(shown, typed))
        styles, scripts = ([chat_page.STYLE], [chat_page.SCRIPT]) if body else ([], [])
        origins = [pane.url for pane in panes]
        return self._page("try.html", "Try", styles, scripts=scripts, origins=origins, **about)

    def ask_live(self, request: Request) -> Response:
        """Whether the servers still load."""
        _, waiting, _ = self._servers()
        return live_part("loading the models", waiting)

    def open_models(self, request: Request, given: Given) -> Response:
        """Stop what is served, and serve what is asked for."""
        asked = {name: _one(given, name) for name in ("model", "adapter", "shipped", "schema")}
        for value in asked.values():
            self._commands.place(value)
        for job in self._serving_now():
            self._jobs.stop(job.id)
        origin = f"http://{request.headers['host']}"
        for argv in self._serving(asked, origin):
            self._jobs.start([*argv, "--json"])
        return _to(f"/try?{urlencode({k: v for k, v in asked.items() if v})}")

    def _serving(self, asked: Mapping[str, str], origin: str) -> list[list[str]]:
        """What serves the three: base and adapter together, the shipped one by itself."""
        tail = ["--port", "0", "--allow-origin", origin]
        tuned = ["--adapter", f"tuned={asked['adapter']}"] if asked["adapter"] else []
        base = ["--model", asked["model"]] if asked["model"] else []
        made = [["serve", *base, *tuned, *tail]] if base or tuned else []
        return made + ([["serve", "--model", asked["shipped"], *tail]] if asked["shipped"] else [])

    def _serving_now(self) -> Iterator[Job]:
        jobs = self._jobs.all()
        return (job for job in jobs if job.running and not job.stopping and job.name == "serve")

    def _servers(self) -> tuple[list[chat_page.Pane], bool, list[str]]:
        """A pane for each model that is served, whether one still loads, the commands."""
        panes, waiting, typed = list[chat_page.Pane](), False, list[str]()
        for job in reversed([*self._serving_now()]):
            about: Any = self._jobs.said(job.id)
            typed.append(job.command)
            if "url" not in about:
                waiting = True
                continue
            url, names = str(about["url"]).removesuffix("/v1"), list(about["models"])
            # A base may have no template of its own: then its adapter is served alone.
            alone = "shipped" if panes or len(typed) == 1 else "base"
            own = alone if "--adapter" not in job.argv else "base"
            sides = {name: own if name == about["base"] else "tuned" for name in names}
            ordered = sorted(names, key=lambda name: sides[name])
            panes += [chat_page.Pane(sides[name], name, names, url) for name in ordered]
        return panes, waiting, typed

    # Ship

    def ship(self, request: Request) -> Response:
        """What was made to be shipped: sizes, and what merging lost."""
        kinds = ("adapter", "model", "gguf", "bundle")
        made = [
            (each, self._fidelity(each.path)) for each in found(self._folder) if each.kind in kinds
        ]
        command = shown(["export", "--help"])
        return self._page("ship.html", "Ship", made=made, commands=_SHIP, command=command)

    def _fidelity(self, path: str) -> Mapping[str, Any]:
        for name, key in (("manifest.json", "fidelity"), ("provenance.json", "fuse")):
            with contextlib.suppress(ItuneError):
                about = read_object(self._folder / path / name, error=DataError).get(key)
                if isinstance(about, dict):
                    return about
        return {}

    # Commands

    def form(self, request: Request) -> Response:
        """The form of a command, with what the address says already in it."""
        return self._form(_name(request), parse_qs(request.url.query))

    def _form(self, name: str, given: Given, fault: ItuneError | None = None) -> Response:
        first, rest = self._commands.fields(name)
        command = shown(name.split())
        with contextlib.suppress(UsageError):
            command = shown(self._commands.command(name, given))
        places = [each.path for each in found(self._folder)]
        about: dict[str, Any] = {"first": first, "rest": rest, "given": given, "places": places}
        about |= {"name": name, "fault": fault, "command": command}
        return self._page("form.html", name, status=400 if fault else 200, **about)

    def preview(self, request: Request, given: Given) -> Response:
        """The command that a form asks for so far."""
        try:
            return PlainTextResponse(shown(self._commands.command(_name(request), given)))
        except UsageError as error:
            return PlainTextResponse(str(error), 400)

    def start(self, request: Request, given: Given) -> Response:
        """Run the command that a form asks for."""
        name = _one(given, "_as") or _name(request)
        try:
            argv = self._commands.command(name, given)
        except UsageError as error:
            return self._form(name, given, error)
        return _to(f"/jobs/{self._jobs.start(argv)}")

    def jobs(self, request: Request) -> Response:
        """Every command that a page has started."""
        return self._page("jobs.html", "Commands", jobs=self._jobs.all(), command="ls .studio")

    def job(self, request: Request) -> Response:
        """What a command says."""
        job = self._jobs.job(request.path_params["id"])
        live = self._live_job(job)
        return self._page("job.html", job.name, job=job, live=live, command=job.command)

    def job_live(self, request: Request) -> Response:
        """What of it changes."""
        job = self._jobs.job(request.path_params["id"])
        return live_part(self._live_job(job), job.running)

    def stop_job(self, request: Request, given: Given) -> Response:
        """End a command, as Ctrl-C would."""
        self._jobs.stop(request.path_params["id"])
        return _to(f"/jobs/{request.path_params['id']}")

    def _live_job(self, job: Job) -> Html:
        group = self._jobs.group(job.id)
        going = [each.path for each in found(self._folder) if group and each.kind == "run"]
        own = [path for path in going if _is_of(self._folder / path, group)]
        return self._pages.render("job_live.html", job=job, runs=own)

    async def _refused(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = UsageError(f"{request.url.path}: {error.detail.lower()}")
        assert isinstance(error, ItuneError)
        status = 404 if error.exit_code == UsageError.exit_code else 400
        return self._page("fault.html", "Not done", fault=error, status=status)


def _posted(answer: Callable[[Request, Given], Response]) -> Callable[[Request], Any]:
    """A route that is given the fields of the form that was sent."""

    async def route(request: Request) -> Response:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > _BODY_BYTES:
                return PlainTextResponse("the form is too large", 413)
        text = bytes(data).decode("utf-8", errors="replace")
        given = parse_qs(text, keep_blank_values=True, max_num_fields=1000)
        return await run_in_threadpool(answer, request, given)

    return route


def _asked(request: Request, **defaults: str) -> dict[str, str]:
    return {name: request.query_params.get(name) or each for name, each in defaults.items()}


def _one(given: Given, name: str) -> str:
    return (given.get(name) or [""])[-1].strip()


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= 10_000:
        raise UsageError(f"{text!r} is no number from 1 to 10,000")
    return int(text)


def _name(request: Request) -> str:
    return str(request.path_params["name"]).replace("/", " ")


def _to(path: str) -> Response:
    return RedirectResponse(path, 303)


def _is_of(folder: Path, group: int | None) -> bool:
    """Whether a process of the group trains this run."""
    who = holder(folder / run.LOCK)
    with contextlib.suppress(OSError, TypeError):
        return who is not None and group is not None and os.getpgid(who.pid or 0) == group
    return False
