// Package deploy has the configuration of the servers of the pipeline: the Collector, Pyroscope, Tempo, Prometheus
// with its alert rules, Alertmanager, Loki, and Grafana with its data sources and dashboards. docker-compose.yml mounts these
// files, and package stack/servers uses them too. The package has no code: its tests check, without Docker, that
// the compose file, the Dockerfile and these files agree. Nothing imports it. It is not a production set-up: every
// server is one process on a local disk.
package deploy
