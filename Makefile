# Two commands do everything, set-up included: `make run` and `make test`; `make quick` is for while you work.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2
SMALL := runs/small/notebooks

.PHONY: run quick test lint figures notebooks lab app embedded clean

run: $(INSTALLED)  ## execute all notebooks on the embedded default into runs/<time>/
	$(BIN)/vitsal run

quick: lint  ## lint, and the tests that are quick
	$(PYTEST) --dist worksteal -m "not slow"

test: lint  ## lint, all tests, and every notebook at a small size, each cell checked by nbval
	$(PYTEST) --dist worksteal
	rm -rf $(dir $(SMALL))
	$(BIN)/python tests/small_notebooks.py $(SMALL)
	OMP_NUM_THREADS=1 $(PYTEST) --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=600 $(SMALL)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

figures: $(INSTALLED)  ## regenerate the figures that the README shows
	$(BIN)/vitsal run --output runs/figures
	cp runs/figures/*.png runs/figures/*.svg runs/figures/08_side_by_side.gif figures/

notebooks: $(INSTALLED)  ## execute the notebooks at full size, in place, as they are committed, and check them
	cd notebooks && ../$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.store_widget_state=False *.ipynb solutions/*.ipynb
	cd notebooks && ../$(BIN)/jupyter nbconvert --to notebook --inplace --coalesce-streams \
		*.ipynb solutions/*.ipynb  # of a progress bar the last state alone
	$(BIN)/python -m pytest tests/test_repository.py

lab: $(INSTALLED)  ## open the course in JupyterLab, which by itself takes no upload over 10 MB
	$(BIN)/jupyter lab notebooks --ServerApp.tornado_settings="{'websocket_max_message_size': 1073741824}"

app: $(INSTALLED)  ## open the explorer as a page of its own; notebooks/voila.json lets it take big pictures
	cd notebooks && ../$(BIN)/voila explorer.ipynb

embedded: $(INSTALLED)  ## train the embedded models and students again
	$(BIN)/python -m vitsal.embedded.train --model all
	$(BIN)/python -m vitsal.embedded.teach

# torch and torchvision come in their newest release; everything else in the versions that were tested
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("vitsal needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar off --upgrade -c constraints.txt -e '.[test]'
	touch $@

clean:  ## remove the virtual environment and everything that runs made
	rm -rf $(VENV) runs
