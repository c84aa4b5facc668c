package compare

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"spanflame/internal/format"
	"spanflame/profiles/internal/stacks"
)

// Rule is a condition under which a build fails:
//
//	rule      = metric [ "(" function ")" ] ":" ( "+" | "-" ) number "%" [ "@p<" number ] .
//
// such as "cpu:+10%@p<0.01", "alloc_space:+5%" or "cpu(example.com/shop.(*Cart).Price):+20%@p<0.05". The rule
// "cpu:+10%@p<0.01" fails if the total of cpu increased by more than 10 % and the p of the difference is below 0.01;
// "cpu:-10%@p<0.01" fails if it decreased by more. A rule with a function tests the function with what it called. The
// function "*" means every function; p is then corrected for their number. A rule without p tests only the size.
type Rule struct {
	Metric   string
	Function string  // empty for the total, "*" for every function
	Percent  float64 // above 0 for a rise, below 0 for a fall
	P        float64 // 0 for none
}

// rulePattern allows any characters in the name of a function.
var rulePattern = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_/.%-]*)(?:\((.+)\))?:([+-])([0-9]+(?:\.[0-9]+)?)%(?:@p<([0-9]*\.?[0-9]+(?:e-[0-9]+)?))?$`)

// ParseRule parses a rule.
func ParseRule(text string) (Rule, error) {
	bad := func(why string) (Rule, error) {
		return Rule{}, fmt.Errorf("rule %q: %s; want a rule like cpu:+10%%@p<0.01 or cpu(main.work):+10%%", text, why)
	}
	parts := rulePattern.FindStringSubmatch(text)
	if parts == nil {
		return bad("it is not of the form metric[(function)]:+N%[@p<P], or -N% for a decrease")
	}
	r := Rule{Metric: parts[1], Function: parts[2]}
	var err error
	if r.Percent, err = strconv.ParseFloat(parts[4], 64); err != nil {
		return bad("the percentage is not a number")
	}
	if parts[3] == "-" {
		if r.Percent == 0 || r.Percent > 100 {
			return bad("a decrease is more than 0 % and at most 100 %")
		}
		r.Percent = -r.Percent
	}
	if parts[5] != "" {
		if r.P, err = strconv.ParseFloat(parts[5], 64); err != nil || r.P <= 0 || r.P >= 1 {
			return bad("p must be between 0 and 1")
		}
	}
	return r, nil
}

// String returns the rule in the form that ParseRule accepts.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Metric)
	if r.Function != "" {
		fmt.Fprintf(&b, "(%s)", r.Function)
	}
	b.WriteString(":")
	if r.Percent >= 0 {
		b.WriteString("+")
	}
	fmt.Fprintf(&b, "%s%%", strconv.FormatFloat(r.Percent, 'f', -1, 64))
	if r.P > 0 {
		fmt.Fprintf(&b, "@p<%s", strconv.FormatFloat(r.P, 'g', -1, 64))
	}
	return b.String()
}

// Violation is a change that breaks a rule.
type Violation struct {
	Rule   string `json:"rule"`
	Name   string `json:"name"` // of the function, or "total"
	Change Values `json:"change"`
}

func (v Violation) String() string {
	text := fmt.Sprintf("%s: %s ", v.Rule, v.Name)
	if v.Change.Before != 0 && v.Change.After != 0 {
		text += "changed by "
	} else {
		text += "is "
	}
	text += v.Change.size()
	if v.Change.P < 1 {
		text += fmt.Sprintf(" (p=%.2g)", v.Change.P)
	}
	return text
}

// Verdict is the result of checking rules.
type Verdict struct {
	// Broken has the changes that break rules.
	Broken []Violation
	// Undecided has an error for each rule that these windows cannot decide. Such a rule neither holds nor fails.
	Undecided []error
	// Noisy has a message for each rule about every function that some functions vary too much for. They are not judged.
	Noisy []string
	// Small has a message for each rule about a function that is too small to be tested. Such a rule does not fail.
	Small []string
}

// Check checks all of the rules.
func (r *Report) Check(rules []Rule) (v Verdict) {
	undecided := func(rule Rule, err error) {
		v.Undecided = append(v.Undecided, fmt.Errorf("rule %s cannot be decided: %w", rule, err))
	}
	for _, rule := range rules {
		m, err := r.metric(rule)
		if err != nil {
			undecided(rule, err)
			continue
		}
		// one checks a single quantity.
		one := func(name string, values Values) {
			broken, err := rule.check(m, name, values, values.P, 1)
			if err != nil {
				undecided(rule, err)
			}
			v.Broken = append(v.Broken, broken...)
		}
		switch rule.Function {
		case "":
			one("total", m.Total.Cum)
		case "*":
			noisy, last := 0, error(nil)
			for _, c := range m.Functions {
				broken, err := rule.check(m, c.Name, c.Cum, c.Cum.Q, len(m.Functions))
				if err != nil {
					noisy, last = noisy+1, fmt.Errorf("%s: %w", c.Name, err)
				}
				v.Broken = append(v.Broken, broken...)
			}
			switch {
			case noisy > 0 && noisy == len(m.Functions):
				undecided(rule, fmt.Errorf("all functions vary too much, such as %w", last))
			case noisy > 0:
				v.Noisy = append(v.Noisy, fmt.Sprintf("rule %s: %d of %s vary too much for it", rule, noisy, format.Count(len(m.Functions), "function")))
			}
		default:
			name := stacks.Identity(rule.Function)
			i := slices.IndexFunc(m.Functions, func(c Change) bool { return c.Name == name })
			switch {
			case i >= 0:
				one(name, m.Functions[i].Cum)
			case r.table.Has(name):
				v.Small = append(v.Small, fmt.Sprintf("rule %s: the function's share of %s is too small", rule, m.Name))
			default:
				undecided(rule, errors.New("no window on either side has a function of that name"))
			}
		}
	}
	return v
}

// metric returns the rule's metric, and an error if it has too few windows to decide the rule.
func (r *Report) metric(rule Rule) (Metric, error) {
	var names []string
	for _, m := range r.Metrics {
		names = append(names, m.Name)
		if m.Name != rule.Metric {
			continue
		}
		if m.Per == perSpan {
			return m, errors.New("only slow requests are recorded, so the mean of their spans cannot show whether requests became slower: " +
				"save traces, which count all requests, give their numbers (--work-before, --work-after), " +
				"or divide by the time (--normalize duration), which profiles of another type show")
		}
		if m.Signed {
			return m, errors.New("some values are below 0, as in profiles that are differences, and of these nothing is a percentage")
		}
		if rule.P == 0 {
			return m, nil
		}
		n1, n2 := m.WindowsBefore, m.WindowsAfter
		if !m.Tested && m.Per == perRequest {
			return m, fmt.Errorf("there are too few requests for a p: record at least %d on each side, or omit @p", wallBins)
		}
		if !m.Tested {
			return m, fmt.Errorf("%s before and %d after are too few for a p: record at least %d on each side, or omit @p", format.Count(n1, "window"), n2, minWindows)
		}
		if m.SmallestP >= rule.P {
			return m, fmt.Errorf("with %s before and %d after no p is below %.2g: record more", format.Count(n1, "window"), n2, m.SmallestP)
		}
		return m, nil
	}
	return Metric{}, fmt.Errorf("metric %q was not compared: found %s", rule.Metric, strings.Join(names, ", "))
}

// check returns the violation if a quantity breaks the rule, and an error if the data cannot show a change as small as that
// of the rule. It is judged nevertheless if the change is larger than the smallest that the data can show, or if its
// interval has nothing that breaks the rule; and a rule about any change is judged by its p. The p is corrected for a
// number of tests.
func (r Rule) check(m Metric, name string, v Values, p float64, tests int) (broken []Violation, err error) {
	change := 100 * (float64(v.Ratio.Value) - 1)
	if math.IsNaN(change) {
		return nil, nil
	}
	if (r.P == 0 || p < r.P) && (r.Percent >= 0 && change > r.Percent || r.Percent < 0 && change < r.Percent) {
		broken = []Violation{{Rule: r.String(), Name: name, Change: v}}
	}
	if !m.Tested || v.Before == 0 || v.After == 0 || r.Percent == 0 {
		return broken, nil
	}
	if holds := 1 + r.Percent/100; r.Percent > 0 && float64(v.Ratio.High) <= holds || r.Percent < 0 && float64(v.Ratio.Low) >= holds {
		return nil, nil
	}
	at := cmp.Or(r.P, defaultAlpha) / float64(tests)
	wanted, smallest := math.Abs(math.Log1p(r.Percent/100)), math.Log1p(v.noise.smallest(at))
	if wanted >= smallest || broken != nil && math.Abs(math.Log(float64(v.Ratio.Value))) > smallest {
		return broken, nil
	}
	if r.Percent < 0 {
		smallest = -smallest
	}
	return nil, fmt.Errorf("the smallest change that these windows can show is %s (split against themselves, those before change by %s and those after by %s): %s",
		percent(math.Exp(smallest)), share(math.Expm1(v.noise.before)), share(math.Expm1(v.noise.after)),
		v.noise.advice(wanted, at, m.WindowsBefore, m.WindowsAfter))
}
