# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
# The first that runs and is new enough: a name alone may be a version manager's empty shim.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
SERVE ?= 1
SHARED ?= ../shared
RUNS ?= runs
# Files of tests side by side, a processor each: small networks gain nothing by more threads. A worker takes up to 2 GB.
pytest = OMP_NUM_THREADS=1 $(1)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile
# Of a processor for an hour, assumed, for the cost of a million cells.
PRICES ?= 0.02,0.05,0.10

.PHONY: help setup demo test lint types test-full lowest wheel docs notebooks sipakmed herlev probe-folds optimism optimism-finetuned inspection \
  twins leakage ablation folds folds-by-cell fold-figures programme release together learning-curve adapted-curve last-stage-curve drawn-cells all-stages audit benchmark parity clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 20

setup: .venv/ready ## make .venv and install Cervicyte with its development tools

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "Cervicyte needs Python 3.11 or newer; say make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into .venv; torch alone may take a few minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup ## train, evaluate and explain on synthetic cells, then open the dashboard (SERVE=0: do not)
	$(BIN)/cervicyte demo $(if $(filter 0,$(SERVE)),--no-serve)

test: setup lint types ## lint, types and tests
	$(call pytest,$(BIN)) -m "not full"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

test-full: setup ## the long tests: browser, interrupted runs, demo, wheel, and the lowest versions
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,browser,docs,ray]'
	$(call pytest,$(BIN)) -m full
	$(MAKE) lowest

lowest: ## the fast tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python tests/lowest_versions.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(call pytest,.venv-lowest/bin) -m "not full" -p no:cacheprovider

docs: setup ## build the documentation into site/; every warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'
	$(BIN)/python docs/write_pages.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs site
	@echo "site/index.html"

notebooks: setup ## run both notebooks on drawn cells and store what they show; 3 minutes
	cd notebooks && ../$(BIN)/jupyter execute --inplace *.ipynb

wheel: setup ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

sipakmed: setup ## fold 0 of 5 of SIPaKMeD by group, and its control; about 60 minutes on two cores, resumable
	test -f $(RUNS)/sipakmed/metrics.json || $(BIN)/cervicyte train $(SHARED)/data/sipakmed --recipe recipes/two-cores.yaml \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --no-images --out $(RUNS)/sipakmed --resume
	test -f $(RUNS)/sipakmed_probe/metrics.json || $(BIN)/cervicyte probe $(SHARED)/data/sipakmed --split $(RUNS)/sipakmed/split.csv \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/sipakmed_probe --force
	$(BIN)/cervicyte compare $(RUNS)/sipakmed_probe $(RUNS)/sipakmed --out $(RUNS)/sipakmed_comparison.csv --force

herlev: setup ## fold 0 of 5 of Herlev by frame, and its control; about 15 minutes on two cores, resumable
	test -f $(RUNS)/herlev/metrics.json || $(BIN)/cervicyte train $(SHARED)/data/herlev --recipe recipes/two-cores.yaml --epochs 20 \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --no-images --out $(RUNS)/herlev --resume
	test -f $(RUNS)/herlev_probe/metrics.json || $(BIN)/cervicyte probe $(SHARED)/data/herlev --split $(RUNS)/herlev/split.csv \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/herlev_probe --force
	$(BIN)/cervicyte compare $(RUNS)/herlev_probe $(RUNS)/herlev --out $(RUNS)/herlev_comparison.csv --force

optimism: setup ## what splits by cell and by field gain, with frozen features; about 20 minutes
	$(BIN)/cervicyte optimism $(SHARED)/data/sipakmed --frozen --seeds 0,1,2,3,4 \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/optimism_frozen

probe-folds: setup ## the control on all five folds by group, with calibration and prediction sets; 5 minutes
	$(BIN)/cervicyte cross-validate $(SHARED)/data/sipakmed --frozen --seeds 0,1,2 \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/probe_cv

optimism-finetuned: setup ## the same with fine-tuned networks; half an hour, resumable
	$(BIN)/cervicyte optimism $(SHARED)/data/sipakmed --recipe recipes/quick.yaml \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/optimism_finetuned

# The pages show real cells and stay in runs/; the figures go to docs/results/. Findings are status 1.
inspection: setup ## look through SIPaKMeD and Herlev, with likely label errors and shortcuts; about 10 minutes
	for data in sipakmed herlev; do \
	  $(BIN)/cervicyte inspect $(SHARED)/data/$$data --label-errors --shortcuts --out $(RUNS)/inspection_$$data \
	    --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors; \
	  test $$? -le 1 && mkdir -p docs/results/inspection && \
	  cp $(RUNS)/inspection_$$data/inspection.json docs/results/inspection/$$data.json || exit 1; \
	done

twins: setup ## measure the twin finder on the tuning half of the labelled pairs and on drawn cells; 5 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/twin_quality.py --data $(SHARED)/data/sipakmed --half tuning
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/twin_quality.py --scenes 120

leakage: setup ## write docs/leakage.md from what inspection, twins and optimism left in docs/results/
	$(BIN)/python benchmarks/leakage_page.py --data $(SHARED)/data/sipakmed

folds: setup ## the shipped recipe on all five folds by group; 20 minutes a fold on one core, resumable
	$(BIN)/cervicyte cross-validate $(SHARED)/data/sipakmed --recipe recipes/shipped.yaml \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/folds

folds-by-cell: setup ## the same split by cell, which leaks, for comparison
	$(BIN)/cervicyte cross-validate $(SHARED)/data/sipakmed --recipe recipes/shipped.yaml --by cell --allow-leak cell \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/folds_by_cell

fold-figures: folds ## what the folds' networks make of spoilt images, of Herlev and of no cells; an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,benchmark]'
	$(BIN)/cervicyte robustness $(RUNS)/folds/seed_0/fold_* --data $(SHARED)/data/sipakmed --cells 700 --out $(RUNS)/robustness
	$(BIN)/cervicyte elsewhere $(RUNS)/folds/seed_0/fold_* --data $(SHARED)/data/herlev --adapt 64,200 --draws 1 --out $(RUNS)/elsewhere
	$(BIN)/cervicyte elsewhere src/cervicyte/model/cervicyte.safetensors --data $(SHARED)/data/herlev --adapt 64,200 \
	  --out $(RUNS)/elsewhere_shipped
	$(BIN)/python benchmarks/second_look.py $(RUNS)/folds/seed_0 --data $(SHARED)/data/sipakmed --out docs/results/second_look.json
	$(BIN)/python benchmarks/unlike_training.py $(RUNS)/folds/seed_0/fold_0 --data $(SHARED)/data/sipakmed \
	  --foreign $(SHARED)/data/herlev --out $(RUNS)/unlike_training.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/flag_rates.py --foreign $(SHARED)/data/herlev --out docs/results/model/flag_rates.json

# The folds' models and the shipped one stay in runs/: what is copied is small.
programme: ablation folds folds-by-cell fold-figures drawn-cells ## all figures of the shipped recipe, and the pages on them; some hours on two cores, minutes on a GPU, resumable
	for by in group cell; do \
	  from=$(RUNS)/folds$$(test $$by = cell && echo _by_cell); mkdir -p docs/results/model/$$by; \
	  cp $$from/cross_validation.md $$from/cross_validation.json $$from/cross_validation.csv $$from/predictions.csv docs/results/model/$$by/ || exit 1; \
	done
	cp $(RUNS)/folds/calibration.json docs/results/model/group/
	mkdir -p docs/results/model/robustness docs/results/model/elsewhere docs/results/model/elsewhere_shipped
	cp $(RUNS)/robustness/robustness.md $(RUNS)/robustness/robustness.json $(RUNS)/robustness/robustness.csv docs/results/model/robustness/
	for name in elsewhere elsewhere_shipped; do cp $(RUNS)/$$name/elsewhere.md $(RUNS)/$$name/elsewhere.json docs/results/model/$$name/ || exit 1; done
	cp $(RUNS)/unlike_training.json docs/results/model/
	$(BIN)/python benchmarks/goals_page.py
	$(BIN)/python benchmarks/shipped_figures.py
	$(BIN)/python docs/write_pages.py

release: folds ## train the shipped model on all cells and attach what the folds found; 15 minutes, resumable
	$(BIN)/cervicyte release $(SHARED)/data/sipakmed --folds $(RUNS)/folds --out $(RUNS)/release --licence "Apache-2.0, as the program" \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors

# The first learns both class lists, the others judge the common answer on the data set that they leave out.
TOGETHER = $(BIN)/cervicyte train-together $(SHARED)/data/sipakmed $(SHARED)/data/herlev --recipe recipes/together.yaml \
  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --no-images --resume
together: setup ## SIPaKMeD and Herlev in one training, and each left out of one; 15 minutes on one core, resumable
	$(TOGETHER) --out $(RUNS)/together/both
	$(TOGETHER) --out $(RUNS)/together/without_herlev --leave-out herlev
	$(TOGETHER) --out $(RUNS)/together/without_sipakmed --leave-out sipakmed --set epochs=10
	for name in both without_herlev without_sipakmed; do \
	  into=docs/results/several_data_sets/$$name; mkdir -p $$into; \
	  (cd $(RUNS)/together/$$name && tar cf - --exclude='best_model.pth' --exclude='*.openings.jsonl' --exclude='report.html' .) | tar xf - -C $$into || exit 1; \
	done
	for pair in sipakmed:without_herlev herlev:without_sipakmed; do \
	  $(BIN)/cervicyte compare docs/results/several_data_sets/$${pair#*:}/$${pair%:*} docs/results/several_data_sets/both/$${pair%:*} \
	    --out docs/results/several_data_sets/$${pair%:*}_comparison.csv --force || exit 1; \
	done
	$(BIN)/python benchmarks/several_data_sets_table.py

learning-curve: setup ## what a few labelled cells of Herlev bring the shipped model, and what the classifier is best to read; 15 minutes
	$(BIN)/cervicyte learning-curve $(SHARED)/data/herlev --from shipped --cells 0,5,10,25,50 --draws 8 \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out docs/results/learning_curve
	$(BIN)/python benchmarks/few_cells_pooling.py $(SHARED)/data/herlev --out docs/results/few_cells_pooling

adapted-curve: setup ## the same on a model that is adapted first, in each draw anew; 15 minutes on a quiet core
	$(BIN)/cervicyte learning-curve $(SHARED)/data/herlev --from shipped --cells 0,5,10,25,50 --draws 8 --adapt \
	  --out docs/results/learning_curve_adapted

last-stage-curve: setup ## the same where the last stage learns too, on the model as it is and adapted first; 15 minutes on a quiet core
	$(BIN)/cervicyte learning-curve $(SHARED)/data/herlev --from shipped --cells 0,5,10,25 --draws 4 --last-stage \
	  --out docs/results/learning_curve_last_stage
	$(BIN)/cervicyte learning-curve $(SHARED)/data/herlev --from shipped --cells 0,25 --draws 4 --last-stage --adapt \
	  --out docs/results/learning_curve_adapted_last_stage

drawn-cells: folds ## how many drawn cells the shipped model and a fold's network recognise; 2 minutes
	$(BIN)/python benchmarks/drawn_cells.py --others $(RUNS)/folds/seed_0/fold_0/best_model.pth \
	  --out docs/results/model/drawn_cells.json

ablation: setup ## compare variants of the recipe on inner groups; 20 minutes a variant on one core, resumable
	$(BIN)/cervicyte ablate $(SHARED)/data/sipakmed recipes/plans/ablation.yaml --out docs/results/ablation --elsewhere $(SHARED)/data/herlev \
	  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors

# One process a fold trains all five at once on one GPU. The weights on all cells: `cervicyte release` with these folds.
ALL_STAGES = $(BIN)/cervicyte cross-validate $(SHARED)/data/sipakmed --recipe recipes/all-stages.yaml --set workers=3 \
  --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors --out $(RUNS)/all_stages_folds
all-stages: setup ## what it brings to train every stage, with its ablation; 10 minutes on a GPU, a day on two cores
	$(BIN)/cervicyte ablate $(SHARED)/data/sipakmed recipes/plans/all_stages.yaml --out docs/results/all_stages/ablation \
	  --elsewhere $(SHARED)/data/herlev --backbone $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors
	for fold in 0 1 2 3 4; do $(ALL_STAGES) --only-fold $$fold & done; wait
	$(ALL_STAGES)
	$(BIN)/cervicyte robustness $(RUNS)/all_stages_folds/seed_0/fold_* --data $(SHARED)/data/sipakmed --cells 700 \
	  --out docs/results/all_stages/robustness
	$(BIN)/cervicyte elsewhere $(RUNS)/all_stages_folds/seed_0/fold_* --data $(SHARED)/data/herlev --adapt 64,200 --draws 1 \
	  --out docs/results/all_stages/elsewhere
	mkdir -p docs/results/all_stages/folds
	for name in cross_validation.md cross_validation.json cross_validation.csv predictions.csv calibration.json; do \
	  cp $(RUNS)/all_stages_folds/$$name docs/results/all_stages/folds/ || exit 1; \
	done
	$(BIN)/python benchmarks/all_stages_page.py

audit: sipakmed ## what the explanations of the network of `make sipakmed` are worth; 50 minutes, resumable
	$(BIN)/cervicyte audit $(RUNS)/sipakmed/best_model.pth --data $(SHARED)/data/sipakmed \
	  --split $(RUNS)/sipakmed/split.csv --no-images --out $(RUNS)/audit --resume

benchmark: setup ## speed of training, explanation, inspection (100,000 cells: an hour), serving and inference
	$(BIN)/python benchmarks/training_speed.py --out benchmarks/results/training_speed.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/explanation_speed.py --rounds 7 \
	  --out benchmarks/results/explanation_speed.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/inspection_speed.py $(SHARED)/data/sipakmed \
	  --sizes 12500,100000 --out benchmarks/results/inspection_speed.json
	$(BIN)/python benchmarks/inspection_speed.py $(SHARED)/data/sipakmed \
	  --closer $(SHARED)/weights/resnet50_imagenet_v15_fp16.safetensors \
	  --out benchmarks/results/inspection_closer_speed.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serving_load.py --out benchmarks/results/serving_load.json
	$(BIN)/python benchmarks/inference_speed.py $(SHARED)/data/sipakmed --results benchmarks/results
	$(BIN)/python benchmarks/inference_memory.py --out benchmarks/results/inference_memory.json
	! $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || \
	  $(BIN)/python benchmarks/gpu_speed.py $(SHARED)/data/sipakmed --out benchmarks/results/gpu_speed.json
	$(BIN)/python benchmarks/predict_all.py $(SHARED)/data/sipakmed $(SHARED)/data/herlev \
	  --out benchmarks/results/predict_all.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,ray]'
	$(BIN)/python benchmarks/ray_speed.py $(SHARED)/data/sipakmed --price $(PRICES) --out benchmarks/results/ray_speed.json
	test ! -d $(RUNS)/folds/seed_0 || $(BIN)/python benchmarks/precision_loss.py $(RUNS)/folds/seed_0 --data $(SHARED)/data/sipakmed \
	  --out benchmarks/results/precision_loss.json
	test ! -d $(RUNS)/folds/seed_0 || $(BIN)/python benchmarks/precision_loss.py $(RUNS)/folds/seed_0 --data $(SHARED)/data/sipakmed \
	  --precision int8 --out benchmarks/results/precision_loss_int8.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/int8_cost.py --calibration $(SHARED)/data/sipakmed --images $(SHARED)/data/herlev \
	  --out benchmarks/results/int8_cost.json
	$(BIN)/python benchmarks/benchmarks_page.py

# SIPaKMeD's spacing is not published; the one given stands for yours.
EXPORT = $(BIN)/cervicyte export src/cervicyte/model/cervicyte.safetensors --force --images $(SHARED)/data/sipakmed_original_sample
parity: setup ## what exports of the shipped model differ by from torch, on real cells; 3 minutes
	$(EXPORT) --format onnx --out $(RUNS)/export_onnx/model.onnx
	$(EXPORT) --format openvino --out $(RUNS)/export_openvino
	$(EXPORT) --format torchscript --out $(RUNS)/export_torchscript/model.pt
	$(EXPORT) --format wsinfer --spacing 0.25 --out $(RUNS)/export_wsinfer
	for format in onnx openvino torchscript wsinfer; do \
	  cp $(RUNS)/export_$$format/*parity.json benchmarks/results/parity_$$format.json || exit 1; \
	done
	$(BIN)/python benchmarks/benchmarks_page.py

clean: ## remove what make has made, but no run
	rm -rf .venv .venv-lowest build dist site docs/python_modules .pytest_cache .mypy_cache .ruff_cache
