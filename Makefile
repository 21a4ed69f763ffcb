# Each target sets itself up in .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
RECIPE := recipes/digits

.PHONY: demo audio emoji finetune missing unpaired tokens table test bench lint acceptance faults clean

demo: .venv/.installed  ## the digits recipe, from nothing to runs/digits/report.html
	$(BIN)/unidiffuser shards -c $(RECIPE)/shards.yaml
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)/autoencoder.yaml
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)/clip.yaml
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)/text_decoder.yaml
	$(BIN)/unidiffuser encode -c $(RECIPE)/encode.yaml
	$(BIN)/unidiffuser fit -c $(RECIPE)/fit.yaml
	$(BIN)/unidiffuser sample runs/digits "image | text" --given text="a red seven" --num 16 --guidance 2 --out runs/digits/samples
	$(BIN)/unidiffuser evaluate runs/digits -c $(RECIPE)/evaluate.yaml

audio: .venv/.installed  ## after `make demo`: image, text and sound, all 19 queries, to runs/digits_audio/report.html
	$(BIN)/unidiffuser shards -c $(RECIPE)_audio/shards.yaml
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)_audio/autoencoder.yaml
	$(BIN)/unidiffuser encode -c $(RECIPE)_audio/encode.yaml
	$(BIN)/unidiffuser fit -c $(RECIPE)_audio/fit.yaml
	$(BIN)/unidiffuser evaluate runs/digits_audio -c $(RECIPE)_audio/evaluate.yaml

EMOJI := recipes/emoji

emoji: .venv/.installed  ## OpenMoji's drawings in colour, in line and in words: from nothing to both reports in runs/emoji
	$(BIN)/unidiffuser shards -c $(EMOJI)/shards.yaml
	$(BIN)/unidiffuser fit-codec -c $(EMOJI)/autoencoder.yaml
	$(BIN)/unidiffuser fit-codec -c $(EMOJI)/line_autoencoder.yaml
	$(BIN)/unidiffuser fit-codec -c $(EMOJI)/tokens.yaml
	$(BIN)/unidiffuser encode -c $(EMOJI)/encode.yaml
	$(BIN)/unidiffuser fit -c $(EMOJI)/fit.yaml
	$(BIN)/unidiffuser evaluate runs/emoji -c $(EMOJI)/evaluate_bases.yaml
	$(BIN)/unidiffuser evaluate runs/emoji -c $(EMOJI)/evaluate_tones.yaml

PEACH := peach,peach,peach,red,green,blue,yellow,cyan,magenta

finetune: .venv/.installed  ## after `make demo`: its model learns an ink from a folder of images, and is judged on old and new
	$(BIN)/unidiffuser shards -c $(RECIPE)/shards.yaml --source.inks='[$(PEACH)]' --source.renderings_train=4 --output=runs/peach/shards
	$(BIN)/unidiffuser shards -c $(RECIPE)/shards.yaml --source.inks='[peach]' --source.renderings_train=1 --output=runs/peach/new
	mkdir -p runs/peach/images
	for tar in runs/peach/shards/train/*.tar; do tar -xf $$tar -C runs/peach/images --exclude='*.json'; done
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)/finetune_text_decoder.yaml
	$(BIN)/unidiffuser fit -c $(RECIPE)/finetune.yaml -c $(RECIPE)/finetune_words.yaml
	$(BIN)/unidiffuser evaluate runs/digits_peach -c $(RECIPE)/finetune_evaluate.yaml
	$(BIN)/unidiffuser evaluate runs/digits_peach -c $(RECIPE)/finetune_evaluate.yaml --test=runs/digits/shards/test --out=runs/digits_peach/old

missing: .venv/.installed  ## after `make audio`: half of the captions and half of the sounds are missing, at random
	$(BIN)/unidiffuser shards -c $(RECIPE)_audio/shards.yaml --source.lacks='{wav: 0.5, txt: 0.5}' --output=runs/digits_missing/shards
	$(BIN)/unidiffuser encode -c $(RECIPE)_audio/encode.yaml --missing=keep \
		--folders='{runs/digits_missing/shards/train: runs/digits_missing/latents/train, runs/digits_missing/shards/test: runs/digits_missing/latents/test}'
	$(BIN)/unidiffuser fit -c $(RECIPE)_audio/fit.yaml -c $(RECIPE)_audio/missing.yaml
	$(BIN)/unidiffuser evaluate runs/digits_missing -c $(RECIPE)_audio/missing_evaluate.yaml

PAIRED := runs/paired/latents
UNPAIRED := runs/unpaired/latents

unpaired: .venv/.installed  ## after `make demo`: 576 captioned images alone, and beside 1437 images without captions
	$(BIN)/unidiffuser shards -c $(RECIPE)/shards.yaml --source.scans=72 --output=runs/paired/shards
	$(BIN)/unidiffuser shards -c $(RECIPE)/shards.yaml --source.renderings_train=1 --source.lacks='{txt: 1.0}' --output=runs/unpaired/shards
	$(BIN)/unidiffuser encode -c $(RECIPE)/encode.yaml --folders='{runs/paired/shards/train: $(PAIRED)}'
	$(BIN)/unidiffuser encode -c $(RECIPE)/encode.yaml --missing=keep --folders='{runs/unpaired/shards/train: $(UNPAIRED)}'
	$(BIN)/unidiffuser fit -c $(RECIPE)/fit.yaml --trainer.default_root_dir=runs/paired --data.train=$(PAIRED)
	$(BIN)/unidiffuser fit -c $(RECIPE)/fit.yaml --trainer.default_root_dir=runs/unpaired --data.train='[$(PAIRED), $(UNPAIRED)]'
	$(BIN)/unidiffuser fit -c $(RECIPE)/fit.yaml --trainer.default_root_dir=runs/unpaired_thrice --data.train='[$(PAIRED), $(PAIRED), $(PAIRED), $(UNPAIRED)]'
	for run in paired unpaired unpaired_thrice; do $(BIN)/unidiffuser evaluate runs/$$run -c $(RECIPE)/evaluate.yaml || exit 1; done

tokens: .venv/.installed  ## after `make demo`: its images with masked caption tokens, without CLIP's text states and GPT-2
	$(BIN)/unidiffuser fit-codec -c $(RECIPE)_tokens/tokens.yaml
	$(BIN)/unidiffuser encode -c $(RECIPE)_tokens/encode.yaml
	$(BIN)/unidiffuser fit -c $(RECIPE)_tokens/fit.yaml
	$(BIN)/unidiffuser evaluate runs/digits_tokens -c $(RECIPE)_tokens/evaluate.yaml

table: .venv/.installed  ## a table's cells, hidden at random and filled in by samples, against scikit-learn's imputers
	$(BIN)/unidiffuser fit-codec -c recipes/table/statistics.yaml
	$(BIN)/unidiffuser fit -c recipes/table/fit.yaml
	$(BIN)/python benchmarks/table.py runs/table recipes/table/fit.yaml --json runs/table/table.json

demonstrations: .venv/.installed  ## after `make demo`: each process against another, to runs/demonstrations
	for name in cold masked clean_std; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/demonstrations/$$name.py || exit 1; done

JOBS ?= 2

test: .venv/.installed  ## every test but the counted campaigns, on JOBS cores with a thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not acceptance"

acceptance: .venv/.installed  ## the long, counted campaigns; their outcome is committed in docs/
	$(BIN)/python -m pytest -m acceptance -s --timeout=3600

faults: .venv/.installed  ## inject faults and write the scoreboard into docs/reliability.md; FULL=1 for the long run
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(if $(FULL),--full)

bench: .venv/.installed  ## side by side with diffusers and plain loops, into docs/performance.md; nothing else should run
	$(BIN)/python benchmarks/performance.py

lint: .venv/.installed  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

PLUGINS := plugins/unidiff-digits plugins/unidiff-audio plugins/unidiff-emoji

.venv/.installed: pyproject.toml constraints.txt $(PLUGINS:=/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" $(addprefix --editable ,$(PLUGINS))
	touch $@

clean:
	rm -rf runs out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
