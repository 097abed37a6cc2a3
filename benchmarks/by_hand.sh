#!/bin/sh
# Installs by shell commands what a converge installs: the baseline of `make bench-converge`. Argument: the source.
# Do not use it to install the platform: it has no checks, no idempotence and no hardening.
set -eu
source=$1
export DEBIAN_FRONTEND=noninteractive PIP_CERT=/etc/ssl/certs/ca-certificates.crt UV_SYSTEM_CERTS=true
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

update-ca-certificates >/dev/null
apt-get update -qq
mkdir -p /etc/postgresql-common/createcluster.d
printf "create_main_cluster = false\ninitdb_options = '--data-checksums --locale=C.UTF-8 --encoding=UTF8'\n" \
    >/etc/postgresql-common/createcluster.d/biocirv.conf
apt-get install -qq --no-install-recommends acl ca-certificates curl postgresql-client tzdata postgresql python3-venv >/dev/null

version=$(ls /usr/lib/postgresql)
pg_createcluster "$version" main >/dev/null
systemctl start "postgresql@$version-main"
runuser -u postgres -- psql -qc "CREATE ROLE biocirv_user LOGIN PASSWORD 'benchmark'" -c "CREATE ROLE prefect_user LOGIN PASSWORD 'benchmark'" \
    -c "CREATE DATABASE biocirv_db OWNER biocirv_user" -c "CREATE DATABASE prefect_db OWNER prefect_user"

for account in prefect-server prefect-worker biocirv; do
    useradd --system --home-dir "/var/lib/$account" --create-home --shell /usr/sbin/nologin "$account"
done
mkdir -p /opt/biocirv/release
cp -r "$source" /opt/biocirv/release/app
cd /opt/biocirv/release
python3 -m venv /opt/biocirv/builder
/opt/biocirv/builder/bin/pip install -q --disable-pip-version-check --require-hashes -r app/requirements/builder.txt
/opt/biocirv/builder/bin/uv venv -q --python /usr/bin/python3 env
/opt/biocirv/builder/bin/uv pip install -q --python env/bin/python --require-hashes --compile-bytecode -r app/requirements/application.txt
/opt/biocirv/builder/bin/uv pip install -q --python env/bin/python --offline --no-deps --compile-bytecode ./app
env/bin/python -m compileall -q app

cat >/etc/biocirv.env <<EOF
DATABASE_URL=postgresql+psycopg2://biocirv_user:benchmark@127.0.0.1/biocirv_db
ETL_SOURCE_DIRECTORY=/opt/biocirv/release/app/data/sample
PREFECT_API_URL=http://127.0.0.1:4200/api
PREFECT_SERVER_ANALYTICS_ENABLED=false
PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://prefect_user:benchmark@127.0.0.1/prefect_db
PREFECT_SERVER_DATABASE_MIGRATE_ON_START=false
EOF
for service in server worker; do
    command=$([ "$service" = server ] && echo "server start" || echo "worker start --pool biocirv_dev_work_pool --type process")
    cat >"/etc/systemd/system/prefect-$service.service" <<EOF
[Service]
User=prefect-$service
EnvironmentFile=/etc/biocirv.env
Environment=PREFECT_UI_STATIC_DIRECTORY=/var/lib/prefect-$service/ui
WorkingDirectory=/opt/biocirv/release/app
ExecStart=/opt/biocirv/release/env/bin/prefect $command
[Install]
WantedBy=multi-user.target
EOF
done
set -a
# shellcheck source=/dev/null
. /etc/biocirv.env
set +a
(cd app && ../env/bin/alembic upgrade head)
env/bin/prefect server database upgrade --yes
systemctl daemon-reload
systemctl enable -q --now prefect-server
curl -fsS -o /dev/null --retry 120 --retry-delay 1 --retry-all-errors http://127.0.0.1:4200/api/ready
systemctl enable -q --now prefect-worker
(cd app && ../env/bin/python deploy.py --no-env-file master-etl-deployment)
