// Package deploy is the configuration of the servers that spanflame runs beside: the Collector, Pyroscope,
// Tempo, Prometheus with its alert rules, Loki, and Grafana with its data sources and dashboards, as
// docker-compose.yml mounts them and package stack/servers runs them. It has no code: it is a package so that
// its tests can hold the compose file, the Dockerfile and these files against each other (what one names,
// another must have) wherever the tests run, without Docker. Nothing imports it, and it is not a production
// set-up: every server here is one process on a local disk.
package deploy
