# Each target sets itself up in .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
RECIPE := recipes/digits

.PHONY: demo audio emoji finetune missing unpaired tokens table test bench lint acceptance faults endurance clean

# QUICK=1 is the same demo with less data, fewer steps and fewer samples, in a run of its own. Its samples are rough: colours
# and sentences are right, digits are not read yet.
DEMO := runs/digits$(if $(QUICK),_quick)
recipe = -c $(RECIPE)/$(1).yaml$(if $(QUICK), -c $(RECIPE)_quick/$(1).yaml)

# Seconds that each stage takes on two cores that do nothing else. From these, and from the pace so far, the line before each
# stage says how long the rest will take. A short first stage says little of the pace: a quarter of the whole is counted in as
# if it had taken what it should.
TAKES := $(if $(QUICK),5 30 28 22 12 80 8 40,8 90 95 45 20 330 8 110)
BEGAN = $(eval BEGAN := $(shell date +%s))$(BEGAN)# read once, by the first stage: what installs comes before
define stage
@awk -v stage=$(1) -v what="$(2)" -v takes="$(TAKES)" -v gone=$$(($$(date +%s) - $(BEGAN))) 'BEGIN { \
	num = split(takes, seconds); for (i = 1; i <= num; i++) if (i < stage) planned += seconds[i]; else left += seconds[i]; \
	prior = (planned + left) / 4; \
	pace = gone > planned ? (gone + prior) / (planned + prior) : 1; \
	slow = pace > 1.2 ? sprintf(", as it took %.1f times that so far", pace) : ""; \
	printf "stage %d of %d: %s; about %.1f minutes left on two cores%s\n", stage, num, what, left * pace / 60, slow }'
endef

demo: .venv/.installed  ## the digits recipe, from nothing to runs/digits/report.html; QUICK=1: in four minutes, rough
	$(call stage,1,raw samples as shards)
	$(BIN)/unidiffuser shards $(call recipe,shards)
	$(call stage,2,the autoencoder)
	$(BIN)/unidiffuser fit-codec $(call recipe,autoencoder)
	$(call stage,3,CLIP)
	$(BIN)/unidiffuser fit-codec $(call recipe,clip)
	$(call stage,4,the text decoder)
	$(BIN)/unidiffuser fit-codec $(call recipe,text_decoder)
	$(call stage,5,latents)
	$(BIN)/unidiffuser encode $(call recipe,encode)
	$(call stage,6,the diffusion)
	$(BIN)/unidiffuser fit $(call recipe,fit)
	$(call stage,7,a few samples)
	$(BIN)/unidiffuser sample $(DEMO) "image | text" --given text="a red seven" --num 16 --guidance 2 --out $(DEMO)/samples
	$(call stage,8,samples of every query with a report)
	$(BIN)/unidiffuser evaluate $(DEMO) $(call recipe,evaluate)
	@echo "$(DEMO)/report.html shows it$(if $(QUICK),: rough samples whose colours are right and whose digits are not yet; \`make demo\` trains longer)."

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
	$(BIN)/unidiffuser fit -c $(RECIPE)_tokens/first.yaml
	$(BIN)/unidiffuser fit -c $(RECIPE)_tokens/fit.yaml
	$(BIN)/unidiffuser evaluate runs/digits_tokens -c $(RECIPE)_tokens/evaluate.yaml

table: .venv/.installed  ## a table's cells, hidden at random and filled in by samples, against scikit-learn's imputers
	$(BIN)/unidiffuser fit-codec -c recipes/table/statistics.yaml
	$(BIN)/unidiffuser fit -c recipes/table/fit.yaml
	$(BIN)/python benchmarks/table.py runs/table recipes/table/fit.yaml --json runs/table/table.json

demonstrations: .venv/.installed  ## after `make demo` and `make tokens`: each process against another, to runs/demonstrations
	for name in cold masked edited encoded clean_std mixed; do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/demonstrations/$$name.py || exit 1; done

JOBS ?= 2

test: .venv/.installed  ## every test but the counted campaigns, on JOBS cores with a thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not acceptance"

acceptance: .venv/.installed  ## the long, counted campaigns; their outcome is committed in docs/
	$(BIN)/python -m pytest -m acceptance -s --timeout=3600

faults: .venv/.installed  ## inject faults and write the scoreboard into docs/reliability.md; FULL=1 for the long run
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(if $(FULL),--full)

bench: .venv/.installed  ## side by side with diffusers and plain loops, into docs/performance.md; nothing else should run
	$(BIN)/python benchmarks/performance.py

MINUTES ?= 60

endurance: .venv/.installed  ## after `make demo`: MINUTES of training with kills, bad shards and NaNs, beside a clean run
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.endurance --minutes $(MINUTES)

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

.venv-demo/.installed: .venv/.installed constraints.demo.txt  # beside .venv, of which it says other versions
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv-demo --requirement constraints.demo.txt
	touch $@

clean:
	rm -rf runs out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
