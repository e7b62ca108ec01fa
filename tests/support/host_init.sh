#!/bin/sh
# Process 1 of one host of hosts.py, in namespaces of its own: host_init.sh NAME ADDRESS FOLDER HOME [sshd]
# Private to the host: name, addresses, processes, /dev/shm, /run (with TMPDIR), ~/.ssh. Everything else is shared.
set -eu
name=$1 address=$2 folder=$3 home=$4 sshd=$5

echo "$name" >/proc/sys/kernel/hostname
mount --make-rprivate /
mount --bind "$folder/hosts" /etc/hosts
mkdir -p "$home/.ssh"
mount --bind "$folder/dot-ssh" "$home/.ssh"
[ ! -f "$home/.bashrc" ] || mount --bind /dev/null "$home/.bashrc"
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
# Open MPI's daemon names its folder after its pid, and pids repeat here: the folder must be empty at boot.
mkdir -p /run/sshd /run/lock && mkdir -m 1777 /run/tmp
ip link set lo up
# The cable is plugged in from outside.
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add "$address/24" dev eth0
ip link set eth0 up
[ -z "$sshd" ] || /usr/sbin/sshd -D -e -f "$folder/sshd_config" &
echo ready
trap 'exit 0' TERM
# Not exec: this shell reaps the orphans of the host.
while :; do
    sleep 3600 &
    wait $! || true
done
