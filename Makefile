# Entry points for users. `make help` lists them; README.md introduces the two most important ones.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The inventory; by default, a container on this machine.
INVENTORY ?= inventory/local
PYTHON ?= python3
VENV := .venv
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# apt-get's hundreds of lines appear only where it fails.
INSTALL = echo "Installing $(1)"; output=$$({ $(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(1); } 2>&1) \
	|| { echo "$$output"; exit 1; }
# Further options of ansible-playbook, such as --ask-become-pass, or -v for Ansible's own output.
OPTIONS ?=
PLAY = $(VENV)/bin/ansible-playbook --inventory $(INVENTORY) $(OPTIONS)
# Runs a command on the first host of a group, with a terminal if one is available.
ON = $(VENV)/bin/python scripts/on_host.py --inventory $(INVENTORY)
# The folder SHEETS as a playbook's variable. make puts its command line's variables into the environment, where spaces and quotes are
# harmless.
SHEETS_AS = --extra-vars "$$($(VENV)/bin/python -c 'import json, os; print(json.dumps({"$(1)": os.environ.get("SHEETS", "")}))')"
# Runs a command with the environment and the account of a service.
AS_WORKER = $(ON) --unit prefect-worker prefect_worker

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# uv trusts the certificate authorities that this machine trusts.
export UV_SYSTEM_CERTS := true
# Some images switch bytecode off. Without it, Ansible and Prefect take twice as long to start, each time.
unexport PYTHONDONTWRITEBYTECODE

##@ The platform
.PHONY: up down start-services teardown-services teardown-services-volumes rebuild-services rollback release-archive restart-services restart-prefect-worker
up: start-services run-etl service-status ## from nothing to loaded data: boot, converge, run the master flow, show it; SHEETS=folder with your sheets

start-services: $(VENV)/controller ## boot the local container (where the inventory has one) and converge
	@$(PLAY) containers/create.yml $(if $(SHEETS),$(call SHEETS_AS,container_sheets_folder))
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

rebuild-services: $(VENV)/controller ## build a release from this checkout and activate it
	@$(PLAY) playbooks/deploy.yml

rollback: $(VENV)/controller ## activate the previous release (or TO=id); CONFIRM=1 does not ask, DOWNGRADE=1 downgrades the schema
	@$(PLAY) playbooks/rollback.yml $(if $(TO),--extra-vars rollback_to=$(TO)) $(if $(filter 1,$(CONFIRM)),--extra-vars rollback_confirmed=true) $(if $(filter 1,$(DOWNGRADE)),--extra-vars rollback_downgrade=true)

release-archive: $(VENV)/controller ## build a release and write it, with its environment, to one FILE=
	@$(PLAY) playbooks/release_archive.yml --extra-vars release_archive_file=$(abspath $(or $(FILE),biocirv.release))

restart-services: $(VENV)/controller ## restart or reload each service; flow runs continue
	@$(PLAY) playbooks/restart.yml

restart-prefect-worker: $(VENV)/controller ## restart the workers only
	@$(PLAY) playbooks/restart.yml --extra-vars restart_units=prefect-worker.service

##@ Operation
.PHONY: service-status status doctor self-check login audit rotate-secrets service-logs logs sheets run-etl remove-rows remove-orphaned-rows deploy exec-prefect-worker shell exec-db access-db access-prefect-db rejected-rows orphaned-rows history export check-db-health backup restore base-backup backups restore-point restore-drill
service-status: $(VENV)/controller ## show the state of the platform; JSON=1 for programs
	@$(PLAY) playbooks/status.yml $(if $(filter 1,$(JSON)),--extra-vars status_format=json)

status: service-status ## the same

doctor: $(VENV)/controller ## collect what a helper would ask for into one file without secrets
	@$(PLAY) playbooks/doctor.yml

self-check: $(VENV)/controller ## run a flow of the platform that writes to the database; prints JSON, sets an exit code; safe in production
	@$(PLAY) playbooks/self_check.yml

login: $(VENV)/controller ## show the UI's address and its credentials
	@$(PLAY) playbooks/login.yml

audit: $(VENV)/controller ## show who deployed, rolled back, removed rows, restored or rotated, and changes of schemas and privileges; SINCE=yesterday
	@$(PLAY) playbooks/audit.yml $(if $(SINCE),--extra-vars '{"audit_since": "$(SINCE)"}')

rotate-secrets: $(VENV)/controller ## drain the work pool and generate new secrets, all or ONLY=name,name
	@$(PLAY) playbooks/rotate_secrets.yml $(if $(ONLY),--extra-vars rotate_secrets=$(ONLY))

service-logs: $(VENV)/controller ## show the services' journals of all hosts; FOLLOW=1 follows them, UNIT=name and HOST=name select one
	@$(ON) --journal "$(UNIT)" $(or $(HOST),all) $(if $(FOLLOW),--follow,--no-pager) --lines 200

logs: service-logs ## the same

sheets: $(VENV)/controller ## copy the sheets of a folder to the workers, if every flow could run with them: SHEETS=folder; FORCE=1 copies all the same
	@$(PLAY) playbooks/sheets.yml $(call SHEETS_AS,sheets_folder)$(if $(filter 1,$(FORCE)), --extra-vars sheets_force=true)

run-etl: $(VENV)/controller ## run the master flow through its deployment and wait for it
	@$(PLAY) playbooks/run_etl.yml

remove-rows: $(VENV)/controller ## empty the tables that flows load, after a dump of them; CONFIRM=1 does not ask
	@$(PLAY) playbooks/remove_rows.yml $(if $(filter 1,$(CONFIRM)),--extra-vars remove_rows_confirmed=true)

remove-orphaned-rows: $(VENV)/controller ## remove rows that no worksheet names: TABLE=observation ROWS=12,15 (or all); CONFIRM=1 does not ask
	@$(if $(and $(TABLE),$(ROWS)),,$(error Which rows? As in make remove-orphaned-rows TABLE=observation ROWS=12,15; make orphaned-rows lists them))
	@$(PLAY) playbooks/remove_orphaned_rows.yml --extra-vars '{"orphaned_rows_table": "$(TABLE)", "orphaned_rows": "$(ROWS)"}' $(if $(filter 1,$(CONFIRM)),--extra-vars orphaned_rows_confirmed=true)

DEPLOYMENT_NAME ?= master-etl-deployment
deploy: $(VENV)/controller ## register a deployment of prefect.yaml again: DEPLOYMENT_NAME=name
	@$(ON) --unit biocirv-deployments prefect_server python /opt/biocirv/bin/deploy.py --project /opt/biocirv/current/work --no-env-file $(DEPLOYMENT_NAME)

exec-prefect-worker: $(VENV)/controller ## run CMD= with the account, environment and working directory of flows
	@$(AS_WORKER) $(or $(CMD),bash)

shell: exec-prefect-worker ## open a shell in the same way

exec-db: $(VENV)/controller ## run CMD= on the database's host, as postgres
	@$(ON) database runuser --user postgres -- $(or $(CMD),bash)

access-db: $(VENV)/controller ## open psql in the application's database, as its owner
	@$(ON) --unit biocirv-migrations prefect_server psql

access-prefect-db: $(VENV)/controller ## open psql in Prefect's database, as its owner
	@$(ON) --unit prefect-server prefect_server psql

REJECTED = SELECT flow, worksheet, row_number, column_name, value, reason FROM rejected_row JOIN etl_run ON etl_run.id = etl_run_id \
	WHERE etl_run_id IN (SELECT max(id) FROM etl_run WHERE status = 'completed' \
	OR id IN (SELECT etl_run_id FROM rejected_row) GROUP BY flow) ORDER BY etl_run_id, worksheet, row_number
rejected-rows: $(VENV)/controller ## list the rows that each flow's last run rejected, with reasons
	@$(ON) --unit biocirv-migrations prefect_server psql --pset pager=off --command "$(REJECTED)"

PROVENANCE = $(ON) --unit biocirv-migrations prefect_server python -m ca_biositing.pipeline.provenance
orphaned-rows: $(VENV)/controller ## list the rows of the tables that no worksheet names (any longer); TABLE=observation lists all of one table
	@$(PROVENANCE) orphans $(TABLE)

# The key comes from the environment, where make puts its command line's variables: it may hold any character.
history: $(VENV)/controller ## show what a row was, and what changed it: TABLE=observation KEY='BIO-AH-001, EXP-001, Ash, % dry basis, 1'
	@$(if $(and $(TABLE),$(KEY)),,$(error Of which row? As in make history TABLE=field_sample KEY=BIO-AH-001))
	@$(PROVENANCE) history "$(TABLE)" "$$KEY"

export: $(VENV)/controller ## export a table as CSV: make export TABLE=observation > observation.csv
	@$(if $(TABLE),,$(error Which table? As in make export TABLE=observation; make status lists them))
	@$(ON) --unit biocirv-migrations prefect_server psql --no-psqlrc --quiet \
		--command 'COPY (SELECT * FROM "$(subst .,".",$(TABLE))") TO STDOUT (FORMAT csv, HEADER)'

check-db-health: $(VENV)/controller ## check whether PostgreSQL accepts connections
	@$(ON) database runuser --user postgres -- pg_isready

backup: $(VENV)/controller ## dump the databases into backups/ (or DIRECTORY=) on this machine
	@$(PLAY) playbooks/backup.yml $(if $(DIRECTORY),--extra-vars '{"backup_directory": "$(DIRECTORY)"}')

base-backup: $(VENV)/controller ## make a base backup now; any second from the first one on can be restored
	@$(PLAY) playbooks/base_backup.yml

backups: $(VENV)/controller ## show base backups, since when any second can be restored, restore points, and the last drill
	@$(PLAY) playbooks/backups.yml

restore-point: $(VENV)/controller ## name this moment, for a later restore TO=name: NAME=before-cleanup
	@$(PLAY) playbooks/restore_point.yml --extra-vars '{"restore_point_name": "$(NAME)"}'

restore-drill: $(VENV)/controller ## restore everything aside, check and compare it, and remove it; the weekly timer does the same
	@$(PLAY) playbooks/restore_drill.yml

# A moment as a playbook's variable, in which spaces and quotes are harmless.
TO_AS = --extra-vars "$$($(VENV)/bin/python -c 'import json, os; print(json.dumps({"restore_to": os.environ.get("TO", "")}))')"
restore: $(VENV)/controller ## bring biocirv_db back to TO=2026-11-29T10:00:00Z, TO=restore-point or TO=latest (CHECK=1 only compares, DATABASE=all restores the whole cluster), or a database to its dump FILE=; CONFIRM=1 does not ask, MIGRATE=0 keeps its revision
ifeq ($(CHECK),1)
	@$(PLAY) playbooks/restore_check.yml $(TO_AS)
else
	@$(PLAY) playbooks/$(if $(filter all,$(DATABASE)),restore_all,restore).yml $(if $(TO),$(TO_AS),--extra-vars '{"restore_file": "$(FILE)"}') $(if $(filter 1,$(CONFIRM)),--extra-vars restore_confirmed=true) $(if $(filter 0,$(MIGRATE)),--extra-vars restore_migrate=false)
endif

##@ Development
.PHONY: test test-all soak linux lint test-molecule test-browser package-lists zstd chromium vagrant libvirtd test-vagrant vagrant-image vagrant-box drill bench-converge bench-etl bench-restore bench-runs lock variables help
# Two parts run in parallel, for two cores, and write their output to .cache/tests; tests/suite/parts.py lists them.
SUITE = $(VENV)/bin/python -m tests.suite
RUN_SUITE = @programs=$$($(SUITE) --programs $(1)); [ -z "$$programs" ] || $(MAKE) $$programs; $(SUITE) $(1)
test: linux $(VENV)/dev ## test in a quarter of an hour: style, types, units, ETL, deployments, migrations, the life cycle of one host
	$(call RUN_SUITE,quick)

test-all: linux $(VENV)/dev ## test everything in an hour: also Debian 12, releases, drills, attacks, four hosts, conda packages, Vagrant, a browser
	$(call RUN_SUITE,all)

test-%: linux $(VENV)/dev ## test one part: images, lint, unit, integration, worker (PREFECT=3.7.2 or newest), host, release, drills, secure, cluster, conda, project
	$(call RUN_SUITE,$* $(if $(PREFECT),--prefect $(PREFECT)))

PART ?= host
TIMES ?= 5
soak: linux $(VENV)/dev ## repeat a part and print how often it passed: PART=host, TIMES=5; LOAD=1 keeps both cores busy
	$(call RUN_SUITE,$(PART) --times $(TIMES) $(if $(filter 1,$(LOAD)),--load))

linux:
	@[ "$$(uname)" = Linux ] || { echo "Tests reach containers by their addresses, which $$(uname) does not: run them on Linux." >&2; exit 1; }

lint: test-lint ## check style and types

DEBIAN ?= 13
SCENARIO ?= default
test-molecule: $(VENV)/dev ## run a molecule scenario: DEBIAN=12|13, SCENARIO=name
	DEBIAN=$(DEBIAN) MOLECULE_COMMAND_BORDERS=false molecule test --scenario-name $(SCENARIO)

drill: $(VENV)/dev ## break something on the hosts of INVENTORY under load, and count losses: NAME=kill-worker, or all; real hosts: CONFIRM=1
	DRILL_CONFIRMED=$(CONFIRM) pytest tests/drills --ansible-inventory $(INVENTORY) $(if $(NAME),-k '[$(NAME)]')

PROVIDER ?= docker
test-vagrant: $(VENV)/dev vagrant $(if $(filter libvirt,$(PROVIDER)),libvirtd) ## test the Vagrantfile: PROVIDER=docker|libvirt|virtualbox
	PROVIDER=$(PROVIDER) $(SUITE) vagrant

test-browser: $(VENV)/dev chromium ## test Prefect's UI on the server of INVENTORY, in Debian's Chromium: SCREENSHOTS=directory
	SCREENSHOTS=$(SCREENSHOTS) pytest tests/browser --ansible-inventory $(INVENTORY)

# Packages of the distribution that tests need.
PACKAGES_chromium = chromium fonts-dejavu-core
PACKAGES_libvirtd = vagrant-libvirt libvirt-daemon-system dnsmasq-base qemu-system-x86
package-lists:
	@ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1 || { echo "Reading the lists of packages"; $(SUDO) apt-get update --quiet --quiet; }
zstd chromium vagrant libvirtd:
	@command -v $@ >/dev/null || { $(call INSTALL,$(or $(PACKAGES_$@),$@)); }

vagrant-image: $(VENV)/controller
	@$(PLAY) containers/ssh_image.yml

vagrant-box: $(VENV)/controller ## create a box for libvirt, biocirv/debian13, without access to a catalogue of boxes
	@mkdir -p .cache
	@$(PLAY) containers/box.yml
	vagrant box add --force --name biocirv/debian13 .cache/biocirv-debian13.box

bench-converge: $(VENV)/dev ## compare the time of converges (first, and without changes; one host, and four) with a shell script's
	$(VENV)/bin/python benchmarks/converge.py

bench-etl: test-images ## compare the ETL's load of up to a million rows with raw COPY and an ORM; ARCHIVING=1: without and with archiving of WAL
	$(VENV)/bin/python -m benchmarks.etl$(if $(filter 1,$(ARCHIVING)), --archiving)

bench-restore: test-images ## measure what a mistake and a lost disk cost, RPO and RTO, with the database of `make up` and one of GIGABYTES=2; DEBIAN=12
	$(VENV)/bin/python -m benchmarks.restore

bench-runs: $(VENV)/dev ## compare Prefect's own worker with ours, without and with forks; RUNS=, BURST=, MASTERS= for fewer runs
	$(VENV)/bin/python benchmarks/runs.py

COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
LOCK = $(VENV)/bin/python scripts/lock.py $(if $(UPGRADE),--upgrade)
lock: $(VENV)/controller ## regenerate the locks in requirements/ from pyproject.toml; PROJECT=path: lock another project, into FILE= or the inventory's requirements.txt; UPGRADE=1: with the newest versions
ifneq ($(PROJECT),)
	@$(LOCK) --output "$(or $(FILE),$(INVENTORY)/requirements.txt)" "$(PROJECT)" $(PACKAGES)
else
	$(COMPILE) $(if $(UPGRADE),--upgrade) --group builder --output-file requirements/builder.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) --group conda --output-file requirements/conda.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml --output-file requirements/application.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) --group controller --output-file requirements/controller.txt
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml --group conda --group controller --group dev \
		--constraint requirements/application.txt --constraint requirements/controller.txt --output-file requirements/dev.txt
	@$(LOCK) --constraint requirements/application.txt --output tests/application/requirements.txt tests/application
endif

variables: $(VENV)/controller ## regenerate docs/variables.md from the roles' argument specs
	@$(VENV)/bin/python scripts/variables.py

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z%-]+:.*## / {sub("%", "PART", $$1); printf "  %-28s %s\n", $$1, $$2}' Makefile

# The controller's own environment: pip installs uv from a hashed lock, and uv installs everything else from hashed locks.
$(VENV)/bin/uv: requirements/builder.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: name a newer one, as in \`make up PYTHON=python3.12\`." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call INSTALL,python3-venv); }
	@echo "Making the environment $(VENV)"
	@[ ! -L $(VENV) ] || { echo "$(VENV) is a link: remove it, so that this checkout gets an environment of its own." >&2; exit 1; }
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
