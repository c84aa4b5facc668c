// Package check renders the upstream charts with our values files and validates all manifests against the schemas
// of Kubernetes. It is a separate module, because Helm requires a hundred others.
package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kubectl-validate/pkg/openapiclient"
	"sigs.k8s.io/kubectl-validate/pkg/validator"
	"sigs.k8s.io/yaml"
)

// kubernetes is the version of the schemas: the newest that the validator has.
const kubernetes = "1.30"

// The upstream charts are downloaded as Go modules, which verifies their checksums.
var charts = []struct {
	module, path, values, release string
}{
	{"github.com/grafana/pyroscope@v1.21.1", "operations/pyroscope/helm/pyroscope", "pyroscope-values.yaml", "pyroscope"},
	{"github.com/grafana-community/helm-charts@v0.0.0-20260829030558-dbf9f4fb5fa1", "charts/tempo-distributed", "tempo-values.yaml", "tempo"},
}

// objects decodes every document of a YAML stream and flattens lists.
func objects(stream []byte) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	for d := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096); ; {
		o := &unstructured.Unstructured{}
		if err := d.Decode(&o.Object); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		switch {
		case len(o.Object) == 0: // between two separators
		case o.IsList():
			list, err := o.ToList()
			if err != nil {
				return nil, err
			}
			for i := range list.Items {
				all = append(all, &list.Items[i])
			}
		default:
			all = append(all, o)
		}
	}
}

// schema returns a function that validates objects as an API server does.
func schema(t *testing.T) func(*unstructured.Unstructured) error {
	t.Helper()
	v, err := validator.New(openapiclient.NewHardcodedBuiltins(kubernetes))
	if err != nil {
		t.Fatal(err)
	}
	return func(o *unstructured.Unstructured) error {
		b, err := o.MarshalJSON()
		if err != nil {
			return err
		}
		_, parsed, err := v.Parse(b)
		if err != nil {
			return err
		}
		return v.Validate(parsed)
	}
}

// download returns the directory of a module.
func download(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", module).Output()
	var m struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &m); jsonErr != nil || m.Error != "" || m.Dir == "" {
		t.Fatalf("go mod download %s: %v, %v: %s%s", module, err, jsonErr, m.Error, out)
	}
	return m.Dir
}

// render renders a chart with one of our values files.
func render(t *testing.T, dir, values, release string) []*unstructured.Unstructured {
	t.Helper()
	c, err := loader.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join("..", values))
	if err != nil {
		t.Fatal(err)
	}
	var set map[string]any
	if err := yaml.Unmarshal(b, &set); err != nil {
		t.Fatalf("%s: %v", values, err)
	}
	known(t, values, set, c.Values)
	if err := chartutil.ProcessDependencies(c, set); err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(c, set, chartutil.ReleaseOptions{Name: release, Namespace: "observability", IsInstall: true}, nil)
	if err != nil {
		t.Fatalf("%s: %v", values, err)
	}
	files, err := engine.Render(c, all)
	if err != nil {
		t.Fatalf("%s: %v", values, err)
	}
	var rendered []*unstructured.Unstructured
	for name, content := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			continue
		}
		found, err := objects([]byte(content))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		rendered = append(rendered, found...)
	}
	return rendered
}

// known checks that the chart has each of our settings, because Helm ignores unknown ones. Settings that the
// chart leaves empty and passes on may have any content.
func known(t *testing.T, where string, set, has map[string]any) {
	t.Helper()
	for name, value := range set {
		there, ok := has[name]
		if !ok {
			t.Errorf("%s: the chart has no setting %q", where, name)
			continue
		}
		inner, isMap := value.(map[string]any)
		innerHas, hasMap := there.(map[string]any)
		if isMap && hasMap && len(innerHas) > 0 && !free[name] {
			known(t, where+": "+name, inner, innerHas)
		}
	}
}

// free lists settings whose content the chart passes on to the server unchanged.
var free = map[string]bool{"extraArgs": true, "trace": true, "structuredConfig": true}

func TestCharts(t *testing.T) {
	check := schema(t)
	for _, c := range charts {
		t.Run(c.release, func(t *testing.T) {
			rendered := render(t, filepath.Join(download(t, c.module), c.path), c.values, c.release)
			workloads, images := 0, map[string]bool{}
			compose, err := os.ReadFile("../../../docker-compose.yml")
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range rendered {
				if err := check(o); err != nil {
					t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
				}
				for _, image := range plain(o, "spec", "template", "spec", "containers", "image") {
					workloads++
					images[image] = true
				}
			}
			if workloads < 5 {
				t.Errorf("%d containers in %d objects: not the distributed mode", workloads, len(rendered))
			}
			for image := range images {
				image = strings.TrimPrefix(image, "docker.io/")
				if strings.HasPrefix(image, "grafana/") && !bytes.Contains(compose, []byte("image: "+image+"\n")) {
					t.Errorf("the image %s is not in docker-compose.yml", image)
				}
			}
		})
	}
}

// TestNoSecretsInManifests checks that the manifests refer to the bucket's credentials and do not contain them.
func TestNoSecretsInManifests(t *testing.T) {
	for _, c := range charts {
		for _, o := range render(t, filepath.Join(download(t, c.module), c.path), c.values, c.release) {
			if o.GetKind() == "Secret" {
				t.Errorf("%s: it renders the secret %s", c.release, o.GetName())
			}
			b, _ := o.MarshalJSON()
			for _, word := range []string{"supersecret", "minio"} {
				if bytes.Contains(b, []byte(word)) {
					t.Errorf("%s: %s %s contains %q", c.release, o.GetKind(), o.GetName(), word)
				}
			}
		}
	}
}

// workload reads the manifests of the services.
func workload(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	b, err := os.ReadFile("../workload.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found, err := objects(b)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWorkload(t *testing.T) {
	check := schema(t)
	settings, err := os.ReadFile("../../../docs/configuration.md") // generated from the settings
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, o := range workload(t) {
		kinds[o.GetKind()]++
		if err := check(o); err != nil {
			t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
		if o.GetKind() == "ConfigMap" {
			for name := range o.Object["data"].(map[string]any) {
				if !bytes.Contains(settings, []byte("`"+name+"`")) {
					t.Errorf("the agent does not read %s", name)
				}
			}
		}
		if o.GetKind() != "Deployment" {
			continue
		}
		for _, want := range []struct {
			what  string
			path  []string
			value string
		}{
			{"does not run as root", []string{"spec", "template", "spec", "securityContext", "runAsNonRoot"}, "true"},
			{"cannot write to its image", []string{"spec", "template", "spec", "containers", "securityContext", "readOnlyRootFilesystem"}, "true"},
			{"cannot gain privileges", []string{"spec", "template", "spec", "containers", "securityContext", "allowPrivilegeEscalation"}, "false"},
			{"has no capabilities", []string{"spec", "template", "spec", "containers", "securityContext", "capabilities", "drop"}, "ALL"},
			{"has a readiness probe", []string{"spec", "template", "spec", "containers", "readinessProbe", "httpGet", "path"}, "/readyz"},
			{"has a liveness probe", []string{"spec", "template", "spec", "containers", "livenessProbe", "httpGet", "path"}, "/healthz"},
			{"has a memory limit", []string{"spec", "template", "spec", "containers", "resources", "limits", "memory"}, "1Gi"},
			{"has a bounded spool", []string{"spec", "template", "spec", "volumes", "emptyDir", "sizeLimit"}, "384Mi"},
		} {
			if got := fmt.Sprint(plain(o, want.path...)); !strings.Contains(got, want.value) {
				t.Errorf("%s: it %s: %s is %s, want %s", o.GetName(), want.what, strings.Join(want.path, "."), got, want.value)
			}
		}
	}
	if kinds["Deployment"] != 2 || kinds["Service"] != 2 || kinds["ConfigMap"] != 1 {
		t.Errorf("the manifests have %v, want two deployments with a service each and one set of settings", kinds)
	}
}

// plain returns the values at a path of fields as text, for all elements of lists on the path.
func plain(o *unstructured.Unstructured, path ...string) []string {
	var found []string
	var walk func(v any, path []string)
	walk = func(v any, path []string) {
		switch v := v.(type) {
		case map[string]any:
			if len(path) > 0 && v[path[0]] != nil {
				walk(v[path[0]], path[1:])
			}
		case []any:
			for _, item := range v {
				walk(item, path)
			}
		default:
			if len(path) == 0 {
				found = append(found, fmt.Sprint(v))
			}
		}
	}
	walk(o.Object, path)
	return found
}

// TestBrokenManifests shows that the schema check can fail.
func TestBrokenManifests(t *testing.T) {
	check := schema(t)
	for name, breakIt := range map[string]func(map[string]any){
		"a field that is not there": func(o map[string]any) { o["spec"].(map[string]any)["replica"] = int64(2) },
		"a value of another type":   func(o map[string]any) { o["spec"].(map[string]any)["replicas"] = "two" },
		"no selector":               func(o map[string]any) { delete(o["spec"].(map[string]any), "selector") },
		"a version that is not":     func(o map[string]any) { o["apiVersion"] = "apps/v9" },
	} {
		for _, o := range workload(t) {
			if o.GetKind() == "Deployment" {
				breakIt(o.Object)
				if check(o) == nil {
					t.Errorf("%s: no error", name)
				}
				break
			}
		}
	}
}
