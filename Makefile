# Every target sets up what it needs (scripts/setup); ARGS="..." is passed on to the command.
.DEFAULT_GOAL := help
.PHONY: help demo demo-real test check masks parity crash real pages bench bench-json quality clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: ## the whole job on the embedded starter: data, train, evaluate, fuse, export, answer
	@scripts/setup
	.venv/bin/mlx-itune quickstart $(ARGS)

demo-real: ## the same on SmolLM2-135M, a real model (fetches it once, 93 MB)
	@scripts/setup
	.venv/bin/mlx-itune models get smollm2
	.venv/bin/mlx-itune quickstart --model smollm2 $(ARGS)

test: ## the tests; no network beyond set-up
	@scripts/setup dev
	.venv/bin/python -m pytest $(ARGS)

check: ## formatting, lint and types
	@scripts/setup dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy --strict

parity: ## the same numbers as torch (transformers, PEFT), llama.cpp, mlx-lm and the openai client (installs them)
	@scripts/setup dev parity
	.venv/bin/python -m pytest -m parity tests/parity $(ARGS)

crash: ## runs killed 200 times and resumed, and every fault of the disk
	@scripts/setup dev
	.venv/bin/python -m pytest -m crash tests/crash $(ARGS)

real: ## the whole job on a real model, SmolLM2-135M in 4 bits and float16 (fetches it once, 93 MB, into .cache)
	@scripts/setup dev
	.venv/bin/python -m pytest -m real tests/real $(ARGS)

pages: ## every page in Chromium, narrow and wide, light and dark (ARGS="--images docs/images" keeps the screenshots)
	@scripts/setup dev pages
	.venv/bin/python -m pytest -m pages tests/pages $(ARGS)

masks: ## every token's label against the oracle, 10,000 conversations a family (ARGS="--count 500")
	@scripts/setup dev
	.venv/bin/python -m pytest -m masks tests/masks $(ARGS)

bench-json: ## JSON answers of `serve`: how many are of their schema, and what a token costs (ARGS="--model DIR")
	@scripts/setup dev
	.venv/bin/python benchmarks/json_serving.py $(ARGS)

bench: ## training speed and memory against mlx-lm (needs ../shared/data; ARGS="--quantized" adds the 4-bit model)
	@scripts/setup
	.venv/bin/python benchmarks/engine.py $(ARGS)

quality: ## wall clock to 60 % exact answers on Banking77, against mlx-lm (needs ../shared/data)
	@scripts/setup dev
	.venv/bin/python benchmarks/quality.py $(ARGS)

clean: ## remove the environment, caches and build output; runs/ and adapters/ stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	find mlx_itune starter tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
