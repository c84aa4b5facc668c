package deploy_test

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// readYAML reads those fields of a file that the type of into has.
func readYAML(fsys fs.FS, name string, into any) error {
	content, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(content, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

type pyroscopeConfig struct {
	Architecture string `yaml:"architecture_storage"`
	Server       struct {
		Port int `yaml:"http_listen_port"`
	} `yaml:"server"`
	Storage struct {
		Filesystem struct {
			Dir string `yaml:"dir"`
		} `yaml:"filesystem"`
	} `yaml:"storage"`
	Metastore struct {
		DataDir string `yaml:"data_dir"`
		Raft    struct {
			Dir       string `yaml:"dir"`
			Snapshots string `yaml:"snapshots_dir"`
		} `yaml:"raft"`
	} `yaml:"metastore"`
	Analytics struct {
		Reporting *bool `yaml:"reporting_enabled"`
	} `yaml:"analytics"`
}

type tempoConfig struct {
	Server struct {
		Port int `yaml:"http_listen_port"`
	} `yaml:"server"`
	Distributor struct {
		Receivers struct {
			OTLP struct {
				Protocols struct {
					GRPC struct {
						Endpoint string `yaml:"endpoint"`
					} `yaml:"grpc"`
				} `yaml:"protocols"`
			} `yaml:"otlp"`
		} `yaml:"receivers"`
	} `yaml:"distributor"`
	Storage struct {
		Trace struct {
			WAL struct {
				Path string `yaml:"path"`
			} `yaml:"wal"`
			Local struct {
				Path string `yaml:"path"`
			} `yaml:"local"`
		} `yaml:"trace"`
	} `yaml:"storage"`
	Generator struct {
		Storage struct {
			Path        string `yaml:"path"`
			RemoteWrite []struct {
				URL string `yaml:"url"`
			} `yaml:"remote_write"`
		} `yaml:"storage"`
	} `yaml:"metrics_generator"`
	Overrides struct {
		Defaults struct {
			Generator struct {
				Processors string `yaml:"processors"` // a variable
			} `yaml:"metrics_generator"`
		} `yaml:"defaults"`
	} `yaml:"overrides"`
	UsageReport struct {
		Reporting *bool `yaml:"reporting_enabled"`
	} `yaml:"usage_report"`
}

// checkServers checks that Pyroscope's and Tempo's configuration matches the compose file: the ports that other
// services use, and all data on the volume.
func checkServers(fsys fs.FS) (errs []error) {
	project, err := loadProject(fsys)
	if err != nil {
		return []error{err}
	}
	report := func(file, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", file, fmt.Errorf(format, args...)))
	}
	onDisk := func(file, service, dir string) {
		if !onVolume(project.Services[service], dir) {
			report(file, "directory %q is on no volume of %s", dir, service)
		}
	}

	var p pyroscopeConfig
	if err := readYAML(fsys, pyroscope, &p); err != nil {
		errs = append(errs, err)
	} else {
		if p.Server.Port != 4040 {
			report(pyroscope, "http_listen_port is %d, must be 4040", p.Server.Port)
		}
		if p.Architecture != "v2" {
			report(pyroscope, "architecture_storage is %q, must be \"v2\"", p.Architecture)
		}
		if p.Analytics.Reporting == nil || *p.Analytics.Reporting {
			report(pyroscope, "analytics.reporting_enabled must be false: the demo works offline")
		}
		for _, dir := range []string{p.Storage.Filesystem.Dir, p.Metastore.DataDir, p.Metastore.Raft.Dir, p.Metastore.Raft.Snapshots} {
			onDisk(pyroscope, "pyroscope", dir)
		}
	}

	var t tempoConfig
	var blocks map[string]any
	if err := readYAML(fsys, tempo, &t); err != nil {
		errs = append(errs, err)
	} else if err := readYAML(fsys, tempo, &blocks); err != nil {
		errs = append(errs, err)
	} else {
		if t.Server.Port != 3200 {
			report(tempo, "http_listen_port is %d, must be 3200", t.Server.Port)
		}
		if got := t.Distributor.Receivers.OTLP.Protocols.GRPC.Endpoint; got != "0.0.0.0:4317" {
			report(tempo, "the OTLP receiver for gRPC listens on %q, must be 0.0.0.0:4317", got)
		}
		if t.UsageReport.Reporting == nil || *t.UsageReport.Reporting {
			report(tempo, "usage_report.reporting_enabled must be false: the demo works offline")
		}
		for _, block := range []string{"ingester", "compactor"} {
			if _, ok := blocks[block]; ok {
				report(tempo, "block %s: Tempo 3 refuses it", block)
			}
		}
		if w := t.Generator.Storage.RemoteWrite; len(w) != 1 || w[0].URL != "http://prometheus:9090/api/v1/write" {
			report(tempo, "remote_write is %+v, must be Prometheus alone", w)
		}
		name := strings.Trim(t.Overrides.Defaults.Generator.Processors, "${}")
		if got := environment(project, "tempo")[name]; got != "[service-graphs]" || !slices.Contains(project.Services["tempo"].Command, "-config.expand-env=true") {
			report(compose, "tempo: %s is %q, must be [service-graphs], with -config.expand-env=true", name, got)
		}
		onDisk(tempo, "tempo", t.Generator.Storage.Path)
		onDisk(tempo, "tempo", t.Storage.Trace.WAL.Path)
		onDisk(tempo, "tempo", t.Storage.Trace.Local.Path)
	}
	return errs
}
