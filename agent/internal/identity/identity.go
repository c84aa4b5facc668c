// Package identity has the resource attributes that identify a service on all its signals: they are labels of its
// profiles, its metrics and its log lines. The agent and its set-up of OpenTelemetry use it.
package identity

import "strings"

// The attributes that a configuration has fields for, or sets itself.
const (
	ServiceName     = "service.name"
	ServiceVersion  = "service.version"
	ServiceInstance = "service.instance.id"
	Environment     = "deployment.environment.name"
)

// Keys are the attributes that identify a service.
var Keys = []string{ServiceName, ServiceVersion, "service.namespace", ServiceInstance, Environment, "deployment.environment"}

// Label returns the name of the label for an attribute.
func Label(attribute string) string { return strings.ReplaceAll(attribute, ".", "_") }

// Labels returns the labels for those of the attributes that identify the service.
func Labels(attributes map[string]string) map[string]string {
	labels := map[string]string{}
	for _, k := range Keys {
		if v := attributes[k]; v != "" {
			labels[Label(k)] = v
		}
	}
	return labels
}
