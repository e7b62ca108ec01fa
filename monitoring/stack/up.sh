#!/usr/bin/env bash
# Starts monitoring on this host, on loopback: Prometheus, Alertmanager and, where docker is, Grafana.
#
#   monitoring/stack/up.sh [--targets FOLDER] [--data FOLDER]
#
#   --targets FOLDER   lists of targets, as the cluster file's metrics.targets_folder has them
#   --data FOLDER      what Prometheus and Alertmanager keep when docker is missing
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
targets="$here/targets"
data="${XDG_STATE_HOME:-${HOME:?}/.local/state}/vpred-monitoring"

fail() {
    echo "up.sh: $1" >&2
    exit 2
}

while (($#)); do
    case "$1" in
        --targets | --data)
            [[ -n "${2:-}" ]] || fail "$1 needs a folder"
            declare "${1#--}=$(realpath -m -- "$2")"
            shift 2
            ;;
        --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "does not know $1; --help lists the options" ;;
    esac
done
mkdir -p -- "$targets/npu" "$targets/node" || fail "$targets: cannot be made; name another folder with --targets"

if docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
    [[ -n "${GRAFANA_PASSWORD:-}" ]] || fail "set GRAFANA_PASSWORD to the password that Grafana's user admin shall have"
    VPRED_TARGETS="$targets" docker compose --file "$here/docker-compose.yml" up --detach
    echo "Grafana: http://127.0.0.1:3000 (user admin). Prometheus: http://127.0.0.1:9090."
    echo "docker compose --file $here/docker-compose.yml down ends them."
    exit 0
fi

for program in prometheus prometheus-alertmanager; do
    command -v "$program" >/dev/null \
        || fail "found neither docker compose nor $program; install docker, or Debian's prometheus and prometheus-alertmanager"
done
mkdir -p -- "$data/config" || fail "$data: cannot be made; name another folder with --data"
cp -r -- "$here/prometheus.yml" "$here/alertmanager.yml" "$here/rules" "$data/config/"
ln -sfn -- "$targets" "$data/config/targets"

children=()
end() {
    trap - EXIT INT TERM
    kill -- "${children[@]}" 2>/dev/null || true
    wait
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

prometheus-alertmanager --config.file="$data/config/alertmanager.yml" --storage.path="$data/alertmanager" \
    --web.listen-address=127.0.0.1:9093 --cluster.listen-address= --log.level=warn &
children+=($!)
prometheus --config.file="$data/config/prometheus.yml" --storage.tsdb.path="$data/prometheus" \
    --storage.tsdb.retention.time=60d --web.listen-address=127.0.0.1:9090 --log.level=warn &
children+=($!)

echo "Prometheus: http://127.0.0.1:9090, with the alerts at /alerts. Alertmanager: http://127.0.0.1:9093."
echo "Docker is missing, so there is no Grafana. \`vpred-launch serve FOLDER\` shows runs at http://127.0.0.1:9399/."
echo "Data lies in $data. Ctrl-C ends both."
status=0
wait -n || status=$?
fail "one of them ended with code $status; see the lines above"
