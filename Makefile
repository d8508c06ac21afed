# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup test test-all lint test-pure test-unit test-screens test-thorough test-kernel test-install test-deploy test-core test-kernels kernel-support generate screenshots tour bench bench-reference bench-quick bench-cluster bench-exporters bench-fuzz bench-soak explore deb offline fresh-root lock clean

bin := .venv/bin
uid := $(shell id -u)
# Raise only what needs root, and under `sudo make` leave no root-owned files in somebody's checkout.
sudo := $(if $(filter-out 0,$(uid)),sudo)
# As root itself: called through sudo, nettop opens files as who called it.
as_root := $(sudo) env -u SUDO_UID
as_user := $(if $(filter 0,$(uid)),$(if $(SUDO_USER),sudo -u $(SUDO_USER)))
pytest := $(bin)/python -B -m pytest
# One more than two CPUs keep busy, since some tests wait. Without -B: what pytest compiles is there the next time.
pytest_parallel := $(bin)/python -m pytest --numprocesses 3
# One after the other, since they measure the machine; without plugins that no kernel test needs.
pytest_kernel := $(pytest) -p no:cacheprovider -p no:syrupy -p no:textual-snapshot -p no:xdist

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## system packages, /opt/nettop and .venv
	$(sudo) scripts/install-deps.sh --dev

test: lint test-pure test-core ## what every commit passes, in minutes; test-core needs root and uses sudo

test-all: lint test-thorough test-kernel ## all but test-install and test-deploy, half an hour; test-kernel uses sudo

lint: ## formats, types, layers, C and shell
	$(as_user) $(bin)/ruff check .
	$(as_user) $(bin)/ruff format --check .
	$(as_user) $(bin)/mypy
	$(as_user) $(bin)/lint-imports
	find nettop -name '*.bpf.[ch]' -exec clang-format --dry-run -Werror {} +
	if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; fi

test-pure: ## test-unit and test-screens in one run; no root
	$(as_user) $(pytest_parallel) -m 'not kernel and not thorough'

test-unit: ## pure code, contracts and documents; no root
	$(as_user) $(pytest_parallel) -m 'not kernel and not thorough' --ignore=tests/screens

test-screens: ## the screens against their screenshots; no root
	$(as_user) $(pytest_parallel) -m 'not kernel and not thorough' tests/screens

test-thorough: ## test-pure with its long tests, and three times as many random examples; no root
	$(as_user) env NETTOP_PROPERTY_TESTS=thorough $(pytest_parallel) -m 'not kernel'

test-kernel: ## real sockets on the running kernel; root
	$(as_root) $(pytest_kernel) -m 'kernel and not install and not deploy'

test-install: ## scripts/install-deps.sh, killed at 20 moments too; root
	$(as_root) $(pytest_kernel) -m 'kernel and install'

test-deploy: ## the image, the packages and the services of deploy/, built and run; root, buildah, lintian
	$(as_root) $(pytest_kernel) -m 'kernel and deploy'

test-core: ## each lens beside its oracle, on any kernel: the short part of test-kernel; root
	$(as_root) $(pytest_kernel) -m 'kernel and (core or oracle)'

test-kernels: ## the core on this kernel and on Debian's, in virtual machines; root
	$(as_root) $(bin)/python -B scripts/test-kernels.py

kernel-support: ## test-kernels, and writes docs/reference/kernels.md; root
	$(as_root) $(bin)/python -B scripts/test-kernels.py --write-docs

generate: ## docs/reference but kernels.md, deploy/grafana/dashboards, and docs/screenshots
	$(as_user) $(bin)/python -B scripts/generate.py
	$(as_user) $(bin)/python -B scripts/dashboards.py
	$(as_user) $(bin)/python -B scripts/screenshots.py
	$(as_user) $(bin)/python -B scripts/animation.py
	$(as_user) $(bin)/python -B scripts/pictures.py

tour: ## docs/screenshots/tour-*.svg, of real traffic; root
	$(as_root) $(bin)/python -B scripts/tour.py

screenshots: ## every view at five sizes, dark and light, in build/screenshots: SVG, and PNG by rsvg-convert
	$(as_user) $(bin)/python -B scripts/screenshots.py --every-size build/screenshots

bench: ## docs/benchmarks.md with its plots, in half an hour on a quiet machine; root, cc, iperf3, redis, nginx, wrk; ONLY=names
	$(as_root) $(bin)/python -B bench/run.py $(ONLY)
	$(as_user) $(bin)/python -B bench/page.py

bench-reference: ## bench/results/reference.json: the same of older commits; root
	$(as_root) $(bin)/python -B bench/run.py --reference $(ONLY)
	$(as_user) $(bin)/python -B bench/page.py

bench-quick: ## every benchmark small and briefly, to see that it works; root
	$(as_root) $(bin)/python -B bench/run.py --quick $(ONLY)

bench-exporters: ## real exporters, beside what nfdump has of them; root, softflowd, pmacct, nfdump
	$(as_root) $(bin)/python -B bench/exporters.py

bench-cluster: ## flows in two ClickHouse shards, one of which is killed; zookeeper
	$(as_user) $(bin)/python -B bench/cluster.py

bench-fuzz: ## floods of datagrams against nettop collect, and ten minutes of fuzzing its decoder; root, atheris
	$(as_root) $(bin)/python -B bench/fuzz.py floods
	$(as_root) $(bin)/python -B bench/fuzz.py guided --seconds 600

bench-soak: ## an hour of every frontend beside names that come and go by the thousand; root, prometheus
	$(as_root) $(bin)/python -B bench/soak.py

explore: ## keys, command lines, and interfaces and sockets that come and go, at random, for an hour; root
	$(as_root) $(bin)/python -B bench/explore.py $(PARTS)

deb: ## dist/nettop_*.deb for the release that this is; with FLOWS=1 nettop-flows_*.deb too; debhelper
	$(as_user) scripts/packages.sh deb $(if $(FLOWS),--flows)

offline: ## dist/nettop-*-offline-*.tar.gz, for machines that reach no package index; FLOWS=1
	$(as_user) scripts/packages.sh offline $(if $(FLOWS),--flows)

fresh-root: ## install and test in fresh Debian 12 and 13, as root and as a user with sudo; root
	for suite in bookworm trixie; do for user in root user; do \
	  $(as_root) scripts/fresh-root.sh --suite $$suite --as $$user || exit; done; done

# For Python 3.11 and later and any processor. numpy is the distribution's, like bcc.
lock := $(as_user) $(bin)/uv pip compile --quiet --universal --python-version=3.11 --only-binary=:all: --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package numpy $(if $(UPGRADE),--upgrade)

# The largest set first, so that a package has one version in all files; build.txt has what builds and installs nettop.
lock: ## requirements/, with the versions that there are: UPGRADE=1 takes the newest
	sed -n 's/^requires = \["\(.*\)"\]/\1\npip\neditables/p' pyproject.toml | $(lock) --output-file=requirements/build.txt -
	$(lock) --output-file=requirements/dev.txt --extra=dev pyproject.toml
	for extra in flows serve; do \
	  $(lock) --output-file=requirements/$$extra.txt --constraint requirements/dev.txt --extra=$$extra pyproject.toml \
	  || exit; done

clean: ## caches and built files, not .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache snapshot_report.html
	find nettop tests bench -name __pycache__ -prune -exec rm -rf {} +
