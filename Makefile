# make help lists the targets. Every target makes and reuses .venv by itself.
#
#   RECIPE=recipes/e2e                a folder of YAMLs, one for each stage (default: recipes/tiny)
#   RUNS="runs/a runs/b"              what report, judge, chat, merge and push are about (default: runs/<recipe>/ppo)
#   ARGS="--learning_rate 1e-4"       settings for the stage, over those of the YAML
#   RESUME=1                          sft, reward, ppo, a2c, reinforce, grpo, rloo, dpo, ilql go on where they were stopped
#   NPROC=2                           that many processes: CPU unless HARDWARE says otherwise
#   HARDWARE=gpus                     recipes/accelerate/gpus.yaml; without it, one plain process
#   VENV=.venv  PYTHON=python3.12  EXTRAS=dev,quant,ja

RECIPE   ?= recipes/tiny
ARGS     ?=
NPROC    ?= 1
HARDWARE ?=
RESUME   ?=
VENV     ?= .venv
EXTRAS   ?= dev,quant,ja
PYTHON   ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The stages use each other's results and all cores: -j must not start them side by side.
.NOTPARALLEL:

PY      := $(VENV)/bin/python
RECIPE_ := $(patsubst %/,%,$(RECIPE))
RUN     := runs/$(notdir $(RECIPE_))

# --- the environment ------------------------------------------------------------------------------------------------
# The stamp says which folder and which extras were installed; a moved clone, other extras, a half-made or broken
# environment, a newer pyproject.toml or constraints.txt all lead to a new `pip install`.
STAMP     := $(VENV)/.plumbline
INSTALLED := $(CURDIR) [$(EXTRAS)]
ifneq ($(shell cat "$(STAMP)" 2>/dev/null && "$(PY)" -c "" 2>&1),$(INSTALLED))
$(STAMP): again
endif
.PHONY: again
again:

$(STAMP): pyproject.toml constraints.txt
	@set -e; rm -f "$(STAMP)"; \
	if ! "$(PY)" -m pip --version >/dev/null 2>&1; then \
	    if [ -e "$(VENV)" ] && [ -n "$$(ls -A "$(VENV)")" ] && [ ! -d "$(VENV)/lib" ] && [ ! -e "$(VENV)/pyvenv.cfg" ]; then \
	        echo "error: $(VENV) exists and is not a virtual environment; name another folder: make VENV=.venv2" >&2; exit 2; fi; \
	    for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python); do \
	        if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "error: no Python 3.11 or newer with the venv module was found; install one (Debian, Ubuntu: apt install python3 python3-venv)," >&2; \
	        echo "       or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; fi; \
	    echo "Making $(VENV) with $$("$$found" --version)"; \
	    rm -rf "$(VENV)"; "$$found" -m venv "$(VENV)"; \
	fi
	@echo "Installing the packages of constraints.txt into $(VENV) (a few minutes the first time)"
	@"$(PY)" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@printf '%s' "$(INSTALLED)" > "$(STAMP)"

.PHONY: help venv docs base sft reward ppo a2c reinforce grpo rloo dpo samples ilql seeds compare sweep report eval judge chat merge push screenshots test test-all test-cov test-deepspeed test-vllm test-trackers test-latest mutants torture soak fuzz audit bench bench-gpu gpu-check wheel lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@sed -n 's/^#   /  /p' $(MAKEFILE_LIST)

venv: $(STAMP)  ## .venv with the pinned packages (the other targets do this by themselves)

# --- the three stages -----------------------------------------------------------------------------------------------
# Hardware is a file of its own. With several CPU processes ACCELERATE_USE_CPU has to be set as well, because Accelerate
# does not hand `use_cpu` on to the processes: without it each one believes that it is alone.
ifneq ($(HARDWARE),)
HARDWARE_FILE := $(if $(findstring /,$(HARDWARE)),$(HARDWARE),recipes/accelerate/$(HARDWARE).yaml)
else ifneq ($(NPROC),1)
HARDWARE_FILE := recipes/accelerate/cpu2.yaml
endif
ifdef HARDWARE_FILE
LAUNCH := $(if $(findstring /cpu,$(HARDWARE_FILE)),ACCELERATE_USE_CPU=true )"$(PY)" recipes/launch.py \
          --config_file $(HARDWARE_FILE) $(if $(filter-out 1,$(NPROC)),--num_processes $(NPROC))
else
LAUNCH := "$(PY)"
endif

STAGES := sft sft_4bit sft_1_5b reward reward_4bit reward_1_5b reward_cpu reward_referee ppo ppo_stuffing ppo_4bit ppo_coverage ppo_1_5b a2c reinforce grpo rloo dpo ilql compare sweep eval
GO_ON  := $(if $(filter-out 0 no false,$(RESUME)),--resume)

# A recipe with a base.yaml has its base model and data made on the spot, once; the others name a model.
BASE := $(if $(wildcard $(RECIPE_)/base.yaml),$(RUN)/base/model.safetensors)

base: $(or $(BASE),$(STAMP))  ## the small base model and the data that a recipe makes on the spot; kept for the next run

$(RUN)/base/model.safetensors: | $(STAMP)
	"$(PY)" recipes/base.py --config $(RECIPE_)/base.yaml $(if $(filter $(STAGES),$(MAKECMDGOALS)),,$(ARGS))

sft: $(STAMP) | $(BASE)  ## stage 1: supervised fine-tuning, gives runs/<recipe>/sft
	$(LAUNCH) recipes/sft.py --config $(RECIPE_)/sft.yaml $(ARGS) $(GO_ON)

reward: $(STAMP) | $(BASE)  ## stage 2: the reward model, gives runs/<recipe>/reward
	$(LAUNCH) recipes/reward.py --config $(RECIPE_)/reward.yaml $(ARGS) $(GO_ON)

ppo: $(STAMP) | $(BASE)  ## stage 3: PPO against the rewards, gives runs/<recipe>/ppo and the report
	$(LAUNCH) recipes/ppo.py --config $(RECIPE_)/ppo.yaml $(ARGS) $(GO_ON)

sft_%: $(STAMP) | $(BASE)
	$(LAUNCH) recipes/sft.py --config $(RECIPE_)/$@.yaml $(ARGS) $(GO_ON)

reward_%: $(STAMP) | $(BASE)
	$(LAUNCH) recipes/reward.py --config $(RECIPE_)/$@.yaml $(ARGS) $(GO_ON)

ppo_%: $(STAMP) | $(BASE)
	$(LAUNCH) recipes/ppo.py --config $(RECIPE_)/$@.yaml $(ARGS) $(GO_ON)

a2c reinforce: $(STAMP) | $(BASE)
	$(LAUNCH) recipes/ppo.py --config $(RECIPE_)/$@.yaml $(ARGS) $(GO_ON)
a2c:  ## the same trainer with a critic, one epoch, no clipping, gives runs/<recipe>/a2c
reinforce:  ## the same trainer without a critic, gives runs/<recipe>/reinforce

grpo rloo: $(STAMP) | $(BASE)
	$(LAUNCH) recipes/$@.py --config $(RECIPE_)/$@.yaml $(ARGS) $(GO_ON)
grpo:  ## TRL's own GRPO on the same data and rewards, gives runs/<recipe>/grpo
rloo:  ## TRL's own RLOO on the same data and rewards, gives runs/<recipe>/rloo

dpo: $(STAMP) | $(BASE)  ## TRL's own DPO on the preference pairs, gives runs/<recipe>/dpo
	$(LAUNCH) recipes/dpo.py --config $(RECIPE_)/dpo.yaml $(ARGS) $(GO_ON)

# Completions of the SFT model, several of each prompt, made once: the data that Q-learning learns from.
SAMPLES := $(if $(wildcard $(RECIPE_)/sample.yaml),$(RUN)/samples.jsonl)

samples: $(or $(SAMPLES),$(STAMP))  ## completions of the SFT model as offline data, gives runs/<recipe>/samples.jsonl

$(RUN)/samples.jsonl: | $(STAMP) $(BASE)
	"$(PY)" recipes/sample.py --config $(RECIPE_)/sample.yaml

ilql: $(STAMP) | $(BASE) $(SAMPLES)  ## Q-learning on these completions, nothing is sampled, gives runs/<recipe>/ilql
	$(LAUNCH) recipes/ilql.py --config $(RECIPE_)/ilql.yaml $(ARGS) $(GO_ON)

SEEDS ?= 0 1 2
seeds: $(STAMP) | $(BASE)  ## the three stages with several seeds (SEEDS="0 1 2"), and a table of what came out
	"$(PY)" recipes/seeds.py $(RECIPE_) $(SEEDS) $(if $(LAST),--last $(LAST))

JOBS ?= 2
compare: $(STAMP) | $(BASE)  ## PPO against GRPO and RLOO, after sft and reward: SEEDS="0 1 2", JOBS=2 at once; table and curves
	"$(PY)" recipes/compare.py $(RECIPE_) --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

sweep: $(STAMP) | $(BASE)  ## which settings are best (Optuna): recipes/<recipe>/sweep.yaml, JOBS=2 at once; the same command goes on
	"$(PY)" recipes/sweep.py --config $(RECIPE_)/sweep.yaml --jobs $(JOBS) $(ARGS)

# --- what came out ----------------------------------------------------------------------------------------------------
RUNS ?= $(RUN)/ppo
ONE  := $(firstword $(RUNS))
# Beside a stage, ARGS are the stage's.
OWN  = $(if $(filter $(STAGES),$(MAKECMDGOALS)),,$(ARGS))

report: $(STAMP)  ## one page about a run, or several over each other: RUNS="runs/a runs/b"
	"$(PY)" -m pipeline.report $(RUNS) $(OWN)

eval: $(STAMP) | $(BASE)  ## base, SFT and PPO side by side with intervals and tests, gives runs/<recipe>/eval
	$(LAUNCH) recipes/eval.py --config $(RECIPE_)/eval.yaml $(if $(filter $(filter-out eval,$(STAGES)),$(MAKECMDGOALS)),,$(ARGS))

judge: $(STAMP)  ## people as judges: a local page with two completions, blind; gives runs/<recipe>/judged
	"$(PY)" recipes/judge.py --samples $(ONE)/samples.jsonl --output_dir $(RUN)/judged $(OWN)

chat: $(STAMP)  ## talk to base, SFT and PPO side by side in the terminal
	"$(PY)" -m pipeline.chat $(ONE) $(OWN)

merge: $(STAMP)  ## adapter and base as one whole model, gives runs/<recipe>/merged
	"$(PY)" recipes/merge.py --run $(ONE) --output $(dir $(ONE:/=))merged $(OWN)

push: $(STAMP)  ## a result to the Hub, private, after a dry run: REPO=account/name
	"$(PY)" recipes/push.py --run $(ONE) $(if $(REPO),--repo $(REPO)) $(OWN)

screenshots: $(STAMP)  ## pictures of the report for the README; needs Chromium
	"$(PY)" docs/screenshots.py $(ONE)/report.html

# Asked for together, they run in this order, however they were typed.
AFTER := report eval judge chat merge push screenshots
ifneq ($(filter sft,$(MAKECMDGOALS)),)
reward ppo a2c reinforce grpo rloo dpo ilql compare sweep $(RUN)/samples.jsonl $(AFTER): | sft
endif
ifneq ($(filter reward,$(MAKECMDGOALS)),)
ppo a2c reinforce grpo rloo dpo ilql compare sweep $(AFTER): | reward
endif
ifneq ($(filter ppo,$(MAKECMDGOALS)),)
$(AFTER): | ppo
endif

docs: $(STAMP)  ## the site of all documents, with search and the reference, gives site/index.html
	"$(PY)" docs/site/build.py $(OWN)

# --- tests and style ------------------------------------------------------------------------------------------------
PYTEST := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 "$(PY)" -m pytest
# Two processes, unless ARGS names test files. The tests of a file stay together, and with them what they share; files
# run in the order of their names, so that a long one does not come last.
TWO    := $(if $(findstring .py,$(ARGS)),,-n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder)

test: $(STAMP)  ## the tests, without those that take long; no network
	$(PYTEST) $(TWO) -m "not slow" $(ARGS)

test-all: $(STAMP)  ## every test, also the long ones and those with a real vLLM server, and the mutants
	$(PYTEST) $(ARGS)
	$(if $(ARGS),,$(MAKE) mutants)

test-deepspeed: $(STAMP)  ## the tests under ZeRO-2 and ZeRO-3, where DeepSpeed is installed
	$(PYTEST) tests/stages/test_launchers.py -k "deepspeed or zero2" $(ARGS)

test-vllm: $(STAMP)  ## rollouts and exams by a real vLLM server on the CPU, in .venv-vllm (made the first time: 3 GB)
	$(PYTEST) -rs tests/rollouts/test_vllm_real.py $(ARGS)

test-latest: $(STAMP)  ## the tests with the newest trl, transformers and kin, in .venv-latest; may fail, and says how
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$(PY)" tests/tools/latest.py $(ARGS)

test-trackers: $(STAMP)  ## the tests of trackers against trackio, Weights & Biases and MLflow themselves, in .venv-trackers
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 "$(PY)" tests/tools/trackers.py $(ARGS)

test-cov: $(STAMP)  ## the tests, with the lines that none of them runs; PPO and the rewards must have 95%
	$(PYTEST) $(TWO) -m "not slow" --cov --cov-report=term-missing $(ARGS)
	"$(PY)" -m coverage report --include="pipeline/ppo/*,rewards/*" --fail-under=95

mutants: $(STAMP)  ## small wrong edits to PPO, one at a time: the tests must catch each
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$(PY)" tests/tools/mutants.py $(ARGS)

torture: $(STAMP)  ## kills each stage at 20 random moments, goes on, compares the bits; one and two processes
	HF_HUB_OFFLINE=1 "$(PY)" tests/tools/torture.py $(ARGS)

soak: $(STAMP) | $(BASE)  ## 1,000 PPO updates on the small base: memory, handles and time must hold
	HF_HUB_OFFLINE=1 "$(PY)" tests/tools/soak.py $(if $(BASE),--model $(RUN)/base) --output runs/soak $(ARGS)

fuzz: $(STAMP)  ## loaders against 20,000 broken files: loaded or refused in one sentence, never anything else
	"$(PY)" tests/tools/fuzz.py $(ARGS)

audit: $(STAMP)  ## the pins against the list of known vulnerabilities (pip-audit, in .venv-audit); asks the network
	"$(PY)" tests/tools/audit.py $(ARGS)

bench: $(STAMP)  ## our PPO beside TRL 1.12's on the CPU, in turn; half an hour of an idle machine, gives runs/bench
	"$(PY)" -m tests.tools.bench $(ARGS)

bench-gpu: $(STAMP)  ## the same at 0.5B and 1.5B on a CUDA card, gives runs/bench-gpu
	"$(PY)" -m tests.tools.bench.gpu $(ARGS)

gpu-check: $(STAMP)  ## SFT, reward model and ten PPO updates of 135M and 0.5B on a CUDA card in 8 minutes, gives runs/gpu-check
	"$(PY)" -m tests.tools.gpu_check $(ARGS)

wheel: $(STAMP)  ## builds the wheel, and tries the command plumbline in an environment of its own, outside the clone
	.ci/try-wheel "$(PY)"

lint: $(STAMP)  ## style and simple mistakes (ruff), types (mypy)
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy

format: $(STAMP)  ## put the style right (ruff)
	"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .

clean:  ## remove caches and build leftovers; never runs/, never .venv
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.*
	find pipeline plumbline rewards recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
