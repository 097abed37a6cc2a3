# A bare host that is reached like a real host: over ssh, as an unprivileged user with sudo.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends openssh-server \
    && apt-get clean \
    # Each host generates its own host keys at its first boot.
    && rm /etc/ssh/ssh_host_* \
    && mkdir /etc/systemd/system/ssh.service.d \
    && printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
        > /etc/systemd/system/ssh.service.d/keys.conf \
    # The authorized keys are mounted there.
    && printf 'AuthorizedKeysFile /etc/ssh/authorized_keys.d/%%u\nPasswordAuthentication no\n' > /etc/ssh/sshd_config.d/keys.conf \
    && useradd --create-home --shell /bin/bash admin \
    && echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin
