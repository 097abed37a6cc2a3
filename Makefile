# The entry points. `make help` lists them; README.md says which two matter.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Which hosts: the default is a container on this machine.
INVENTORY ?= inventory/local
PYTHON ?= python3
VENV := .venv
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
INSTALL = $(SUDO) apt-get update --quiet --quiet; $(SUDO) apt-get install --quiet --yes --no-install-recommends
PLAY = $(VENV)/bin/ansible-playbook --inventory $(INVENTORY)
# Runs a command on the first host of a group, with a terminal where there is one.
ON = $(VENV)/bin/python scripts/on_host.py --inventory $(INVENTORY)
# The environment and the account of a service, for a command of one's own.
AS_WORKER = $(ON) --unit prefect-worker prefect_worker

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# uv trusts the certificate authorities that this machine trusts.
export UV_SYSTEM_CERTS := true

##@ The platform
.PHONY: up down start-services teardown-services teardown-services-volumes rebuild-services rollback release-archive restart-services restart-prefect-worker
up: start-services run-etl service-status ## from nothing to loaded data: boot, converge, run the master flow, show it

start-services: $(VENV)/controller ## boot the local container (where the inventory has one) and converge
	@$(PLAY) containers/create.yml
	@$(PLAY) site.yml

down: $(VENV)/controller ## remove the local container; VOLUMES=1: its data too
	@$(PLAY) containers/destroy.yml $(if $(filter 1,$(VOLUMES)),--extra-vars container_remove_volumes=true)

teardown-services: $(VENV)/controller ## stop: the local container is removed, services on real hosts are stopped; data stays
ifeq ($(INVENTORY),inventory/local)
	@$(MAKE) down
else
	@$(PLAY) playbooks/stop.yml
endif

teardown-services-volumes: ## remove the local container and its data
	@$(MAKE) down VOLUMES=1

rebuild-services: $(VENV)/controller ## build this checkout as a release and let it serve
	@$(PLAY) playbooks/deploy.yml

rollback: $(VENV)/controller ## let the release before (or TO=id) serve again; CONFIRM=1 does not ask, DOWNGRADE=1 takes the schema back
	@$(PLAY) playbooks/rollback.yml $(if $(TO),--extra-vars rollback_to=$(TO)) $(if $(filter 1,$(CONFIRM)),--extra-vars rollback_confirmed=true) $(if $(filter 1,$(DOWNGRADE)),--extra-vars rollback_downgrade=true)

release-archive: $(VENV)/controller ## build this checkout and write it, with its environment, to one FILE=
	@$(PLAY) playbooks/release_archive.yml --extra-vars release_archive_file=$(abspath $(or $(FILE),biocirv.release))

restart-services: $(VENV)/controller ## restart or reload each service; flow runs go on
	@$(PLAY) playbooks/restart.yml

restart-prefect-worker: $(VENV)/controller ## restart the workers only
	@$(PLAY) playbooks/restart.yml --extra-vars restart_units=prefect-worker.service

##@ Looking and working
.PHONY: service-status status self-check login audit rotate-secrets service-logs logs run-etl deploy exec-prefect-worker shell exec-db access-db access-prefect-db rejected-rows export check-db-health backup restore
service-status: $(VENV)/controller ## one screen: is it well? JSON=1: the same for programs
	@mkdir -p .cache
	@$(PLAY) playbooks/status.yml --extra-vars status_file=$(CURDIR)/.cache/status.txt $(if $(filter 1,$(JSON)),--extra-vars status_format=json) >.cache/status.log || { cat .cache/status.log; exit 1; }
	@cat .cache/status.txt

status: service-status ## the same

self-check: $(VENV)/controller ## run a flow that writes a row and read that back; JSON, and an exit code; safe in production
	@mkdir -p .cache && rm -f .cache/self-check.json
	@$(PLAY) playbooks/self_check.yml --extra-vars self_check_file=$(CURDIR)/.cache/self-check.json >.cache/self-check.log || failed=1; \
		cat .cache/self-check.json || cat .cache/self-check.log; exit $${failed:-0}

login: $(VENV)/controller ## where the UI is, and what it asks for
	@$(PLAY) playbooks/login.yml

audit: $(VENV)/controller ## who deployed, rolled back or rotated what and when; who changed a schema or who may do what; SINCE=yesterday
	@$(PLAY) playbooks/audit.yml $(if $(SINCE),--extra-vars '{"audit_since": "$(SINCE)"}')

rotate-secrets: $(VENV)/controller ## new secrets, all or ONLY=name,name, while no flow runs
	@$(PLAY) playbooks/rotate_secrets.yml $(if $(ONLY),--extra-vars rotate_secrets=$(ONLY))

service-logs: $(VENV)/controller ## the services' journal; FOLLOW=1 follows it, UNIT=name shows one
	@$(ON) --journal "$(UNIT)" all $(if $(FOLLOW),--follow,--no-pager) --lines 200

logs: service-logs ## the same

run-etl: $(VENV)/controller ## run the master flow through its deployment and wait for it
	@$(PLAY) playbooks/run_etl.yml

DEPLOYMENT_NAME ?= master-etl-deployment
deploy: $(VENV)/controller ## register a deployment of prefect.yaml again: DEPLOYMENT_NAME=name
	@$(ON) --unit biocirv-deployments prefect_server python /opt/biocirv/bin/deploy.py --project /opt/biocirv/current/work --no-env-file $(DEPLOYMENT_NAME)

exec-prefect-worker: $(VENV)/controller ## a command (CMD=) as the worker runs flows: its account, environment and directory
	@$(AS_WORKER) $(or $(CMD),bash)

shell: exec-prefect-worker ## the same, for a shell

exec-db: $(VENV)/controller ## a command (CMD=) on the database's host, as postgres
	@$(ON) database runuser --user postgres -- $(or $(CMD),bash)

access-db: $(VENV)/controller ## psql in the application's database, as its owner
	@$(ON) --unit biocirv-migrations prefect_server psql

access-prefect-db: $(VENV)/controller ## psql in Prefect's database, as its owner
	@$(ON) --unit prefect-server prefect_server psql

REJECTED = SELECT flow, worksheet, row_number, column_name, value, reason FROM rejected_row JOIN etl_run ON etl_run.id = etl_run_id \
	WHERE etl_run_id IN (SELECT max(id) FROM etl_run WHERE status = 'completed' GROUP BY flow) ORDER BY etl_run_id, worksheet, row_number
rejected-rows: $(VENV)/controller ## the rows that each flow's last run did not load, and why
	@$(ON) --unit biocirv-migrations prefect_server psql --pset pager=off --command "$(REJECTED)"

export: $(VENV)/controller ## a table as CSV: make export TABLE=observation > observation.csv
	@$(if $(TABLE),,$(error Which table? As in make export TABLE=observation; make status lists them))
	@$(ON) database runuser --user postgres -- env PGOPTIONS=-crole=biocirv_read psql --no-psqlrc --quiet --dbname biocirv_db \
		--command 'COPY (SELECT * FROM "$(TABLE)") TO STDOUT (FORMAT csv, HEADER)'

check-db-health: $(VENV)/controller ## "accepting connections", or not
	@$(ON) database runuser --user postgres -- pg_isready

backup: $(VENV)/controller ## dump the databases into backups/ (or DIRECTORY=) on this machine
	@$(PLAY) playbooks/backup.yml $(if $(DIRECTORY),--extra-vars '{"backup_directory": "$(DIRECTORY)"}')

restore: $(VENV)/controller ## put the dump FILE= in the place of its database; CONFIRM=1 does not ask, MIGRATE=0 leaves it at its revision
	@$(PLAY) playbooks/restore.yml --extra-vars '{"restore_file": "$(FILE)"}' $(if $(filter 1,$(CONFIRM)),--extra-vars restore_confirmed=true) $(if $(filter 0,$(MIGRATE)),--extra-vars restore_migrate=false)

##@ Development
.PHONY: test test-all soak linux lint test-molecule test-browser package-lists zstd chromium vagrant libvirtd test-vagrant vagrant-image vagrant-box drill bench-converge bench-etl bench-runs lock variables help
# Parts run two at a time, for two cores, and what they print goes to .cache/tests; tests/suite/parts.py lists them.
SUITE = $(VENV)/bin/python -m tests.suite
RUN_SUITE = @programs=$$($(SUITE) --programs $(1)); [ -z "$$programs" ] || $(MAKE) $$programs; $(SUITE) $(1)
test: linux $(VENV)/dev ## prove it in a quarter of an hour: style, types, units, ETL, deploys, migrations, the life of one host
	$(call RUN_SUITE,quick)

test-all: linux $(VENV)/dev ## everything, in an hour: Debian 12, releases, drills, attacks, four hosts, conda packages, Vagrant, a browser
	$(call RUN_SUITE,all)

test-%: linux $(VENV)/dev ## one part of that: images, lint, unit, integration, worker, host, release, drills, secure, cluster, conda
	$(call RUN_SUITE,$*)

PART ?= host
TIMES ?= 5
soak: linux $(VENV)/dev ## run a part again and again and print how often it held: PART=host, TIMES=5; LOAD=1 keeps both cores busy
	$(call RUN_SUITE,$(PART) --times $(TIMES) $(if $(filter 1,$(LOAD)),--load))

linux:
	@[ "$$(uname)" = Linux ] || { echo "Tests reach containers by their addresses, which $$(uname) does not: run them on Linux." >&2; exit 1; }

lint: test-lint ## style and types

DEBIAN ?= 13
SCENARIO ?= default
test-molecule: $(VENV)/dev ## a scenario of molecule's: DEBIAN=12|13, SCENARIO=name
	DEBIAN=$(DEBIAN) MOLECULE_COMMAND_BORDERS=false molecule test --scenario-name $(SCENARIO)

drill: $(VENV)/dev ## break something on the hosts of INVENTORY under load, and count what is lost: NAME=kill-worker, or all; real hosts: CONFIRM=1
	DRILL_CONFIRMED=$(CONFIRM) pytest tests/drills --ansible-inventory $(INVENTORY) $(if $(NAME),-k '[$(NAME)]')

PROVIDER ?= docker
test-vagrant: $(VENV)/dev vagrant $(if $(filter libvirt,$(PROVIDER)),libvirtd) ## what the Vagrantfile boots, to the end: PROVIDER=docker|libvirt|virtualbox
	PROVIDER=$(PROVIDER) $(SUITE) vagrant

test-browser: $(VENV)/dev chromium ## Prefect's UI on the server of INVENTORY, in Debian's Chromium: SCREENSHOTS=directory
	SCREENSHOTS=$(SCREENSHOTS) pytest tests/browser --ansible-inventory $(INVENTORY)

# What tests need of the distribution.
PACKAGES_chromium = chromium fonts-dejavu-core
PACKAGES_libvirtd = vagrant-libvirt libvirt-daemon-system dnsmasq-base qemu-system-x86
package-lists:
	@ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 || { echo "Reading the lists of packages"; $(SUDO) apt-get update --quiet --quiet; }
zstd chromium vagrant libvirtd:
	@command -v $@ >/dev/null || { echo "Installing $@"; $(INSTALL) $(or $(PACKAGES_$@),$@); }

vagrant-image: $(VENV)/controller
	@$(PLAY) containers/ssh_image.yml

vagrant-box: $(VENV)/controller ## make a box for libvirt, biocirv/debian13, where no catalogue of boxes can be reached
	@mkdir -p .cache
	@$(PLAY) containers/box.yml
	vagrant box add --force --name biocirv/debian13 .cache/biocirv-debian13.box

bench-converge: $(VENV)/dev ## a shell script's time beside a first converge and one without changes, on one host and on four
	$(VENV)/bin/python benchmarks/converge.py

bench-etl: test-images ## the ETL's load beside raw COPY and an ORM, with up to a million rows
	$(VENV)/bin/python -m benchmarks.etl

bench-runs: $(VENV)/dev ## Prefect's worker as it comes beside ours, without and with forks; RUNS=, BURST=, MASTERS= for fewer runs
	$(VENV)/bin/python benchmarks/runs.py

COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
lock: $(VENV)/controller ## lock requirements/ anew from pyproject.toml; UPGRADE=1: to the newest versions
	$(COMPILE) $(if $(UPGRADE),--upgrade) --group builder --output-file requirements/builder.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) --group conda --output-file requirements/conda.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml --output-file requirements/application.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) --group controller --output-file requirements/controller.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml --group conda --group controller --group dev \
		--constraint requirements/application.txt --constraint requirements/controller.txt --output-file requirements/dev.txt
	cd tests/application && $(COMPILE) --no-emit-package soil-units --constraint ../../requirements/application.txt \
		libraries/soil-units/pyproject.toml libraries/soil-survey/pyproject.toml --output-file requirements.txt

variables: $(VENV)/controller ## write docs/variables.md anew from the roles' argument specs
	@$(VENV)/bin/python scripts/variables.py

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z%-]+:.*## / {sub("%", "PART", $$1); printf "  %-28s %s\n", $$1, $$2}' Makefile

# The controller's own environment: uv from a hashed lock by pip, everything else from hashed locks by uv.
$(VENV)/bin/uv: requirements/builder.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: name a newer one, as in \`make up PYTHON=python3.12\`." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Installing python3-venv"; $(INSTALL) python3-venv; }
	@echo "Making the environment $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement $<

$(VENV)/controller: requirements/controller.txt $(VENV)/bin/uv
	@echo "Installing Ansible into $(VENV) (half a minute)"
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --require-hashes --requirement $<
	@touch $@

$(VENV)/dev: requirements/dev.txt $(VENV)/controller
	@echo "Installing what tests need into $(VENV)"
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --require-hashes --requirement $<
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --offline --no-deps --editable .
	@touch $@
