# Each command sets up what it needs in .venv; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: demo test test-slurm test-matrix test-long lint docs clean
.DELETE_ON_ERROR:

# The marker holds what was installed: it is remade when the requirements change.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python >= 3.10 is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	cp constraints.txt $@

DEMO := $(BIN)/python cli.py
RESULT := runs/demo

demo: .venv/installed
	rm -rf $(RESULT)
	$(DEMO) fit --config configs/demo.yaml
	$(DEMO) test --config configs/demo.yaml --ckpt_path $(RESULT)/checkpoints/best.ckpt
	$(DEMO) predict --config configs/demo.yaml --ckpt_path $(RESULT)/checkpoints/best.ckpt
	@echo "The pictures are in $(RESULT)/predictions/overlays."

test: .venv/installed
	WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Starts a SLURM and two hosts of its own, as root. It installs no program, and says what is missing.
test-slurm: .venv/installed
	PYTHONPATH=tests/support $(BIN)/python -m network_hosts
	WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -p no:randomly -m slurm tests/cluster

# Every method x processes x precision x accumulation x verb, and every piece in two processes.
test-matrix: .venv/installed
	WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m matrix -n 2 --dist loadfile

# Trainings of thousands of steps.
test-long: .venv/installed
	WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n 0

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is site/index.html."

clean:
	rm -rf .venv build site dist *.egg-info runs .mypy_cache .pytest_cache .ruff_cache
