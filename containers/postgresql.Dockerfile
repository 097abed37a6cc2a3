# The distribution's PostgreSQL without systemd, for tests with a disposable server.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends pgbackrest postgresql \
    && apt-get clean
# No data must survive a test, so that no write has to wait for a disk.
RUN cd /etc/postgresql/*/main \
    && printf "listen_addresses = '*'\nfsync = off\nfull_page_writes = off\n" > conf.d/test.conf \
    && echo 'host all all all scram-sha-256' >> pg_hba.conf
USER postgres
STOPSIGNAL SIGINT
CMD ["/bin/sh", "-c", "exec pg_ctlcluster --foreground $(pg_lsclusters --no-header | awk '{print $1, $2}') start"]
