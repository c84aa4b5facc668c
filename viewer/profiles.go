package viewer

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"spanflame/viewer/source"

	"github.com/google/pprof/profile"

	"spanflame/internal/flame"
	"spanflame/internal/format"
	"spanflame/profiles"
)

// Limits of the page of profiles.
const (
	usualTime     = time.Hour // shown unless a time range is given: the last there is
	listedWindows = 60
)

// profilesPage is the data of the page of the profiles of a service: those of one type, merged.
type profilesPage struct {
	head
	ofService
	Version         string
	Instance        string // empty for all
	Type            profileType
	Types, Versions []part
	Sample, Of      string    // the sample type that is shown, and how the page names it
	Samples         []part    // all sample types, if there are several
	Mean            bool      // of several windows, as values at different moments are not added up
	From, To        time.Time // of the windows
	Count           int       // of them
	Flame           graph
	Others          flame.Graph
	Difference      *flame.Graph // of values above and below zero, instead of Flame
	Changes         []flame.Change
	Pprof, Download string
	Compare         []link
	Commands        []string
	Windows         []listedWindow // the latest first
	Why             string
}

// listedWindow is a window with the address of its own page.
type listedWindow struct {
	Path, Length, Instance string
	Started                time.Time
}

// profilesParameters are the parameters of the page and of its file.
var profilesParameters = []string{"service", "version", "instance", "type", "sample", "last", "from", "to"}

func (s *server) profilesPage(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, append([]string{"frame", "code"}, profilesParameters...)...)
	if err != nil {
		return err
	}
	view, err := parseView(q)
	if err != nil {
		return err
	}
	page := profilesPage{head: head{Title: "Profiles", Current: "profiles"}, Version: q.Get("version"), Instance: q.Get("instance")}
	now := time.Now()
	if page.ofService, err = s.chooseService(r.Context(), q, now); err != nil {
		return err
	}
	if page.Service == "" {
		page.Why = "There are no profiles yet. Start a service with the agent, or open a directory with files in pprof's format."
		return s.render(w, http.StatusOK, "profiles.html", page)
	}
	contents, err := s.contents(r.Context(), page.Service, page.Period)
	if err != nil {
		return err
	}
	if page.Type, err = chosenType(q.Get("type"), contents); err != nil {
		return err
	}
	q.Set("service", page.Service)
	q.Set("type", page.Type.Name)
	page.addTabs(q, contents)
	shown := page.Period
	if !q.Has("last") && !q.Has("from") && !q.Has("to") {
		shown = lastPart(page.Type, page.Version, contents, now)
		q.Set("from", shown.From)
		q.Set("to", shown.To)
	}
	for _, chosen := range choicesOf(page.Service, contents, s.options.Base != nil, now, s.zone) {
		if chosen.Words == page.Type.Words {
			page.Compare = chosen.Links
		}
	}
	err = s.mergeProfiles(r, &page, shown, q, view)
	if errors.Is(err, profiles.ErrNone) {
		page.Why = page.known("There is no such profile of this service and time range. Choose another type above, or a longer range.")
	} else if err != nil {
		return err
	}
	return s.render(w, http.StatusOK, "profiles.html", page)
}

// mergeProfiles fills the page with the chosen profiles of the time range that is shown.
func (s *server) mergeProfiles(r *http.Request, page *profilesPage, shown period, q url.Values, v view) error {
	ctx := r.Context()
	sel := source.Selection{Service: page.Service, Instance: page.Instance, Version: page.Version, Type: page.Type.Type, From: shown.from, To: shown.to}
	p, err := s.load(ctx, s.source, sel)
	if err != nil {
		return err
	}
	windows, err := s.source.Windows(ctx, sel)
	if err != nil {
		return err
	}
	files, err := s.source.Files(ctx, sel)
	if err != nil {
		return err
	}
	page.list(q, windows)
	value, err := shownSample(p, q.Get("sample"))
	if err != nil {
		return err
	}
	page.addSamples(p, value, q)
	page.Mean = source.Level(sel.Type) && len(windows) > 1
	at := "/profiles?" + q.Encode()
	page.Flame, page.Others = newFlame(p, value, at, v), newOthers(p)
	if differs := signs(p, value); differs.tree != nil {
		page.Difference, page.Changes = differs.draw(at+"&frame=", v.frame), differs.Changes
	}
	page.Download = "/profiles.pb.gz?" + q.Encode()
	page.Commands = []string{"go tool pprof -http=: " + quoteShell("http://"+r.Host+page.Download)}
	if of, ok := arguments(files); ok && (len(files) == 1 || !source.Level(sel.Type)) { // pprof adds them up, and the page shows the mean of levels
		page.Commands = append(page.Commands, "go tool pprof -http=:"+of)
	}
	spec := maps.Clone(q)
	spec.Set("kind", "profiles")
	page.Pprof = "/flame/" + encodeSpec(spec) + "/flamegraph"
	return nil
}

// chosenType returns the type of a name or, without one, the first type that the service has.
func chosenType(name string, contents []source.Content) (profileType, error) {
	if name != "" {
		return parseType(name)
	}
	types := typesIn(contents)
	if i := slices.IndexFunc(types, func(t profileType) bool { return t.Name == typeCPU }); i < 0 && len(types) > 0 {
		return types[0], nil
	}
	return parseType(typeCPU)
}

// addTabs adds the types and versions of the service.
func (page *profilesPage) addTabs(q url.Values, contents []source.Content) {
	tab := func(words, name, value string, current bool) part {
		of := maps.Clone(q)
		of.Set(name, value)
		return part{link{words, "/profiles?" + of.Encode()}, current}
	}
	types := typesIn(contents)
	if !slices.Contains(types, page.Type) {
		types = append(types, page.Type)
	}
	sample := q.Get("sample")
	q.Del("sample") // which another type need not have
	for _, t := range types {
		page.Types = append(page.Types, tab(format.Clean(t.Words, 200), "type", t.Name, t == page.Type))
	}
	if sample != "" {
		q.Set("sample", sample)
	}
	var versions []string
	for _, c := range contents {
		if c.Version != "" && !slices.Contains(versions, c.Version) {
			versions = append(versions, c.Version)
		}
	}
	if len(versions) < 2 && page.Version == "" {
		return
	}
	page.Versions = append(page.Versions, tab("all versions", "version", "", page.Version == ""))
	for _, v := range versions[max(0, len(versions)-listedVersions):] {
		page.Versions = append(page.Versions, tab(format.Clean(v, 80), "version", v, v == page.Version))
	}
}

// lastPart returns the last hour that has profiles of a type, or the last hour if that is not known.
func lastPart(t profileType, version string, contents []source.Content, now time.Time) period {
	to := time.Time{}
	for _, c := range contents {
		if c.Type == t.Type && (version == "" || c.Version == version) && c.To.After(to) {
			to = c.To
		}
	}
	if to.IsZero() {
		to = now
	}
	from := to.Add(-usualTime)
	if first := time.Unix(0, 0); from.Before(first) {
		from = first // of profiles without a time
	}
	to = to.Add(time.Millisecond) // which includes a profile of that moment
	return period{From: stamp(from), To: stamp(to), from: from, to: to}
}

// shownSample returns the index of the sample type of a name or, without one, that of the default. It is -1 for a profile
// without values.
func shownSample(p *profile.Profile, name string) (int, error) {
	if name == "" {
		return profiles.DefaultSampleIndex(p), nil
	}
	i := profiles.SampleIndex(p, name)
	if i < 0 {
		return i, badRequest("The profile has no sample type %q.", name)
	}
	return i, nil
}

// addSamples adds the sample types of a profile, of which one is shown.
func (page *profilesPage) addSamples(p *profile.Profile, value int, q url.Values) {
	page.Sample = p.SampleType[value].Type
	page.Of = page.Type.of(page.Sample)
	if len(p.SampleType) < 2 {
		return
	}
	for i, t := range p.SampleType {
		of := maps.Clone(q)
		of.Set("sample", t.Type)
		page.Samples = append(page.Samples, part{link{format.Clean(t.Type, 100), "/profiles?" + of.Encode()}, i == value})
	}
}

// list adds the windows to the page.
func (page *profilesPage) list(q url.Values, windows []source.Window) {
	page.Count = len(windows)
	for _, win := range windows {
		if !profiles.HasTime(win.From) {
			continue
		}
		if page.From.IsZero() || win.From.Before(page.From) {
			page.From = win.From.UTC()
		}
		if win.To.After(page.To) {
			page.To = win.To.UTC()
		}
	}
	of := url.Values{}
	for _, name := range []string{"service", "version", "type", "sample"} {
		if v := q.Get(name); v != "" {
			of.Set(name, v)
		}
	}
	for _, win := range slices.Backward(windows[max(0, len(windows)-listedWindows):]) {
		if win.Instance != "" {
			of.Set("instance", win.Instance)
		} else {
			of.Del("instance")
		}
		of.Set("from", stamp(win.From))
		of.Set("to", stamp(win.End()))
		page.Windows = append(page.Windows, listedWindow{
			Path: "/profiles?" + of.Encode(), Length: format.Duration(win.To.Sub(win.From)), Instance: win.Instance, Started: win.From.UTC(),
		})
	}
}

// profilesSelection returns the selection of the parameters.
func profilesSelection(q url.Values) (source.Selection, profileType, error) {
	if err := allow(q, profilesParameters...); err != nil {
		return source.Selection{}, profileType{}, err
	}
	t, err := parseType(cmp.Or(q.Get("type"), typeCPU))
	if err != nil {
		return source.Selection{}, t, err
	}
	p, err := parsePeriod(q, "", time.Now())
	if q.Get("service") == "" {
		err = cmp.Or(err, badRequest("Say which service: service=…"))
	}
	return source.Selection{
		Service: q.Get("service"), Instance: q.Get("instance"), Version: q.Get("version"), Type: t.Type, From: p.from,
		To: p.to,
	}, t, err
}

// profilesFile sends the profile of the page as a file.
func (s *server) profilesFile(w http.ResponseWriter, r *http.Request) error {
	q, err := parameters(r, profilesParameters...)
	if err != nil {
		return err
	}
	sel, t, err := profilesSelection(q)
	if err != nil {
		return err
	}
	return s.sendFile(w, r, sel, t.Name, "There is no such profile of this service and time range.")
}

// profilesPair reads the profile of the page.
func (s *server) profilesPair(ctx context.Context, q url.Values) (p, base *profile.Profile, err error) {
	sel, _, err := profilesSelection(q)
	if err == nil {
		p, err = s.source.Profile(ctx, sel)
	}
	if err != nil {
		return nil, nil, err
	}
	value, err := shownSample(p, q.Get("sample"))
	if err == nil && value >= 0 {
		p.DefaultSampleType = p.SampleType[value].Type
	}
	return p, nil, err
}
